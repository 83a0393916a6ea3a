"""Several hosts on this machine: network, process and mount namespaces on a bridge, for tests of MPI between nodes.

A host has an address, a hostname, its own ``/proc`` and its own ``/dev/shm``. Nothing is made in the machine's own
namespaces, so nothing is left when the processes that hold the others have gone.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

_NETWORK = "10.199.7"
_PROGRAMS = ("ip", "unshare", "nsenter")
_SSHD = """Port 22
HostKey {folder}/hostkey
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PidFile none
SetEnv XDG_RUNTIME_DIR={folder}
MaxStartups 100
"""
_REAL_SSH = """#!/bin/sh
exec ssh -i {folder}/key -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \\
    -o ConnectTimeout=5 -o ServerAliveInterval=2 -o ServerAliveCountMax=3 -o BatchMode=yes "$@"
"""
_WITH_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_SSH = """#!/bin/sh
# What mpiexec takes for ssh: options, host, command.
while [ "${1#-}" != "$1" ]; do case $1 in -[iFopl]) shift 2 ;; *) shift ;; esac; done
host=$1
shift
read -r pid < "$(dirname "$0")/$host"
exec nsenter -t "$pid" -a sh -c "$*"
"""


def why_not() -> str:
    """Return why there can be no hosts on this machine, or nothing."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"hosts need {', '.join(missing)} (packages iproute2 and util-linux)"
    tried = subprocess.run(
        [*_unshare("--net", "--mount"), "sh", "-c", "ip link add br0 type bridge && mount -t tmpfs tmpfs /mnt"],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    return f"hosts need root's rights: {tried.stderr.strip()}" if tried.returncode else ""


def why_no_ssh() -> str:
    """Return why there can be no hosts with an ssh server, or nothing."""
    missing = [name for name in ("ssh", "ssh-keygen", "sshd") if shutil.which(name, path=_WITH_SBIN) is None]
    if missing:
        return f"hosts with ssh need {', '.join(missing)} (packages openssh-client and openssh-server)"
    return why_not()


class Hosts:
    """``count`` hosts, each reached from each other, for the duration of a ``with`` block.

    Args:
        folder: where the files for mpiexec go.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.addresses = [f"{_NETWORK}.{i + 1}" for i in range(count)]
        self._folder = folder
        self._holders: list[subprocess.Popen[str]] = []
        self._pids: list[int] = []
        self._servers: list[subprocess.Popen[bytes]] = []
        self._switch = 0

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _build(self) -> None:
        ssh = self._folder / "ssh"
        ssh.write_text(_SSH)
        ssh.chmod(0o755)
        switch = self._switch = self._hold("ip link add br0 type bridge && ip link set br0 up", "--net")
        self._inside(switch, f"ip addr add {_NETWORK}.254/24 dev br0 && ip link set lo up")
        for i, address in enumerate(self.addresses):
            host = self._hold(
                f"hostname host{i} && ip link set lo up && mount -t tmpfs tmpfs /dev/shm",
                *("--net", "--uts", "--ipc", "--mount", "--pid", "--mount-proc"),
            )
            (self._folder / address).write_text(f"{host}\n")
            self._inside(
                switch,
                f"ip link add v{i} type veth peer name eth0 netns {host} && ip link set v{i} master br0 up",
            )
            self._inside(host, f"ip addr add {address}/24 dev eth0 && ip link set eth0 up")

    def _hold(self, script: str, *namespaces: str) -> int:
        """Run ``script`` in new namespaces and keep them; return the pid of a process inside."""
        holder = subprocess.Popen(
            [*_unshare(*namespaces), "sh", "-c", f"{script} && echo ready && exec sleep infinity"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._holders.append(holder)
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"no namespaces: {script!r} failed")
        self._pids.append(int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text()))
        return self._pids[-1]

    def _inside(self, pid: int, script: str) -> None:
        subprocess.run(["nsenter", "-t", str(pid), "-n", "sh", "-c", script], check=True, timeout=20)

    def serve_ssh(self) -> str:
        """Start an ssh server on each host and return a command that reaches them, to be used on a host."""
        folder = self._folder
        for name in ("key", "hostkey"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
                check=True,
                timeout=20,
            )
        (folder / "sshd_config").write_text(_SSHD.format(folder=folder))
        ssh = folder / "real-ssh"
        ssh.write_text(_REAL_SSH.format(folder=folder))
        ssh.chmod(0o755)
        os.makedirs("/run/sshd", exist_ok=True)  # sshd insists
        sshd = shutil.which("sshd", path=_WITH_SBIN)
        for index, address in enumerate(self.addresses):
            server = subprocess.Popen(
                [*self.on(index), str(sshd), "-D", "-e", "-f", str(folder / "sshd_config")],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            self._servers.append(server)
            assert server.stderr is not None
            for line in server.stderr:
                if b"Server listening" in line:
                    break
            subprocess.run([*self.on(0), str(ssh), address, "true"], check=True, timeout=20)
        return str(ssh)

    def on(self, index: int) -> list[str]:
        """Return what to put before a command that is to run on a host."""
        return ["nsenter", "-t", str(self._pids[index + 1]), "-a", f"--wd={self._folder}"]

    def processes(self, index: int) -> dict[int, str]:
        """Return pid, as this machine counts, and command of what runs on a host beside what this class started."""
        mine = os.stat(f"/proc/{self._pids[index + 1]}/ns/pid").st_ino
        ours = {self._pids[index + 1], *(s.pid for s in self._servers)}
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{name}/ns/pid").st_ino == mine and int(name) not in ours:
                    command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if not command.startswith(("sshd: ", "/usr/sbin/sshd -D")) and command:
                        found[int(name)] = command
            except OSError:
                continue
        return found

    def is_on(self, index: int) -> bool:
        """Return whether a host has not been switched off."""
        return (
            os.path.exists(f"/proc/{self._pids[index + 1]}/ns/pid")
            and self._holders[index + 1].poll() is None
        )

    def signal(self, index: int, words: str, number: int) -> None:
        """Send a signal to the process on a host whose command has ``words`` in it, and no other."""
        found = [pid for pid, command in self.processes(index).items() if words in command]

        if len(found) != 1:
            raise RuntimeError(f"{len(found)} processes of host {index} have {words!r} in their command")
        os.kill(found[0], number)

    def cut(self, index: int) -> None:
        """Pull the network cable of a host."""
        self._inside(self._switch, f"ip link set v{index} down")

    def heal(self, index: int) -> None:
        """Put it back."""
        self._inside(self._switch, f"ip link set v{index} up")

    def freeze(self, index: int) -> None:
        """Stop all processes of a host, the ssh server's too."""
        for pid in [*self.processes(index), *(s.pid for s in self._servers[index : index + 1])]:
            os.kill(pid, signal.SIGSTOP)

    def power_off(self, index: int) -> None:
        """End a host as if its plug were pulled: no process of it says farewell, its network is gone."""
        self.cut(index)
        os.kill(self._pids[index + 1], signal.SIGKILL)

    def mpiexec(
        self, mpiexec: str, processes: list[int], command: list[str], env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a job with so many processes on each host under MPICH's ``mpiexec``, and return how it ended.

        Raises:
            TimeoutError: it did not end in time; with what it has said.
        """
        places = ",".join(f"{a}:{n}" for a, n in zip(self.addresses, processes, strict=True))
        reach = [
            "-localhost",
            f"{_NETWORK}.254",
            "-launcher",
            "ssh",
            "-launcher-exec",
            str(self._folder / "ssh"),
            "-hosts",
            places,
        ]
        job = subprocess.Popen(
            [*("nsenter", "-t", str(self._pids[0]), "-n", mpiexec), *reach, "-n", str(sum(processes)), *command],
            env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            out, err = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.close()  # ends all that runs on the hosts
            job.kill()
            out, err = job.communicate()
            raise TimeoutError(f"no end within {timeout} s\n{out}\n{err}") from None
        return subprocess.CompletedProcess(job.args, job.returncode, out, err)

    def close(self) -> None:
        """End the hosts, and everything that runs on them."""
        for pid in self._pids:
            with suppress(ProcessLookupError):  # switched off
                os.kill(pid, signal.SIGKILL)  # process 1 of a host: the others of it go too
        for server in self._servers:
            server.kill()
            server.communicate()
        for holder in self._holders:
            holder.kill()
            holder.communicate()
        self._pids, self._holders, self._servers = [], [], []


def _unshare(*namespaces: str) -> list[str]:
    return ["unshare", *namespaces, "--fork", "--kill-child"]
