"""``disttrain debug``: ranks as threads of the process on the terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """A command on a terminal of its own, and somebody who types."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ.update(PYTHONPATH=str(ROOT), TERM="dumb", PYTHONWARNINGS="error")
            os.execv(sys.executable, [sys.executable, "-m", "disttrain", *command])
        self.seen = ""

    def until(self, text: str, within: float = 15.0) -> str:
        """Return what appeared on the screen up to ``text``."""
        deadline = time.monotonic() + within
        while text not in self.seen:
            if not select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} did not appear in {self.seen!r}")
            try:
                self.seen += os.read(self.fd, 4096).decode()
            except OSError:  # the other side is closed
                raise AssertionError(f"the end came, and {text!r} not, in {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before.replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self.fd, f"{text}\n".encode())

    def end(self) -> tuple[int, str]:
        """Return the exit code and what else appeared."""
        while True:
            try:
                self.seen += os.read(self.fd, 4096).decode()
            except OSError:
                break
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return code, self.seen.replace("\r\n", "\n")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def open_terminal(script: str, *options: str) -> Terminal:
        (tmp_path / "script.py").write_text(textwrap.dedent(script))
        opened.append(Terminal(["debug", *options, "script.py"], tmp_path))
        return opened[-1]

    yield open_terminal
    for t in opened:
        t.close()


def debug(tmp_path: Path, script: str, *options: str, args: tuple[str, ...] = (), within: float = 20.0):
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, "-m", "disttrain", "debug", *options, "script.py", *args],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within, check=False,
    )  # fmt: skip


def test_breakpoint_stops_the_rank_that_reached_it(terminal):
    screen = terminal(
        """
        import os
        from disttrain.collectives import connect
        comm = connect()
        secret = 100 + comm.rank
        comm.barrier()
        if comm.rank == 2:
            breakpoint()
        comm.barrier()
        print("secret", secret)
        """,
        "-n", "4",
    )  # fmt: skip

    screen.until("[2] (Pdb) ")
    screen.type("p comm.rank, os.environ['RANK'], __name__")
    assert "(2, '2', '__main__')" in screen.until("[2] (Pdb) ")
    screen.type("secret = 7")
    screen.until("[2] (Pdb) ")
    screen.type("continue")
    code, rest = screen.end()

    assert code == 0
    assert sorted(re.findall(r"^\[\d\] secret \d+$", rest, re.M)) == [
        "[0] secret 100",
        "[1] secret 101",
        "[2] secret 7",
        "[3] secret 103",
    ]


def test_what_a_line_prints_is_not_stepped_into(terminal):
    """A rank's output goes through code of ours, where without ranks it would go through C."""
    screen = terminal(
        """
        breakpoint(); print("one")
        print("two")
        b = 2
        """,
        "-n", "1",
    )  # fmt: skip

    assert "script.py(3)" in screen.until("(Pdb) ")
    screen.type("step")
    assert "script.py(4)" in screen.until("(Pdb) ")
    screen.type("continue")
    assert screen.end()[0] == 0


def test_every_rank_can_stop_and_step(terminal):
    screen = terminal(
        """
        import os
        breakpoint()
        a = 1
        b = 2
        """,
        "-n", "2",
    )  # fmt: skip

    for rank in (0, 1):
        assert "script.py(4)" in screen.until(f"[{rank}] (Pdb) ")
        screen.type("next")
        assert "script.py(5)" in screen.until(f"[{rank}] (Pdb) ")
        screen.type("continue")

    assert screen.end()[0] == 0


def test_ctrl_c_names_the_rank_that_ran(terminal):
    screen = terminal(
        """
        from disttrain.collectives import connect
        comm = connect()
        comm.barrier()
        print("spinning")
        while comm.rank == 1:
            pass
        comm.barrier()
        """,
        "-n", "2",
    )  # fmt: skip

    screen.until("[1] spinning")
    os.write(screen.fd, b"\x03")
    code, rest = screen.end()

    assert code == 130
    assert re.search(r"^disttrain: rank 1 \(.*\) raised KeyboardInterrupt$", rest, re.M)
    assert "rank 0 also" not in rest


def test_each_rank_has_its_own_main(tmp_path):
    done = debug(
        tmp_path,
        """
        import os, sys, threading
        from disttrain.collectives import connect
        comm = connect()
        mine = comm.rank
        for _ in range(3):
            comm.barrier()
            assert sys.modules["__main__"].mine == mine == int(os.environ["RANK"]) == int(os.environ["LOCAL_RANK"])
        print(sys.argv, os.environ["WORLD_SIZE"], os.getpid(), __file__)
        """,
        "-n", "4", args=("--lr", "1"),
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    lines = sorted(done.stdout.splitlines())
    assert [re.sub(r" \d+ script", " PID script", line) for line in lines] == [
        f"[{r}] ['script.py', '--lr', '1'] 4 PID script.py" for r in range(4)
    ]
    assert len({line.split()[-2] for line in lines}) == 1


def test_a_line_written_in_pieces_by_ranks_in_turn_stays_whole(tmp_path):
    done = debug(
        tmp_path,
        """
        from disttrain.collectives import connect
        comm = connect()
        for piece in ("a", "b", "c"):
            print(piece, end="", flush=True)
            comm.barrier()
        """,
        "-n", "2",
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["[0] abc", "[1] abc"]


def test_the_first_failure_is_the_report(tmp_path):
    done = debug(
        tmp_path,
        """
        import sys
        from disttrain.collectives import connect
        comm = connect()
        comm.barrier()
        if comm.rank == 1:
            raise ValueError("bad batch")
        comm.barrier()
        """,
        "-n", "4",
    )  # fmt: skip

    assert done.returncode == 1
    lines = re.sub(r"\d+\.\d s", "S s", done.stderr).splitlines()
    assert lines[0].startswith("disttrain: rank 1 (host ")
    assert lines[0].endswith("raised ValueError: bad batch")
    assert lines[1:-1] == [
        "  Traceback (most recent call last):",
        '    File "script.py", line 7, in <module>',
        '      raise ValueError("bad batch")',
        "  ValueError: bad batch",
        "  ranks 0, 2-3 could not go on without it",
        "  where the ranks were:",
        "    ranks 0, 3: for S s in barrier() at script.py:8 (call 1 of the world)",
        "    rank 1: in no call; its last, barrier() at script.py:5 (call 0 of the world), ended S s ago",
        "    rank 2: waits since S s for its turn in its process after barrier() at script.py:5 (call 0 of the world)",
    ]


def test_sys_exit_is_the_exit_code(tmp_path):
    assert debug(tmp_path, "import sys; sys.exit(0)").returncode == 0
    done = debug(tmp_path, "import sys; sys.exit(3)")
    assert done.returncode == 3
    assert "left with exit code 3 (sys.exit)" in done.stderr


def test_a_wrong_number_of_ranks_is_refused(tmp_path):
    done = debug(tmp_path, "", "-n", "3")

    assert done.returncode == 2
    assert "the number of ranks must be a power of two, got 3; try 2 or 4" in done.stderr


def test_a_rank_has_its_own_variables_and_arguments_also_in_its_threads(tmp_path):
    done = debug(
        tmp_path,
        """
        import os, subprocess, sys, threading
        from concurrent.futures import ThreadPoolExecutor
        import disttrain as dt
        from disttrain.collectives import connect
        rank = connect().rank
        barrier = connect().barrier
        os.environ["MINE"] = str(rank)
        os.environb[b"BYTES"] = b"%d" % rank
        if rank == 0:
            del os.environ["HOME"]
        sys.argv.append(str(rank))
        dt.manual_seed(100 + rank)
        started, seen = threading.Event(), []

        def look():
            names = ("RANK", "LOCAL_RANK", "MINE", "BYTES")
            seen.append([*map(os.environ.get, names), dt.initial_seed(), connect().rank, "HOME" in os.environ])

        class Waits(threading.Thread):  # while the other ranks run
            def run(self):
                started.wait()
                look()

        thread = Waits()
        thread.start()
        barrier()
        barrier()
        started.set()
        thread.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(look).result()
        look()
        r = str(rank)
        assert seen == 3 * [[r, r, r, r, 100 + rank, rank, rank != 0]], seen
        assert sys.argv == ["script.py", r]
        barrier()
        assert subprocess.check_output("echo $RANK $MINE $BYTES", shell=True, text=True).split() == [r, r, r]
        barrier()
        print("same")
        """,
        "-n", "4",
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [f"[{r}] same" for r in range(4)]


def test_a_thread_of_a_rank_that_waits_for_the_others_is_an_error(tmp_path):
    done = debug(
        tmp_path,
        """
        from concurrent.futures import ThreadPoolExecutor
        from disttrain.collectives import connect
        comm = connect()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(comm.barrier).result()
        """,
    )  # fmt: skip

    assert done.returncode == 1
    assert "RuntimeError: a thread that rank 0 has started cannot wait in barrier()" in done.stderr


def test_a_fork_of_a_rank_works_and_cannot_wait_for_the_others(tmp_path):
    done = debug(
        tmp_path,
        """
        import multiprocessing, os, warnings
        from disttrain.collectives import connect
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads, Python 3.12

        def square(x):
            return x * x

        def fork(body):
            pid = os.fork()
            if pid == 0:
                body()
                raise SystemExit(5)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        if __name__ == "__main__":
            comm = connect()
            for how in ("fork", "spawn"):
                with multiprocessing.get_context(how).Pool(1) as pool:
                    print(how, pool.map(square, [0, 1, 2]))
            print("fork", fork(int), fork(comm.barrier))
            comm.barrier()
        """,
        "-n", "1",
    )  # fmt: skip
    alone = done.stdout.splitlines()

    done = debug(tmp_path, (tmp_path / "script.py").read_text(), "-n", "2")

    assert alone == ["[0] fork [0, 1, 4]", "[0] spawn [0, 1, 4]", "[0] fork 5 5"]
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("[0]")]
    assert lines == ["[0] fork [0, 1, 4]", "[0] spawn [0, 1, 4]", "[0] fork 5 1"]
    assert "[0] RuntimeError: a fork of rank 0 cannot wait in barrier()" in done.stderr


def test_modules_that_ranks_share_are_named_once(tmp_path):
    (tmp_path / "layers.py").write_text("class Layer: pass\n")
    (tmp_path / "state.py").write_text("import layers\nCACHE = {}\n")
    (tmp_path / "late.py").write_text("")
    (tmp_path / "plots.py").write_text("")
    done = debug(
        tmp_path,
        """
        from state import CACHE
        import json
        from disttrain.collectives import connect
        comm = connect()
        if comm.rank == 0:
            import plots
        for _ in range(3):
            comm.barrier()
        def end():
            import late
        end()
        """,
        "-n", "4",
    )  # fmt: skip

    said = "disttrain: ranks of one process share its modules and what these hold: "
    assert (done.returncode, done.stderr.splitlines()) == (0, [said + "layers, state", said + "late"])


def test_a_call_inside_an_import_is_an_error_and_no_hang(tmp_path):
    (tmp_path / "eager.py").write_text("from disttrain.collectives import connect\n\nconnect().barrier()\n")

    done = debug(tmp_path, "import eager")

    assert done.returncode == 1
    assert (
        "Deadlock: rank 0 is in barrier() at eager.py:3 (call 0 of the world) while it imports" in done.stderr
    )
    assert "make the call after the import" in done.stderr


WORK = """
from disttrain.collectives import connect
comm = connect()
def work(k):
    secret = 10 * k
    comm.barrier()
    return secret + 1
if comm.rank == 1:
    breakpoint()
x = work(comm.rank)
comm.barrier()
print("x", x)
"""


def test_the_debugger_shows_where_other_ranks_are_and_goes_on_in_them(terminal):
    screen = terminal(WORK, "-n", "4")

    screen.until("[1] (Pdb) ")
    screen.type("ranks")
    table = screen.until("[1] (Pdb) ")
    assert re.search(r"   rank 0  script.py:6 in work: for \d+\.\d s in barrier\(\) at script.py:6 ", table)
    assert "-> rank 1  script.py:10 in <module>: has stopped\n" in table
    assert "   rank 3  has not begun\n" in table
    for wrong, why in (
        ("rank 2", "rank 2 has not begun"),
        ("rank 9", "there is no rank 9"),
        ("rank x", "no rank x"),
    ):
        screen.type(wrong)
        assert why in screen.until("[1] (Pdb) ")

    screen.type("rank 0")
    assert "script.py(6)work()" in screen.until("[0] (Pdb) ")
    screen.type("p secret, comm.rank")
    assert "(0, 0)" in screen.until("[0] (Pdb) ")
    screen.type("up")
    assert "script.py(10)<module>()" in screen.until("[0] (Pdb) ")
    screen.type("until")
    assert "until is for rank 1, which has stopped" in screen.until("[0] (Pdb) ")
    screen.type("rank")
    assert "script.py(10)<module>()" in screen.until("[1] (Pdb) ")
    screen.type("rank 0")
    screen.until("[0] (Pdb) ")
    screen.type("next")  # rank 0 stops; until then rank 1 and the others run
    assert "script.py(7)work()" in screen.until("[0] (Pdb) ")
    screen.type("!secret = 500")
    screen.until("[0] (Pdb) ")
    screen.type("continue")
    code, rest = screen.end()

    assert code == 0
    assert sorted(re.findall(r"^\[\d\] x \d+$", rest, re.M)) == [
        "[0] x 501",
        "[1] x 11",
        "[2] x 21",
        "[3] x 31",
    ]


def test_a_breakpoint_stops_every_rank(terminal):
    screen = terminal(WORK, "-n", "2")

    screen.until("[1] (Pdb) ")
    screen.type("break 12")
    screen.until("[1] (Pdb) ")
    for rank in (0, 1):
        screen.type("continue")
        assert "script.py(12)<module>()" in screen.until(f"[{rank}] (Pdb) ")
    screen.type("clear 1")
    screen.until("[1] (Pdb) ")
    screen.type("continue")

    assert screen.end()[0] == 0


def test_set_trace_and_quit(terminal):
    screen = terminal(
        "import pdb\nimport os\nif os.environ['RANK'] == '1':\n    pdb.set_trace(header='look')\n    1\n"
    )

    assert "look" in screen.until("[1] (Pdb) ")
    screen.type("quit")
    code, rest = screen.end()

    assert code == 1
    assert "disttrain: rank 1 (host " in rest
    assert "was ended by quit in the debugger at script.py:5\n" in rest
    assert "Traceback" not in rest


def test_ctrl_c_at_the_prompt_asks_again(terminal):
    screen = terminal("breakpoint()\n1\n", "-n", "1")

    screen.until("[0] (Pdb) ")
    for _ in range(30):  # readline misses one that comes after it has shown its prompt and before it listens
        os.write(screen.fd, b"\x03")
        with suppress(AssertionError):
            assert "--KeyboardInterrupt--" in screen.until("[0] (Pdb) ", within=0.5)
            break
    else:
        raise AssertionError(f"Ctrl-C did nothing: {screen.seen!r}")
    screen.type("continue")

    assert screen.end()[0] == 0


def test_post_mortem_shows_the_rank_that_failed_and_the_others(terminal):
    screen = terminal(
        """
        from disttrain.collectives import connect
        comm = connect()
        mine = 7 * comm.rank
        if comm.rank == 1:
            raise ValueError("bad batch")
        comm.barrier()
        """,
        "-n", "2", "--pdb",
    )  # fmt: skip

    shown = screen.until("[1] (Pdb) ")
    assert "rank 1 has failed:\nTraceback" in shown
    assert "script.py(6)<module>()" in shown
    screen.type("p mine")
    assert "7" in screen.until("[1] (Pdb) ")
    screen.type("rank 0")
    assert "script.py(7)<module>()" in screen.until("[0] (Pdb) ")
    screen.type("p mine")
    assert "0" in screen.until("[0] (Pdb) ")
    screen.type("quit")
    code, rest = screen.end()

    assert code == 1
    assert "raised ValueError: bad batch" in rest
    assert "rank 0: for " in rest.partition("where the ranks were:")[2]


def test_ranks_ask_on_the_terminal(terminal):
    screen = terminal(
        """
        from disttrain.collectives import connect
        connect().barrier()
        print("I am", end=" ", flush=True)
        print(repr(input("called ")))
        print(repr(input("age ")))
        """,
    )  # fmt: skip

    for rank in (1, 0):
        screen.until(f"[{rank}] I am called ")
        screen.type(f"name{rank}")
        assert f"[{rank}] 'name{rank}'" in screen.until(f"[{rank}] age ")
        screen.type("9")

    assert screen.end()[0] == 0


def test_a_deadlock_names_each_rank_with_its_line(tmp_path):
    done = debug(
        tmp_path,
        """
        from disttrain.collectives import connect
        import numpy as np
        comm = connect()
        x = np.zeros(3, "f")
        comm.recv(x, 1 - comm.rank)
        """,
    )  # fmt: skip

    assert done.returncode == 1
    assert "Deadlock: deadlock: no rank of this process can go on" in done.stderr
    for rank in range(2):
        assert f"  rank {rank}: in recv(float32, shape (3,), from {1 - rank}) at script.py:6" in done.stderr
    assert "    rank 0: for " in done.stderr.partition("where the ranks were:")[2]


def test_schedules_find_what_depends_on_the_order(tmp_path):
    script = """
        import os
        from disttrain.collectives import connect
        comm = connect()
        if comm.rank == 0:
            open("made", "w").close()
        found = os.path.exists("made")
        comm.barrier()
        if comm.rank == 0:
            os.remove("made")
        {then}
        """

    done = debug(
        tmp_path, script.format(then="print('found', found)"), "-n", "4", "--schedules", "9", within=60.0
    )
    assert done.returncode == 1
    match = re.search(
        r"^differs: with --schedule-seed (\d) .*: rank \d printed '(.*)', and '(.*)' before$",
        done.stdout,
        re.M,
    )
    assert match
    assert match.groups()[1:] == ("found False", "found True")
    seed = ("-n", "4", "--schedule-seed", match[1])
    first, again = (debug(tmp_path, script.format(then="print('found', found)"), *seed) for _ in range(2))
    assert "found False" in first.stdout
    assert (first.returncode, first.stdout) == (again.returncode, again.stdout)

    done = debug(tmp_path, script.format(then="assert found"), "-n", "4", "--schedules", "9", within=60.0)
    assert done.returncode == 1
    assert f"fails: with --schedule-seed {match[1]}, and not in the order of the ranks" in done.stdout
    assert "raised AssertionError" in done.stderr


def test_schedules_of_a_script_that_is_right_or_never_the_same(tmp_path):
    right = "from disttrain.collectives import connect\nconnect().barrier()\nprint(connect().rank)\n"

    done = debug(tmp_path, right, "--schedules", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[0] 0\n[1] 1\nequal: the order of the ranks and 2 drawn by a seed give the same\n"

    done = debug(tmp_path, "import os; print(os.getpid())", "--schedules", "2")
    assert done.returncode == 1
    assert "cannot tell: the same order gives something else each time: rank 0 printed" in done.stdout


def test_schedules_compare_what_a_model_computes(tmp_path):
    done = debug(
        tmp_path,
        """
        import builtins
        import disttrain as dt
        from disttrain.collectives import connect
        connect().barrier()
        seen = vars(builtins).setdefault("seen", [])
        seen.append(0)
        place = float(len(seen))
        dt.manual_seed(0)
        model = dt.nn.parallel.DistributedDataParallel(dt.nn.Linear(2, 1))
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        x = dt.full((1, 2), place if connect().rank == 2 else 1.0)
        model(x).sum().backward()
        optimizer.step()
        """,
        "-n", "4", "--schedules", "3", within=100.0,
    )  # fmt: skip

    assert done.returncode == 1
    assert "on rank 2, the model's input in step 1" in done.stdout


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-n", "0"), "must be a power of two, got 0; try 1 or 2"),
        (("--schedule-seed", "-1"), "-1 is not in the range"),
        (("--schedules", "0"), "0 is not in the range"),
        (("--schedules", "2", "--pdb"), "exclude each other"),
        (("--timeout", "0"), "--timeout must be a positive number"),
        (("--env", "RANK=3"), "RANK is set by the launcher"),
        (("nowhere.py",), "there is no script 'nowhere.py'"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, options, why):
    done = debug(tmp_path, "", *options)

    assert done.returncode == 2
    assert why in done.stderr


def test_a_breakpoint_that_nobody_can_answer_says_where_it_is(tmp_path):
    done = debug(tmp_path, "x = 1\nbreakpoint()\ny = 2\n", "-n", "1")

    assert done.returncode == 1
    assert (
        "was ended by quit in the debugger at script.py:3; nobody could type: disttrain debug has"
        in done.stderr
    )
