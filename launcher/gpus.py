"""The NVIDIA GPUs of this machine: which ones a process sees, and how busy they are.

What the driver's library (NVML) knows of them comes through ``nvidia-ml-py``, an optional package; without it there are
as many as there are device files, and no more is known. Neither is loaded on a machine without a driver.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from glob import glob
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_UNKNOWN: Final = -1


@dataclass(frozen=True)
class Gpu:
    """A GPU that can be seen."""

    name: str
    """Its name for ``CUDA_VISIBLE_DEVICES``: a number, or what that variable has."""
    numa: int = _UNKNOWN
    """Its NUMA node, -1 if unknown."""
    model: str = "unknown"
    uuid: str = ""
    handle: Any = field(default=None, compare=False, repr=False)
    """NVML's; None without NVML."""


@dataclass(frozen=True)
class GpuUse:
    """How busy a GPU is, whoever uses it."""

    name: str
    """As :attr:`Gpu.name`."""
    busy: float | None
    """Share of the last second, or less, in which a kernel ran; None where NVML does not know it (parts by MIG)."""
    used: int
    """Bytes of its memory."""
    total: int
    """Bytes of its memory that there are."""

    @property
    def free(self) -> str:
        """What is left of its memory, in words."""
        return f"{(self.total - self.used) / 2**30:.1f} of {self.total / 2**30:.1f} GiB"


def visible(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Return the GPUs that a process with these variables sees.

    They are in the order of their addresses, which is CUDA's where all are of one kind, or in the order of
    ``CUDA_VISIBLE_DEVICES``.

    Args:
        root: where the files of Linux are.
    """
    nvml = _nvml()
    words = environ.get("CUDA_VISIBLE_DEVICES")
    if isinstance(nvml, str):
        there = {str(i): Gpu(str(i)) for i in range(len(glob("/dev/nvidia[0-9]*")))}
        others = iter(range(len(there)))

        def find(word: str) -> Gpu | None:
            if word.startswith("GPU-"):  # one of them, which one is not known
                return Gpu(word) if next(others, None) is not None else None
            if word.startswith("MIG-"):  # a part of one, of which there may be many
                return Gpu(word)
            return there.get(word)
    else:
        driver = nvml
        there = {str(i): _at(driver, i, root) for i in range(driver.nvmlDeviceGetCount())}

        def find(word: str) -> Gpu | None:
            return there.get(word) or _by_uuid(driver, word, tuple(there.values()), root)

    return tuple(there.values()) if words is None else _chosen(words, find)


def _chosen(words: str, find: Callable[[str], Gpu | None]) -> tuple[Gpu, ...]:
    chosen = []
    for word in map(str.strip, words.split(",")):
        gpu = find(word)
        if gpu is None:  # CUDA looks no further either
            break
        chosen.append(gpu)
    return tuple(chosen)


def _at(nvml: ModuleType, number: int, root: Path) -> Gpu:
    """Return the GPU of this number, with what is known of it: of one that has fallen off the bus, nothing."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        return Gpu(
            str(number),
            _numa_node(nvml, handle, root),
            nvml.nvmlDeviceGetName(handle),
            nvml.nvmlDeviceGetUUID(handle),
            handle,
        )
    except nvml.NVMLError:
        return Gpu(str(number))


def _by_uuid(nvml: ModuleType, word: str, there: Sequence[Gpu], root: Path) -> Gpu | None:
    """Return the GPU whose UUID begins with ``word``, or the part of a GPU (MIG) that has it."""
    if word.startswith("GPU-"):
        return next((replace(gpu, name=word) for gpu in there if gpu.uuid.startswith(word)), None)
    try:
        part = nvml.nvmlDeviceGetHandleByUUID(word)
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part)
        return Gpu(word, _numa_node(nvml, whole, root), nvml.nvmlDeviceGetName(whole), word, part)
    except nvml.NVMLError:
        return None


def _numa_node(nvml: ModuleType, handle: Any, root: Path) -> int:
    pci = nvml.nvmlDeviceGetPciInfo(handle)
    folder = root / f"sys/bus/pci/devices/{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"
    try:
        return int((folder / "numa_node").read_text())
    except OSError:
        return _UNKNOWN


def use(gpu: Gpu) -> GpuUse | None:
    """Return how busy a GPU is; None if that is not known."""
    nvml = _nvml()
    if isinstance(nvml, str) or gpu.handle is None:
        return None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu.handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:  # it has fallen off the bus, say; its processes will tell
        return None
    try:
        busy = nvml.nvmlDeviceGetUtilizationRates(gpu.handle).gpu / 100
    except nvml.NVMLError:
        busy = None
    return GpuUse(gpu.name, busy, memory.used, memory.total)


def trouble() -> str:
    """Return why no more is known of the GPUs here than that they are there; "" if more is, or there is none."""
    nvml = _nvml()
    return nvml if isinstance(nvml, str) else ""


@cache
def _nvml() -> ModuleType | str:
    """Return NVML, ready to be asked, or why it cannot be; "" on a machine without a GPU."""
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        return f"the driver's library is not here ({error})" if glob("/dev/nvidia[0-9]*") else ""
    try:
        import pynvml
    except ImportError:
        return 'nvidia-ml-py is not installed (pip install "disttrain[gpu]")'
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"the driver does not answer: {error}"
    module: ModuleType = pynvml
    return module
