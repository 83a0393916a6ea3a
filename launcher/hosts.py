"""The machines of a job: from ``--hosts``, a hostfile, or the allocation of a batch system."""

import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from disttrain.launcher.config import ConfigError, parse_nproc

_HOST: Final = re.compile(
    r"(?:[^@\s:\[\]-][^@\s:\[\]]*@)?(\[[0-9A-Fa-f:.%]+\]|[^@\s:\[\]-][^@\s:\[\]]*)(?::([0-9]+))?"
)


@dataclass(frozen=True)
class Host:
    """A machine of the job."""

    name: str
    """As ssh or the batch system knows it, ``user@`` included."""
    slots: int | None = None
    """Processes that it is to run; None for as many as ``-n`` says."""
    address: str = ""
    """Where it is reached, if its name does not tell."""

    @property
    def reached_at(self) -> str:
        return self.address or self.name.rpartition("@")[2].strip("[]")


@dataclass(frozen=True)
class Allocation:
    """What a batch system has given to this job."""

    system: str
    """``Slurm job 17``."""
    hosts: tuple[Host, ...]
    here: str = ""
    """Name of the host that this is; empty on a machine that is not part of it."""
    srun: bool = False
    """Agents are started with ``srun``, not over ssh."""

    def __str__(self) -> str:
        names = [h.name for h in self.hosts]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"{self.system}: {len(names)} node{'s' if len(names) > 1 else ''} ({shown})"


@dataclass(frozen=True)
class Cluster:
    """The nodes on which a job is to run."""

    hosts: tuple[Host, ...]
    """This machine first, if it is one of them."""
    here: bool
    least: int
    """With fewer nodes the job does not begin, nor go on."""
    nproc: str | None = None
    """Processes of a host that does not say itself, as ``-n`` has it; None for one a GPU, or one."""
    fewest: int = 0
    """With fewer processes left a node is left out; 0 if it has all of them, always."""
    ssh: str = ""
    srun: bool = False

    @property
    def numbered(self) -> list[tuple[int, Host]]:
        """The hosts with the numbers of their nodes; 0 is this machine."""
        return list(enumerate(self.hosts, 0 if self.here else 1))

    def each(self, gpus: int, cores: int, name: str) -> int:
        """Return the number of processes for a host ``name`` with ``gpus`` and ``cores``.

        Raises:
            ConfigError: it should have one a GPU, and has none.
        """
        match self.nproc:
            case None:
                return gpus or 1
            case "auto":
                return gpus or cores
            case "cpu":
                return cores
            case "gpu":
                if gpus == 0:
                    raise ConfigError(f"-n gpu: {name} has no GPU; use -n cpu or a number")
                return gpus
            case number:
                return int(number)


def make_cluster(
    *,
    hosts: Sequence[Host],
    where: str,
    nnodes: tuple[int, int] | None,
    nproc: str | None,
    ssh: str = "",
    srun: bool = False,
    here: str | None = None,
) -> Cluster:
    """Return the cluster of the hosts that are used, this machine first.

    Args:
        where: what has named the hosts, for messages.
        here: the name of this machine among them, empty if it is none of them; None to find out.

    Raises:
        ConfigError: there are too few of them, or the number of processes is said twice.
    """
    fewest, nproc = split_nproc(nproc)
    if nproc is not None and any(h.slots is not None for h in hosts):
        raise ConfigError(
            f"-n {nproc} is the number of processes of each node, and {where} says it too; say it once"
        )
    used = choose(hosts, nnodes, where)
    mine = next((h for h in used if (is_here(h) if here is None else h.name == here)), None)
    others = tuple(h for h in used if h is not mine)
    return Cluster(
        hosts=others if mine is None else (mine, *others),
        here=mine is not None,
        least=nnodes[0] if nnodes is not None else len(used),
        nproc=nproc,
        fewest=fewest,
        ssh=ssh,
        srun=srun,
    )


def this_node(nproc: str) -> Cluster:
    """Return this machine as the only node of a job: ``-n MIN:MAX``.

    Raises:
        ConfigError: ``nproc`` cannot be.
    """
    fewest, most = split_nproc(nproc)
    return Cluster((Host("localhost"),), here=True, least=1, nproc=most, fewest=fewest)


def split_nproc(nproc: str | None) -> tuple[int, str | None]:
    """Return the least and the greatest number of processes that ``-n 2:4`` or ``-n 2:gpu`` asks for.

    Without MIN the least is 0: there are always as many as MAX says.

    Raises:
        ConfigError: MIN is no number, or more than MAX.
    """
    if nproc is None or ":" not in nproc:
        return 0, nproc
    least, _, most = nproc.partition(":")
    if not least.isdecimal() or int(least) < 1:
        raise ConfigError(
            f"-n must be N or MIN:MAX with a number as MIN, got {nproc!r}; try -n 1:{most or 2}"
        )
    if most not in ("auto", "cpu", "gpu") and parse_nproc(most) < int(least):
        raise ConfigError(f"-n {nproc}: MIN <= MAX must hold; try -n {most}:{least}")
    return int(least), most


def parse_hosts(text: str) -> tuple[Host, ...]:
    """Return what ``--hosts a:4,b:4`` says.

    Raises:
        ConfigError: no host, a wrong number of slots, or a host named twice.
    """
    return _checked([_parse_host(word, "--hosts") for word in text.split(",")], "--hosts")


def read_hostfile(path: str) -> tuple[Host, ...]:
    """Return the hosts in a file: ``NAME``, ``NAME:4`` or ``NAME slots=4`` (Open MPI) a line, ``#`` for comments.

    Raises:
        ConfigError: the file cannot be read, or a line is not like that.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as e:
        raise ConfigError(f"--hostfile {path}: {e.strerror}; check the path") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"--hostfile {path}, line {number}"
        name = words[0]
        for word in words[1:]:
            key, _, value = word.partition("=")
            if key not in ("slots", "max_slots", "max-slots"):
                raise ConfigError(f"{where}: {word!r} is not known; write NAME:4 or NAME slots=4")
            if key == "slots":
                name += f":{value}"
        hosts.append(_parse_host(name, where))
    return _checked(hosts, f"--hostfile {path}")


def _parse_host(word: str, where: str) -> Host:
    match = _HOST.fullmatch(word.strip())
    if match is None:
        raise ConfigError(
            f"{where}: {word!r} is no host; write a name or address with its slots, like node1:4"
        )
    if match[2] is None:
        return Host(word.strip())
    if int(match[2]) < 1:
        raise ConfigError(f"{where}: {word!r} has no slots; leave the host out, or write {match[1]}:1")
    return Host(word.strip().removesuffix(f":{match[2]}"), int(match[2]))


def _checked(hosts: Sequence[Host], where: str) -> tuple[Host, ...]:
    names = [h.name for h in hosts]
    if not names:
        raise ConfigError(f"{where} names no host; write for example node1:4,node2:4")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{where}: {name!r} is there {names.count(name)} times; name it once, with its slots"
            )
    return tuple(hosts)


def parse_nnodes(text: str) -> tuple[int, int]:
    """Return the least and the greatest number of nodes that ``--nnodes 4`` or ``--nnodes 2:4`` asks for.

    Raises:
        ConfigError: not one or two numbers, or out of order.
    """
    least, colon, most = text.partition(":")
    if not least.isdecimal() or (colon and not most.isdecimal()):
        raise ConfigError(f"--nnodes must be N or MIN:MAX, got {text!r}; try --nnodes 2")
    low, high = int(least), int(most or least)
    if not 1 <= low <= high:
        raise ConfigError(f"--nnodes {text}: 1 <= MIN <= MAX must hold; try --nnodes {max(1, high)}")
    return low, high


def choose(hosts: Sequence[Host], nnodes: tuple[int, int] | None, where: str) -> tuple[Host, ...]:
    """Return the hosts that are used: as many as ``nnodes`` allows.

    Raises:
        ConfigError: there are fewer than it asks for.
    """
    least, most = nnodes or (len(hosts), len(hosts))
    if len(hosts) < least:
        raise ConfigError(
            f"--nnodes asks for {least} nodes, {where} has {len(hosts)}; ask for fewer, or add some"
        )
    return tuple(hosts[:most])


def find_allocation(environ: Mapping[str, str] = os.environ) -> Allocation | None:
    """Return the allocation that this process runs in, by its environment; None outside of any.

    Raises:
        ConfigError: there is one, but it cannot be read.
    """
    if "SLURM_JOB_ID" in environ and "SLURM_JOB_NODELIST" in environ:
        return _slurm(environ)
    if "PBS_JOBID" in environ and "PBS_NODEFILE" in environ:
        return _pbs(environ)
    if "LSB_JOBID" in environ and "LSB_MCPU_HOSTS" in environ:
        return _lsf(environ)
    return None


def _slurm(environ: Mapping[str, str]) -> Allocation:
    names = _ask("scontrol", "show", "hostnames", environ["SLURM_JOB_NODELIST"]).split()
    tasks = None
    if "SLURM_NTASKS_PER_NODE" in environ or "SLURM_NTASKS" in environ:
        tasks = _expand(environ.get("SLURM_TASKS_PER_NODE", ""), len(names))
    slots = tasks or [None] * len(names)
    addresses = [""] * len(names)
    if len(names) > 1:  # a node's name in Slurm need not be one in the network
        told = _ask("scontrol", "show", "node", "--oneliner", ",".join(names))
        known = dict(re.findall(r"^NodeName=(\S+) .*?\bNodeAddr=(\S+)", told, re.MULTILINE))
        addresses = [known.get(name, "") for name in names]
    hosts = tuple(Host(n, s, a) for n, s, a in zip(names, slots, addresses, strict=True))
    here = environ.get("SLURMD_NODENAME", "")
    return Allocation(f"Slurm job {environ['SLURM_JOB_ID']}", hosts, here if here in names else "", srun=True)


def _expand(text: str, nodes: int) -> list[int | None] | None:
    """Return the numbers that ``2(x3),1`` stands for; None if they are not one for each node."""
    numbers: list[int | None] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        numbers += [int(count)] * int(times or 1)
    return numbers if len(numbers) == nodes else None


def _pbs(environ: Mapping[str, str]) -> Allocation:
    path = environ["PBS_NODEFILE"]
    try:
        lines = Path(path).read_text().split()
    except OSError as e:
        raise ConfigError(f"PBS_NODEFILE={path}: {e.strerror}; is this shell still in its job?") from None
    hosts = _of_lines(lines)
    return Allocation(f"PBS job {environ['PBS_JOBID']}", hosts, _this_host(hosts))


def _lsf(environ: Mapping[str, str]) -> Allocation:
    words = environ["LSB_MCPU_HOSTS"].split()
    hosts = tuple(Host(name, int(slots)) for name, slots in zip(words[::2], words[1::2], strict=True))
    return Allocation(f"LSF job {environ['LSB_JOBID']}", hosts, _this_host(hosts))


def _of_lines(lines: Sequence[str]) -> tuple[Host, ...]:
    """Return hosts with a slot for each line that names them; one line each leaves the slots to ``-n``."""
    counts = {name: lines.count(name) for name in lines}
    several = max(counts.values(), default=0) > 1
    return tuple(Host(name, count if several else None) for name, count in counts.items())


def _this_host(hosts: Sequence[Host]) -> str:
    mine = socket.gethostname()
    return next((h.name for h in hosts if h.name.partition(".")[0] == mine.partition(".")[0]), "")


def is_here(host: Host) -> bool:
    """Return whether ``host`` is this machine: its address can be bound."""
    if host.name.rpartition("@")[2] in ("localhost", socket.gethostname()):
        return True
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.reached_at, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as s:
            s.bind(address)
    except (OSError, UnicodeError):  # the second: no name of a host
        return False
    return True


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    except FileNotFoundError:
        raise ConfigError(f"there is a batch job, but no command {command[0]!r}; add it to PATH") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as e:
        said = getattr(e, "stderr", "") or str(e)
        raise ConfigError(f"`{' '.join(command)}` failed: {said.strip()}") from None
