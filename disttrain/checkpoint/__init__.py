"""Checkpoints of a run: saved in the background by all ranks, whole or not there at all, loaded by any number of ranks.

``save(dir, step=…, model=…, optimizer=…, …)`` and ``load(dir, model=…, optimizer=…, …)`` are all that a script needs.
"""

from disttrain.checkpoint.cost import interval
from disttrain.checkpoint.foreign import read_foreign
from disttrain.checkpoint.loading import Checkpoint, ledgers, load, read
from disttrain.checkpoint.saving import close, save, wait

__all__ = ["Checkpoint", "close", "interval", "ledgers", "load", "read", "read_foreign", "save", "wait"]
