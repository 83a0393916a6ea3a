"""What stands between MPI and Slurm's PMI server, and that server itself, in a real cluster."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import slurm

from disttrain.collectives import slurm_pmi

ROOT = Path(__file__).resolve().parents[2]

ASKS = """
import os, sys
from disttrain.collectives import slurm_pmi

if "between" in sys.argv:
    assert slurm_pmi.is_server()
    slurm_pmi.stand_between()
fd = int(os.environ["PMI_FD"])

def ask(request):
    os.write(fd, b"cmd=" + request + b"\\n")
    return dict(word.partition("=")[::2] for word in os.read(fd, 4096).decode().split())

ask(b"init pmi_version=1 pmi_subversion=1")
longest = int(ask(b"get_maxes")["vallen_max"])
table = ask(b"get_my_kvsname")["kvsname"].encode()
rank = os.environ["PMI_RANK"].encode()
put = ask(b"put kvsname=" + table + b" key=" + b"k" * 62 + rank + b" value=" + b"v" * (longest - 1))
ask(b"barrier_in")
got = ask(b"get kvsname=" + table + b" key=" + b"k" * 62 + b"0")
print(put["rc"], len(got["value"]) == longest - 1, flush=True)
ask(b"finalize")
"""
"""Puts a value that is as long as the server says it may be."""


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"PMI_FD": "7", "PMI_JOBID": "12.0", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}, True),
        ({"PMI_FD": "7", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}, False),  # of our launcher, in a job
        ({"PMI_FD": "7", "PMI_JOBID": "kvs_1"}, False),
        ({}, False),
    ],
)
def test_whose_server_it_is(environ, expected):
    assert slurm_pmi.is_server(environ) is expected


def test_mpi_is_told_of_a_limit_that_leaves_room_for_the_request():
    maxes = b"cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max="

    assert slurm_pmi.shorten(maxes + b"1024") == maxes + b"864"
    assert slurm_pmi.shorten(maxes + b"512") == maxes + b"512"
    assert slurm_pmi.shorten(b"cmd=get_result rc=0 value=vallen_max=1024") == (
        b"cmd=get_result rc=0 value=vallen_max=1024"
    )


def test_a_request_that_comes_in_pieces_is_passed_on_whole_and_the_program_ends_with_its_server():
    ours, mpi = socket.socketpair()
    server, theirs = socket.socketpair()
    program = subprocess.Popen(
        [sys.executable, "-c", f"from disttrain.collectives import slurm_pmi; "
         f"slurm_pmi.relay({mpi.fileno()}, {theirs.fileno()})"],
        pass_fds=[mpi.fileno(), theirs.fileno()], env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    mpi.close()
    theirs.close()
    try:
        ours.sendall(b"cmd=put key=a ")
        ours.sendall(b"value=b\ncmd=barrier_in\n")
        seen = b""
        while seen.count(b"\n") < 2:
            seen += server.recv(1 << 16)
        server.sendall(b"cmd=barrier_out\n")

        assert seen == b"cmd=put key=a value=b\ncmd=barrier_in\n"
        assert ours.recv(1 << 16) == b"cmd=barrier_out\n"
        server.close()
        assert ours.recv(1) == b""
        assert program.wait(timeout=20) == 0
    finally:
        program.kill()
        program.wait()
        ours.close()
        server.close()


SUM = """
import disttrain as dt
import disttrain.distributed as dist

total = dt.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
print(total.item(), flush=True)
"""


@pytest.mark.mpi
def test_a_value_as_long_as_slurm_says_is_not_cut_in_two(tmp_path):
    if reason := slurm.why_not():
        pytest.skip(reason)
    (tmp_path / "asks.py").write_text(ASKS)
    with slurm.Slurm(2, tmp_path) as cluster:
        cluster.env |= {"PYTHONPATH": str(ROOT)}
        srun = ("srun", "-K1", "--mpi=pmi2", "-N2", "-n2", sys.executable, "asks.py")

        done = cluster.run(*srun, "between")
        (tmp_path / "asks.py").write_text(SUM)
        world = cluster.run(*srun)
        left = cluster.run("squeue", "--noheader", "--steps").stdout

    assert (done.returncode, done.stdout) == (0, "0 True\n" * 2), done.stderr
    assert (world.returncode, world.stdout) == (0, "3.0\n" * 2), world.stderr
    assert left == ""
