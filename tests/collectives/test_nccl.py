"""What only CuPy and NCCL themselves can say: that CuPy has what we call, and, where there is a GPU, that they work."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from disttrain.collectives import nccl
from disttrain.collectives.cuda import Gpu

ROOT = Path(__file__).parents[2]
cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
needs_gpu = pytest.mark.skipif(not cupy.is_available(), reason="CuPy sees no GPU")


def test_cupy_has_what_we_call():
    cuda, runtime = cupy.cuda, cupy.cuda.runtime

    for home, names in (
        (
            cupy,
            (
                "empty",
                "copyto",
                "add",
                "multiply",
                "minimum",
                "maximum",
                "bitwise_and",
                "ndarray",
                "is_available",
            ),
        ),
        (cuda, ("Device", "Stream", "Event", "get_current_stream")),
        (cuda.Stream, ("wait_event", "__enter__", "__exit__")),
        (cuda.Event, ("record", "done")),
        (runtime, ("memcpyAsync", "memcpyHostToDevice", "memcpyDeviceToHost", "getDeviceProperties")),
        (runtime, ("deviceGetPCIBusId",)),
        (cupy.ndarray, ("data", "device", "flags", "strides", "nbytes")),
    ):
        assert [name for name in names if not hasattr(home, name)] == []
    with (
        pytest.raises(nccl.TransportUnavailable, match="sees none")
        if not cupy.is_available()
        else nullcontext()
    ):
        nccl.find()


@pytest.mark.gpu
@needs_gpu
def test_one_process_over_nccl():
    gpu = Gpu(0)
    ready, made = nccl.connect(gpu, 1, nccl.unique_id(first=True), 0, lambda: False)
    while not ready():
        pass
    link = made()
    x = cupy.arange(5, dtype=np.float32)
    cupy.cuda.get_current_stream().synchronize()

    with gpu.on(link.stream):
        link.all_reduce(x, "sum")
        link.broadcast(x, 0)
    gpu.follow(gpu.mark(link.stream))

    assert x.get().tolist() == [0, 1, 2, 3, 4]
    link.check()
    link.close()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("transport", ["nccl", "shm"])
@pytest.mark.parametrize("program", ["verbs.py", "random_programs.py"])
def test_two_processes_on_one_gpu(mpiexec, transport, program):
    """NCCL takes two processes on one GPU for two machines where each names itself (``NCCL_HOSTID``); without MPI."""
    env = {
        "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "NCCL_NET": "Socket", "NCCL_MAX_CTAS": "2",
    }  # fmt: skip

    job = mpiexec(2, program, "0", "10", f"real-gpu={transport}", "without-mpi", timeout=110, env=env)

    assert job.returncode == 0, job.stdout + job.stderr


@pytest.mark.gpu
@needs_gpu
def test_a_world_of_one_reduces_in_place_on_the_gpu():
    code = (
        "import cupy; from disttrain.collectives import connect; comm = connect(); x = cupy.ones(1 << 20, 'f2');"
        "comm.all_reduce(x, x); y = comm.empty(3, 'f4', like=x); assert isinstance(y, cupy.ndarray);"
        "print(float(x.sum(dtype='f4')))"
    )

    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert out.stdout.strip() == str(float(1 << 20))
