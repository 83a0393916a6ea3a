"""What PyTorch keeps per process and we keep per rank, because ranks may be threads of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from disttrain import dtypes
from disttrain.collectives.env import hosted_rank

if TYPE_CHECKING:
    from disttrain.collectives.meter import Meter
    from disttrain.random import Generator


@dataclass(frozen=True, slots=True)
class Dealt:
    """What is known of the batch that a DataLoader handed out last."""

    samples: int
    """How many it has; the default weight of a backward."""
    indices: Sequence[Any] | None = None
    """Which ones, if the data set is a map."""
    position: tuple[int, int] | None = None
    """(epoch, number of the batch in it), where the loader itself deals to the ranks: then it is equal on all."""
    key: tuple[int, int] | None = None
    """(seed, epoch) of the random numbers of its samples, where the loader itself deals."""

    def __str__(self) -> str:
        if self.position is None:
            return f"a batch of {self.samples} samples"
        return f"batch {self.position[1]} of epoch {self.position[0]}"


class RankContext:
    """The state of one rank: its default generator and dtype, and what its loader dealt last."""

    def __init__(self) -> None:
        self.default_dtype = dtypes.float32
        self.generator: Generator | None = None
        """Made at its first use, from the rank's number."""
        self.dealt: Dealt | None = None
        """The batch that a DataLoader handed out last; ``None`` once its epoch has ended."""
        self.loop: Any = None
        """A weak reference to the epoch of that DataLoader."""
        self.meter: Meter | None = None
        """Where the rank counts what it does, once it has counted."""
        self.on_save: Callable[[], Any] | None = None
        """What the script does when it is asked to save."""
        self.order_seed: int | None = None
        """The seed of rank 0, once a parallel wrapper has asked for it: it orders data sets on all ranks."""
        self.wrappers = 0
        """Number of parallel wrappers that the rank has made."""
        self.units = 0
        """Number of sharded modules that the rank has made."""
        self.checkpoints: dict[str, Any] = {}
        """By folder what writes checkpoints into it."""
        self.initialized = False
        """Whether ``distributed.init_process_group`` has run."""
        self.world: Any = None
        """The process group of all ranks, once it has been asked for."""


_process = RankContext()
grad_enabled: ContextVar[Any] = ContextVar("grad_enabled", default=True)
"""Whether operations are recorded: true or false; see ``disttrain.modes``.

By thread, as in PyTorch, and so not part of :class:`RankContext`.
"""
autocast_state: ContextVar[Any] = ContextVar("autocast_state", default=None)
"""What mixed precision does, by thread too: ``None`` for nothing, else a ``disttrain.precision.State``."""


def current() -> RankContext:
    """Return the context of the calling rank: of its thread if ranks are threads, else of the process."""
    rank = hosted_rank()
    if rank is None:
        return _process
    if rank.context is None:
        rank.context = RankContext()
    context: RankContext = rank.context
    return context
