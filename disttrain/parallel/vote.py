"""The step vote: with its last bucket of gradients each rank says how its part of the step went.

The votes are summed with the gradients, in the same call. Only if one was against going on do the ranks tell each
other why, in one more call.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Final

import numpy as np

from disttrain.collectives.call import NOT_THE_CALLER, caller, name_ranks
from disttrain.collectives.errors import PeerFailed
from disttrain.collectives.ledger import place
from disttrain.errors import AnomalyError
from disttrain.parallel.buckets import NOT_FINITE, WISHES
from disttrain.steering import Agreement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from disttrain.collectives.communicator import Communicator, Work
    from disttrain.context import Dealt
    from disttrain.nn.module import Module
    from disttrain.parallel.buckets import Bucket
    from disttrain.tensors import Tensor

_logger = logging.getLogger("disttrain")
_TEXT_BYTES = 1024
_POLICIES: Final = ("keep", "skip", "raise")
_MOST_NAMED: Final = 16
"""So many samples at most are named."""


class StepVote:
    """What the ranks that train one model together say of each step, and what becomes of it.

    Args:
        comm: the ranks.
        module: the model; it knows the names of its parameters.
        nonfinite: what to do with gradients that are not finite, see :class:`.DistributedDataParallel`.

    Raises:
        ValueError: there is no such ``nonfinite``.
    """

    def __init__(self, comm: Communicator, module: Module, nonfinite: str) -> None:
        if nonfinite not in _POLICIES:
            raise ValueError(f"nonfinite must be 'keep', 'skip' or 'raise', got {nonfinite!r}")
        self.agreement = Agreement()
        """What the ranks do after the next step."""
        self.batches: list[Dealt | None] = []
        """What this rank's backwards were made of since gradients were averaged last."""
        self.faults: list[tuple[Tensor, str]] = []
        """Parameters whose gradients are not finite on this rank, and what is in those."""
        self._comm = comm
        self._module = module
        self._nonfinite = nonfinite
        self._reported = False

    def use_comm(self, comm: Communicator) -> None:
        """Tell reasons in another group of the same ranks."""
        self._comm = comm

    def withdraw(self, error: Exception) -> None:
        """Tell the other ranks why this one could not make the step, against which it has voted."""
        Telling(self._comm, reason(error)).wait()

    def look_at(self, bucket: Bucket) -> None:
        """Note what of the gradients that this rank is about to contribute is not finite."""
        if not bucket.is_finite:
            self.faults += bucket.not_finite()

    def cast(self, last: Bucket) -> None:
        """Vote with the last bucket, after all were looked at."""
        if self.faults:
            last.votes[NOT_FINITE] = 1
        for wish in self.agreement.wishes():
            last.votes[WISHES + wish] = 1

    def hear(self, buckets: Sequence[Bucket]) -> None:
        """Take in the votes, which the last of the model's buckets has brought, and do without the step if need be.

        Raises:
            PeerFailed: some rank could not make the step.
            AnomalyError: some gradient is not finite, and that is to be an error.
        """
        not_finite, failed, *wishes = buckets[-1].votes.tolist()
        self.agreement.hear(wishes)
        try:
            if failed:
                reasons = self._drop(buckets)
                raise PeerFailed(
                    f"the gradients of this step are gone on all ranks, since not all could make it: {reasons}"
                )
            if not_finite:
                self._hear_not_finite(buckets)
        finally:
            self.batches.clear()

    def _hear_not_finite(self, buckets: Sequence[Bucket]) -> None:
        if self._nonfinite == "keep":
            if not self._reported:
                self._warn("averaged as it is (said once)", self._reasons())
                self._reported = True
            return
        reasons = self._drop(buckets)
        if self._nonfinite == "raise":
            raise AnomalyError(f"a gradient is not finite: {reasons}")
        self._warn("the step is skipped on all ranks", reasons)

    def _warn(self, done: str, reasons: str) -> None:
        if self._comm.rank == 0:
            _logger.warning("a gradient is not finite, %s: %s", done, reasons)

    def _reasons(self) -> str:
        """Return why some ranks do not want this step; all of them ask."""
        return Telling(self._comm, self._not_finite_here()).wait()

    def _drop(self, buckets: Sequence[Bucket]) -> str:
        """Forget the gradients on all ranks, and return why."""
        reasons = self._reasons()
        for bucket in buckets:
            for p in bucket.params:
                p._grad = None
        return reasons

    def _not_finite_here(self) -> str:
        """Return which gradients of this rank are not finite, and of which samples; "" if all are."""
        if not self.faults:
            return ""
        param, what = self.faults[0]
        names = {id(p): name for name, p in self._module.named_parameters()}
        words = f"{what} in the gradient of {names.get(id(param), list(param.shape))!r}"
        if len(self.faults) > 1:
            words += f" and {len(self.faults) - 1} more"
        batches = [dealt for dealt in self.batches if dealt is not None]
        if batches:
            words += f", made by {' and '.join(map(str, batches))}"
        ids = [str(i) for dealt in batches for i in dealt.indices or ()]
        if ids:
            more = ", …" if len(ids) > _MOST_NAMED else ""
            words += f" (samples {', '.join(ids[:_MOST_NAMED])}{more})"
        return words


class Telling:
    """The ranks' reasons on their way to all ranks.

    Args:
        comm: the ranks; all must tell, ``""`` if they have no reason.
        text: of this rank.
    """

    def __init__(self, comm: Communicator, text: str) -> None:
        data = text.encode()[:_TEXT_BYTES]
        mine = np.frombuffer(data.ljust(_TEXT_BYTES, b"\0"), np.uint8)
        self._everyone = np.empty((comm.size, _TEXT_BYTES), np.uint8)
        self._ranks = comm.ranks
        self.work: Work = comm.start_all_gather(mine, self._everyone)

    def wait(self) -> str:
        """Return all reasons with the ranks that have them: ``rank 1: …; ranks 2, 3: …``."""
        self.work.wait()
        reasons: dict[str, list[int]] = {}
        for rank, row in zip(self._ranks, self._everyone, strict=True):
            text = row.tobytes().rstrip(b"\0").decode(errors="ignore")
            if text:
                reasons.setdefault(text, []).append(rank)
        return "; ".join(f"{name_ranks(ranks)}: {text}" for text, ranks in reasons.items())


def reason(error: BaseException) -> str:
    """Return an error in one line, with the innermost line of the user's that raised it, or that called us."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][: _TEXT_BYTES // 2]
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(NOT_THE_CALLER)
    ]
    file, line = (frames[-1].filename, frames[-1].lineno or 0) if frames else caller()
    return f"{text} at {place(file, line)}"
