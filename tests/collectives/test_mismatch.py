"""Different calls on the ranks of one group give one error that names them all, and no numbers."""

import json

import pytest

from disttrain.collectives import connect, run_ranks
from disttrain.collectives.env import WorkerEnv

WORDS = {
    "other_op": ("op max", "op sum"),
    "other_shape": ("shape (3, 2)", "shape (2, 3)"),
    "other_count": ("shape (4,)", "shape (3,)"),
    "other_dtype": ("int32", "float32"),
    "other_root": ("root 0", "root 1"),
    "other_verb": ("barrier()", "all_reduce(float64"),
    "other_order": ("shape (7,)", "shape (4,)"),
    "message_of_other_shape": ("shape (3,)", "shape (4,)"),
    "skipped_call": ("tag (0, 7, 1)", "tag (0, 7, 2)"),
}


def check_texts(faults, texts: list[dict[str, str]]) -> None:
    assert WORDS.keys() == {case.__name__ for case in faults.MISMATCHES}
    for name, (at_rank_0, at_others) in WORDS.items():
        assert len({text[name] for text in texts[:2]}) == 1, "ranks 0 and 1 saw different errors"
        lines = texts[0][name].splitlines()
        first = next(line for line in lines if line.startswith("  rank 0: "))
        rest = next(line for line in lines if line.startswith(("  rank 1: ", "  ranks 1-")))
        assert at_rank_0 in first
        assert at_others in rest
        assert "faults.py:" in first
        assert "faults.py:" in rest
        code = faults.__dict__[name].__code__
        line = int(first.rpartition(":")[2])
        assert code.co_firstlineno < line <= code.co_firstlineno + 8


def test_on_threads(load_program):
    faults = load_program("faults.py")

    texts = run_ranks(WorkerEnv(world_size=3, hosted=3), lambda _: faults.check_mismatches(connect()))

    check_texts(faults, texts)


@pytest.mark.mpi
@pytest.mark.parametrize(("case", "ranks"), [("mismatch", 2), ("mixed", 4)])
def test_on_processes(load_program, mpiexec, tmp_path, case, ranks):
    job = mpiexec(2, "faults.py", case, str(tmp_path))

    assert job.returncode == 0, job.stderr
    texts = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(ranks)]
    check_texts(load_program("faults.py"), texts)
