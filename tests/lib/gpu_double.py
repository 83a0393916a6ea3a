"""What a test program does so that its arrays are on the stand-in for a GPU: ``program.py … gpu=nccl``.

``gpu=nccl`` goes over NCCL, ``gpu=mpi`` and ``gpu=shm`` through host memory: also where nobody asks for that, since
all processes have one GPU then. ``real-gpu=…`` does the same with CuPy, all processes on the first GPU. Else arrays
are NumPy's.
"""

import os
import sys
from typing import Any

import fake_cupy
from on_gpu import OnGpu

from disttrain.collectives import Communicator, on_gpu, staging

_HOW, _, _WANTED = next((word for word in sys.argv if word.startswith(("gpu=", "real-gpu="))), "").partition(
    "="
)
if _WANTED:
    on_gpu.PIECE_BYTES, staging.PIECE_BYTES = 1 << 20, 256 << 10  # so that large arrays of tests have many
if _HOW == "gpu":
    fake_cupy.install()
    if _WANTED != "nccl":
        fake_cupy.UUID = "of all"
elif _WANTED == "nccl":
    os.environ["NCCL_HOSTID"] = f"process {os.getpid()}"  # else NCCL refuses two processes on one GPU


def transport() -> str:
    """Return the transport to ask for."""
    return _WANTED or "auto"


def wrapped(comm: Communicator) -> Any:
    """Return ``comm``, or one that moves its arrays on the GPU."""
    return OnGpu(comm) if _WANTED else comm


def check() -> None:
    """Raise what the stand-in has found wrong."""
    assert not fake_cupy.failures, "\n".join(fake_cupy.failures)
