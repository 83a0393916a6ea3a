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


def debug(tmp_path: Path, script: str, *options: str, args: tuple[str, ...] = ()):
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, "-m", "disttrain", "debug", *options, "script.py", *args],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False,
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
        import os
        print("spinning")
        while os.environ["RANK"] == "0":
            pass
        """,
        "-n", "2",
    )  # fmt: skip

    screen.until("[0] spinning")
    os.write(screen.fd, b"\x03")
    code, rest = screen.end()

    assert code == 130
    assert "rank 0" in rest
    assert "KeyboardInterrupt" in rest


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
    lines = done.stderr.splitlines()
    assert lines[0].startswith("disttrain: rank 1 (host ")
    assert lines[0].endswith("raised ValueError: bad batch")
    assert lines[1:-1] == [
        "  Traceback (most recent call last):",
        '    File "script.py", line 7, in <module>',
        '      raise ValueError("bad batch")',
        "  ValueError: bad batch",
        "  ranks 0, 2-3 could not go on without it",
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
