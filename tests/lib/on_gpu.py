"""A communicator whose arrays live on the GPU: takes NumPy arrays as the one of the host does, and moves copies."""

from collections.abc import Callable
from typing import Any

import numpy as np

from disttrain.collectives import Communicator


class OnGpu:
    """The verbs of ``comm`` on CuPy's arrays, or on those of the stand-in."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def __getattr__(self, name: str) -> Any:
        if name.removeprefix("start_") in ("barrier", "rank0_first", "abort", "close") or name in (
            *("rank", "size", "ranks", "transport"),
            "_host",
        ):
            return getattr(self._comm, name)
        return lambda *arguments, **options: self._call(getattr(self._comm, name), arguments, options)

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    def split(self, color: int | None, key: int = 0) -> "OnGpu | None":
        comm = self._comm.split(color, key)
        return None if comm is None else OnGpu(comm)

    def intra_node(self) -> "OnGpu":
        return OnGpu(self._comm.intra_node())

    def inter_node(self) -> "OnGpu":
        return OnGpu(self._comm.inter_node())

    def _call(self, verb: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        hosts = [a for a in arguments if isinstance(a, np.ndarray)]
        devices = _upload(hosts)
        named = dict(zip(map(id, hosts), devices, strict=True))
        work = verb(*[named.get(id(a), a) for a in arguments], **options)
        landing = _Landing(work, hosts, devices)
        if work is None:  # of the forms that wait
            landing.fetch()
        return landing


class _Landing:
    """A ``Work`` that brings the results to the host."""

    def __init__(self, work: Any, hosts: list[np.ndarray], devices: list[Any]) -> None:
        self._work, self._hosts, self._devices = work, hosts, devices

    @property
    def done(self) -> bool:
        return self._work.done

    def wait(self) -> None:
        self._work.wait()
        self.fetch()

    def fetch(self) -> None:
        for host, device in zip(self._hosts, self._devices, strict=True):
            if host.flags.writeable:
                host[...] = device.get()
        self._devices = []


def _upload(hosts: list[np.ndarray]) -> list[Any]:
    """Return copies of the arrays on the GPU: of one memory where those of the host are."""
    import cupy

    devices: dict[int, Any] = {}
    for host in sorted(hosts, key=lambda a: -a.nbytes):
        begin = host.__array_interface__["data"][0]
        for other in hosts:
            offset = begin - other.__array_interface__["data"][0]
            if id(other) in devices and host.nbytes and offset >= 0 and offset + host.nbytes <= other.nbytes:
                count = offset // host.itemsize
                flat = devices[id(other)].reshape(-1)
                devices[id(host)] = flat[count : count + host.size].reshape(host.shape)
                break
        else:
            devices[id(host)] = cupy.asarray(host)
    return [devices[id(host)] for host in hosts]
