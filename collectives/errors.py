"""What can go wrong between ranks.

::

    RuntimeError
    ├── CollectiveError           a call that several ranks make together failed
    │   ├── CollectiveMismatch    ranks of one group made different calls
    │   ├── CollectiveTimeout     some rank did not come in time
    │   ├── Deadlock              no rank of this process can ever go on
    │   └── PeerFailed            another rank failed first; look at that one
    ├── RankFailed                a rank hosted as a thread raised: which one, and what
    └── TransportUnavailable      the asked-for way to move bytes is not there, and why
"""


class CollectiveError(RuntimeError):
    """A call that several ranks make together failed."""


class CollectiveMismatch(CollectiveError):
    """Ranks of one group made different calls; raised with one text on all of them, before data moves."""


class CollectiveTimeout(CollectiveError):
    """A rank waited for the others longer than ``WorkerEnv.timeout``. The group cannot be used any more."""


class Deadlock(CollectiveError):
    """Every rank of this process waits or has finished, and nothing is in flight that could wake one."""


class PeerFailed(CollectiveError):
    """Another rank failed, so this call can never complete. A consequence, never the cause."""


class RankFailed(RuntimeError):
    """A hosted rank raised. ``exception`` (also ``__cause__``, with its traceback) is what it raised."""

    def __init__(self, rank: int, exception: BaseException) -> None:
        super().__init__(f"rank {rank} failed: {type(exception).__name__}: {exception}")
        self.rank = rank
        self.exception = exception


class TransportUnavailable(RuntimeError):
    """The transport that was asked for cannot work here; the text names what is missing."""
