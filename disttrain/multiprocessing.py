"""``torch.multiprocessing``: the standard library's module, and :func:`spawn`, by which the launcher starts ranks.

Tensors travel between processes as copies.
"""

from __future__ import annotations

import multiprocessing
from importlib import import_module
from typing import TYPE_CHECKING, Any

from disttrain import missing

if TYPE_CHECKING:
    from disttrain.launcher.function import spawn as spawn
    from disttrain.launcher.function import spawn as start_processes  # noqa: F401

_STRATEGIES = ("file_descriptor", "file_system")


def get_all_sharing_strategies() -> set[str]:
    """Return the words that :func:`set_sharing_strategy` takes."""
    return set(_STRATEGIES)


def set_sharing_strategy(new_strategy: str) -> None:
    """Check the word: tensors are copied, and no strategy is needed.

    Raises:
        ValueError: it is none of PyTorch's.
    """
    if new_strategy not in _STRATEGIES:
        raise ValueError(f"the strategy must be one of {', '.join(_STRATEGIES)}, got {new_strategy!r}")


def __getattr__(name: str) -> Any:
    if name in ("spawn", "start_processes"):  # what the launcher needs is not loaded before it is asked for
        return import_module("disttrain.launcher.function").spawn
    try:
        return getattr(multiprocessing, name)
    except AttributeError:
        raise missing.error("multiprocessing", name) from None
