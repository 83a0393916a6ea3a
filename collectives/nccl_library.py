"""NCCL through ctypes, as far as collectives use it: communicators whose calls never wait for the others.

CuPy's class makes communicators of the blocking kind, in which a call can stay while a peer does not come, and aborting
them is not safe then (NCCL's guide, "Fault tolerance"). What is set up here may be in progress when a call returns;
whoever calls asks until it is there, and can stop asking. Names, values and signatures are those of ``nccl.h``, 2.18
and later.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from disttrain.kernels.libraries import open_library

TYPES = {
    "int8": 0, "uint8": 1, "int32": 2, "uint32": 3, "int64": 4, "uint64": 5, "float16": 6, "float32": 7, "float64": 8,
    "bfloat16": 9,
}  # fmt: skip
"""``ncclDataType_t`` by the names of NumPy's types."""
OPERATIONS = {"sum": 0, "prod": 1, "max": 2, "min": 3}
"""``ncclRedOp_t``"""
SUCCESS, IN_PROGRESS = 0, 7
UNIQUE_BYTES = 128
_UNDEFINED = -(1 << 31)
_LOOK_S = 0.0005
_LOOKS = 200
"""So often it is asked without a pause whether a call is through: most are at once."""


class UniqueId(ctypes.Structure):
    """``ncclUniqueId``, which is passed by value."""

    _fields_ = (("internal", ctypes.c_char * UNIQUE_BYTES),)


class Config(ctypes.Structure):
    """``ncclConfig_t`` of 2.18; later versions have more at the end and take this one too, by its version."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
        ("cgaClusterSize", ctypes.c_int),
        ("minCTAs", ctypes.c_int),
        ("maxCTAs", ctypes.c_int),
        ("netName", ctypes.c_char_p),
        ("splitShare", ctypes.c_int),
    )

    @classmethod
    def without_blocking(cls) -> Config:
        """Return what asks for communicators whose calls return at once."""
        rest = (_UNDEFINED, _UNDEFINED, _UNDEFINED, None, _UNDEFINED)
        return cls(ctypes.sizeof(cls), 0xCAFEBEEF, 21800, 0, *rest)


_pointer, _int, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "ncclGetVersion": (_pointer,),
    "ncclGetUniqueId": (_pointer,),
    "ncclCommInitRankConfig": (_pointer, _int, UniqueId, _int, _pointer),
    "ncclCommGetAsyncError": (_pointer, _pointer),
    "ncclCommFinalize": (_pointer,),
    "ncclCommDestroy": (_pointer,),
    "ncclCommAbort": (_pointer,),
    "ncclAllReduce": (_pointer, _pointer, _size, _int, _int, _pointer, _pointer),
    "ncclReduce": (_pointer, _pointer, _size, _int, _int, _int, _pointer, _pointer),
    "ncclReduceScatter": (_pointer, _pointer, _size, _int, _int, _pointer, _pointer),
    "ncclAllGather": (_pointer, _pointer, _size, _int, _pointer, _pointer),
    "ncclBroadcast": (_pointer, _pointer, _size, _int, _int, _pointer, _pointer),
    "ncclSend": (_pointer, _size, _int, _int, _pointer, _pointer),
    "ncclRecv": (_pointer, _size, _int, _int, _pointer, _pointer),
    "ncclGroupStart": (),
    "ncclGroupEnd": (),
}
"""The types of the arguments; all return ``ncclResult_t``."""


class NcclError(RuntimeError):
    """What NCCL says has gone wrong."""


@functools.cache
def load_library() -> Any:
    """Return the library.

    Raises:
        LibraryMissing: there is none.
    """
    library = open_library("libnccl", (2,))
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _int
    for name, arguments in (("ncclGetErrorString", (_int,)), ("ncclGetLastError", (_pointer,))):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_char_p
    return library


def version() -> int:
    """Return the version of the library, 22809 for 2.28.9."""
    found = _int()
    _check(load_library().ncclGetVersion(ctypes.byref(found)))
    return found.value


def unique_id() -> bytes:
    """Return a new number by which processes find each other."""
    made = UniqueId()
    _check(load_library().ncclGetUniqueId(ctypes.byref(made)))
    return bytes(memoryview(made))


def _check(code: int) -> int:
    if code not in (SUCCESS, IN_PROGRESS):
        library = load_library()
        texts = (library.ncclGetErrorString(code), library.ncclGetLastError(None))
        raise NcclError(": ".join(text.decode(errors="replace").strip() for text in texts if text))
    return code


class Communicator:
    """A communicator on the current GPU, complete when it is made.

    Args:
        size: how many processes it connects.
        unique: of :func:`unique_id`, the same on all of them.
        index: which of them this is.
        given_up: asked again and again whether nobody wants it any more.

    Raises:
        NcclError: the processes cannot connect, or nobody wants that any more.
    """

    def __init__(self, size: int, unique: bytes, index: int, given_up: Callable[[], bool]) -> None:
        self._library = load_library()
        self._lock = threading.Lock()
        """Held in each call: none is in one when another aborts, and none waits in one."""
        self._over = False
        self._handle: int | None = None
        handle, config = _pointer(), Config.without_blocking()
        code = self._library.ncclCommInitRankConfig(
            ctypes.byref(handle), size, UniqueId.from_buffer_copy(unique), index, ctypes.byref(config)
        )
        self._handle = handle.value
        try:
            _check(code)
            self._settle(given_up)
        except NcclError:
            if self._handle:
                self.abort()
            raise

    def call(self, name: str, *arguments: int) -> None:
        """Put an operation of the group of ``ncclAllReduce`` into a stream.

        Args:
            name: of the function.
            arguments: those before the communicator, and the stream.
        """
        *others, stream = arguments
        if self._do(name, *others, self._handle, stream) == IN_PROGRESS:
            self._settle()

    def exchange(self, calls: list[tuple[str, int, int, int, int]], stream: int) -> None:
        """Put messages into a stream that wait for each other: (function, address, count, type, peer) of each."""
        with self._lock:
            self._refuse_if_over()
            _check(self._library.ncclGroupStart())
            try:
                for name, *arguments in calls:
                    _check(getattr(self._library, name)(*arguments, self._handle, stream))
            finally:
                code = self._library.ncclGroupEnd()
            _check(code)
        if code == IN_PROGRESS:
            self._settle()

    def check(self) -> None:
        """Raise what NCCL has found out since; nothing once it is aborted."""
        if not self._over:
            self._state()

    def abort(self) -> None:
        """Give up what is in flight, whatever the peers do."""
        with self._lock:
            self._over = True
            self._library.ncclCommAbort(self._handle)

    def destroy(self) -> None:
        """Free it; nothing is in flight on any process."""
        if self._do("ncclCommFinalize", self._handle) == IN_PROGRESS:
            self._settle()
        with self._lock:
            self._over = True
            _check(self._library.ncclCommDestroy(self._handle))

    def _do(self, name: str, *arguments: Any) -> int:
        with self._lock:
            self._refuse_if_over()
            return _check(getattr(self._library, name)(*arguments))

    def _refuse_if_over(self) -> None:
        if self._over:
            raise NcclError("the communicator was aborted")

    def _state(self) -> int:
        found = _int()
        self._do("ncclCommGetAsyncError", self._handle, ctypes.byref(found))
        return _check(found.value)

    def _settle(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Ask until what was begun is through."""
        looks = 0
        while self._state() == IN_PROGRESS:
            if given_up():
                raise NcclError("the processes had not all come when the job ended")
            looks += 1
            if looks > _LOOKS:
                time.sleep(_LOOK_S)
