"""All-reduces that have been made before go a shorter way, and nobody can tell but by the time."""

import json

import pytest


@pytest.fixture
def printed(mpiexec, tmp_path):
    """``printed(processes, text)`` runs a program, and returns the words that its processes have printed."""

    def run(processes, text):
        program = tmp_path / "program.py"
        program.write_text(text)
        done = mpiexec(processes, str(program))
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


@pytest.mark.mpi
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_calls_made_again_are_as_the_first(mpiexec, processes):
    done = mpiexec(processes, "repeated.py")

    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout)
    assert "made different calls" in text
    assert "tag (0, 1, 0)" in text
    assert "tag (0, 2, 0)" in text


@pytest.mark.mpi
def test_the_short_way_is_taken(printed):
    """Else the test above would say nothing."""
    assert printed(2, COUNTS) == ["3", "3", "3", "3"]


COUNTS = """
import numpy as np
from disttrain.collectives import connect
from disttrain.collectives.repeated import Repeated

taken = []
short = Repeated.all_reduce
Repeated.all_reduce = lambda *args: taken.append(short(*args)) or taken[-1]
comm = connect()
for x in (np.ones(5, np.float32), comm.empty(50_000, np.float32)):
    taken.clear()
    for _ in range(4):
        comm.barrier()
        comm.all_reduce(x, x)
    print(f"{sum(taken)}\\n", end="")  # in one write: others print too
"""


@pytest.mark.mpi
@pytest.mark.parametrize("processes", [2, 3])
def test_small_broadcasts_are_one_meeting_each(printed, processes):
    assert printed(processes, BROADCASTS) == ["100"] * processes


BROADCASTS = """
import numpy as np
from disttrain.collectives import connect

comm = connect()
comm.barrier()
channel = comm._group.channel
meetings = []
step = channel.step
channel.step = lambda: (meetings.append(1), step())[1]
for i in range(100):
    root, size = i % comm.size, 1 + 37 * i % 16000
    x = np.full(size, 1000.0 * comm.rank + i, np.float32)
    comm.broadcast(x, root)
    assert (x == 1000.0 * root + i).all(), (i, x)
print(f"{len(meetings)}\\n", end="")  # in one write: others print too
"""


@pytest.mark.mpi
@pytest.mark.parametrize("processes", [2, 3])
def test_what_is_not_copied_is_reduced_where_it_is_in_one_meeting_more(printed, processes):
    assert printed(processes, MEETINGS) == ["10,10,20,20,20"] * processes


MEETINGS = """
import numpy as np
from disttrain.collectives import connect

comm = connect()
channel = comm._group.channel
step, meetings, found = channel.step, [], []
channel.step = lambda: (meetings.append(1), step())[1]
shared, own = (lambda n: comm.empty(n, np.float32)), (lambda n: np.empty(n, np.float32))
for array, count in [
    (shared, 100), (own, 16_000), (shared, 16_000), (own if comm.rank else shared, 16_000), (shared, 50_000)
]:
    meetings.clear()
    for k in range(10):
        x = array(count)
        x[...] = comm.rank + k
        comm.all_reduce(x, x)
        assert (x == sum(range(comm.size)) + comm.size * k).all()
    found.append(len(meetings))
print(",".join(map(str, found)) + "\\n", end="")  # in one write: others print too
"""
