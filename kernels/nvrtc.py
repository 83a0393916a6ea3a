"""NVRTC, NVIDIA's run-time compiler, through ctypes: CUDA C++ to machine code, without a GPU or a driver."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from disttrain.kernels.libraries import LibraryMissing, open_library


class CompilationError(RuntimeError):
    """CUDA C++ that NVRTC refuses: the file, the options and the compiler's log."""


class CompilerMissing(RuntimeError):
    """NVRTC cannot be loaded: where it was sought."""


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return NVRTC: that of the wheel ``nvidia-cuda-nvrtc``, else what the system's loader finds.

    Raises:
        CompilerMissing: there is none.
    """
    try:
        loaded = open_library("libnvrtc", (13, 12), beside="libnvrtc-builtins")
    except LibraryMissing as error:
        raise CompilerMissing(
            "CUDA kernels need NVRTC: install disttrain[cuda13] or disttrain[cuda12], or the wheel "
            f"nvidia-cuda-nvrtc; tried: {error}"
        ) from error
    loaded.nvrtcGetErrorString.restype = ctypes.c_char_p
    return loaded


def version() -> tuple[int, int]:
    """Return the version of the compiler.

    Raises:
        CompilerMissing: there is none.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(load_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def compile_source(text: str, name: str, options: Sequence[str], *, ptx: bool = False) -> bytes:
    """Return the machine code (a cubin) of CUDA C++, or with ``ptx`` NVIDIA's assembly text.

    Args:
        text: what to compile.
        name: what the compiler's messages call it.
        options: of NVRTC; one must name the architecture, as ``-arch=sm_90``.
        ptx: return assembly; the architecture is a virtual one then, as ``-arch=compute_90``.

    Raises:
        CompilationError: the compiler refuses it.
        CompilerMissing: there is no compiler.
    """
    lib, program = load_library(), ctypes.c_void_p()
    _check(
        lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None), "create"
    )
    try:
        words = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        if lib.nvrtcCompileProgram(program, len(options), words):
            log = _content(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program)
            raise CompilationError(
                f"NVRTC {'.'.join(map(str, version()))} refuses {name} with {' '.join(options)}:\n"
                f"{log.rstrip(bytes(1)).decode(errors='replace').rstrip()}"
            )
        if ptx:
            return _content(lib.nvrtcGetPTXSize, lib.nvrtcGetPTX, program).rstrip(bytes(1))
        return _content(lib.nvrtcGetCUBINSize, lib.nvrtcGetCUBIN, program)
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _content(size_of: Any, read: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(read(program, buffer))
    return buffer.raw


def _check(status: int, what: str = "call") -> None:
    if status:
        raise RuntimeError(f"NVRTC failed to {what}: {load_library().nvrtcGetErrorString(status).decode()}")
