"""A Slurm cluster of several nodes on this machine, for tests: real daemons, one ``slurmd`` for each node."""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Self

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_DAEMONS = ("slurmctld", "slurmd")
_CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
# A job that is put back in the queue waits so long before it may start again; 120 s by default.
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# The nodes have what is said here, not what the machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdTimeout=15
KillWait=3
MinJobAge=600
JobRequeue=1
# A batch script that ends with 75 is put back in the queue.
RequeueExit=75
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=5
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Return why there can be no cluster on this machine, or nothing."""
    missing = [name for name in (*_DAEMONS, "srun", "sbatch") if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"Slurm needs {', '.join(missing)} (packages slurmctld, slurmd and slurm-client)"
    return "" if os.getuid() == 0 else "Slurm's daemons need root's rights"


class Slurm:
    """Nodes ``n1`` to ``nN`` of 4 CPUs and 2 pretended GPUs each, for the duration of a ``with`` block."""

    def __init__(self, nodes: int, folder: Path) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}
        """What a command needs in its environment to speak to this cluster."""
        self._nodes = nodes
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        ports = _free_ports(self._nodes + 1)
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs=4 RealMemory=2000 "
            f"Gres=gpu:2 State=UNKNOWN"
            for i in range(1, self._nodes + 1)
        )
        (self.folder / "slurm.conf").write_text(
            _CONF.format(host=host, port=ports[0], folder=self.folder, nodes=nodes)
        )
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/tty[1-2]\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        (self.folder / "state").mkdir()
        try:
            self._start("slurmctld")
            for i in range(1, self._nodes + 1):
                self._start("slurmd", "-N", f"n{i}")
            self._wait_until_idle()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, daemon: str, *options: str) -> None:
        path = shutil.which(daemon, path=_PATH)
        with open(self.folder / f"{'-'.join([daemon, *options])}.log", "wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    [str(path), "-D", *options],
                    env=os.environ | self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def _wait_until_idle(self) -> None:
        for _ in range(200):
            idle = self.run(
                "sinfo", "--noheader", "--Node", "--partition=low", "--states=idle", "--format=%N"
            )
            if len(idle.stdout.split()) == self._nodes:
                return
            if any(d.poll() is not None for d in self._daemons):
                break
            self._daemons[0].poll()
        logs = "\n".join(p.read_text() for p in self.folder.glob("*.log"))
        raise RuntimeError(f"the Slurm cluster did not come up\n{logs}")

    def run(self, *command: str, timeout: float = 60.0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may speak to the cluster."""
        return subprocess.run(
            command,
            env=os.environ | self.env | env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def close(self) -> None:
        """Cancel all jobs and end the daemons."""
        if self._daemons and self._daemons[0].poll() is None:
            self.run("scancel", "--quiet", "--user=root")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports
