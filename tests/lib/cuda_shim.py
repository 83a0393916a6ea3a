"""Runs the text of CUDA kernels on the CPU: g++ compiles it, fibers stand for threads, NumPy arrays for GPU arrays.

Under ``shim(schedule)`` the launch code of ``disttrain.kernels`` works on NumPy arrays. Every array that a kernel gets
is a copy between pages that nobody may touch, so an access outside is an error. So are a barrier that not all threads
reach, an index outside of a shared array, an access that is not aligned, and arguments of other types than the
kernel's.
What ``cuda.empty`` returns, and shared memory, is full of NaN (of -1, for integers). Needs g++ on an x86-64 or another
Linux machine with ``ucontext``; compiled objects are kept in pytest's cache folder by the hash of their text.
"""

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np

from disttrain.kernels import cuda

SCHEDULES = ["round-robin", "greedy-warp"]
launched: list[tuple[cuda.Program, dict[str, cuda.Constant], str, int]] = []
"""Every launch under the latest :func:`shim`: the program, its constants, the kernel, the number of threads."""
FOLDER = Path(__file__).parents[2] / ".pytest_cache" / "d" / "cuda_shim"
_HERE = Path(__file__).parent
_FLAGS = ["-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-ffp-contract=off", "-fPIC"]


def no_gpu():
    """Return why there is no GPU to run on, or an empty string."""
    try:
        import cupy
    except ImportError:
        return "needs a GPU and CuPy"
    return "" if cupy.is_available() else "needs a GPU"


class KernelFault(Exception):
    """What the shim found wrong."""


def missing():
    """Return why the shim cannot work here, or an empty string."""
    return "" if shutil.which("g++") else "needs g++"


@contextlib.contextmanager
def shim(schedule):
    """Let launches of kernels run on NumPy arrays: in one of the SCHEDULES, or with "gpu" on a GPU, there and back."""
    kept = load, *_ = cuda.load, cuda.device, cuda.empty, cuda.upload, cuda.stream

    def found(program, variant, kernel):
        if schedule == "gpu":
            run = _ThereAndBack(load(program, variant, kernel))
        else:
            run = _Kernel(program, variant, kernel, SCHEDULES.index(schedule))

        def noted(grid, block, arguments):
            launched.append((program, variant, kernel, math.prod((*grid, *block))))
            run(grid, block, arguments)

        return noted

    launched.clear()
    cuda.load = found
    cuda.device, cuda.empty, cuda.upload, cuda.stream = (lambda: schedule), poisoned, aligned, (lambda: 0)
    try:
        yield
    finally:
        cuda.load, cuda.device, cuda.empty, cuda.upload, cuda.stream = kept


class GpuDevice:
    """Stands for ``cupy.cuda.Device``: there is one, whatever its number."""

    id = 0

    def __init__(self, id=None):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class OfGpu:
    """What arrays of CuPy have that NumPy's lack."""

    device = GpuDevice()

    def get(self):
        return self.view(np.ndarray).copy()


class GpuArray(OfGpu, np.ndarray):
    """Stands for CuPy's arrays: what is made of it is of its kind, and kernels' modules take it for one on a GPU."""


def there(x):
    """Return a copy of an array on what stands for the GPU."""
    return aligned(x).view(GpuArray)


@contextlib.contextmanager
def stand_in(schedule, monkeypatch):
    """Let a :class:`GpuArray` be taken for an array on a GPU; yield the names of the kernels that are launched."""

    class Cupy(types.ModuleType):
        ndarray = GpuArray
        get_default_memory_pool = staticmethod(
            lambda: types.SimpleNamespace(used_bytes=lambda: 0, malloc=None)
        )
        is_available = staticmethod(lambda: True)
        cuda = types.SimpleNamespace(Device=GpuDevice, get_allocator=lambda: "of a user")
        asarray = staticmethod(
            lambda x, dtype=None: (
                x.view(GpuArray) if dtype in (None, x.dtype) else x.astype(dtype).view(GpuArray)
            )
        )

        def __getattr__(self, name):
            function = getattr(np, name)
            return _of_gpu(function) if callable(function) and not isinstance(function, type) else function

    launched = []
    with shim(schedule):
        load, empty = cuda.load, cuda.empty

        def noted(program, variant, kernel):
            run = load(program, variant, kernel)

            def launch(grid, block, arguments):
                launched.append(kernel)
                run(grid, block, arguments)

            return launch

        device = object()  # so that no kernel is remembered from elsewhere
        monkeypatch.setitem(sys.modules, "cupy", Cupy("cupy"))
        monkeypatch.setattr(cuda, "load", noted)
        monkeypatch.setattr(cuda, "device", lambda: device)
        monkeypatch.setattr(cuda, "empty", lambda shape, dtype: empty(shape, dtype).view(GpuArray))
        monkeypatch.setattr(cuda, "upload", lambda x: aligned(x).view(GpuArray))
        yield launched
        monkeypatch.undo()


def _of_gpu(function):
    @functools.wraps(function)
    def wrapped(*args, **options):
        result = function(*args, **options)
        return result.view(GpuArray) if isinstance(result, np.ndarray) else result

    return wrapped


def poisoned(shape, dtype):
    """Return an array full of NaN, or of -1; aligned as on a GPU."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.full(size + 256, 0xFF, np.uint8)
    start = -raw.__array_interface__["data"][0] % 256
    return raw[start : start + size].view(dtype).reshape(shape)


def aligned(x):
    """Return a copy of an array at an address as a GPU's allocator gives."""
    copy = poisoned(x.shape, x.dtype)
    copy[...] = x
    return copy


class _Kernel:
    def __init__(self, program, variant, name, schedule):
        library = _library(program.source(variant), tuple(program.kernels))
        self._run = getattr(library, f"run_{name}")
        self._kinds = ctypes.cast(getattr(library, f"kinds_{name}")(), ctypes.c_char_p).value.decode()
        self._name, self._schedule = name, schedule

    def __call__(self, grid, block, arguments):
        wanted = re.findall(r"\*?.", self._kinds)
        if len(wanted) != len(arguments):
            raise KernelFault(f"{self._name} takes {len(wanted)} arguments, got {len(arguments)}")
        for i, (a, kind) in enumerate(zip(arguments, wanted, strict=True)):
            if _kind(a) != kind and not (kind[0] == "*" and isinstance(a, int) and a == 0):
                raise KernelFault(
                    f"{self._name}: argument {i} must be {kind}, as ctypes has it, got {_kind(a)}"
                )
        regions = _regions([a for a in arguments if isinstance(a, np.ndarray)])
        runtime = _runtime()
        copies = [runtime.shim_guard(begin, end - begin) for begin, end in regions]

        def word(a):
            if isinstance(a, float):
                return int.from_bytes(struct.pack("d", a), "little")
            if not isinstance(a, np.ndarray):
                return int(a) % (1 << 64)
            i = _region_of(a, regions)
            return copies[i] + _address(a) - regions[i][0]

        words = (ctypes.c_uint64 * len(arguments))(*map(word, arguments))
        sizes = [(ctypes.c_uint * 3)(*n, *(1,) * (3 - len(n))) for n in (grid, block)]
        failed = self._run(*sizes, words, self._schedule)
        touched = [
            runtime.shim_unguard(copy, None if failed else begin, end - begin)
            for copy, (begin, end) in zip(copies, regions, strict=True)
        ]
        if failed:
            raise KernelFault(f"{self._name}: {runtime.shim_message().decode()}")
        if any(touched):
            raise KernelFault(f"{self._name}: wrote beside an array")


class _ThereAndBack:
    """A kernel on a GPU, which gets copies of NumPy arrays and whose results are copied back."""

    def __init__(self, kernel):
        self._kernel = kernel

    def __call__(self, grid, block, arguments):
        import cupy

        regions = _regions([a for a in arguments if isinstance(a, np.ndarray)])
        hosts = [
            np.ctypeslib.as_array((ctypes.c_uint8 * (end - begin)).from_address(begin))
            for begin, end in regions
        ]
        devices = []
        with cupy.cuda.using_allocator(None):  # no pool, in which compute-sanitizer sees one large block
            for (begin, _), host in zip(regions, hosts, strict=True):
                memory = cupy.empty(begin % 16 + host.size, np.uint8)  # which begins at a multiple of 16
                devices.append(memory[begin % 16 :])
                devices[-1].set(host)

        def moved(a):
            if not isinstance(a, np.ndarray):
                return a
            i = _region_of(a, regions)
            return np.uint64(devices[i].data.ptr + _address(a) - regions[i][0])

        self._kernel(grid, block, tuple(map(moved, arguments)))
        for host, device in zip(hosts, devices, strict=True):
            np.copyto(host, device.get())


def _kind(a):
    """Return what an argument is: the letter of its type, after a star for arrays."""
    if isinstance(a, np.ndarray):
        return "*" + {"l": "q", "L": "Q"}.get(a.dtype.char, a.dtype.char)
    return "d" if isinstance(a, float) else "q"


def _address(a):
    return a.__array_interface__["data"][0]


def _regions(arrays):
    """Return where the arrays lie; those that overlap are one region."""
    regions = []
    for begin, end in sorted((_address(a), _address(a) + a.nbytes) for a in arrays):
        if regions and begin < regions[-1][1]:
            regions[-1] = (regions[-1][0], max(end, regions[-1][1]))
        else:
            regions.append((begin, end))
    return regions


def _region_of(a, regions):
    """Return the number of the region that an array lies in; where one ends, the next may begin."""
    return max(i for i, (begin, _) in enumerate(regions) if begin <= _address(a))


@functools.cache
def _runtime():
    source = (_HERE / "cuda_shim.cpp").read_text() + _header()
    path = _built("runtime-{}.so", source, ["-O2", "-shared", str(_HERE / "cuda_shim.cpp")])
    runtime = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    runtime.shim_guard.restype = ctypes.c_void_p
    runtime.shim_guard.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    runtime.shim_unguard.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    runtime.shim_message.restype = ctypes.c_char_p
    return runtime


@functools.cache
def _library(text, kernels):
    _runtime()
    entries = "".join(
        f"const char* kinds_{k}() {{ return shim::kinds(::{k}); }}\n"
        f"int run_{k}(const unsigned* grid, const unsigned* block, const uint64_t* words, int schedule)"
        f" {{ return shim::run(::{k}, grid, block, words, schedule); }}\n"
        for k in kernels
    )
    source = f'#include "cuda_shim.h"\n{text}\n#line 1 "entries"\nextern "C" {{\n{entries}}}\n'
    path = _built(
        "kernels-{}.so",
        source + _header(),
        ["-shared", f"-I{_compiled_header().parent}", f"-I{_HERE}", "-xc++", "-"],
        stdin=source,
    )
    library = ctypes.CDLL(str(path))
    for k in kernels:
        getattr(library, f"kinds_{k}").restype = ctypes.c_void_p
    return library


def _header():
    return (_HERE / "cuda_shim.h").read_text()


@functools.cache
def _compiled_header():
    """Return the header as g++ reads it fastest: two thirds of the time for a kernel went into the text of it."""
    return _built("header-{}/cuda_shim.h.gch", _header(), ["-xc++-header", str(_HERE / "cuda_shim.h")])


def _built(name, text, arguments, stdin=None):
    """Return what g++ makes of ``text``; in ``name``, ``{}`` stands for the hash of it."""
    path = FOLDER / name.format(hashlib.sha256(text.encode()).hexdigest()[:32])
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            ["g++", *_FLAGS, "-o", str(part), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=110,
        )
        if done.returncode:
            raise KernelFault(f"g++ refuses the text:\n{done.stderr}")
        part.rename(path)
    return path
