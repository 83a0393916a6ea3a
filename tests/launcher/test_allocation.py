"""Inside a batch job or under mpiexec: what is found, and that it is used with no option."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm

from disttrain.launcher.config import ConfigError
from disttrain.launcher.hosts import (
    Host,
    choose,
    find_allocation,
    make_cluster,
    parse_hosts,
    parse_nnodes,
    read_hostfile,
)

ROOT = Path(__file__).resolve().parents[2]
SUM = """
import os
import disttrain as dt
from disttrain import distributed as dist
dist.init_process_group()
total = dt.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
words = dist.get_rank(), dist.get_world_size(), os.environ.get("SLURMD_NODENAME"), total.item()
os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # at once: nothing of another rank gets between
"""


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a:4,b:2", (Host("a", 4), Host("b", 2))),
        ("a", (Host("a"),)),
        ("me@a:4,10.0.0.1", (Host("me@a", 4), Host("10.0.0.1"))),
        ("[fe80::1]:3", (Host("[fe80::1]", 3),)),
    ],
)
def test_hosts_are_read(text, hosts):
    assert parse_hosts(text) == hosts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no host"),
        ("a,,b", "'' is no host"),
        ("a:x", "'a:x' is no host"),
        ("-oProxyCommand=x", "'-oProxyCommand=x' is no host"),
        ("a b", "'a b' is no host"),
        ("a:0", "'a:0' has no slots"),
        ("a,b,a:2", "'a' is there 2 times"),
    ],
)
def test_what_is_no_host_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_hosts(text)


def test_a_hostfile_of_open_mpi_or_of_names_is_read(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# nodes\na slots=4 max_slots=8\nb:2  # the small one\n\nc\n")

    assert read_hostfile(str(file)) == (Host("a", 4), Host("b", 2), Host("c"))


def test_a_wrong_line_of_a_hostfile_is_named(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("a\nb cpus=4\n")

    with pytest.raises(ConfigError, match=r"line 2: 'cpus=4' is not known; write NAME:4 or NAME slots=4"):
        read_hostfile(str(file))
    with pytest.raises(ConfigError, match="No such file"):
        read_hostfile(str(tmp_path / "none"))


@pytest.mark.parametrize(("text", "nodes"), [("3", (3, 3)), ("2:4", (2, 4))])
def test_numbers_of_nodes_are_read(text, nodes):
    assert parse_nnodes(text) == nodes


@pytest.mark.parametrize("text", ["", "0", "3:2", "2:", "two", "-1"])
def test_wrong_numbers_of_nodes_are_refused(text):
    with pytest.raises(ConfigError, match="--nnodes"):
        parse_nnodes(text)


def test_as_many_hosts_are_used_as_are_asked_for():
    hosts = parse_hosts("a,b,c")

    assert choose(hosts, (1, 2), "--hosts") == hosts[:2]
    assert choose(hosts, None, "--hosts") == hosts
    with pytest.raises(ConfigError, match="asks for 4 nodes, --hosts has 3"):
        choose(hosts, (4, 4), "--hosts")


def test_the_number_of_processes_is_said_once():
    with pytest.raises(
        ConfigError, match="-n 2 is the number of processes of each node, and --hosts says it too"
    ):
        make_cluster(hosts=parse_hosts("a:4"), where="--hosts", nnodes=None, nproc="2")


def test_this_machine_comes_first():
    cluster = make_cluster(
        hosts=parse_hosts("203.0.113.7,localhost"), where="--hosts", nnodes=None, nproc="2"
    )

    assert (cluster.here, [h.name for h in cluster.hosts]) == (True, ["localhost", "203.0.113.7"])
    assert cluster.each(gpus=0, cores=8, name="localhost") == 2


def test_a_pbs_job_is_found(tmp_path):
    nodes = tmp_path / "nodes"
    nodes.write_text("a.cluster\na.cluster\nb.cluster\n")

    found = find_allocation({"PBS_JOBID": "12.server", "PBS_NODEFILE": str(nodes)})

    assert found is not None
    assert found.hosts == (Host("a.cluster", 2), Host("b.cluster", 1))
    assert str(found) == "PBS job 12.server: 2 nodes (a.cluster, b.cluster)"


def test_an_lsf_job_is_found():
    found = find_allocation({"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "a 4 b 4 "})

    assert found is not None
    assert found.hosts == (Host("a", 4), Host("b", 4))
    assert found.system == "LSF job 7"


def test_outside_of_a_batch_job_nothing_is_found():
    assert find_allocation({"PATH": "/bin"}) is None


@pytest.mark.mpi
def test_under_mpiexec_the_processes_are_the_ranks(tmp_path):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        pytest.skip('no mpiexec beside the interpreter; pip install "disttrain[mpi]"')
    (tmp_path / "script.py").write_text(SUM)

    def launch(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(mpiexec), "-n", "2", sys.executable, "-m", "disttrain", "launch", *options, "script.py"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    done, wrong = launch(), launch("-n", "2")

    assert sorted(line.split()[::3] for line in done.stdout.splitlines()) == [["0", "3.0"], ["1", "3.0"]], (
        done
    )
    assert done.stderr.count("found an MPI world of 2 processes") == 1
    assert wrong.returncode != 0
    assert "leave out the options that start some, or leave out mpiexec" in wrong.stderr


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    if reason := slurm.why_not():
        pytest.skip(reason)
    with slurm.Slurm(2, tmp_path_factory.mktemp("slurm")) as cluster:
        cluster.env |= {"PYTHONPATH": str(ROOT)}
        (cluster.folder / "script.py").write_text(SUM)
        yield cluster


LAUNCH = (sys.executable, "-m", "disttrain", "launch", "--no-rehearsal")


@pytest.mark.mpi
def test_in_a_slurm_job_all_its_nodes_run_the_script(batch):
    job = batch.run("salloc", "--quiet", "-N2", "--ntasks-per-node=2", *LAUNCH, "script.py")

    lines = [line.split("] ")[1].split() for line in job.stdout.splitlines()]
    assert sorted(lines) == [[str(r), "4", f"n{r // 2 + 1}", "10.0"] for r in range(4)], job.stderr
    assert "disttrain: found Slurm job " in job.stderr
    assert ": 2 nodes (n1, n2)" in job.stderr


@pytest.mark.mpi
def test_a_batch_script_needs_no_options_either(batch):
    (batch.folder / "job.sh").write_text(f"#!/bin/sh\nexec {' '.join(LAUNCH)} script.py\n")

    batch.run("sbatch", "--wait", "-N2", "--ntasks-per-node=1", "--output=out", "job.sh")

    out = (batch.folder / "out").read_text()
    assert "[0] 0 2 n1 3.0\n" in out
    assert "[1] 1 2 n2 3.0\n" in out


@pytest.mark.mpi
def test_the_number_of_processes_of_a_node_can_be_said(batch):
    job = batch.run("salloc", "--quiet", "-N2", *LAUNCH, "-n", "1", "--nnodes", "2", "script.py")

    assert job.stdout.count(" 2 n") == 2, job.stderr


@pytest.mark.mpi
def test_a_failure_on_a_node_of_slurm_ends_the_job(batch):
    (batch.folder / "bad.py").write_text(
        f"{SUM}\nif dist.get_rank() == 1:\n    os._exit(7)\ndist.all_reduce(total)\n"
    )

    job = batch.run("salloc", "--quiet", "-N2", "--ntasks-per-node=1", *LAUNCH, "bad.py")

    assert job.returncode == 7, job.stderr
    assert "rank 1 (host " in job.stderr
    assert "left with code 7 before the end" in job.stderr
    left = batch.run("squeue", "--noheader", "--steps")
    assert left.stdout == ""
