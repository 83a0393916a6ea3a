"""CUDA kernels: finding the text beside a module, specialising, compiling, keeping and launching it.

A family ``<name>.py`` has its kernels in ``<name>.cu``. Before the text of that file come ``common.cuh`` and one
``#define`` for each constant of the variant that is wanted: types (``T``: float, double, half_t, bfloat16_t), and
numbers that the compiler should know. Kernels take pointers, ``long long`` and ``double`` and nothing else, so that a
launch can be checked by kind.

NVRTC compiles a variant when it is first launched, without contracting products and sums (so that plain arithmetic
gives the bits of the CPU) and without flushing denormal numbers; the machine code is kept in
``$XDG_CACHE_HOME/disttrain/cuda`` (default ``~/.cache``) and loaded through ``cupy.RawModule``. Nothing here imports
CuPy before an array of it is there.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from disttrain.kernels import nvrtc
from disttrain.kernels.arrays import Array, address

_logger = logging.getLogger("disttrain")

HALVES = ("half_t", "bfloat16_t")
FLOATS = ("float", "double", *HALVES)
"""The types of C++ that ``T`` can be."""

_C_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "half_t",
    "bfloat16": "bfloat16_t",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned",
    "uint64": "unsigned long long",
    "bool": "bool",
}
_OPTIONS = ("--std=c++17", "-fmad=false", "-default-device")
_HEADER = Path(__file__).with_name("common.cuh")
_KERNEL = re.compile(r"^KERNEL (\w+)\(", re.MULTILINE)

Constant = str | int
Grid = tuple[int, ...]
Argument = Array | int | float | None


class Program:
    """The kernels of one ``.cu`` file, compiled for each combination of constants when it is first wanted.

    Args:
        module: ``__file__`` of the module that launches them; the text is beside it.
        prelude: C++ that the module has made, which goes before the text.
        include: name of a file beside the text which goes before it.
        constants: for each macro of the text the values that it can have; every combination must compile.
    """

    def __init__(
        self, module: str, prelude: str = "", include: str = "", **constants: Sequence[Constant]
    ) -> None:
        self.path = Path(module).with_suffix(".cu")
        self._prelude, self._include = prelude, include
        self._constants = {name: tuple(values) for name, values in constants.items()}
        self._loaded: dict[Any, Callable[..., None]] = {}

    def variants(self) -> Iterator[dict[str, Constant]]:
        """Yield every combination of the constants."""
        for values in itertools.product(*self._constants.values()):
            yield dict(zip(self._constants, values, strict=True))

    @functools.cached_property
    def text(self) -> str:
        """The content of the file, after that of the one which it includes."""
        shared = (
            f'#line 1 "{self._include}"\n{self.path.with_name(self._include).read_text()}'
            if self._include
            else ""
        )
        return f'{shared}\n#line 1 "{self.path.name}"\n{self.path.read_text()}'

    @functools.cached_property
    def kernels(self) -> list[str]:
        """The names of the kernels."""
        return _KERNEL.findall(self.text)

    def source(self, variant: dict[str, Constant]) -> str:
        """Return what the compiler is given for one combination of constants."""
        defines = "".join(f"#define {name} {value}\n" for name, value in variant.items())
        return f'#line 1 "{_HEADER.name}"\n{_header()}\n{defines}{self._prelude}\n{self.text}'

    def launch(self, kernel: str, grid: Grid, block: Grid, *args: Argument, **variant: Constant) -> None:
        """Start a kernel in the current stream of the current device; nothing is waited for.

        Args:
            kernel: its name.
            grid: number of blocks along each axis; nothing happens if one is 0.
            block: number of threads along each axis.
            args: C-contiguous arrays, integers, floats, and None for an array that the kernel does not need.
            variant: a value for each constant of the program.

        Raises:
            ValueError: an array that is not contiguous, or constants that this program was not declared with.
            CompilationError: the compiler refuses the text.
        """
        if 0 in grid:
            return
        for a in args:
            if a is not None and not isinstance(a, int | float) and not a.flags.c_contiguous:
                raise ValueError(f"{kernel} needs C-contiguous arrays, got strides {a.strides} of {a.shape}")
        self._function(kernel, variant)(grid, block, tuple(0 if a is None else a for a in args))

    def _function(self, kernel: str, variant: dict[str, Constant]) -> Callable[..., None]:
        key = (kernel, device(), *variant.items())
        function = self._loaded.get(key)
        if function is None:
            self._check(variant)
            function = self._loaded[key] = load(self, variant, kernel)
        return function

    def _check(self, variant: dict[str, Constant]) -> None:
        known = self._constants
        if variant.keys() != known.keys() or any(v not in known[name] for name, v in variant.items()):
            raise ValueError(f"{self.path.name} is made for {known}, not for {variant}")


@functools.cache
def _header() -> str:
    return _HEADER.read_text()


def device() -> int:
    """Return the number of the current GPU."""
    import cupy

    return int(cupy.cuda.runtime.getDevice())


def stream() -> int:
    """Return the address of the current stream."""
    import cupy

    return int(cupy.cuda.get_current_stream().ptr)


def load(program: Program, variant: dict[str, Constant], kernel: str) -> Callable[..., None]:
    """Return a kernel on the current GPU, a callable that takes grid, block and arguments."""
    import cupy

    arch = f"sm_{cupy.cuda.Device().compute_capability}"
    function: Callable[..., None] = cupy.RawModule(path=str(_cubin(program, variant, arch))).get_function(
        kernel
    )
    return function


def compiled(program: Program, variant: dict[str, Constant], arch: str) -> bytes:
    """Return the machine code of one variant for an architecture, as ``sm_90``.

    Raises:
        CompilationError: the compiler refuses it.
        CompilerMissing: there is no compiler.
    """
    return nvrtc.compile_source(program.source(variant), program.path.name, (f"-arch={arch}", *_OPTIONS))


def _cubin(program: Program, variant: dict[str, Constant], arch: str) -> Path:
    """Return the file that holds the machine code, which is made if it is not there yet."""
    what = (program.source(variant), arch, *_OPTIONS, str(nvrtc.version()))
    name = hashlib.sha256("\0".join(what).encode()).hexdigest()[:32]
    file = _cache() / f"{program.path.stem}-{name}.cubin"
    if not file.exists():
        code = compiled(program, variant, arch)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            part.write(code)
        os.replace(part.name, file)  # other processes see all of it or nothing
    return file


@functools.cache
def _cache() -> Path:
    """Return the folder of compiled kernels: the user's, or one for this process if that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disttrain" / "cuda"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        _logger.warning("compiled kernels are not kept for the next run: %s; set XDG_CACHE_HOME", error)
        return Path(_for_this_process().name)


@functools.cache
def _for_this_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="disttrain-cuda-")


def empty(shape: int | tuple[int, ...], dtype: Any) -> Array:
    """Return an array on the current GPU, of any content."""
    import cupy

    return cupy.empty(shape, dtype)


def upload(x: numpy.ndarray[Any, Any]) -> Array:
    """Return a copy of an array of the host on the current GPU."""
    import cupy

    return cupy.asarray(x)


def c_type(dtype: Any, among: Sequence[str] = FLOATS) -> str:
    """Return what C++ calls a type of arrays.

    Raises:
        TypeError: the kernel is not made for it.
    """
    name = _C_TYPES.get(numpy.dtype(dtype).name)
    if name is None or name not in among:
        kinds = [numpy_name for numpy_name, c in _C_TYPES.items() if c in among]
        raise TypeError(
            f"this CUDA kernel takes {', '.join(kinds)}, got {numpy.dtype(dtype)}; cast the array"
        )
    return name


def wide(dtype: Any) -> Any:
    """Return the type that kernels calculate in: float32, or float64 for float64."""
    return numpy.dtype(numpy.float64 if dtype == numpy.float64 else numpy.float32)


def vector(row: int, x: Array, *others: Array | None) -> int:
    """Return 1 if ``x`` in rows of ``row`` elements, and others alongside, can be read 16 bytes at a time, else 0."""
    return int(row * x.itemsize % 16 == 0 and aligned(x, *others))


def aligned(*arrays: Array | None) -> int:
    """Return 1 if all arrays begin where 16 bytes can be read, else 0."""
    return int(all(a is None or address(a) % 16 == 0 for a in arrays))


def part(rows: int) -> int:
    """Return how many rows are added up by themselves: by their number alone, so that every GPU gives the same bits."""
    return max(1, blocks(rows, max(1, min(256, blocks(rows, 64)))))


def blocks(count: int, each: int) -> int:
    """Return how many blocks of ``each`` cover ``count``."""
    return -(-count // each)
