"""What can differ between the nodes of a job and spoil it: gathered on each, compared before the first step."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from disttrain import __version__
from disttrain.launcher import gpus

Facts = dict[str, Any]
"""Name of a fact → text, number or list of texts, as JSON carries them."""

_PACKAGES: Final = (
    "numpy",
    "numba",
    "pyzmq",
    "mpi4py",
    "mpich",
    "openmpi",
    "impi-rt",
    "cupy-cuda12x",
    "cupy-cuda13x",
)
_VARIABLES: Final = re.compile(
    r"(OMP|OPENBLAS|MKL|NUMBA|BLIS|KMP|GOMP|MPICH|MPIR|OMPI|UCX|FI|NCCL|CUDA|CUBLAS|CUDNN|I_MPI)_\w+"
    r"|PYTHON(HASHSEED|OPTIMIZE|PATH)|LD_(LIBRARY_PATH|PRELOAD)|MPI4PY_\w+"
)
_OF_THE_NODE: Final = re.compile(r"OMPI_\w*(RANK|NODE|URI|LOCAL)\w*|CUDA_VISIBLE_DEVICES")
MIN_SHM: Final = 64 << 20
"""Bytes of free shared memory below which ranks of one node are likely to fail."""
MIN_DISK: Final = 1 << 30
MAX_CLOCK: Final = 2.0
"""Seconds that clocks may differ: files and logs of the nodes are still in order then."""


def gather() -> Facts:
    """Return the facts of this machine, in the current folder."""
    facts: Facts = {
        "host": platform.node(),
        "disttrain": __version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "GPUs": [gpu.model for gpu in gpus.visible()],
        "GPU library": gpus.trouble() or ("works" if gpus.visible() else ""),
        "GPU driver": _read("/proc/driver/nvidia/version").partition("\n")[0],
        "git commit": _commit(),
        "free shared memory": _free("/dev/shm"),
        "free disk": _free(tempfile.gettempdir()),
        "clock": time.time(),
    }
    for name in _PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    for name, value in sorted(os.environ.items()):
        if _VARIABLES.fullmatch(name) and not _OF_THE_NODE.fullmatch(name):
            facts[f"${name}"] = value[:500]
    return facts


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _free(folder: str) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _commit() -> str:
    """Return the commit of the checkout in the current folder, and whether it has been changed since."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=, changed"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "none"
    return said.stdout.strip()


_NOT_COMPARED: Final = {"host", "clock", "free shared memory", "free disk"}


def compare(nodes: Sequence[Facts], offsets: Sequence[float] = ()) -> list[str]:
    """Return a line for each fact in which ``nodes`` differ, and for each that is too little.

    Args:
        offsets: seconds that the clock of each node is ahead of the first one's.
    """
    lines = []
    names = dict.fromkeys(name for facts in nodes for name in facts)
    for name in names:
        if name in _NOT_COMPARED:
            continue
        by_value: dict[str, list[str]] = {}
        for facts in nodes:
            by_value.setdefault(say(name, facts.get(name, "not set")), []).append(str(facts.get("host", "?")))
        if len(by_value) > 1:
            shares = sorted(by_value.items(), key=lambda item: -len(item[1]))
            lines.append(f"{name} differs: " + "; ".join(f"{v} on {_hosts(h)}" for v, h in shares))
    for facts in nodes:
        lines += _too_little(facts)
    for facts, offset in zip(nodes, offsets, strict=False):
        if abs(offset) > MAX_CLOCK:
            lines.append(
                f"the clock of {facts.get('host', '?')} is {offset:+.1f} s off; run an NTP client there"
            )
    return lines


def _too_little(facts: Mapping[str, Any]) -> list[str]:
    host = facts.get("host", "?")
    return [
        f"{host} has little {name}: {facts[name] / 2**20:.0f} MiB"
        for name, least in (("free shared memory", MIN_SHM), ("free disk", MIN_DISK))
        if isinstance(facts.get(name), int) and facts[name] < least
    ]


def say(name: str, value: object) -> str:
    """Return the value of a fact as people read it."""
    if name.startswith("free ") and isinstance(value, int):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, list):
        counts = {v: value.count(v) for v in value}
        return ", ".join(f"{n} x {v}" for v, n in counts.items()) or "none"
    return str(value) or "none"


def _hosts(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
