"""What each process of a node gets: a GPU, a NUMA node, cores, threads; and the table that says so."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from disttrain.collectives.env import WorkerEnv
from disttrain.launcher.gpus import Gpu, trouble, use, visible

BINDING_VARIABLES: Final = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Where one of these is set, the user binds, or does not want it: we leave the cores alone."""
_SHARED: Final = " (shared)"
_LEAST: Final = 2
"""Cores of a process from which on it is bound. One that has a single core would share it with its helpers."""


@dataclass(frozen=True)
class Machine:
    """What this process may use of its machine."""

    cores: Mapping[int, tuple[int, ...]]
    """NUMA node → its cores, the threads of one core next to each other."""
    gpus: tuple[Gpu, ...] = ()
    """Those that can be seen, in CUDA's order."""
    siblings: int = 1
    """How many of ``cores`` are threads of one core of the hardware."""

    @classmethod
    def look(
        cls,
        root: Path = Path("/"),
        allowed: Iterable[int] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> "Machine":
        """Read the files of Linux below ``root``; cores are those of ``allowed``, this process's own if None."""
        usable = set(os.sched_getaffinity(0) if allowed is None else allowed)
        cores = {}
        for folder in sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=_number):
            mine = usable & set(_cpus(_read(folder / "cpulist")))
            if mine:
                cores[_number(folder)] = tuple(sorted(mine, key=lambda c: (_first_sibling(root, c), c)))
        if not cores:  # a kernel without NUMA
            cores = {0: tuple(sorted(usable, key=lambda c: (_first_sibling(root, c), c)))}
        whole = {_first_sibling(root, core) for core in usable}
        return cls(cores, visible(environ, root), len(usable) // len(whole))

    def without(self, places: Collection[int]) -> "Machine":
        """Return this machine without the GPUs at these places; the same one if it has none of them."""
        if all(i >= len(self.gpus) for i in places):
            return self
        return replace(self, gpus=tuple(gpu for i, gpu in enumerate(self.gpus) if i not in places))

    def place(
        self, env: WorkerEnv, environ: Mapping[str, str], limits: Mapping[str, str] | None = None
    ) -> "Place":
        """Return what the process of ``env`` gets, if it is started with the variables ``environ``.

        ``limits`` are numbers of threads, by variable, for those that ``environ`` does not set. A process with cores
        of its own gets as many threads as these, unless its results must not depend on that.
        """
        ranks = range(env.local_rank, env.local_rank + env.hosted)
        homes = [self._home(r, env.local_world_size) for r in range(env.local_world_size)]
        mine = [core for r in ranks for core in self._share(r, homes)]
        bound = len(mine) >= _LEAST and not any(name in environ for name in BINDING_VARIABLES)
        every = tuple(core for cores in self.cores.values() for core in cores)
        gpus = tuple(self.gpus[r] for r in ranks if r < len(self.gpus))
        owns = bound and len(mine) < len(every)
        given = {name: value for name, value in (limits or {}).items() if name not in environ}
        if owns and not env.fixed_order:
            given = dict.fromkeys(given, str(max(1, len(mine) // self.siblings)))
        return Place(
            env=env,
            gpus=gpus,
            numa=tuple(dict.fromkeys(homes[r] for r in ranks)) if bound else tuple(self.cores),
            cores=tuple(mine) if bound else every,
            bound=owns,
            threads={**given, **environ}.get("OMP_NUM_THREADS", ""),
            variables=given,
        )

    def _home(self, rank: int, ranks: int) -> int:
        """Return the NUMA node of a rank: its GPU's, else an equal share of ranks goes to each."""
        nodes = list(self.cores)
        if rank < len(self.gpus) and self.gpus[rank].numa in self.cores:
            return self.gpus[rank].numa
        return nodes[rank * len(nodes) // ranks]

    def _share(self, rank: int, homes: Sequence[int]) -> tuple[int, ...]:
        """Return the part of its NUMA node's cores that a rank gets."""
        here = [r for r, home in enumerate(homes) if home == homes[rank]]
        cores = self.cores[homes[rank]]
        i = here.index(rank)
        return cores[i * len(cores) // len(here) : (i + 1) * len(cores) // len(here)]


@dataclass(frozen=True)
class Place:
    """What one process gets."""

    env: WorkerEnv
    gpus: tuple[Gpu, ...]
    """Those of its ranks."""
    numa: tuple[int, ...]
    cores: tuple[int, ...]
    """Those on which it may run."""
    bound: bool
    """Whether these are fewer than it could have."""
    threads: str
    """Of each of its numerical libraries; empty if they decide."""
    variables: Mapping[str, str]
    """What tells them."""

    @property
    def words(self) -> tuple[str, ...]:
        """The line of the table, but for the host."""
        ranks = range(self.env.rank, self.env.rank + self.env.hosted)
        return (
            ranges(ranks),
            str(self.env.process),
            ",".join(gpu.name for gpu in self.gpus) or "-",
            ", ".join(found.free for gpu in self.gpus if (found := use(gpu)) is not None) or "-",
            ranges(self.numa),
            self.threads or "-",
            ranges(sorted(self.cores)) + ("" if self.bound else _SHARED),
        )


UNKNOWN: Final = ("?", "?", "?", "?", "?")
"""GPU, its free memory, NUMA, threads and cores of a process whose host has not been asked."""
HEADINGS: Final = ("rank", "process", "host", "GPU", "GPU free", "NUMA", "threads", "cores")
"""The host, and what :attr:`Place.words` has."""


def has_own(words: Sequence[str]) -> bool:
    """Return whether a process has something of its machine, by its :attr:`Place.words`, that the others have not."""
    return words[2] != "-" or not words[-1].endswith(_SHARED)


def table(rows: Iterable[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Return lines for hosts and the :attr:`Place.words` of their processes, with a heading.

    What GPUs have free is left out where there are none, or it is not known; a line says why then.
    """
    cells = [HEADINGS, *((rank, process, host, *rest) for host, (rank, process, *rest) in rows)]
    gpu, free = HEADINGS.index("GPU"), HEADINGS.index("GPU free")
    has_gpus = any(row[gpu] not in "-?" for row in cells[1:])
    if all(row[free] in "-?" for row in cells[1:]):
        cells = [row[:free] + row[free + 1 :] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    if has_gpus and (why := trouble()):
        lines.append(f"free memory and NUMA nodes of GPUs are not known: {why}")
    return lines


def ranges(numbers: Iterable[int]) -> str:
    """Return ``0-3,8`` for 0, 1, 2, 3 and 8."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _cpus(text: str) -> list[int]:
    """Return the numbers in a list of the kernel's, such as ``0-3,8``."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _first_sibling(root: Path, core: int) -> int:
    siblings = _cpus(_read(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"))
    return min(siblings, default=core)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("node"))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
