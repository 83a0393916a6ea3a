"""NCCL, through CuPy's bindings: a channel for arrays on GPUs, and what processes tell each other to open one.

CuPy makes communicators of the blocking kind only: a call can stay inside NCCL while a peer does not come. Making one
therefore blocks a thread of its own, and :mod:`.watchdog` aborts those whose calls do not come to an end.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy

from disttrain.collectives.call import name_ranks
from disttrain.collectives.cuda import Gpu
from disttrain.collectives.errors import PeerFailed, TransportUnavailable
from disttrain.collectives.transport import Channel, Request
from disttrain.kernels.arrays import Array, address

_OLDEST = 21000
"""NCCL 2.10, the first with bfloat16."""
_TYPES = {
    "int8": "INT8", "uint8": "UINT8", "int32": "INT32", "uint32": "UINT32", "int64": "INT64", "uint64": "UINT64",
    "float16": "FLOAT16", "float32": "FLOAT32", "float64": "FLOAT64",
}  # fmt: skip
TYPES = {numpy.dtype(name): f"NCCL_{theirs}" for name, theirs in _TYPES.items()} | {
    numpy.dtype(ml_dtypes.bfloat16): "NCCL_BFLOAT16"
}
"""What NCCL can reduce: no integers of 16 bits. (Other traffic goes as bytes.)"""
_OFFER = struct.Struct("<q16s")
_GPU_OF_SEVERAL = ("NCCL_HOSTID", "NCCL_MULTI_RANK_GPU_ENABLE")
"""With one of these set NCCL lets processes share a GPU: for tests, it is slow."""

_UNIQUE_BYTES = 128
_NO_OFFER = bytes(_OFFER.size)


def load() -> Any:
    """Return CuPy's bindings of NCCL.

    Raises:
        TransportUnavailable: says what is missing.
    """
    try:
        import cupy
        from cupy.cuda import nccl
    except ImportError as error:
        raise TransportUnavailable(
            f"nccl needs CuPy and NCCL ({error}); "
            f'install them with `pip install "disttrain[cuda13]"` (or [cuda12], by the driver)'
        ) from error
    if not nccl.available:
        raise TransportUnavailable(
            "nccl needs the NCCL library, which CuPy does not find; `pip install nvidia-nccl-cu13` (or -cu12)"
        )
    if not cupy.is_available():
        raise TransportUnavailable(
            f"nccl needs a GPU, and CuPy {cupy.__version__} sees none "
            f"(CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"
        )
    if nccl.get_version() < _OLDEST:
        raise TransportUnavailable(
            f"nccl needs NCCL {version_text(_OLDEST)} or newer, and CuPy loaded {version_text(nccl.get_version())}"
        )
    return nccl


def version_text(version: int) -> str:
    """Return ``2.28.9`` for 22809, and ``2.8.4`` for 2804, as it was written until then."""
    major = 10000 if version >= 10000 else 1000
    return f"{version // major}.{version % major // 100}.{version % 100}"


def offer(gpu: Gpu) -> bytes:
    """Return what a process tells the others before they connect: its version of NCCL, and which GPU is its own."""
    try:
        nccl = load()
    except TransportUnavailable:
        return _NO_OFFER
    shared = any(os.environ.get(name, "0") != "0" for name in _GPU_OF_SEVERAL)
    return _OFFER.pack(nccl.get_version(), os.urandom(16) if shared else gpu.identity())


def refusal(offers: bytes, ranks: Sequence[Sequence[int]]) -> str:
    """Return why processes that made these offers cannot use NCCL; "" if they can.

    Args:
        offers: of all processes, one after the other.
        ranks: those that each process hosts.
    """
    told = list(_OFFER.iter_unpack(offers))
    versions = [version for version, _ in told]
    if 0 in versions:
        return (
            f"{name_ranks(ranks[versions.index(0)])} found no NCCL; `pip install nvidia-nccl-cu13` (or -cu12)"
        )
    if len(set(versions)) > 1:
        return f"the processes have NCCL {' and '.join(map(version_text, sorted(set(versions))))}; install one version"
    owners: dict[bytes, list[int]] = {}
    for hosted, (_, identity) in zip(ranks, told, strict=True):
        owners.setdefault(identity, []).extend(hosted)
    for hosted, (_, identity) in zip(ranks, told, strict=True):
        if len(owners[identity]) > len(hosted):
            return (
                f"{name_ranks(owners[identity])} are in several processes on one GPU, and NCCL wants one for each; "
                f"start as many processes as there are GPUs (`--ranks` puts several ranks into a process), and use "
                f"device 'cuda:LOCAL_RANK' in each, or show each its own with CUDA_VISIBLE_DEVICES"
            )
    return ""


def version_in(offers: bytes) -> str:
    """Return the version of NCCL that all processes have."""
    return version_text(_OFFER.unpack_from(offers)[0])


def unique_id(first: bool) -> bytes:
    """Return by which number processes find each other, if this is the ``first`` of them; else nothing, as long."""
    unique: bytes = load().get_unique_id() if first else bytes(_UNIQUE_BYTES)
    return unique


def connect(gpu: Gpu, size: int, unique: bytes, index: int) -> tuple[Request, Callable[[], "Link"]]:
    """Start to connect ``size`` processes, of which this one is number ``index``."""
    made: Future[Link] = Future()

    def make() -> None:
        try:
            made.set_result(Link(gpu, size, unique[:_UNIQUE_BYTES], index))
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=make, name="disttrain nccl", daemon=True).start()
    return made.done, made.result


class Link:
    """One communicator of NCCL, and the stream that it works in.

    All arrays given to it are flat and on the GPU; nothing waits on the CPU until they are sent, in the order of
    ``stream``.
    """

    def __init__(self, gpu: Gpu, size: int, unique: bytes, index: int) -> None:
        self.index = index
        self.size = size
        self.stream = gpu.new_stream()
        self._lock = threading.Lock()
        self._over = False
        self._nccl = load()
        self._byte = self._nccl.NCCL_UINT8
        with _errors(self._nccl, "connecting"), gpu.on(self.stream):
            self._comm = self._nccl.NcclCommunicator(size, unique, index)

    def all_reduce(self, x: Array, op: str) -> None:
        """Reduce ``x`` in place; see ``TYPES``."""
        self._call("allReduce", address(x), address(x), x.size, *self._reduction(x, op))

    def reduce(self, x: Array, out: Array | None, root: int, op: str) -> None:
        """Reduce into ``out`` of process ``root``."""
        into = address(x if out is None else out)
        self._call("reduce", address(x), into, x.size, *self._reduction(x, op), root)

    def reduce_scatter(self, x: Array, out: Array, op: str) -> None:
        """Reduce; process ``i`` receives the i-th part, of the size of ``out``."""
        self._call("reduceScatter", address(x), address(out), out.size, *self._reduction(x, op))

    def all_gather(self, x: Array, out: Array) -> None:
        """Receive the ``x`` of all processes one after the other."""
        self._call("allGather", address(x), address(out), x.nbytes, self._byte)

    def broadcast(self, x: Array, root: int) -> None:
        """Receive the ``x`` of process ``root``."""
        self._call("broadcast", address(x), address(x), x.nbytes, self._byte, root)

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        """Send each (process, array), receive into each (process, array)."""
        with _errors(self._nccl, "exchange"):
            self._nccl.groupStart()
            try:
                for p, x in sends:
                    if x.nbytes:
                        self._comm.send(address(x), x.nbytes, self._byte, p, self.stream.ptr)
                for p, x in receives:
                    if x.nbytes:
                        self._comm.recv(address(x), x.nbytes, self._byte, p, self.stream.ptr)
            finally:
                self._nccl.groupEnd()

    def _reduction(self, x: Array, op: str) -> tuple[int, int]:
        return getattr(self._nccl, TYPES[x.dtype]), getattr(self._nccl, f"NCCL_{op.upper()}")

    def _call(self, name: str, *arguments: int) -> None:
        with _errors(self._nccl, name):
            getattr(self._comm, name)(*arguments, self.stream.ptr)

    def check(self) -> None:
        """Raise what NCCL has found out since.

        Raises:
            PeerFailed: it cannot go on.
        """
        with self._lock, _errors(self._nccl, "the background"):
            if not self._over:
                self._comm.check_async_error()

    def abort(self) -> None:
        """Give up what is in flight, whatever the peers do. NCCL may not return from this."""
        with self._lock:  # whoever looks for errors has looked, or will not
            self._over = True
        self._comm.abort()

    def close(self) -> None:
        """Free the communicator; nothing is in flight on any process."""
        with self._lock:
            self._over = True
        self._comm.destroy()


@contextmanager
def _errors(nccl: Any, where: str) -> Iterator[None]:
    try:
        yield
    except nccl.NcclError as error:
        raise PeerFailed(
            f"NCCL cannot go on ({where}: {error}); look for a process that ended, and set NCCL_DEBUG=INFO to see more"
        ) from error


class NcclChannel:
    """A channel whose arrays are on GPUs. What is not, headers above all, goes through the ``control`` channel."""

    all_reduce = None  # what may have an order of its own NCCL does as a whole (`on_gpu`)

    def __init__(self, control: Channel, link: Link) -> None:
        self.index = control.index
        self.size = control.size
        self.link = link
        self._control = control

    def exchange(
        self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]], lane: int = 0
    ) -> Request:
        self.link.exchange(sends, receives)
        return _at_once

    def gather_headers(self, mine: bytes) -> tuple[Request, bytearray]:
        return self._control.gather_headers(mine)

    def narrow(self, processes: Sequence[int]) -> tuple[Request, Callable[[], Channel]]:
        return self._control.narrow(processes)

    def leave(self) -> Request:
        return self._control.leave()

    def close(self) -> None:
        self.link.close()


def _at_once() -> bool:
    return True
