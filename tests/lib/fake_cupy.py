"""A stand-in for CuPy and NCCL on machines without a GPU: as much of them as `disttrain.collectives` uses.

It is a test double, and stricter than what it stands for. "Device" arrays are NumPy memory behind a class that NumPy
does not take. Streams are threads that work off a queue, each at its own pace, so that what should wait for an event
and does not gives wrong numbers. Memory that is given up is overwritten, in the order of the stream that it was
allocated in, as CuPy's pool would give it away. NCCL is sockets between processes, works on addresses as the real one
does, and compares what the peers call. Whatever it finds wrong is in ``failures``.
"""

import contextlib
import ctypes
import os
import queue
import random
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from disttrain.collectives import nccl_library
from disttrain.kernels import cuda
from disttrain.kernels.libraries import LibraryMissing

failures: list[str] = []
"""What was done that CuPy or NCCL would not forgive."""
JITTER_S = float(os.environ.get("FAKE_GPU_JITTER_S", "0"))
"""How long at most a stream dawdles before it does something."""
NOTICES = bool(os.environ.get("FAKE_NCCL_NOTICES"))
"""Whether NCCL notices that a peer has gone; it need not."""
ABORT_HANGS = bool(os.environ.get("FAKE_NCCL_ABORT_HANGS"))
VERSION = int(os.environ.get("FAKE_NCCL_VERSION", "22809"))
UUID = os.environ.get("FAKE_GPU_UUID", f"of process {os.getpid()}")
DEVICES = 2
"""GPUs that each process sees."""

_here = threading.local()
_streams: "weakref.WeakValueDictionary[int, Stream]" = weakref.WeakValueDictionary()
_pinned: list[tuple[int, int]] = []


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self._flag = threading.Event()
        self._flag.set()

    def record(self, stream: "Stream | None" = None) -> None:
        flag = self._flag = threading.Event()
        (stream or null)._put(flag.set)

    @property
    def done(self) -> bool:
        return self._flag.is_set()


class Stream:
    def __init__(self, non_blocking: bool = False) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._random = random.Random(len(_streams))
        self.ptr = id(self)
        _streams[self.ptr] = self
        threading.Thread(target=_work, args=(self._queue, self._random), daemon=True).start()
        weakref.finalize(self, self._queue.put, None)

    def _put(self, task: Callable[[], object]) -> None:
        self._queue.put(task)

    def wait_event(self, event: Event) -> None:
        self._put(event._flag.wait)

    def synchronize(self) -> None:
        event = Event()
        event.record(self)
        event._flag.wait()

    def __enter__(self) -> "Stream":
        _stack().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert _stack().pop() is self


def _work(tasks: "queue.SimpleQueue[Callable[[], object] | None]", dice: random.Random) -> None:
    while (task := tasks.get()) is not None:
        if JITTER_S:
            time.sleep(dice.random() ** 4 * JITTER_S)
        try:
            task()
        except Exception:
            failures.append(traceback.format_exc())


def _stack() -> list[Stream]:
    if not hasattr(_here, "streams"):
        _here.streams = []
    return _here.streams


def get_current_stream() -> Stream:
    return _stack()[-1] if _stack() else null


class Device:
    def __init__(self, id: int | None = None) -> None:
        self.id = getattr(_here, "device", 0) if id is None else id
        assert self.id < DEVICES

    def __enter__(self) -> "Device":
        self._before = getattr(_here, "device", 0)
        _here.device = self.id
        return self

    def __exit__(self, *_: object) -> None:
        _here.device = self._before


class _Block:
    """Memory of a device; when the last array in it has gone, the stream it was allocated in may use it again."""

    def __init__(self, nbytes: int) -> None:
        self.bytes = np.full(max(nbytes, 1), 0xA5, np.uint8)
        self._stream = get_current_stream()

    def __del__(self) -> None:
        memory = self.bytes
        if self._stream is not None and not sys.is_finalizing():
            self._stream._put(lambda: memory.fill(0xA5))


class _Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class _Flags:
    def __init__(self, c_contiguous: bool) -> None:
        self.c_contiguous = c_contiguous


class ndarray:
    def __init__(self, memory: np.ndarray, block: _Block, device: int) -> None:
        self._memory = memory
        self._block = block
        self._device = device

    shape = property(lambda self: self._memory.shape)
    dtype = property(lambda self: self._memory.dtype)
    size = property(lambda self: self._memory.size)
    nbytes = property(lambda self: self._memory.nbytes)
    itemsize = property(lambda self: self._memory.itemsize)
    strides = property(lambda self: self._memory.strides)
    ndim = property(lambda self: self._memory.ndim)
    flags = property(lambda self: _Flags(self._memory.flags.c_contiguous))
    data = property(lambda self: _Pointer(self._memory.__array_interface__["data"][0]))
    device = property(lambda self: Device(self._device))

    def _like(self, memory: np.ndarray) -> "ndarray":
        assert memory.size == 0 or np.may_share_memory(memory, self._memory), "CuPy would copy here"
        return ndarray(memory, self._block, self._device)

    def reshape(self, *shape: Any) -> "ndarray":
        return self._like(self._memory.reshape(*shape))

    def view(self, dtype: Any) -> "ndarray":
        return self._like(self._memory.view(dtype))

    def __getitem__(self, where: Any) -> "ndarray":
        return self._like(self._memory[where])

    def __iter__(self) -> Iterator["ndarray"]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return len(self._memory)

    def __array__(self, *_: object) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def set(self, x: np.ndarray) -> None:
        assert (x.shape, x.dtype) == (self.shape, self.dtype)
        value, memory = x.copy(), self._memory
        get_current_stream()._put(lambda: np.copyto(memory, value))

    def get(self) -> np.ndarray:
        memory, out = self._memory, np.empty_like(self._memory)
        stream = get_current_stream()
        stream._put(lambda: np.copyto(out, memory))
        stream.synchronize()
        return out


def empty(shape: Any, dtype: Any = float) -> ndarray:
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    block = _Block(count * dtype.itemsize)
    return ndarray(
        block.bytes[: count * dtype.itemsize].view(dtype).reshape(shape), block, getattr(_here, "device", 0)
    )


def asarray(x: np.ndarray) -> ndarray:
    out = empty(x.shape, x.dtype)
    out.set(x)
    return out


def copyto(out: ndarray, x: ndarray, casting: Any = "same_kind") -> None:
    assert np.can_cast(x.dtype, out.dtype, casting)
    target, source = out._memory, x._memory

    def copy() -> None:
        with np.errstate(all="ignore"):
            np.copyto(target, source, casting=casting)

    get_current_stream()._put(copy)


def _binary(ufunc: np.ufunc) -> Callable[..., ndarray]:
    def call(left: ndarray, right: ndarray, out: ndarray) -> ndarray:
        a, b, c = left._memory, right._memory, out._memory

        def compute() -> None:
            with np.errstate(all="ignore"):
                ufunc(a, b, out=c)

        get_current_stream()._put(compute)
        return out

    return call


def is_available() -> bool:
    return DEVICES > 0


# ------------------------------------------------------------------------------------------------ runtime


def memcpyAsync(dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
    host = src if kind == 1 else dst
    if nbytes and not any(begin <= host and host + nbytes <= begin + size for begin, size in _pinned):
        failures.append("an asynchronous copy from or to memory that is not pinned")
    _streams[stream]._put(lambda: ctypes.memmove(dst, src, nbytes))


def empty_pinned(shape: Any, dtype: Any = float) -> np.ndarray:
    memory = np.empty(shape, dtype)
    _pinned.append((memory.__array_interface__["data"][0], memory.nbytes))
    weakref.finalize(memory, _pinned.remove, _pinned[-1]).atexit = False
    return memory


# --------------------------------------------------------------------------------------------------- NCCL

_DTYPES = [np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in nccl_library.TYPES]
_OPS = {"SUM": np.add, "PROD": np.multiply, "MAX": np.fmax, "MIN": np.fmin}
_FRAME = struct.Struct("<16sq")


class _Gone(Exception):
    """The communicator was aborted."""


class Library:
    """What ctypes gives of NCCL: communicators are set up in the background, calls return before they are through."""

    def __init__(self) -> None:
        self._comms: dict[int, NcclCommunicator | None] = {}
        self._codes: dict[int, list[int]] = {}
        """What the next questions are answered with, for each communicator."""
        self._aborted: set[int] = set()

    def ncclGetVersion(self, out: Any) -> int:
        out._obj.value = VERSION
        return 0

    def ncclGetUniqueId(self, out: Any) -> int:
        folder = tempfile.mkdtemp(prefix="nccl").encode()
        ctypes.memmove(out, folder, len(folder))
        return 0

    def ncclCommInitRankConfig(self, out: Any, size: int, unique: Any, rank: int, config: Any) -> int:
        number = out._obj.value = len(self._codes) + 1
        asked = config._obj
        assert (asked.size, asked.magic, asked.blocking) == (ctypes.sizeof(asked), 0xCAFEBEEF, 0)
        self._codes[number] = [7]

        def connect() -> None:
            try:
                self._comms[number] = NcclCommunicator(
                    size, bytes(memoryview(unique)), rank, lambda: number in self._aborted
                )
                self._codes[number] = [7, 0]
            except OSError:
                self._codes[number] = [2]

        threading.Thread(target=connect, daemon=True).start()
        return 7

    def ncclCommGetAsyncError(self, comm: int, out: Any) -> int:
        codes = self._codes[comm]
        out._obj.value = codes.pop(0) if len(codes) > 1 else codes[0]
        made = self._comms.get(comm)
        if made is not None and made._lost and NOTICES:
            out._obj.value = 6
        return 0

    def _begun(self, comm: int, call: str, *arguments: int) -> int:
        assert self._codes[comm][-1] == 0, "called before the communicator was complete"
        assert getattr(_here, "group", None) is None, "not here"
        getattr(self._comms[comm], call)(*arguments)
        self._codes[comm] = [7, 7, 0]
        return 7

    def ncclAllReduce(
        self, send: int, recv: int, count: int, kind: int, op: int, comm: int, stream: int
    ) -> int:
        return self._begun(comm, "allReduce", send, recv, count, kind, op, stream)

    def ncclReduce(
        self, send: int, recv: int, count: int, kind: int, op: int, root: int, comm: int, stream: int
    ) -> int:
        return self._begun(comm, "reduce", send, recv, count, kind, op, root, stream)

    def ncclReduceScatter(
        self, send: int, recv: int, count: int, kind: int, op: int, comm: int, stream: int
    ) -> int:
        return self._begun(comm, "reduceScatter", send, recv, count, kind, op, stream)

    def ncclAllGather(self, send: int, recv: int, count: int, kind: int, comm: int, stream: int) -> int:
        return self._begun(comm, "allGather", send, recv, count, kind, stream)

    def ncclBroadcast(
        self, send: int, recv: int, count: int, kind: int, root: int, comm: int, stream: int
    ) -> int:
        return self._begun(comm, "broadcast", send, recv, count, kind, root, stream)

    def ncclGroupStart(self) -> int:
        assert getattr(_here, "group", None) is None
        _here.group = []
        return 0

    def ncclSend(self, x: int, count: int, kind: int, peer: int, comm: int, stream: int) -> int:
        _here.group.append((comm, "send", peer, _array(x, count, kind), stream))
        return 0

    def ncclRecv(self, x: int, count: int, kind: int, peer: int, comm: int, stream: int) -> int:
        _here.group.append((comm, "recv", peer, _array(x, count, kind), stream))
        return 0

    def ncclGroupEnd(self) -> int:
        group, _here.group = _here.group, None
        for number, stream in {(c, s) for c, _, _, _, s in group}:
            comm = self._comms[number]
            sends = [(p, x) for c, kind, p, x, _ in group if c == number and kind == "send"]
            receives = [(p, x) for c, kind, p, x, _ in group if c == number and kind == "recv"]
            _streams[stream]._put(comm._task(lambda c=comm, s=sends, r=receives: c._exchange("p2p", s, r)))
            self._codes[number] = [7, 0]
        return 7 if group else 0

    def ncclCommFinalize(self, comm: int) -> int:
        self._codes[comm] = [7, 7, 0]
        return 7

    def ncclCommDestroy(self, comm: int) -> int:
        self._comms.pop(comm).destroy()
        return 0

    def ncclCommAbort(self, comm: int) -> int:
        self._aborted.add(comm)
        made = self._comms.get(comm)
        if made is not None:
            made.abort()
        return 0

    def ncclGetErrorString(self, code: int) -> bytes:
        return b"stand-in, status %d" % code

    def ncclGetLastError(self, comm: int | None) -> bytes:
        return b""


_library = Library()


def _load_library() -> Library:
    if VERSION == 0:
        raise LibraryMissing("the stand-in has none")
    return _library


class NcclCommunicator:
    """Every two processes have a socket; all work is done by the streams' threads."""

    def __init__(self, size: int, unique: bytes, rank: int, given_up: Callable[[], bool]) -> None:
        self._size, self._rank = size, rank
        self._peers: dict[int, socket.socket] = {}
        self._over = self._lost = False
        self._aborted = threading.Event()
        self._left = 0
        folder = unique.rstrip(b"\0").decode()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{folder}/{rank}-")
            server.listen(size)
            os.rename(f"{folder}/{rank}-", f"{folder}/{rank}")
            for p in range(rank):
                self._peers[p] = _dial(f"{folder}/{p}", rank)
            for _ in range(rank + 1, size):
                peer = _accept(server, given_up)
                if peer is None:
                    self._over = True
                    shutil.rmtree(folder)
                    raise OSError("given up")
                self._peers[peer.recv(1)[0]] = peer
        if rank:
            self._peers[0].send(b"!")
        else:
            for peer in self._peers.values():
                assert peer.recv(1) == b"!"
            shutil.rmtree(folder)

    # What the real one has.

    def allReduce(self, send: int, recv: int, count: int, dtype: int, op: int, stream: int) -> None:
        x, out = _array(send, count, dtype), _array(recv, count, dtype)
        self._put(stream, lambda: np.copyto(out, self._reduced("allReduce", x, op)))

    def reduce(self, send: int, recv: int, count: int, dtype: int, op: int, root: int, stream: int) -> None:
        x, out = _array(send, count, dtype), _array(recv, count, dtype)

        def task() -> None:
            total = self._reduced("reduce", x, op)
            if self._rank == root:
                np.copyto(out, total)

        self._put(stream, task)

    def reduceScatter(self, send: int, recv: int, count: int, dtype: int, op: int, stream: int) -> None:
        x, out = _array(send, count * self._size, dtype), _array(recv, count, dtype)
        self._put(
            stream,
            lambda: np.copyto(out, self._reduced("reduceScatter", x, op).reshape(self._size, -1)[self._rank]),
        )

    def allGather(self, send: int, recv: int, count: int, dtype: int, stream: int) -> None:
        x, out = _array(send, count, dtype), _array(recv, count * self._size, dtype)
        self._put(stream, lambda: np.copyto(out, np.concatenate(self._everyone("allGather", x))))

    def broadcast(self, send: int, recv: int, count: int, dtype: int, root: int, stream: int) -> None:
        x, out = _array(send, count, dtype), _array(recv, count, dtype)

        def task() -> None:
            others = [p for p in range(self._size) if p != root]
            if self._rank == root:
                self._exchange("broadcast", [(p, x) for p in others], [])
            else:
                self._exchange("broadcast", [], [(root, out)])

        self._put(stream, task)

    def abort(self) -> None:
        if ABORT_HANGS:
            threading.Event().wait()
        self._over = True
        self._aborted.set()
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # the peer was first
                peer.shutdown(socket.SHUT_RDWR)  # wakes who reads from it; closing alone does not
            peer.close()

    def destroy(self) -> None:
        if self._left:
            failures.append("destroyed with work in flight")
        self.abort()

    def __del__(self) -> None:
        if not self._over and not sys.is_finalizing():
            failures.append("dropped a communicator, which would destroy it, and may hang")

    # How it is done.

    def _put(self, stream: int, task: Callable[[], object]) -> None:
        _streams[stream]._put(self._task(task))

    def _task(self, task: Callable[[], object]) -> Callable[[], None]:
        assert not self._over, "called after it was aborted or destroyed"
        self._left += 1

        def run() -> None:
            try:
                task()
            except _Gone:
                pass
            finally:
                self._left -= 1

        return run

    def _everyone(self, kind: str, x: np.ndarray) -> list[np.ndarray]:
        xs = [x.copy() if p == self._rank else np.empty_like(x) for p in range(self._size)]
        self._exchange(kind, [(p, x) for p in self._peers], [(p, xs[p]) for p in self._peers])
        return xs

    def _reduced(self, kind: str, x: np.ndarray, op: int) -> np.ndarray:
        """In an order that is not that of the fixed tree, and with NaN left out of "min" and "max"."""
        total, *rest = self._everyone(f"{kind} {op}", x)[::-1]
        with np.errstate(all="ignore"):
            for other in rest:
                total = list(_OPS.values())[op](total, other).astype(x.dtype)
        return total

    def _exchange(
        self, kind: str, sends: Sequence[tuple[int, np.ndarray]], receives: Sequence[tuple[int, np.ndarray]]
    ) -> None:
        sender = threading.Thread(target=self._send_all, args=(kind, sends), daemon=True)
        sender.start()
        for p, out in receives:
            header = self._read(p, _FRAME.size)
            told, nbytes = _FRAME.unpack(header)
            if (told.rstrip(b"\0"), nbytes) != (kind.encode(), out.nbytes):
                failures.append(f"{kind} of {out.nbytes} bytes meets {told!r} of {nbytes}")
                self._hang()
            np.copyto(out.view(np.uint8), np.frombuffer(self._read(p, nbytes), np.uint8))
        sender.join()

    def _send_all(self, kind: str, sends: Sequence[tuple[int, np.ndarray]]) -> None:
        for p, x in sends:
            try:
                self._peers[p].sendall(_FRAME.pack(kind.encode(), x.nbytes))
                self._peers[p].sendall(x.tobytes())
            except OSError:  # whoever reads finds out
                self._lost = True

    def _read(self, p: int, nbytes: int) -> bytes:
        data = bytearray()
        while len(data) < nbytes:
            try:
                more = self._peers[p].recv(nbytes - len(data))
            except OSError:
                more = b""
            if not more:
                self._hang()
            data += more
        return bytes(data)

    def _hang(self) -> None:
        """What a kernel does whose peer has gone: nothing, until it is aborted."""
        self._lost = True
        self._aborted.wait()
        raise _Gone


def _accept(server: socket.socket, given_up: Callable[[], bool]) -> socket.socket | None:
    server.settimeout(0.02)
    while not given_up():
        with contextlib.suppress(TimeoutError):
            peer, _ = server.accept()
            peer.settimeout(None)
            return peer
    return None


def _dial(path: str, rank: int) -> socket.socket:
    while True:
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.connect(path)
        except OSError:  # it is not there yet
            peer.close()
            time.sleep(0.001)
            continue
        peer.send(bytes([rank]))
        return peer


def _array(address: int, count: int, dtype: int) -> np.ndarray:
    kind = _DTYPES[dtype]
    memory = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    return np.frombuffer(memory, np.uint8).view(kind)


# ---------------------------------------------------------------------------------------------- the module

null = Stream()


def install() -> None:
    """Let ``import cupy`` find this, and launches of the one kernel that collectives have go to it."""
    sys.modules.update(modules())
    vars(cuda).update(_launching())
    vars(nccl_library).update(load_library=_load_library)


@contextlib.contextmanager
def installed() -> Iterator[ModuleType]:
    """:func:`install` within the block; yields the module."""
    with (
        mock.patch.dict(sys.modules, modules()),
        mock.patch.multiple(cuda, **_launching()),
        mock.patch.object(nccl_library, "load_library", _load_library),
    ):
        yield sys.modules["cupy"]


def _launching() -> dict[str, Any]:
    return {"load": _load, "device": lambda: Device().id}


def _load(program: cuda.Program, variant: dict[str, Any], kernel: str) -> Callable[..., None]:
    """Return ``fold_tree`` in NumPy's words; its text is compared with these by the tests of kernels."""
    assert kernel == "fold_tree", kernel
    wide = np.float64 if variant["T"] == "double" else np.float32

    def launch(grid: Any, block: Any, arguments: tuple[Any, ...]) -> None:
        *sources, out, merges, parts, _ = arguments
        xs, target = [x._memory for x in sources[:parts]], out._memory

        def add() -> None:
            totals: list[np.ndarray] = []
            with np.errstate(all="ignore"):
                for i, x in enumerate(xs):
                    totals.append(x.astype(wide))
                    for _ in range(merges >> 4 * i & 15):
                        right = totals.pop()
                        totals[-1] = totals[-1] + right
                np.copyto(target, totals[0], casting="unsafe")

        get_current_stream()._put(add)

    return launch


def modules() -> dict[str, ModuleType]:
    """Return what ``sys.modules`` needs for that."""
    cupy = ModuleType("cupy")
    cuda_, runtime, cupyx = (ModuleType(n) for n in ("cupy.cuda", "runtime", "cupyx"))
    vars(cupy).update(
        ndarray=ndarray, empty=empty, asarray=asarray, copyto=copyto, is_available=is_available, cuda=cuda_,
        add=_binary(np.add), multiply=_binary(np.multiply), minimum=_binary(np.minimum), maximum=_binary(np.maximum),
        bitwise_and=_binary(np.bitwise_and), bitwise_or=_binary(np.bitwise_or), bitwise_xor=_binary(np.bitwise_xor),
        get_default_memory_pool=lambda: SimpleNamespace(malloc=None), __version__="of tests",
    )  # fmt: skip
    vars(cuda_).update(
        Device=Device,
        Stream=Stream,
        Event=Event,
        get_current_stream=get_current_stream,
        runtime=runtime,
        get_allocator=lambda: "of a user",
        using_allocator=lambda allocator: contextlib.nullcontext(),
    )
    vars(runtime).update(
        memcpyAsync=memcpyAsync, memcpyHostToDevice=1, memcpyDeviceToHost=2,
        getDeviceProperties=lambda index: {"uuid": UUID.encode()}, deviceGetPCIBusId=lambda index: f"0000:{index}",
    )  # fmt: skip
    vars(cupyx).update(empty_pinned=empty_pinned)
    return {"cupy": cupy, "cupy.cuda": cuda_, "cupyx": cupyx}
