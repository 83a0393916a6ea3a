"""Jobs over several hosts: namespaces on this machine, each with an ssh server."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import fake_nvml
import hosts
import pytest
from folded import unfold

pytestmark = pytest.mark.mpi
ROOT = Path(__file__).resolve().parents[2]
WITHIN = 25.0
"""Seconds after which a lost host must have ended the job; promised are 15, on a machine that does nothing else."""


class Cluster:
    """Three hosts; jobs are started on the first."""

    def __init__(self, several: hosts.Hosts, ssh: str, folder: Path) -> None:
        self.hosts, self.ssh, self.folder = several, ssh, folder
        self.jobs: list[subprocess.Popen[str]] = []

    def launch(
        self, script: str, *options: str, nodes: str = "2,2", rehearse: bool = False, **environ: str
    ) -> subprocess.Popen[str]:
        (self.folder / "script.py").write_text(textwrap.dedent(script))
        places = ",".join(f"{a}:{n}" for a, n in zip(self.hosts.addresses, nodes.split(","), strict=False))
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("DISTTRAIN_", "PMI_", "SLURM_"))}
        command = [*self.hosts.on(0), sys.executable, "-m", "disttrain", "launch", "--hosts", places]
        job = subprocess.Popen(
            [*command, "--ssh", self.ssh, *([] if rehearse else ["--no-rehearsal"]), *options, "script.py"],
            cwd=self.folder,
            env=keep
            | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(self.folder), "SECRET_OF_THE_USER": "kept"}
            | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.jobs.append(job)
        return job

    def wait_for(self, job: subprocess.Popen[str], text: str, times: int = 1) -> None:
        """Read what ``job`` prints until ``text`` has come so often."""
        assert job.stdout is not None
        for line in job.stdout:
            times -= unfold(line).count(text)
            if times <= 0:
                return
        raise AssertionError(f"{text!r} has not come\n{job.communicate()[1]}")

    def end(self) -> None:
        """End the jobs that a failed test has left; to kill what has started them leaves the launchers alive."""
        for job in self.jobs:
            if job.poll() is None and self.hosts.is_on(0):
                for pid, command in self.hosts.processes(0).items():
                    if "disttrain launch" in command:
                        os.kill(pid, signal.SIGKILL)
            job.kill()
            job.communicate(timeout=30)

    def left(self) -> dict[int, dict[int, str]]:
        """Return what runs on the hosts that are still on, host by host."""
        found = {i: self.hosts.processes(i) for i in range(3) if self.hosts.is_on(i)}
        return {i: processes for i, processes in found.items() if processes}

    def wait_until_nothing_is_left(self, within: float = 20.0) -> None:
        expired = threading.Event()
        timer = threading.Timer(within, expired.set)
        timer.start()
        while (left := self.left()) and not expired.is_set():
            os.sched_yield()
        timer.cancel()
        assert left == {}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[hosts.Hosts, str, Path]]:
    if reason := hosts.why_no_ssh():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    with hosts.Hosts(3, folder) as several:
        yield several, several.serve_ssh(), folder


@pytest.fixture
def cluster(network: tuple[hosts.Hosts, str, Path]) -> Iterator[Cluster]:
    """Hosts that are whole after the test."""
    several = Cluster(*network)
    yield several
    several.end()


@pytest.fixture
def breakable() -> Iterator[Cluster]:
    """Hosts of this test alone, which may break them."""
    if reason := hosts.why_no_ssh():
        pytest.skip(reason)
    # In a folder of a short name: there will be sockets.
    with tempfile.TemporaryDirectory(prefix="dt-") as folder, hosts.Hosts(3, Path(folder)) as several:
        broken = Cluster(several, several.serve_ssh(), Path(folder))
        yield broken
        broken.end()


SUM = """
    import os
    from disttrain import distributed as dist
    import disttrain as dt
    dist.init_process_group()
    total = dt.ones(3) * (dist.get_rank() + 1)
    dist.all_reduce(total)
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "SECRET_OF_THE_USER")
    print(os.uname().nodename, dist.get_rank(), *map(os.environ.get, names), total.tolist())
"""
LOOP = """
    import disttrain as dt
    from disttrain import distributed as dist
    dist.init_process_group()
    total = dt.ones(3)
    print("begun", flush=True)
    while True:
        dist.all_reduce(total)
"""


def test_ranks_of_two_hosts_are_one_world(cluster):
    out, err = cluster.launch(SUM).communicate(timeout=60)

    assert sorted(out.splitlines()) == [
        f"[{rank}] host{rank // 2} {rank} {rank % 2} 2 {rank // 2} 10.199.7.1 kept [10.0, 10.0, 10.0]"
        for rank in range(4)
    ], err
    assert cluster.left() == {}


def test_hosts_may_run_different_numbers_of_processes_and_of_ranks(cluster):
    job = cluster.launch(SUM, "--ranks", "8", nodes="1,2")

    out, err = job.communicate(timeout=60)

    assert job.returncode == 0, err
    ranks = {int(line.split()[2]): line.split()[1] for line in out.splitlines()}
    assert ranks == {r: "host0" if r < 3 else "host1" for r in range(8)}


def listening(cluster: Cluster, index: int) -> set[str]:
    """Return the addresses at which a host listens, but for its ssh server."""
    found = set()
    for name in ("tcp", "tcp6"):
        command = [*cluster.hosts.on(index), "cat", f"/proc/net/{name}"]
        for line in subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()[
            1:
        ]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == "0A" and int(port, 16) != 22:
                found.add(
                    f"{socket.inet_ntoa(bytes.fromhex(address)[::-1]) if len(address) == 8 else address}"
                )
    return found


STRANGER = """
import sys, zmq
with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
    socket.linger = 0
    failed = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    monitor = socket.get_monitor_socket(failed | zmq.EVENT_DISCONNECTED)
    socket.connect(sys.argv[1])
    assert monitor.poll(10_000)
    socket.disable_monitor()
    monitor.close()
"""


def test_the_launcher_listens_at_one_address_and_refuses_strangers(cluster):
    letter, spy = cluster.folder / "letter", cluster.folder / "spy"
    spy.write_text(f'#!/bin/sh\ntee {letter} | {cluster.ssh} "$@"\n')
    spy.chmod(0o755)
    job = cluster.launch("import time\nprint('begun', flush=True)\ntime.sleep(300)\n", "--ssh", str(spy))
    cluster.wait_for(job, "begun", 4)
    endpoint = json.loads(letter.read_text())["endpoint"]
    letter.unlink()

    listens = [listening(cluster, i) for i in (0, 1)]
    subprocess.run(
        [*cluster.hosts.on(1), sys.executable, "-c", STRANGER, endpoint],
        check=True,
        timeout=30,
        env=os.environ,
    )
    cluster.hosts.signal(0, "disttrain launch", signal.SIGINT)
    _, err = job.communicate(timeout=30)

    assert listens == [{"10.199.7.1"}, set()]
    assert "disttrain: refused 1 connection without a key of this job" in err


def test_keys_are_on_no_command_line_in_no_environment_file_or_output(cluster):
    letter, spy = cluster.folder / "letter", cluster.folder / "spy"
    spy.write_text(f'#!/bin/sh\ntee {letter} | {cluster.ssh} "$@"\n')
    spy.chmod(0o755)
    job = cluster.launch(LOOP, "--ssh", str(spy))
    cluster.wait_for(job, "begun", 4)
    sent = json.loads(letter.read_text())
    letter.unlink()
    keys = [key.encode() for _, *pair in sent["nodes"].values() for key in pair] + [sent["server"].encode()]

    seen = b"".join(
        Path(f"/proc/{pid}/{name}").read_bytes()
        for i in (0, 1)
        for pid in cluster.hosts.processes(i)
        for name in ("cmdline", "environ")
    )
    cluster.hosts.signal(0, "disttrain launch", signal.SIGINT)
    said = "".join(job.communicate(timeout=30)).encode()
    kept = b"".join(f.read_bytes() for f in cluster.folder.rglob("disttrain/*/*") if f.is_file())

    assert len(keys) == 3
    assert b"DISTTRAIN_RUN_ID" in seen
    assert [key for key in keys if key in seen + said + kept] == []


def test_ranks_talk_before_the_script_begins(cluster):
    well = cluster.launch(SUM, rehearse=True)
    well_out, well_err = well.communicate(timeout=60)
    badly = cluster.launch(SUM, "--env", "UCX_TLS=nonsense", "--max-restarts", "3", rehearse=True)
    badly_out, badly_err = badly.communicate(timeout=60)

    assert (well.returncode, well_out.count("[10.0, 10.0, 10.0]")) == (0, 4), well_err
    assert badly.returncode != 0
    assert "[10.0" not in badly_out
    assert "the nodes' first all-reduce has failed; the script has not been started" in badly_err
    assert cluster.left() == {}


def test_who_stops_the_job_before_its_script_begins_is_not_told_of_a_failure(cluster):
    job = cluster.launch(SUM, rehearse=True)
    assert job.stderr is not None
    assert "communicating over mpi" in job.stderr.readline()  # the ranks talk for a second now
    cluster.hosts.signal(0, "disttrain launch", signal.SIGINT)
    _, err = job.communicate(timeout=60)

    assert job.returncode == 130
    assert "failed" not in err
    assert "disttrain: stopped by SIGINT" in err
    assert cluster.left() == {}


def test_a_node_that_differs_is_named(cluster):
    spy = cluster.folder / "other-ssh"
    spy.write_text(f'#!/bin/sh\nhost=$1\nshift\nexec {cluster.ssh} "$host" "export NCCL_DEBUG=INFO && $*"\n')
    spy.chmod(0o755)

    _, err = cluster.launch(SUM, "--ssh", str(spy)).communicate(timeout=60)

    assert re.search(
        r"^disttrain: \$NCCL_DEBUG differs: not set on host0; INFO on host1$", err, re.MULTILINE
    ), err
    assert "numpy" not in err  # only what differs is said


def test_an_exception_on_another_host_is_the_report(cluster):
    job = cluster.launch(
        """
        import disttrain as dt
        from disttrain import distributed as dist
        dist.init_process_group()
        total = dt.ones(3)
        dist.all_reduce(total)
        if dist.get_rank() == 3:
            raise ValueError("bad batch")
        dist.all_reduce(total)
        """
    )

    _, err = job.communicate(timeout=60)

    assert job.returncode == 1
    assert "rank 3 (host host1, pid" in err
    assert "raised ValueError: bad batch" in err
    assert "ranks 0-2 stopped by the launcher" in err
    assert "ranks 0-2: for " in err  # where they were, told by ledgers of both hosts
    assert cluster.left() == {}


def test_a_job_is_started_again_on_all_hosts(cluster):
    job = cluster.launch(
        """
        import os
        from disttrain import distributed as dist
        import disttrain as dt
        dist.init_process_group()
        total = dt.ones(1)
        dist.all_reduce(total)
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and dist.get_rank() == 2:
            os.kill(os.getpid(), 9)
        dist.all_reduce(total)
        print("whole", total.item())
        """,
        *("--max-restarts", "2"),
    )

    out, err = job.communicate(timeout=60)

    assert job.returncode == 0, err
    assert unfold(out).count("whole 16.0") == 4
    assert "rank 2 (host host1, pid" in err
    assert cluster.left() == {}


def test_ctrl_c_ends_the_ranks_of_all_hosts(cluster):
    job = cluster.launch(LOOP)
    cluster.wait_for(job, "begun", 4)

    cluster.hosts.signal(0, "disttrain launch", signal.SIGINT)
    _, err = job.communicate(timeout=30)

    assert job.returncode == 130, err
    assert "stopped by SIGINT" in err
    assert cluster.left() == {}


def test_ranks_of_all_hosts_save_on_a_signal_though_nobody_has_looked_at_the_job(cluster):
    job = cluster.launch(
        """
        import disttrain as dt

        model = dt.nn.parallel.DistributedDataParallel(dt.nn.Linear(4, 1))
        optimizer = dt.optim.SGD(model.parameters(), lr=1e-4)
        dt.on_save(lambda: print("saved", flush=True))
        print("ready", flush=True)
        while True:
            model(dt.ones(2, 4)).sum().backward()
            optimizer.step()
        """,
        nodes="1,1",
    )
    cluster.wait_for(job, "ready", times=2)
    assert job.stderr is not None

    told = ""
    for _ in range(2000):  # the launcher hears within a second that the ranks of the other host can save
        cluster.hosts.signal(0, "disttrain launch", signal.SIGUSR1)
        while "SIGUSR1" not in (line := job.stderr.readline()):
            assert line, told
        told += line
        if "SIGUSR1: the ranks save" in line:
            break
    out, err = job.communicate(timeout=30)

    assert job.returncode == 75, told + err
    assert unfold(out).count("saved") == 2


def test_nothing_is_left_when_the_launcher_is_killed(cluster):
    job = cluster.launch(LOOP)
    cluster.wait_for(job, "begun", 4)

    cluster.hosts.signal(0, "disttrain launch", signal.SIGKILL)
    job.communicate(timeout=30)

    cluster.wait_until_nothing_is_left()


def test_nothing_is_left_when_an_agent_is_killed(cluster):
    job = cluster.launch(LOOP)
    cluster.wait_for(job, "begun", 4)

    cluster.hosts.signal(1, "disttrain.launcher.remote", signal.SIGKILL)
    _, err = job.communicate(timeout=30)

    assert job.returncode == 1
    assert "ranks 2-3 (host host1, pid" in err
    assert "lost with the host: its connection has ended" in err
    cluster.wait_until_nothing_is_left()


def test_a_host_that_cannot_be_reached_is_named(cluster):
    cluster.hosts.addresses.insert(1, "10.199.7.77")
    try:
        job = cluster.launch(SUM, nodes="1,1")
        _, err = job.communicate(timeout=60)
    finally:
        del cluster.hosts.addresses[1]

    assert job.returncode == 2
    assert "the job needs 2 nodes, 1 are there" in err
    assert "10.199.7.77: its connection has ended" in err
    assert cluster.left() == {}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["power_off", "cut", "freeze"])
def test_a_lost_host_is_named_and_ends_the_job(breakable, fault):
    job = breakable.launch(LOOP)
    breakable.wait_for(job, "begun", 4)

    getattr(breakable.hosts, fault)(1)
    _, err = job.communicate(timeout=WITHIN)

    assert job.returncode == 1
    assert "ranks 2-3 (host host1, pid" in err
    assert "lost with the host: " in err
    assert breakable.hosts.processes(0) == {}
    if fault == "cut":  # its own agent ends what runs there
        breakable.wait_until_nothing_is_left()


@pytest.mark.slow
def test_a_short_cut_of_the_network_is_survived(breakable):
    job = breakable.launch(
        """
        import time
        import disttrain as dt
        from disttrain import distributed as dist
        dist.init_process_group()
        total = dt.ones(3)
        dist.all_reduce(total)
        print("begun", flush=True)
        end = time.monotonic() + 6
        while time.monotonic() < end:
            time.sleep(0.1)
        dist.barrier()
        print("ended", flush=True)
        """
    )
    breakable.wait_for(job, "begun", 4)

    breakable.hosts.cut(1)
    threading.Timer(2.0, breakable.hosts.heal, [1]).start()
    out, err = job.communicate(timeout=40)

    assert (job.returncode, unfold(out).count("ended")) == (0, 4), err


@pytest.mark.slow
def test_a_job_goes_on_with_the_hosts_that_are_left(breakable):
    job = breakable.launch(
        """
        import os
        import disttrain as dt
        from disttrain import distributed as dist
        dist.init_process_group()
        total = dt.ones(1)
        dist.all_reduce(total)
        print("world of", total.item(), flush=True)
        while os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            dist.all_reduce(total)
        """,
        *("--nnodes", "2:3", "--max-restarts", "1"),
        nodes="1,1,1",
    )
    breakable.wait_for(job, "world of 3.0", 3)

    breakable.hosts.power_off(2)
    out, err = job.communicate(timeout=WITHIN)

    assert job.returncode == 0, err
    assert unfold(out).count("world of 2.0") == 2
    assert "going on without 10.199.7.3" in err
    assert breakable.left() == {}


@pytest.mark.parametrize(("fewest", "code"), [(1, 0), (2, 2)])
def test_a_host_whose_name_is_wrong_is_one_that_is_not_there(cluster, fewest, code):
    here = cluster.hosts.addresses[0]
    job = cluster.launch("print('ran')", "--nnodes", f"{fewest}:2", "--hosts", f"{here}:1,no..such..host:1")

    out, err = job.communicate(timeout=WITHIN)

    assert job.returncode == code, err
    assert unfold(out).count("ran") == (code == 0)
    assert "it cannot be reached" in err
    assert "check its name" in err


def test_a_host_that_chaos_cuts_off_is_lost(cluster):
    job = cluster.launch(
        """
        import disttrain as dt
        model = dt.nn.parallel.DistributedDataParallel(dt.nn.Linear(4, 2))
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        while True:
            optimizer.zero_grad()
            model(dt.ones(3, 4)).sum().backward()
            optimizer.step()
        """,
        "--chaos",
        "cut:host1@5",
    )

    _, err = job.communicate(timeout=60)

    assert job.returncode == 1
    assert "disttrain: chaos ordered: cut:host1@step=5" in err
    assert "chaos: cut:host1@step=5" in err
    assert "lost with the host: nothing heard of it for 1" in err
    cluster.wait_until_nothing_is_left()


def test_a_stopped_rank_of_another_host_is_given_up(cluster):
    job = cluster.launch(
        """
        import os, signal
        if os.environ["RANK"] == "3":
            os.kill(os.getpid(), signal.SIGSTOP)
        signal.pause()
        """
    )

    _, err = job.communicate(timeout=60)

    assert job.returncode == 128 + signal.SIGSTOP
    assert re.search(
        r"rank 3 \(host host1, pid \d+\) was stopped \(SIGSTOP\) for 1\d s while others ran", err
    )
    cluster.wait_until_nothing_is_left()


def test_a_rank_of_another_host_that_does_not_connect_is_named_with_its_place(cluster):
    job = cluster.launch(
        """
        import os, signal
        def dawdle():
            signal.pause()
        if os.environ["RANK"] == "3":
            dawdle()
        from disttrain.collectives import connect
        connect()
        """,
        "--timeout",
        "2",
    )

    _, err = job.communicate(timeout=60)

    assert job.returncode == 1
    where = (
        r"  rank 3 \(host host1, pid \d+\): has not called connect\(\) or anything that does\n"
        r"    script.py:6 in <module>\n    script.py:4 in dawdle\n"
    )
    assert re.search(r"ranks 0-2 have waited [2-4]\.\d s for rank 3 to connect, .*\n" + where, err), err
    assert "rank 3 (host host1" in err
    assert cluster.left() == {}


def test_gpus_of_all_hosts_are_in_one_table_and_their_use_in_top(cluster, tmp_path):
    driver = fake_nvml.build(tmp_path) | {"FAKE_GPUS": "2"}
    variables = " ".join(f"{name}={value}" for name, value in driver.items())
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nhost=$1\nshift\nexec {cluster.ssh} "$host" "export {variables}; $*"\n')
    ssh.chmod(0o755)
    job = cluster.launch(
        "import signal; print('ready', flush=True); signal.pause()", "--ssh", str(ssh), **driver
    )
    cluster.wait_for(job, "] ready", times=4)

    def tool(*command: str) -> str:
        return subprocess.run(
            [*cluster.hosts.on(0), sys.executable, "-m", "disttrain", *command],
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(cluster.folder), "COLUMNS": "200"},
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip

    screen = [re.split(r"  +", line.strip()) for line in tool("top").splitlines()]
    tool("kill", json.loads(tool("ps", "--json"))["id"])
    _, err = job.communicate(timeout=30)

    lines = [line.removeprefix("disttrain: ") for line in err.splitlines()]
    table = [re.split(r"  +", line) for line in lines if re.match(r"rank  |\d  ", line)]
    assert [row[:5] for row in table] == [
        ["rank", "process", "host", "GPU", "GPU free"],
        ["0", "0", "host0", "0", "79.0 of 80.0 GiB"],
        ["1", "1", "host0", "1", "78.0 of 80.0 GiB"],
        ["2", "2", "host1", "0", "79.0 of 80.0 GiB"],
        ["3", "3", "host1", "1", "78.0 of 80.0 GiB"],
    ], err
    columns = [dict(zip(screen[1], row, strict=False)) for row in screen[2:6]]
    assert [(c["HOST"], c["GPU"], c["GPU USE"], c["GPU MEMORY"]) for c in columns] == [
        ("host0", "0", "10%", "1,024 of 81,920 MiB"),
        ("host0", "1", "20%", "2,048 of 81,920 MiB"),
        ("host1", "0", "10%", "1,024 of 81,920 MiB"),
        ("host1", "1", "20%", "2,048 of 81,920 MiB"),
    ]


def test_ranks_of_all_hosts_are_seen_and_save_and_stop_after_the_same_step(cluster):
    job = cluster.launch(
        """
        import disttrain as dt
        from disttrain.nn.parallel import DistributedDataParallel

        model = DistributedDataParallel(dt.nn.Linear(4, 1))
        optimizer = dt.optim.SGD(model.parameters(), lr=1e-4)
        dt.on_save(lambda: dt.log(saved=optimizer._steps))
        print("ready", flush=True)
        while True:
            model(dt.ones(2, 4)).sum().backward()
            optimizer.step()
        """,
    )
    cluster.wait_for(job, "] ready", times=4)

    def tool(*command: str) -> str:
        done = subprocess.run(
            [*cluster.hosts.on(0), sys.executable, "-m", "disttrain", *command],
            env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(cluster.folder)},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    name = json.loads(tool("ps", "--json"))["id"]
    saved = int(tool("ctl", name, "save").removeprefix("save: done after step "))
    paused = int(tool("ctl", name, "pause").removeprefix("pause: done after step "))
    held = json.loads(tool("ps", "--json"))["ranks"]
    stacks = re.split(r"^rank (\d) ", tool("stack"), flags=re.MULTILINE)[1:]
    tool("ctl", name, "resume")
    stopped = int(tool("ctl", name, "stop").removeprefix("stop: done after step "))
    _, err = job.communicate(timeout=30)

    assert [r["host"] for r in held] == ["host0", "host0", "host1", "host1"]
    assert all(r["rss"] > 1 << 20 for r in held)
    assert stacks[::2] == ["0", "1", "2", "3"]
    assert [re.findall(r"^  script.py:11 in <module>$", s, re.MULTILINE) for s in stacks[1::2]] == 4 * [
        ["  script.py:11 in <module>"]
    ]
    assert {(r["steps"], r["state"]) for r in held} == {(paused, "paused")}
    assert job.returncode == 0, err
    lines = (cluster.folder / "disttrain" / name / "history.jsonl").read_text().splitlines()
    told = [e for e in map(json.loads, lines) if "log" in e]
    assert sorted((e["rank"], e["log"]["saved"]) for e in told) == [
        (rank, step) for rank in range(4) for step in (saved, stopped)
    ]
