"""Different calls on the ranks of one group give one error that names them all, and no numbers."""

import json
import re

import pytest

from disttrain.collectives import connect, run_ranks
from disttrain.collectives.env import WorkerEnv

WORDS = {
    "other_op": ("op max", "op sum"),
    "other_shape": ("shape (3, 2)", "shape (2, 3)"),
    "other_count": ("shape (4,)", "shape (3,)"),
    "other_dtype": ("int32", "float32"),
    "other_average": ("op sum, 1 averaged)", "op sum, 2 averaged)"),
    "other_root": ("root 0", "root 1"),
    "other_verb": ("barrier()", "all_reduce(float64"),
    "other_order": ("shape (7,)", "shape (4,)"),
    "other_tag": ("tag (0, 1, 0)", "tag (0, 1, 1)"),
    "split_or_barrier": ("split(int64", "barrier()"),
    "message_of_other_shape": ("send(float64, shape (3,), to 1)", "recv(float64, shape (4,), from 0)"),
    "message_of_other_dtype": ("send(float32, ", "recv(float64, "),
    "skipped_call": ("tag (0, 7, 1)", "tag (0, 7, 2)"),
}
"""By case: what the first rank of the group has called, and what the others have."""


def check_texts(faults, texts: list[dict[str, str]], ranks: list[int], later: bool = False) -> None:
    """Check what the ranks of a group, in its order, have been told; ``later`` the lines are a wrapper's."""
    assert WORDS.keys() == {case.__name__ for case in faults.MISMATCHES}
    for name, (at_first, at_others) in WORDS.items():
        told = texts[:2] if name.startswith("message") else texts
        assert len({text[name] for text in told}) == 1, f"{name}: ranks saw different errors"
        calls = {}
        for line in texts[0][name].splitlines():
            if match := re.fullmatch(r"  ranks? ([\d, -]+): (.*) at (?:.*/)?faults.py:(\d+)", line):
                calls |= dict.fromkeys(ranks_in(match[1]), (match[2], int(match[3])))
        assert sorted(calls) == sorted(ranks[: len(told)])
        code = faults.__dict__[name].__code__
        for rank, (what, line) in calls.items():
            assert (at_first if rank == ranks[0] else at_others) in what
            assert later or code.co_firstlineno < line <= code.co_firstlineno + 10


def ranks_in(text: str) -> list[int]:
    runs = [[int(end) for end in run.split("-")] for run in text.split(", ")]
    return [rank for run in runs for rank in range(run[0], run[-1] + 1)]


def check_all_texts(faults, texts: list[list[dict[str, str]]]) -> None:
    world = list(range(len(texts)))
    check_texts(faults, [text[0] for text in texts], world)
    check_texts(faults, [text[1] for text in texts], world, later=True)
    groups = [world[::-1]] if len(world) < 4 else [world[::-2], world[-2::-2]]
    for group in groups:
        check_texts(faults, [texts[rank][2] for rank in group], group)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_on_threads(load_program, ranks):
    faults = load_program("faults.py")

    texts = run_ranks(
        WorkerEnv(world_size=ranks, hosted=ranks), lambda _: faults.check_all_mismatches(connect())
    )

    check_all_texts(faults, texts)


@pytest.mark.mpi
@pytest.mark.parametrize(
    "options", [[], ["without-mpi"], ["without-shared-memory"]], ids=["shared", "shm", "mpi"]
)
@pytest.mark.parametrize(
    ("case", "processes", "ranks"),
    [("mismatch", 2, 2), ("mismatch", 3, 3), ("mismatch", 4, 4), ("mismatch", 8, 8), ("mixed", 2, 4)],
)
def test_on_processes(load_program, mpiexec, tmp_path, case, processes, ranks, options):
    job = mpiexec(processes, "faults.py", case, str(tmp_path), *options)

    assert job.returncode == 0, job.stderr
    texts = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(ranks)]
    check_all_texts(load_program("faults.py"), texts)
