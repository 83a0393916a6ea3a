"""NCCL: a channel for arrays on GPUs, and what processes tell each other to open one.

Making a communicator takes as long as the others take to come, so a thread of its own does it; :mod:`.watchdog` aborts
those whose calls do not come to an end.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import ml_dtypes
import numpy

from disttrain.collectives import nccl_library
from disttrain.collectives.call import name_ranks
from disttrain.collectives.cuda import Gpu
from disttrain.collectives.errors import PeerFailed, TransportUnavailable
from disttrain.collectives.nccl_library import NcclError
from disttrain.collectives.transport import Channel, Request
from disttrain.kernels.arrays import Array, address
from disttrain.kernels.libraries import LibraryMissing

_OLDEST = 21800
"""NCCL 2.18: the configuration of communicators that is passed."""
TYPES = {
    numpy.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name): number
    for name, number in nccl_library.TYPES.items()
}
"""What NCCL can reduce: no integers of 16 bits. (Other traffic goes as bytes.)"""
_BYTE = nccl_library.TYPES["uint8"]
_OFFER = struct.Struct("<q16s")
_GPU_OF_SEVERAL = ("NCCL_HOSTID", "NCCL_MULTI_RANK_GPU_ENABLE")
"""With one of these set NCCL lets processes share a GPU: for tests, it is slow."""

_NO_OFFER = bytes(_OFFER.size)


def find() -> int:
    """Return the version of NCCL that is there to be used.

    Raises:
        TransportUnavailable: says what is missing.
    """
    try:
        import cupy
    except ImportError as error:
        raise TransportUnavailable(
            f"nccl needs CuPy ({error}); "
            f'install it with `pip install "disttrain[cuda13]"` (or [cuda12], by the driver)'
        ) from error
    try:
        version = nccl_library.version()
    except LibraryMissing as error:
        raise TransportUnavailable(
            f"nccl needs the NCCL library; `pip install nvidia-nccl-cu13` (or -cu12); tried: {error}"
        ) from error
    if not cupy.is_available():
        raise TransportUnavailable(
            f"nccl needs a GPU, and CuPy {cupy.__version__} sees none "
            f"(CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"
        )
    if version < _OLDEST:
        raise TransportUnavailable(
            f"nccl needs NCCL {version_text(_OLDEST)} or newer, and {version_text(version)} is there"
        )
    return version


def version_text(version: int) -> str:
    """Return ``2.28.9`` for 22809, and ``2.8.4`` for 2804, as it was written until then."""
    major = 10000 if version >= 10000 else 1000
    return f"{version // major}.{version % major // 100}.{version % 100}"


def offer(gpu: Gpu) -> bytes:
    """Return what a process tells the others before they connect: its version of NCCL, and which GPU is its own."""
    try:
        version = find()
    except TransportUnavailable:
        return _NO_OFFER
    shared = any(os.environ.get(name, "0") != "0" for name in _GPU_OF_SEVERAL)
    return _OFFER.pack(version, os.urandom(16) if shared else gpu.identity())


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
    return nccl_library.unique_id() if first else bytes(nccl_library.UNIQUE_BYTES)


def connect(
    gpu: Gpu, size: int, unique: bytes, index: int, given_up: Callable[[], bool]
) -> tuple[Request, Callable[[], "Link"]]:
    """Start to connect ``size`` processes, of which this one is number ``index``, unless that is given up."""
    made: Future[Link] = Future()

    def make() -> None:
        try:
            made.set_result(Link(gpu, size, unique[: nccl_library.UNIQUE_BYTES], index, given_up))
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=make, name="disttrain nccl", daemon=True).start()
    return made.done, made.result


class Link:
    """One communicator of NCCL, and the stream that it works in.

    All arrays given to it are flat and on the GPU; nothing waits on the CPU until they are sent, in the order of
    ``stream``.
    """

    def __init__(self, gpu: Gpu, size: int, unique: bytes, index: int, given_up: Callable[[], bool]) -> None:
        self.index = index
        self.size = size
        self.stream = gpu.new_stream()
        with _errors("connecting"), gpu.on(self.stream):
            self._comm = nccl_library.Communicator(size, unique, index, given_up)

    def all_reduce(self, x: Array, op: str) -> None:
        """Reduce ``x`` in place; see ``TYPES``."""
        self._call("ncclAllReduce", address(x), address(x), x.size, *self._reduction(x, op))

    def reduce(self, x: Array, out: Array | None, root: int, op: str) -> None:
        """Reduce into ``out`` of process ``root``."""
        into = address(x if out is None else out)
        self._call("ncclReduce", address(x), into, x.size, *self._reduction(x, op), root)

    def reduce_scatter(self, x: Array, out: Array, op: str) -> None:
        """Reduce; process ``i`` receives the i-th part, of the size of ``out``."""
        self._call("ncclReduceScatter", address(x), address(out), out.size, *self._reduction(x, op))

    def all_gather(self, x: Array, out: Array) -> None:
        """Receive the ``x`` of all processes one after the other."""
        self._call("ncclAllGather", address(x), address(out), x.nbytes, _BYTE)

    def broadcast(self, x: Array, root: int) -> None:
        """Receive the ``x`` of process ``root``."""
        self._call("ncclBroadcast", address(x), address(x), x.nbytes, _BYTE, root)

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        """Send each (process, array), receive into each (process, array)."""
        calls = [("ncclSend", address(x), x.nbytes, _BYTE, p) for p, x in sends if x.nbytes]
        calls += [("ncclRecv", address(x), x.nbytes, _BYTE, p) for p, x in receives if x.nbytes]
        with _errors("exchange"):
            self._comm.exchange(calls, self.stream.ptr)

    def _reduction(self, x: Array, op: str) -> tuple[int, int]:
        return TYPES[x.dtype], nccl_library.OPERATIONS[op]

    def _call(self, name: str, *arguments: int) -> None:
        with _errors(name):
            self._comm.call(name, *arguments, self.stream.ptr)

    def check(self) -> None:
        """Raise what NCCL has found out since.

        Raises:
            PeerFailed: it cannot go on.
        """
        with _errors("the background"):
            self._comm.check()

    def abort(self) -> None:
        """Give up what is in flight, whatever the peers do. NCCL may not return from this."""
        self._comm.abort()

    def close(self) -> None:
        """Free the communicator; nothing is in flight on any process."""
        with _errors("closing"):
            self._comm.destroy()


@contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except NcclError as error:
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
