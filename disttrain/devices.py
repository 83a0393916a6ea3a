"""Devices, by PyTorch's names."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from disttrain.gpu_memory import look_after
from disttrain.kernels.arrays import on_gpu, owner
from disttrain.ops.types import Array, Result, call, get_array_module


class device:
    """Where a tensor's memory is, as ``torch.device``: ``device("cpu")``, ``device("cuda:1")``, ``device("cuda", 1)``.

    Raises:
        ValueError: the name is no device's.
    """

    __slots__ = ("index", "type")
    type: str
    index: int | None

    def __init__(self, type: Any, index: int | None = None) -> None:
        if isinstance(type, device):
            type, index = type.type, type.index
        elif isinstance(type, int):
            type, index = "cuda", type
        name, colon, number = str(type).partition(":")
        if name not in ("cpu", "cuda") or (colon and not number.isdigit()):
            raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {type!r}")
        self.type = name
        self.index = int(number) if colon else index

    @classmethod
    def of(cls, array: Array) -> device:
        """Return the device that holds ``array``."""
        return cls("cuda", int(array.device.id)) if on_gpu(array) else _CPU

    def __enter__(self) -> device:
        """Make tensors on this device within a block: so far only on the CPU.

        Raises:
            NotImplementedError: another device.
        """
        if self.type != "cpu":
            raise NotImplementedError(
                f"`with device({str(self)!r})` is not in disttrain: make tensors with device="
            )
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, device) and (self.type, self.index or 0) == (other.type, other.index or 0)

    def __hash__(self) -> int:
        return hash((self.type, self.index or 0))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device(type={self.type!r}" + (")" if self.index is None else f", index={self.index})")


_CPU = device("cpu")


def move(x: Array, *, device: device) -> Result:
    """``x`` in the memory of another device."""
    source = type(device).of(x)
    if device.type == "cpu":
        return x.get(), (source,), move_vjp
    with current(device) as cupy:
        return cupy.asarray(x), (source,), move_vjp


@contextmanager
def current(device: device) -> Iterator[Any]:
    """Let a GPU be the one that CuPy uses for the length of a ``with`` block, which gets CuPy's module.

    Raises:
        RuntimeError: CuPy is not installed, or sees no GPU.
    """
    try:
        import cupy
    except ImportError:
        raise RuntimeError(
            f"device {device} needs CuPy, which is not installed; "
            f"pip install 'disttrain[cuda13]' (or [cuda12]) on a machine with a GPU"
        ) from None
    if not cupy.is_available():
        raise RuntimeError(f"device {device}: no GPU is visible to CuPy {cupy.__version__}; use device 'cpu'")
    look_after(cupy)
    with cupy.cuda.Device(device.index):
        yield cupy


def move_vjp(g: Any, needs: tuple[bool, ...], source: device) -> tuple[Any, ...]:
    return (call(move, g, device=source),)


_pinned: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()
"""The arrays whose memory is page-locked, by their ``id``."""


def pin(x: Array) -> Array:
    """Return a copy of an array of the host in page-locked memory, which a GPU reaches without the CPU's help."""
    import cupyx

    if not x.size:
        return x.copy()
    memory = cupyx.empty_pinned(x.nbytes, "uint8")
    out = memory.view(x.dtype).reshape(x.shape)
    np.copyto(out, x)
    _pinned[id(owner(out))] = owner(out)
    return out


def is_pinned(x: Array) -> bool:
    """Return whether the memory of ``x`` is of :func:`pin`."""
    return isinstance(x, np.ndarray) and id(owner(x)) in _pinned


def is_available() -> bool:
    """Return whether a GPU can be used."""
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.is_available())


def synchronize() -> None:
    """Wait until the GPU has done what was asked of it; nothing to do without one."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and cupy.is_available():
        cupy.cuda.get_current_stream().synchronize()


__all__ = ["current", "device", "get_array_module", "is_available", "is_pinned", "move", "pin", "synchronize"]
