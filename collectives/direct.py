"""Reading the memory of another process of this host, without its help: one copy, however large (``process_vm_readv``).

The system allows that where a debugger might be attached: for one user's processes, unless Yama's ``ptrace_scope`` or a
container forbids it.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

from disttrain.kernels.arrays import Array, address


class _Range(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


@cache
def _process_vm_readv() -> Callable[..., int]:
    call: Any = ctypes.CDLL(None, use_errno=True).process_vm_readv
    ranges = ctypes.POINTER(_Range)
    call.argtypes = [ctypes.c_int, ranges, ctypes.c_ulong, ranges, ctypes.c_ulong, ctypes.c_ulong]
    call.restype = ctypes.c_ssize_t
    return call  # type: ignore[no-any-return]


def read_process(pid: int, place: int, out: Array) -> None:
    """Fill the contiguous ``out`` with what process ``pid`` has at the address ``place``.

    Raises:
        OSError: that is not allowed, or the process has ended.
    """
    done = 0
    while done < out.nbytes:
        ours = _Range(address(out) + done, out.nbytes - done)
        theirs = _Range(place + done, out.nbytes - done)
        count = _process_vm_readv()(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
        if count <= 0:
            code = ctypes.get_errno()
            raise OSError(code, f"the memory of process {pid} cannot be read: {os.strerror(code)}")
        done += count
