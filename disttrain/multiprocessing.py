"""``torch.multiprocessing``: the standard library's module. Tensors travel between processes as copies.

Ranks are started by the launcher, which is why :func:`spawn` is refused.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

from disttrain import missing

_STRATEGIES = ("file_descriptor", "file_system")

spawn = missing.refused(
    "multiprocessing.spawn",
    "use disttrain.launch(fn, args, nproc=N): the function has its rank in os.environ['RANK']",
)
start_processes = missing.refused(
    "multiprocessing.start_processes",
    "use disttrain.launch(fn, args, nproc=N): the function has its rank in os.environ['RANK']",
)


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
    try:
        return getattr(multiprocessing, name)
    except AttributeError:
        raise missing.error("multiprocessing", name) from None
