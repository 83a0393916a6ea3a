"""The world of real processes: it begins right, ends clean, and no fault of a rank leaves another waiting."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi


def orphans() -> set[str]:
    """Segments of MPICH that no process maps: jobs of others that run meanwhile do not count."""
    found = {name for name in os.listdir("/dev/shm") if "mpich" in name}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            found -= {name for name in found if name in maps.read_text()}
    return found


@pytest.fixture
def _no_shared_memory_is_left():
    before = orphans()
    yield
    assert orphans() <= before


def reports(path, n, job):
    missing = [rank for rank in range(n) if not (path / f"rank{rank}").exists()]
    assert not missing, f"no report of ranks {missing}:\n{job.stdout}\n{job.stderr}"
    return [json.loads((path / f"rank{rank}").read_text()) for rank in range(n)]


@pytest.mark.usefixtures("_no_shared_memory_is_left")
@pytest.mark.parametrize("n", [2, 3])
def test_bare_mpiexec_begins_and_ends_silently(mpiexec, tmp_path, n):
    job = mpiexec(n, "faults.py", "clean", str(tmp_path), timeout=20)

    assert (job.returncode, job.stdout, job.stderr) == (0, "", "")
    assert reports(tmp_path, n, job) == [[rank, n, "mpi", [n - 1] * 2] for rank in range(n)]


@pytest.mark.parametrize("n", [2, 3, 8])
def test_processes_connect_without_mpi(mpiexec, tmp_path, n):
    job = mpiexec(n, "faults.py", "clean", str(tmp_path), "without-mpi", timeout=20)

    assert (job.returncode, job.stdout, job.stderr) == (0, "", "")
    assert reports(tmp_path, n, job) == [[rank, n, "shm", [n - 1] * 2] for rank in range(n)]


def test_shm_asked_for_by_name_is_used_where_there_is_mpi_too(mpiexec, tmp_path):
    job = mpiexec(2, "faults.py", "clean", str(tmp_path), timeout=20, env={"DISTTRAIN_TRANSPORT": "shm"})

    assert (job.returncode, job.stdout, job.stderr) == (0, "", "")
    assert [transport for *_, transport, _ in reports(tmp_path, 2, job)] == ["shm"] * 2


TRANSPORTS = pytest.mark.parametrize(
    "options",
    [
        [],
        ["without-mpi"],
        ["without-shared-memory"],
        ["without-shared-memory", "far"],
        ["without-shared-memory", "far-pairs"],
    ],
    ids=["shared", "shm", "mpi", "nodes of one", "nodes of two"],
)
"""``far``: as if the processes could not see each other, so that they have to ask; ``far-pairs``: but in pairs."""


@TRANSPORTS
def test_a_rank_that_does_not_come_is_named_in_time(mpiexec, tmp_path, options):
    job = mpiexec(2, "faults.py", "timeout", str(tmp_path), *options, timeout=20)

    for rank, (first, second) in enumerate(reports(tmp_path, 2, job)):
        groups = ["the world", "group 0 of ranks 0-1"]
        assert re.match(
            rf"CollectiveTimeout: rank {rank} waited \d+\.\d s in barrier\(\) at faults.py:\d+ "
            rf"\(call {1 - rank} of {groups[rank]}\) for rank {1 - rank}; ",
            first,
        )
        there = rf"barrier\(\) at faults.py:\d+ \(call . of {groups[1 - rank]}\)"
        assert re.search(rf"  rank {1 - rank}: (for \d+\.\d s in|in no call; its last,) {there}", first)
        assert "    faults.py:" in first
        assert second.startswith("CollectiveError: this group cannot be used any more: ")


@pytest.mark.parametrize("options", [[], ["without-mpi"]], ids=["mpi", "shm"])
def test_a_group_in_which_a_rank_was_interrupted_is_not_used_again(mpiexec, tmp_path, options):
    """Else a later call of that rank would be taken for the end of the one that it has left."""
    job = mpiexec(2, "faults.py", "interrupted", str(tmp_path), *options, timeout=20)

    assert job.returncode == 0, job.stderr
    theirs, own = reports(tmp_path, 2, job)
    call = r"all_reduce\(float32, shape \(20000,\), op sum\) at faults.py:\d+ \(call \d of group \d+ of ranks 0-1\)"
    unusable = "CollectiveError: this group cannot be used any more: "
    assert own[0] == own[3] == "interrupted"
    for text in own[1:3] + own[4:]:
        assert re.fullmatch(rf"{unusable}KeyboardInterrupt has cut off {call}", text)
    for late, after in (theirs[:2], theirs[2:]):
        assert re.match(rf"CollectiveTimeout: rank 0 waited \d+\.\d s in {call} for rank 1; ", late)
        assert after.startswith(unusable)


@TRANSPORTS
def test_a_message_that_does_not_come_is_named_in_time(mpiexec, tmp_path, options):
    job = mpiexec(3, "faults.py", "late_message", str(tmp_path), *options, timeout=20)

    for rank, text in enumerate(reports(tmp_path, 2, job)):
        assert re.match(
            rf"rank {rank} waited \d+\.\d s in recv\(float64, shape \(1,\), from {1 - rank}\) at faults.py:\d+ "
            rf"\(call 0 of the world\) for rank {1 - rank}; ",
            text,
        )
        there = rf"recv\(float64, .*, from {rank}\) at "
        assert re.search(rf"  rank {1 - rank}: (for \d+\.\d s in|in no call; its last,) {there}", text)


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (2, []),
        (8, []),
        (3, ["without-mpi"]),
        (3, ["without-shared-memory"]),
        (3, ["without-shared-memory", "far"]),
        (4, ["without-shared-memory", "far-pairs"]),
    ],
    ids=["2 shared", "8 shared", "3 shm", "3 mpi", "3 nodes of one", "2 nodes of two"],
)
@pytest.mark.parametrize(
    ("case", "where"),
    [
        (
            "sleeps",
            r"in no call; its last, .*\n(    .*\n)*    faults.py:\d+ in stays_away\n    faults.py:\d+ in sleep",
        ),
        (
            "holds",
            r"in no call; its last, .*\n(    .*\n)*    faults.py:\d+ in stays_away\n    faults.py:\d+ in hold_the",
        ),
        ("stops", r"is stopped \(SIGSTOP\) and in no call; its last, all_reduce"),
    ],
    ids=["sleeps", "holds", "stops"],
)
def test_a_rank_that_stays_away_is_named_with_its_place(mpiexec, case, where, n, options):
    if "far" in options and case != "sleeps":  # nobody is beside it who could answer
        where = r"does not answer: on node\d the process is stopped, or native code holds its interpreter"

    job = mpiexec(n, "faults.py", case, *options, timeout=20)

    assert job.returncode == 0, job.stderr
    others = "rank 0 has" if n == 2 else f"ranks 0-{n - 2} have"
    said = re.findall(
        rf"{others} waited \d+\.\d s in all_reduce\(float64, shape \(3,\), op sum\) at faults.py:\d+ "
        rf"\(call 1 of the world\) for rank {n - 1}\n((?:  .*\n)+)",
        job.stderr,
    )
    assert said, job.stderr
    assert re.match(f"  rank {n - 1}: {where}", said[0]), job.stderr


@TRANSPORTS
def test_a_sender_that_stays_away_is_named_with_its_place(mpiexec, options):
    job = mpiexec(2, "faults.py", "sends_late", *options, timeout=20)

    assert job.returncode == 0, job.stderr
    assert re.search(
        r"rank 0 has waited \d+\.\d s in recv\(float64, shape \(3,\), from 1\) at faults.py:\d+ "
        r"\(call 0 of the world\) for rank 1\n  rank 1: has made no call\n"
        r"(    .*\n)*    faults.py:\d+ in sleep_over_the_data\n",
        job.stderr,
    )


@TRANSPORTS
def test_processes_that_host_ranks_and_wait_for_each_other_are_named(mpiexec, tmp_path, options):
    job = mpiexec(2, "faults.py", "crossed", str(tmp_path), *options, timeout=20)

    barrier = r"barrier\(\) at faults.py:\d+ \(call 0 of the world\)"
    assert re.search(rf"ranks 0, 2 have waited \d\.\d s in {barrier} for ranks 1, 3\n", job.stderr)
    for rank, peer in ((1, 2), (3, 0)):
        recv = rf"recv\(float64, shape \(1,\), from {peer}\) at faults.py:\d+ \(call 0 of the world\)"
        assert re.search(rf"rank {rank} has waited \d\.\d s in {recv} for rank {peer}\n", job.stderr)
        assert re.search(rf"  rank {rank}: for \d\.\d s in {recv}\n", job.stderr)
        assert re.search(rf"  rank {peer}: for \d\.\d s in {barrier}\n", job.stderr)
    assert "Each of them waits, and none computes" in job.stderr
    for process, text in enumerate(reports(tmp_path, 2, job)):
        assert text.startswith(f"rank {2 * process + 1} failed: CollectiveTimeout: ")


@TRANSPORTS
@pytest.mark.parametrize("n", [2, 3])
def test_a_group_that_timed_out_leaves_the_world_as_it_was(mpiexec, tmp_path, options, n):
    job = mpiexec(n, "faults.py", "late_in_a_group", str(tmp_path), *options, timeout=20)

    assert job.returncode == 0, job.stderr
    first, *others = reports(tmp_path, n, job)
    assert others == [[]] * (n - 1)
    assert len(first) == 2
    for text, verb in zip(first, ("all_reduce", "recv"), strict=True):
        assert re.match(
            rf"rank 0 waited 0\.\d s in {verb}\(.*\(call 0 of group . of ranks 0-{n - 1}\) for rank", text
        )


def test_a_group_for_which_there_is_no_room_is_an_error_on_all_ranks(mpiexec, tmp_path):
    job = mpiexec(3, "faults.py", "no_room", str(tmp_path), timeout=20)

    assert job.returncode == 0, job.stderr
    said = "the memory that the processes of this node share is used up; free arrays of collectives.empty()"
    assert all(text.startswith(said) for text in reports(tmp_path, 3, job))


@pytest.mark.parametrize("n", [2, 3])
def test_rank_0_may_take_as_long_as_it_needs_to_go_first(mpiexec, tmp_path, n):
    job = mpiexec(n, "faults.py", "first", str(tmp_path), timeout=20)

    assert job.returncode == 0, job.stderr
    assert "rank 0: making the file, " in job.stderr


@pytest.mark.parametrize("n", [2, 3])
def test_ranks_that_have_ended_wait_as_long_as_another_goes_on(mpiexec, n):
    job = mpiexec(n, "faults.py", "evaluates", timeout=20)

    assert job.returncode == 0, job.stderr
    assert job.stdout == "evaluated\n"
    assert "in close() at the end of the program" in job.stderr


EITHER_WAY = pytest.mark.parametrize("options", [[], ["without-mpi"]], ids=["mpi", "shm"])


@EITHER_WAY
@pytest.mark.usefixtures("_no_shared_memory_is_left")
def test_an_uncaught_exception_ends_the_world(mpiexec, options):
    job = mpiexec(2, "faults.py", "uncaught", *options, timeout=20)

    assert job.returncode != 0
    assert "LookupError: the planted error" in job.stderr


@EITHER_WAY
@pytest.mark.parametrize("case", ["system_exit", "early_end"])
def test_a_rank_that_leaves_early_is_named(mpiexec, case, options):
    job = mpiexec(2, "faults.py", case, *options, timeout=20)

    assert job.returncode != 0
    assert re.search(
        r"  rank 0: barrier\(\) at faults.py:\d+\n  rank 1: close\(\) at the end of the program\n", job.stderr
    )


@EITHER_WAY
@pytest.mark.usefixtures("_no_shared_memory_is_left")
def test_killed_processes_leave_no_shared_memory(mpiexec, options):
    job = mpiexec(4, "faults.py", "killed", *options, timeout=20)

    assert abs(job.returncode) == 9


@EITHER_WAY
def test_a_world_of_another_size_is_refused_with_the_cure(mpiexec, tmp_path, options):
    job = mpiexec(2, "faults.py", "wrong_world", str(tmp_path), *options, timeout=20)

    for rank, text in enumerate(reports(tmp_path, 2, job)):
        said = f"this is process 0 of 3 of the job, and process {rank} of 2 for whoever has started it"
        assert (said if options else "MPI connected 2 processes, but the job has 3") in text
        assert "disttrain launch" in text


BY_ANOTHER_MPI = {
    # What the other mpiexec sets: our library finds nobody, and would make N worlds of size 1.
    "mpich": ({"PMI_RANK": "0", "PMI_SIZE": "4"}, "MPI connected 1 process, but the job has 4"),
    "openmpi": (
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"},
        "this process was started by Open MPI's mpiexec, and it loaded MPICH",
    ),
    "srun --mpi=none": (
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"},
        "MPI connected 1 process, but the job has 4",
    ),
}


@pytest.mark.parametrize(("environ", "text"), BY_ANOTHER_MPI.values(), ids=BY_ANOTHER_MPI)
def test_a_process_of_another_mpi_is_refused_with_the_cure(environ, text):
    pytest.importorskip("mpi4py")
    code = "from disttrain.collectives import connect; connect()"

    job = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environ},
    )

    assert job.returncode == 1
    said = job.stderr.splitlines()[-1]
    assert said.startswith(f"RuntimeError: {text}")
    assert "Start the job with `disttrain launch`, or with the mpiexec that belongs to that library" in said


def shm_of(size):
    """Return the command that starts another with a ``/dev/shm`` of so much, or skip."""
    within = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o {size} tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        tried = subprocess.run([*within, "true"], capture_output=True, text=True, timeout=20)
    except FileNotFoundError as error:
        pytest.skip(f"needs unshare (util-linux): {error}")
    if tried.returncode:
        pytest.skip(f"needs root's rights for a /dev/shm of its own: {tried.stderr.strip()}")
    return within


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("size=64m", r""),
        ("size=24m", r"/dev/shm/ has 24 MiB, .* 4 processes: they go through System V memory \(.*\)\n"),
        (
            "size=0",
            r"/dev/shm/ has 0 MiB, .* 4 processes: they go through System V memory \(.*\)\n",
        ),  # no limit
    ],
)
def test_little_shared_memory_is_enough(mpiexec, tmp_path, size, said):
    job = mpiexec(4, "faults.py", "clean", str(tmp_path), timeout=30, within=shm_of(size))

    assert (job.returncode, job.stdout) == (0, "")
    assert re.fullmatch(said, job.stderr)
    assert reports(tmp_path, 4, job) == [[rank, 4, "mpi", [3, 3]] for rank in range(4)]


@pytest.mark.parametrize(("size", "has"), [("size=64k", "has 0.0625 MiB"), ("ro", "is read-only")])
def test_too_little_shared_memory_is_refused_with_the_cure(mpiexec, tmp_path, size, has):
    job = mpiexec(4, "faults.py", "clean", str(tmp_path), timeout=30, within=shm_of(size))

    assert job.returncode == 1
    assert (
        f"TransportUnavailable: MPICH needs 6.4 MiB in /dev/shm/ for 4 processes of a node, and it {has}; "
        "start the container with --shm-size=1g or --ipc=host"
    ) in job.stderr


def test_a_script_may_use_mpi_beside_shm(mpiexec, tmp_path):
    job = mpiexec(2, "faults.py", "beside_mpi", str(tmp_path), env={"DISTTRAIN_TRANSPORT": "shm"}, timeout=20)

    assert (job.returncode, job.stdout, job.stderr) == (0, "", "")
    assert reports(tmp_path, 2, job) == [["shm", 2, 2.0, 2]] * 2


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"DISTTRAIN_TRANSPORT": "shm"}, r"whoever has started them did not say how \(PMI_FD is not set\)"),
        ({"DISTTRAIN_TRANSPORT": "shm", "PMI_FD": "99"}, r"whoever has started this process does not answer"),
        (
            {"DISTTRAIN_TRANSPORT": "shm", "MPI_LOCALNRANKS": "2"},
            r"of the 4 ranks of this job 2 are on this one",
        ),
    ],
    ids=["no server", "a server that has gone", "several hosts"],
)
def test_where_shm_cannot_be_used_it_says_why(environ, text):
    code = "from disttrain.collectives import connect; connect()"
    started = {"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "4"}

    job = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **started, **environ},
    )

    assert job.returncode == 1
    assert re.search(rf"TransportUnavailable: .*{text}", job.stderr), job.stderr


@pytest.mark.parametrize("size", ["size=64k", "ro"])
def test_shm_needs_no_room_in_dev_shm(mpiexec, tmp_path, size):
    job = mpiexec(4, "faults.py", "clean", str(tmp_path), "without-mpi", timeout=30, within=shm_of(size))

    assert (job.returncode, job.stdout, job.stderr) == (0, "", "")
    assert reports(tmp_path, 4, job) == [[rank, 4, "shm", [3, 3]] for rank in range(4)]


def test_importing_collectives_loads_neither_arrays_nor_mpi():
    code = (
        "import sys, disttrain.collectives, disttrain.collectives.env;"
        "print([m for m in ('numpy', 'mpi4py', 'ml_dtypes') if m in sys.modules])"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert out.stdout.strip() == "[]"
