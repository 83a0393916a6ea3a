"""Who gets which GPU and which cores, on machines that are made of files."""

import os
from dataclasses import replace

import pytest

from disttrain.collectives.env import WorkerEnv
from disttrain.launcher.gpus import Gpu
from disttrain.launcher.placement import Machine, ranges, table


@pytest.fixture
def machine(tmp_path):
    """Make a machine: two NUMA nodes with four cores of two threads each; thread ``c + 8`` is of core ``c``."""
    for node, cpus in [(0, "0-3,8-11"), (1, "4-7,12-15")]:
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
    for cpu in range(16):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n")
    return tmp_path


def places(root, processes, *, hosted=1, allowed=range(16), gpus=(), **environ):
    machine = replace(Machine.look(root, allowed, environ), gpus=tuple(gpus))
    size = processes * hosted
    envs = [
        WorkerEnv(
            rank=p * hosted, world_size=size, hosted=hosted, process=p, processes=processes,
            local_rank=p * hosted, local_world_size=size,
        )
        for p in range(processes)
    ]  # fmt: skip
    return [machine.place(env, environ) for env in envs]


def test_a_process_gets_whole_cores_of_one_numa_node(machine):
    assert [p.cores for p in places(machine, 4)] == [
        (0, 8, 1, 9),
        (2, 10, 3, 11),
        (4, 12, 5, 13),
        (6, 14, 7, 15),
    ]
    assert [p.numa for p in places(machine, 4)] == [(0,), (0,), (1,), (1,)]
    assert all(p.bound for p in places(machine, 4))


def test_cores_that_we_may_not_use_are_not_given(machine):
    assert [p.cores for p in places(machine, 2, allowed=[1, 2, 3, 5, 6])] == [(1, 2, 3), (5, 6)]


def test_gpus_that_are_left_out_are_not_given(tmp_path):
    machine = Machine({0: (0, 1, 2, 3)}, tuple(map(Gpu, "3210")))

    assert [gpu.name for gpu in machine.without([1]).gpus] == ["3", "1", "0"]
    assert machine.without([4]) is machine
    assert machine.without([]) is machine


def test_a_process_alone_has_all_cores(machine):
    (place,) = places(machine, 1, hosted=4)

    assert sorted(place.cores) == list(range(16))
    assert not place.bound


def test_a_process_has_a_thread_for_each_of_its_cores_unless_told_otherwise(machine):
    looked = Machine.look(machine, range(16), {})
    env = WorkerEnv(world_size=2, processes=2, local_world_size=2)
    limits = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def given(env, environ):
        place = looked.place(env, environ, limits)
        return place.threads, place.variables

    assert given(env, {}) == (
        "4",
        {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"},
    )  # of eight, two are one core
    assert given(env, {"OMP_NUM_THREADS": "3"}) == ("3", {"MKL_NUM_THREADS": "4"})
    assert given(env, {"OMP_PROC_BIND": "false"}) == ("1", limits)  # all cores are everybody's
    assert given(replace(env, fixed_order=True), {}) == ("1", limits)
    assert looked.place(env, {}).variables == {}


def test_processes_that_would_have_one_core_share_all(machine):
    shared = places(machine, 4, allowed=range(4))

    assert [p.cores for p in shared] == [(0, 1, 2, 3)] * 4
    assert not any(p.bound for p in shared)


@pytest.mark.parametrize("name", ["OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_who_binds_himself_is_not_bound(machine, name):
    assert not any(p.bound for p in places(machine, 4, **{name: "false"}))


def test_ranks_that_share_a_process_have_their_cores_together(machine):
    first, second = places(machine, 2, hosted=2)

    assert (sorted(first.cores), first.numa) == ([0, 1, 2, 3, 8, 9, 10, 11], (0,))
    assert (sorted(second.cores), second.numa) == ([4, 5, 6, 7, 12, 13, 14, 15], (1,))


def test_a_process_is_near_its_gpu(machine):
    gpus = [Gpu(str(i), numa) for i, numa in enumerate([1, 1, 0, 0])]

    near = places(machine, 4, gpus=gpus)

    assert [p.gpus for p in near] == [(gpu,) for gpu in gpus]
    assert [p.numa for p in near] == [(1,), (1,), (0,), (0,)]
    assert near[0].cores == (4, 12, 5, 13)
    assert [p.gpus for p in places(machine, 2, gpus=gpus[:1])] == [(gpus[0],), ()]


def test_this_machine_has_a_table():
    (place,) = [Machine.look().place(WorkerEnv(), {"OMP_NUM_THREADS": "1"})]

    heading, line = table([("here", place.words)])

    assert heading.split() == ["rank", "process", "host", "GPU", "NUMA", "threads", "cores"]
    assert line.split()[:3] == ["0", "0", "here"]
    assert line.endswith(f"{ranges(sorted(os.sched_getaffinity(0)))} (shared)")


def test_ranges_are_short():
    assert ranges([0, 1, 2, 3, 8, 10, 11]) == "0-3,8,10-11"


def test_a_dry_run_shows_the_table_and_starts_nothing(start, tmp_path):
    job = start(
        "open('ran', 'w')",
        "launch",
        "-n",
        "2",
        "--ranks",
        "4",
        "--chaos",
        "kill:3@2",
        "--dry-run",
        args=("--lr", "1"),
    )

    code, out, err = job.end()

    assert (code, err) == (0, "")
    first, heading, *lines, chaos = out.splitlines()
    assert first == "4 ranks, transport auto, would run: script.py --lr 1"
    assert heading.split() == ["rank", "process", "host", "GPU", "NUMA", "threads", "cores"]
    assert [line.split()[:2] for line in lines] == [["0-1", "0"], ["2-3", "1"]]
    assert chaos == "chaos: kill:3@step=2"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "ranks", "below"),
    [
        (["-n", "1:2"], ["0 0", "1 1"], ["at least 1 process on each node"]),
        (
            ["--hosts", "localhost:1,b:2", "--nnodes", "1:2", "--chaos", "cut:b@3"],
            ["0 0", "1 1 b ? ? ? ?", "2 2 b ? ? ? ?"],
            ["reached through ssh ", "at least 1 of 2 nodes", "chaos: cut:b@step=3"],
        ),
        (["--hosts", "a,b", "-n", "gpu"], [], ["reached through ssh ", "a: -n gpu", "b: -n gpu"]),
    ],
)
def test_a_dry_run_shows_what_it_can_know_of_nodes(start, options, ranks, below):
    code, out, err = start("", "launch", *options, "--dry-run").end()

    assert (code, err) == (0, "")
    first, *lines = out.splitlines()
    assert first.endswith("would run: script.py")
    assert first.startswith(f"{len(ranks)} ranks, " if ranks else "transport auto")
    if ranks:
        assert lines.pop(0).split()[:3] == ["rank", "process", "host"]
    for line, wanted in zip(lines[: len(ranks)], ranks, strict=True):
        assert " ".join(line.split()).startswith(wanted)
    for line, wanted in zip(lines[len(ranks) :], below, strict=True):
        assert line.startswith(wanted)


def test_a_dry_run_refuses_what_a_run_would(start):
    code, _, err = start("", "launch", "--hosts", "a:2,b:2", "--ranks", "2", "--dry-run").end()

    assert code == 2
    assert "--ranks 2 is fewer than the 4 processes" in err


def test_workers_run_on_the_cores_of_the_table(start):
    """On a machine with four cores or more; else all cores are shared."""
    job = start(
        "import os; print('cores', *sorted(os.sched_getaffinity(0)), flush=True)", "launch", "-n", "2"
    )

    code, out, err = job.end()

    assert code == 0
    ours = Machine.look()
    envs = [
        WorkerEnv(rank=r, world_size=2, process=r, processes=2, local_rank=r, local_world_size=2)
        for r in range(2)
    ]
    wanted = {f"[{e.rank}] cores {' '.join(map(str, sorted(ours.place(e, {}).cores)))}" for e in envs}
    assert set(out.splitlines()) == wanted
    assert ("NUMA" in err) == any(ours.place(e, {}).bound or ours.gpus for e in envs)
