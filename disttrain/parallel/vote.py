"""The step vote: with its last bucket of gradients each rank says how its part of the step went.

The votes are summed with the gradients, in the same call. Only if one was against going on do the ranks tell each
other why, in one more call.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import numpy as np

from disttrain.collectives.call import NOT_THE_CALLER, caller, name_ranks
from disttrain.collectives.ledger import place

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator, Work

_TEXT_BYTES = 1024


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
