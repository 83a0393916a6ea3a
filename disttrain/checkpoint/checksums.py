"""Checksums of tensors, against damage.

``xxh3:`` and 32 digits: XXH3 with 128 bits, which a core computes faster than it copies memory. It is no proof against
somebody who wants to deceive; nor would any other be that lies in the same folder as what it is of. Checkpoints of the
format's first version have 64 digits alone, of SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, Protocol

import xxhash

_XXH3: Final = "xxh3:"
_TEXT: Final = re.compile(r"xxh3:[0-9a-f]{32}|[0-9a-f]{64}")
LENGTH: Final = len(_XXH3) + 32
"""Characters of a checksum that is written now."""


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


class Checksum:
    """The checksum of bytes that come one after the other.

    Args:
        like: a checksum to be compared with, which says of what kind it is; by default one of the kind that is written.
    """

    def __init__(self, like: str = _XXH3) -> None:
        self._kind = _XXH3 if like.startswith(_XXH3) else ""
        self._hash: _Hash = xxhash.xxh3_128() if self._kind else hashlib.sha256()

    def update(self, data: memoryview) -> None:
        """Take more bytes; other threads run meanwhile if they are many."""
        self._hash.update(data)

    @property
    def text(self) -> str:
        """Of all bytes so far."""
        return self._kind + self._hash.hexdigest()


def is_checksum(text: Any) -> bool:
    """Return whether this is a text of :class:`Checksum`."""
    return isinstance(text, str) and _TEXT.fullmatch(text) is not None
