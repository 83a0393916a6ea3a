"""Groups of ranks exchanging arrays: the communicator, its transports, and the contract with the launcher.

Names are loaded when they are used, so that the launcher can import :mod:`.env` without loading arrays.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator, Work
    from disttrain.collectives.errors import (
        CollectiveError,
        CollectiveMismatch,
        CollectiveTimeout,
        Deadlock,
        PeerFailed,
        RankFailed,
        TransportUnavailable,
    )
    from disttrain.collectives.local import run_ranks
    from disttrain.collectives.world import connect, empty, rank0_first

__all__ = [
    "CollectiveError",
    "CollectiveMismatch",
    "CollectiveTimeout",
    "Communicator",
    "Deadlock",
    "PeerFailed",
    "RankFailed",
    "TransportUnavailable",
    "Work",
    "connect",
    "empty",
    "rank0_first",
    "run_ranks",
    "shutdown",
]

_HOME = {
    "Communicator": "communicator",
    "Work": "communicator",
    "connect": "world",
    "empty": "world",
    "rank0_first": "world",
    "run_ranks": "local",
}


def shutdown() -> None:
    """End communication at the normal end of a job, if this process has ever connected.

    Every rank must come here, with nothing left to wait for (ranks that are threads do, in ``run_ranks``).

    Raises:
        CollectiveMismatch: other ranks are still in a collective, so this one ended too early.
    """
    world = sys.modules.get("disttrain.collectives.world")
    if world is not None:
        world.shutdown()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"disttrain.collectives.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
