"""``disttrain.launch(fn)``: results by rank, one exception for a failure, and a cure for what cannot be sent."""

import json
import subprocess
import sys
import textwrap
from argparse import Namespace
from pathlib import Path

import pytest
from folded import unfold

import disttrain as dt
from disttrain.launcher import called
from disttrain.launcher.called import Call, check_json

ROOT = Path(__file__).resolve().parents[2]

WORK = """
    import os, sys
    import disttrain as dt

    def work(a, b=1):
        rank = int(os.environ["RANK"])
        print("here")
        {body}
        return {{"rank": rank, "a": a, "b": b}}
    """


@pytest.fixture
def run(tmp_path, runtime, monkeypatch):
    """Run a Python program that launches; return exit code, stdout and stderr."""

    def run(text: str, *, typed: bool = False) -> tuple[int, str, str]:
        (tmp_path / "prog.py").write_text(textwrap.dedent(text))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        done = subprocess.run(
            [sys.executable, "-W", "error", *(["-c", textwrap.dedent(text)] if typed else ["prog.py"])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert not [p for p in runtime.rglob("*") if p.is_socket()]
        return done.returncode, unfold(done.stdout), unfold(done.stderr)

    return run


def script(body: str, call: str) -> str:
    return textwrap.dedent(WORK.format(body=body)) + f"\nif __name__ == '__main__':\n    {call}\n"


@pytest.mark.parametrize("options", ["nproc=2", "nproc=1, ranks=2"])
def test_the_results_come_back_by_rank(run, runtime, options):
    code, out, err = run(script("pass", f"print(dt.launch(work, ('x',), {{'b': [1, None]}}, {options}))"))

    assert code == 0
    assert "Traceback" not in err
    *lines, results = out.splitlines()
    assert sorted(unfold("\n".join(lines)).splitlines()) == ["[0] here", "[1] here"]
    assert results == str([{"rank": r, "a": "x", "b": [1, None]} for r in range(2)])
    assert [p for p in (runtime / "disttrain").iterdir() if p.is_dir()] == []


def test_a_failure_is_one_exception_with_the_traceback_of_the_culprit(run):
    call = """
    try:
        dt.launch(work, (1,), nproc=2)
    except dt.LaunchError as e:
        print(e.code, e.report.failures[0].ranks)
        print(e)
    """
    code, out, err = run(script("if rank == 1: raise ValueError('bad batch')", call.strip()))

    assert (code, err) == (0, "")
    assert "\n1 (1,)\ndisttrain: rank 1 (host " in out
    assert out.count("Traceback (most recent call last):") == 1
    assert "\n    File " in out
    assert "in work\n" in out
    assert "  ValueError: bad batch\n" in out
    assert "called.py" not in out


def test_a_function_is_found_from_any_working_directory(run, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "library.py").write_text("def work():\n    return 7\n")

    code, out, err = run(
        """
        import sys
        sys.path.append("lib")
        import disttrain as dt
        from library import work
        print(dt.launch(work))
        """
    )

    assert (code, out, err) == (0, "[7]\n", "")


def test_a_result_that_is_no_json_is_an_error_that_names_it(run):
    code, _, err = run(script("return {'loss': [1.0, os]}", "dt.launch(work, (1,))"))

    assert code == 1
    assert (
        "TypeError: the result of work['loss'][1] is of builtins.module, but between processes go only None"
        in err
    )


def test_a_script_without_a_guard_is_told_what_is_missing(run):
    code, _, err = run("import disttrain as dt\ndef work(): pass\ndt.launch(work)\n")

    assert code == 1
    assert 'put the call under `if __name__ == "__main__":`' in err


def test_a_function_that_was_typed_in_is_refused(run):
    code, _, err = run("import disttrain as dt\ndef work(): pass\ndt.launch(work)\n", typed=True)

    assert code == 1
    assert "TypeError: launch() gives the workers a function's name, and work was typed in" in err
    assert "%%writefile work.py" in err


def test_what_is_typed_in_may_launch_what_is_imported(run):
    code, out, err = run("import os, disttrain as dt\nprint(dt.launch(os.getcwd, nproc=2))\n", typed=True)

    assert (code, err) == (0, "")
    assert out.count("test_what_is_typed_in") == 2


def test_output_goes_to_a_stream_that_has_no_bytes_below_it(run):
    text = script(
        "pass",
        "import io; sys.stdout = io.StringIO(); dt.launch(work, (1,)); sys.stderr.write(sys.stdout.getvalue())",
    )

    assert run(text) == (0, "", "here\n")


class _Callable:
    def __call__(self) -> None: ...


def test_what_has_no_name_is_refused():
    def inner() -> None: ...

    with pytest.raises(
        TypeError, match=r"name, and test_what_has_no_name_is_refused.<locals>.inner has none"
    ):
        dt.launch(inner)
    with pytest.raises(TypeError, match="<lambda> has none; define it with `def` at the top level"):
        dt.launch(lambda: None)
    with pytest.raises(TypeError, match=r"launch\(\) needs a function, got <"):
        dt.launch(_Callable())
    with pytest.raises(TypeError, match=r"_Callable\.__call__ is not <bound method"):
        dt.launch(_Callable().__call__)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({1: 2}, r"x has the key 1, but a key must be a string"),
        ([1, {"a": {2}}], r"x\[1\]\['a'\] is of builtins.set"),
    ],
)
def test_what_json_would_change_is_refused(value, said):
    with pytest.raises(TypeError, match=said):
        check_json(value, "x")


TUTORIAL = """
    import argparse, os
    import {torch}
    import {torch}.distributed as dist
    import {torch}.multiprocessing as mp

    def train(rank, world_size, options):
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "localhost", "12355"
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
        x = {torch}.full((2,), rank + options.lr)
        dist.all_reduce(x)
        {body}
        print(dist.get_rank(), x.tolist(), options.sizes)
        dist.destroy_process_group()

    if __name__ == "__main__":
        mp.spawn(train, args=(2, argparse.Namespace(lr=0.5, sizes=[3, {{"a": None}}])), nprocs=2{more})
        print("over")
    """


def tutorial(torch="disttrain", body="pass", more=", join=True"):
    return TUTORIAL.format(torch=torch, body=body, more=more)


def test_spawn_as_in_pytorchs_tutorials(run):
    code, out, err = run(tutorial())

    assert code == 0
    assert "Traceback" not in err
    *ranks, last = out.splitlines()
    assert sorted(ranks) == [f"[{rank}] {rank} [2.0, 2.0] [3, {{'a': None}}]" for rank in range(2)]
    assert last == "over"


def test_spawn_from_a_script_of_pytorch_runs_one(run, tmp_path):
    """The workers of a program for which ``torch`` means disttrain import what it imports."""
    (tmp_path / "script.py").write_text(textwrap.dedent(tutorial("torch")))

    code, out, err = run(
        """
        import subprocess, sys
        sys.exit(subprocess.call([sys.executable, "-m", "disttrain", "compat", "--run", "script.py"]))
        """
    )

    assert code == 0
    assert "Traceback" not in err
    assert out.count("[2.0, 2.0] [3, {'a': None}]") == 2


def test_a_rank_that_fails_is_an_exception_of_spawn(run):
    code, _, err = run(tutorial(body="assert rank == 0, 'not I'"))

    assert code == 1
    assert "disttrain.launcher.function.LaunchError: disttrain: rank 1 (host " in err
    assert "  AssertionError: not I\n" in err


@pytest.mark.parametrize(
    ("more", "message"), [(", join=False", "join=False"), (", start_method='fork'", "start_method='fork'")]
)
def test_what_spawn_cannot_do_is_refused(run, more, message):
    code, _, err = run(tutorial(more=more))

    assert code == 1
    assert f"NotImplementedError: {'spawn(' if 'join' in more else ''}{message}" in err


def test_a_namespace_is_one_again():
    options = Namespace(a=[1, {"b": Namespace()}])
    call = Call("m", "f", "", (options,), {}, (), True)

    check_json([options], "args")
    again = Call(**json.loads(call.to_json(), object_hook=called._made))

    assert again.args == [options]
    with pytest.raises(TypeError, match=r"args\[0\]\['x'\] is of builtins.set"):
        check_json([Namespace(x={1})], "args")
