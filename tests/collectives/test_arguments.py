"""What a verb accepts, and what it says when it does not."""

import sys

import numpy as np
import pytest

from disttrain.collectives import TransportUnavailable, connect, run_ranks
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.select import choose
from disttrain.collectives.tree import cover

X = np.zeros(4)


def on_two_ranks(call):
    return run_ranks(WorkerEnv(world_size=2, hosted=2), lambda _: call(connect()))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda c: c.all_reduce([1.0], X), TypeError, "x must be a NumPy or a CuPy array, got list"),
        (lambda c: c.all_reduce(X.astype(complex), X), TypeError, "x has dtype complex128; supported: bool"),
        (lambda c: c.all_reduce(X, X.astype("f4")), TypeError, "one dtype, got float64 and float32"),
        (lambda c: c.all_reduce(X, np.zeros(5)), ValueError, r"4 elements for x of shape \(4,\) on 2 ranks"),
        (lambda c: c.all_reduce(X, X, op="avg"), ValueError, "op must be one of sum, .*, got 'avg'"),
        (lambda c: c.all_reduce(X[::2], X[:2]), ValueError, r"x must be C-contiguous, got shape \(2,\)"),
        (lambda c: c.reduce_scatter(np.zeros(3), X), ValueError, r"multiple of 2 \(ranks\) elements"),
        (lambda c: c.all_to_all(np.zeros(3), X), ValueError, "multiple of 2"),
        (lambda c: c.all_reduce(X[1:], X[:-1]), ValueError, "x and out overlap"),
        (lambda c: c.all_reduce(X, X, averaged=4), ValueError, "at most 3 can be averaged, by a sum, got averaged=4"),
        (lambda c: c.all_reduce(X, X, averaged=-1), ValueError, "got averaged=-1"),
        (lambda c: c.all_reduce(X, X, averaged=3, op="max"), ValueError, "got averaged=3 and op 'max'"),
        (lambda c: c.all_reduce(X.astype(int), X.astype(int), averaged=3), TypeError, "float64 on the CPU, got int64"),
        (lambda c: c.all_gather(X, X), ValueError, "out must have 8 elements"),
        (lambda c: c.broadcast(X, 2), ValueError, "root must be a rank of the group, 0 to 1, got 2"),
        (lambda c: c.send(X, c.rank), ValueError, "cannot send to itself"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, error, text):
    def check(comm):
        with pytest.raises(error, match=text):
            call(comm)

    on_two_ranks(check)


def test_read_only_results_are_refused():
    fixed = np.zeros(4)
    fixed.flags.writeable = False

    def check(comm):
        with pytest.raises(ValueError, match="read-only"):
            comm.all_reduce(fixed, fixed)

    on_two_ranks(check)


def test_overflow_and_nan_are_results_not_warnings():
    def check(comm):
        x = np.array([3e38, np.inf if comm.rank else -np.inf, np.nan if comm.rank else 1], np.float32)
        total, largest = np.empty_like(x), np.empty_like(x)
        comm.all_reduce(x, total)
        comm.all_reduce(x, largest, op="max")
        half = np.full(2, 60000, np.float16)
        comm.all_reduce(half, half)
        return total, largest, half

    for total, largest, half in on_two_ranks(check):
        np.testing.assert_array_equal(total, [np.inf, np.nan, np.nan])
        np.testing.assert_array_equal(largest, np.array([3e38, np.inf, np.nan], np.float32))
        np.testing.assert_array_equal(half, [np.inf, np.inf])


def test_a_world_of_one_needs_no_launcher(monkeypatch):
    monkeypatch.setattr("disttrain.collectives.world._host", None)

    comm = connect()
    x = np.arange(3.0)
    comm.all_reduce(x, x)

    assert (comm.rank, comm.size, comm.ranks, comm.transport) == (0, 1, (0,), "local")
    assert x.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ({}, ("local", "all ranks are in one process")),
        ({"world_size": 4, "hosted": 4}, ("local", "all ranks are in one process")),
        ({"world_size": 2, "processes": 2}, ("mpi", "NumPy arrays between 2 processes")),
        ({"world_size": 2, "processes": 2, "transport": "mpi"}, ("mpi", "asked for")),
    ],
)
def test_choice_of_transport(values, chosen):
    assert choose(WorkerEnv(**values)) == chosen


def test_an_explicit_transport_is_honoured_or_fails():
    with pytest.raises(TransportUnavailable, match="one process, and this job has 2 processes"):
        choose(WorkerEnv(world_size=2, processes=2, transport="local"))
    with pytest.raises(
        TransportUnavailable,
        match=r'nccl needs CuPy \(No module .*\); install it with `pip install "disttrain\[cuda13\]"`',
    ):
        choose(WorkerEnv(transport="nccl"))
    with pytest.raises(ValueError, match="transport must be one of auto, local, shm, mpi, nccl, got 'gloo'"):
        choose(WorkerEnv(transport="gloo"))


def test_no_mpi_library_says_what_to_install(monkeypatch):
    from disttrain.collectives.mpi import MpiTransport

    monkeypatch.setitem(sys.modules, "mpi4py", None)

    with pytest.raises(TransportUnavailable, match=r'pip install "disttrain\[mpi\]"'):
        MpiTransport(WorkerEnv(world_size=2, processes=2))


@pytest.mark.parametrize(
    ("environ", "rank", "size", "local"),
    [
        ({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, 1, 4, (1, 2)),
        (
            {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
             "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, 2, 3, (0, 1),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, 1, 4, (1, 1)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, 0, 1, (0, 1)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}, 2, 4, (0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, 0, 1, (0, 1)),  # the batch script
        ({}, 0, 1, (0, 1)),
    ],
)  # fmt: skip
def test_a_bare_mpiexec_is_a_world(environ, rank, size, local):
    env = WorkerEnv.from_environ(environ)

    assert (env.rank, env.world_size, env.process, env.processes) == (rank, size, rank, size)
    assert (env.local_rank, env.local_world_size) == local


@pytest.mark.parametrize(
    ("size", "members", "nodes"),
    [
        (8, range(8), [(0, 8)]),
        (8, [1, 2, 3, 4], [(1, 2), (2, 4), (4, 5)]),
        (4, [0, 1], [(0, 2)]),
        (6, [4, 5], [(4, 6)]),
        (3, [1, 2], [(1, 2), (2, 3)]),
        (4, [], []),
    ],
)
def test_a_process_folds_its_largest_subtrees(size, members, nodes):
    assert cover(size, members) == nodes
