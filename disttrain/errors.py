"""The exceptions of disttrain. Wrong arguments raise ``ValueError`` or ``TypeError``; the rest is this tree.

* ``GradientError(RuntimeError)``: backward cannot go the way that was asked
* ``AnomalyError(RuntimeError)``: anomaly mode found the first value that is not finite
* ``CaptureError(RuntimeError)``: what a captured step cannot repeat, with the line that did it
* ``LinAlgError(RuntimeError)``: a matrix that has no inverse, no factorisation of this kind
* ``UnwrappedModel(RuntimeError)``: an optimizer step in a world of several ranks on parameters nobody keeps equal
* ``ReplicasDiffer(RuntimeError)``: the ranks' copies of a model are no longer equal
* ``OutOfMemoryError(RuntimeError, MemoryError)``: a GPU has too little memory; says who holds it
* ``FileDamaged(ValueError)``: a file of ours that does not hold what it says
* ``SampleDamaged(FileDamaged)``: what a sample of a data set is made of; names file, offset, sample and rank
* ``CheckpointError(RuntimeError)``: a checkpoint could not be written
* ``CheckpointBusy(CheckpointError)``: another job writes into the folder; names it
* ``CheckpointMismatch(ValueError)``: a checkpoint does not fit what it was to be loaded into; lists all of it
* ``CollectiveError(RuntimeError)`` and what is below it: see ``disttrain.collectives.errors``
"""


class GradientError(RuntimeError):
    """Backward cannot go the way that was asked: a freed graph, a changed value, a non-scalar root."""


class AnomalyError(RuntimeError):
    """The first value that is not finite, with the operation and the user's line that made it."""


class CaptureError(RuntimeError):
    """A step does what cannot be captured, or cannot be replayed as it is called; names the line that did it."""


class LinAlgError(RuntimeError):
    """A matrix has no inverse or no factorisation of the kind that was asked for, as ``torch.linalg.LinAlgError``."""


class UnwrappedModel(RuntimeError):
    """An optimizer step in a world of several ranks, on parameters that no parallel wrapper keeps equal."""


class ReplicasDiffer(RuntimeError):
    """The ranks' copies of a model are no longer equal; names the first parameter, and the rank that differs."""


class OutOfMemoryError(RuntimeError, MemoryError):
    """A GPU has too little memory left: what was asked for, and who holds the rest. As ``torch.OutOfMemoryError``."""


class FileDamaged(ValueError):
    """A file of ours that does not hold what it says; names the tensor or the part that is wrong."""


class SampleDamaged(FileDamaged):
    """What a sample of a data set is made of is damaged, missing or has changed."""

    skipped = False
    """Whether a DataLoader is to go on without the sample."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; says why, and which one is the last good one."""


class CheckpointBusy(CheckpointError):
    """Another job writes into the folder of checkpoints; names its host, process and generation."""


class CheckpointMismatch(ValueError):
    """A checkpoint does not fit what it was to be loaded into; lists everything that does not."""
