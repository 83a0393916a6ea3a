"""Arrays on GPUs, on the stand-in for one: what is refused, what waits for what, and which way arrays go."""

import re

import fake_cupy
import numpy as np
import pytest

from disttrain.collectives import TransportUnavailable, connect, nccl, run_ranks
from disttrain.collectives.cuda import Gpu
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.select import choose


def on_two_ranks(call, **options):
    return run_ranks(WorkerEnv(world_size=2, hosted=2, **options), lambda _: call(connect()))


def offers(*told):
    return b"".join(nccl._OFFER.pack(*one) for one in told)


def test_results_are_in_the_order_of_the_callers_stream(cupy):
    def check(comm):
        mine = cupy.cuda.Stream(non_blocking=True)
        with mine:
            x = cupy.asarray(np.full(1000, comm.rank + 1.0))  # set by the stream, some time later
            comm.all_reduce(x, x)
            y = comm.empty(1000, float, like=x)
            cupy.add(x, x, out=y)
            return y.get()

    for y in on_two_ranks(check):
        assert set(y) == {6.0}


def test_empty_is_where_its_like_is(cupy):
    def check(comm):
        x = cupy.empty(3)
        assert type(comm.empty(3, np.int8)) is np.ndarray
        assert type(comm.empty(3, np.int8, like=np.zeros(1))) is np.ndarray
        y = comm.empty((2, 3), np.int8, like=x)
        assert (type(y), y.shape, y.dtype) == (type(x), (2, 3), np.int8)

    on_two_ranks(check)


def test_done_is_when_the_gpu_is(cupy):
    """A stream that is held back holds back what comes after it, and nobody on the CPU."""

    def check(comm):
        held = cupy.cuda.Event()
        held._flag.clear()
        mine = cupy.cuda.Stream(non_blocking=True)
        with mine:
            x = cupy.asarray(np.ones(3))
            mine.wait_event(held)
            work = comm.start_all_reduce(x, x)
            work.wait()
            assert not work.done
            held._flag.set()
            assert x.get().tolist() == [1, 1, 1]
            assert work.done

    run_ranks(WorkerEnv(), lambda _: check(connect()))


def test_memory_of_what_is_in_flight_is_not_used_for_something_else(cupy):
    held = cupy.cuda.Event()
    held._flag.clear()

    def check(comm):
        out = cupy.empty(3)
        with cupy.cuda.Stream(non_blocking=True) as early:
            x = cupy.asarray(np.ones(3))
        early.synchronize()
        with cupy.cuda.Stream(non_blocking=True) as late:
            late.wait_event(held)  # and so does the call
            comm.start_all_reduce(x, out)
            del x  # to `early`, nothing of it is needed any more
            early.synchronize()
            held._flag.set()
            comm.all_reduce(out, out)
            return out.get()

    (out,) = run_ranks(WorkerEnv(), lambda _: check(connect()))
    assert out.tolist() == [1, 1, 1]


def test_arrays_of_another_gpu_and_of_two_devices_are_refused(cupy):
    def check(comm):
        x = cupy.empty(3)
        with cupy.cuda.Device(1):
            other = cupy.empty(3)
        comm.all_reduce(x, x)
        with pytest.raises(
            ValueError, match="an array is on GPU 1, and this process has communicated from GPU 0"
        ):
            comm.all_reduce(other, other)
        with pytest.raises(TypeError, match="x and out must be on one device, and only x is on a GPU"):
            comm.all_reduce(x, np.zeros(3))
        with pytest.raises(TypeError, match="only out is on a GPU"):
            comm.all_reduce(np.zeros(3), x)
        with pytest.raises(ValueError, match="x and out overlap"):
            comm.all_reduce(x[1:], x[:-1])
        with pytest.raises(ValueError, match=r"pass .*\.ascontiguousarray\(x\)"):
            comm.broadcast(cupy.empty((3, 2))[:, :1])

    on_two_ranks(check)


def test_processes_that_cannot_use_nccl_are_told_why():
    ranks = [[0], [1], [2]]
    a, b, c = b"a" * 16, b"b" * 16, b"c" * 16

    assert nccl.refusal(offers((22809, a), (22809, b), (22809, c)), ranks) == ""
    assert "rank 1 found no NCCL" in nccl.refusal(offers((22809, a), (0, b), (22809, c)), ranks)
    assert "the processes have NCCL 2.28.9 and 2.30.7; install one version" in nccl.refusal(
        offers((22809, a), (22809, b), (23007, c)), ranks
    )
    assert "ranks 0, 2 are in several processes on one GPU" in nccl.refusal(
        offers((22809, a), (22809, b), (22809, a)), ranks
    )


def test_a_gpu_may_be_shared_where_nccl_was_told_so(cupy, monkeypatch):
    gpu = Gpu(0)
    assert nccl.refusal(nccl.offer(gpu) * 2, [[0], [1]])

    monkeypatch.setenv("NCCL_HOSTID", "r0")

    assert nccl.refusal(nccl.offer(gpu) + nccl.offer(gpu), [[0], [1]]) == ""


def test_nccl_asked_for_by_name_is_there_or_says_what_is_missing(cupy, monkeypatch):
    env = WorkerEnv(world_size=2, processes=2, transport="nccl")
    assert choose(env) == ("nccl", "asked for")

    monkeypatch.setattr(fake_cupy, "VERSION", 2804)
    with pytest.raises(
        TransportUnavailable, match=re.escape("needs NCCL 2.18.0 or newer, and 2.8.4 is there")
    ):
        choose(env)
    monkeypatch.setattr(cupy, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none")
    with pytest.raises(TransportUnavailable, match=r"sees none \(CUDA_VISIBLE_DEVICES is none\)"):
        choose(env)
    monkeypatch.setattr(fake_cupy, "VERSION", 0)
    with pytest.raises(
        TransportUnavailable, match=r"needs the NCCL library; .* tried: the stand-in has none"
    ):
        choose(env)


def test_another_transport_that_was_asked_for_stays():
    def check(comm):
        with pytest.raises(TransportUnavailable, match="the job was started with --transport local; use"):
            comm.require_nccl()

    on_two_ranks(check, transport="local")


@pytest.mark.mpi
def test_nccl_asked_for_by_name_is_not_replaced(mpiexec):
    job = mpiexec(2, "gpu_faults.py", "refused", "gpu=nccl", timeout=30, env={"FAKE_GPU_UUID": "of both"})

    assert job.returncode == 0, job.stderr
    # mpiexec may put what two processes say into one line
    assert (
        job.stdout.count(
            "TransportUnavailable: the nccl transport cannot connect these processes: ranks 0-1 are in "
        )
        == 2
    )


@pytest.mark.mpi
def test_auto_says_once_which_way_arrays_go_and_why(mpiexec):
    over_nccl = mpiexec(2, "gpu_faults.py", "told", "gpu=nccl", timeout=30)
    staged = mpiexec(2, "gpu_faults.py", "told", "gpu=nccl", timeout=30, env={"FAKE_GPU_UUID": "of both"})

    _, said = over_nccl.stderr.split("\n", 1)  # the first line is about arrays of the host
    assert said == "GPU arrays go over nccl 2.28.9 (a GPU for each process)\n"
    assert re.fullmatch(
        r"GPU arrays go through host memory over mpi: ranks 0-1 are in several processes on one GPU, .*\n",
        staged.stderr.split("\n", 1)[1],
    )


@pytest.mark.mpi
def test_nccl_needs_no_mpi(mpiexec):
    asked_for = mpiexec(2, "gpu_faults.py", "told", "gpu=nccl", "without-mpi", timeout=30,
                        env={"DISTTRAIN_TRANSPORT": "nccl"})  # fmt: skip
    auto = mpiexec(2, "gpu_faults.py", "told", "gpu=nccl", "without-mpi", timeout=30)

    over_nccl = "GPU arrays go over nccl 2.28.9 (a GPU for each process)\n"
    why = r"there is no MPI library \(this test does without MPI\); install one with .*"
    assert re.fullmatch(
        rf"communicating over nccl for GPU arrays and shm for others, shared memory \(asked for; {why}\)\n"
        + re.escape(over_nccl),
        asked_for.stderr,
    )
    assert re.fullmatch(
        rf"communicating over shm, shared memory \(NumPy arrays between 2 processes; {why}\)\n"
        + re.escape(over_nccl),
        auto.stderr,
    )


@pytest.mark.mpi
def test_arrays_on_a_gpu_and_on_the_host_do_not_match(mpiexec):
    job = mpiexec(2, "gpu_faults.py", "on_one_host_and_one_gpu", "gpu=nccl", timeout=30)

    assert job.returncode == 0, job.stderr
    assert "  rank 0: all_reduce(float32, shape (4,), op sum) at gpu_faults.py:" in job.stdout
    assert "  rank 1: all_reduce(float32 on the GPU, shape (4,), op sum) at gpu_faults.py:" in job.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["nccl", "mpi"])
def test_arrays_that_nobody_keeps_live_as_long_as_they_are_in_flight(mpiexec, transport):
    env = {"FAKE_GPU_JITTER_S": "0.005"}

    job = mpiexec(2, "gpu_faults.py", "dropped", f"gpu={transport}", timeout=60, env=env)

    assert job.returncode == 0, job.stderr
