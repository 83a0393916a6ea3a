"""Sorting, and what follows from it, with PyTorch's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from disttrain import engine
from disttrain.functions.common import normalize_dim
from disttrain.ops import sort as ops

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


class Sorted(NamedTuple):
    """What ``sort`` and ``topk`` return: the values, and where each came from."""

    values: Tensor
    indices: Tensor


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Sorted:
    """The elements in order along ``dim``, and where each came from. Equal ones always keep their order."""
    if not input.ndim:
        normalize_dim(dim, 0)
        return Sorted(input.clone(), engine.Tensor_.full_(0))
    return Sorted(*engine.apply(ops.sort, input, axis=normalize_dim(dim, input.ndim), descending=descending))


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """Where the elements in order along ``dim`` come from."""
    return sort(input, dim, descending).indices


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Sorted:
    """The ``k`` largest (or smallest) elements along ``dim`` in order, and where each came from.

    Raises:
        RuntimeError: ``k`` is larger than the dimension.
    """
    d = normalize_dim(dim, input.ndim)
    n = input.shape[d] if input.ndim else 1
    if not 0 <= k <= n:
        raise RuntimeError(f"topk(): k must be in [0, {n}], got {k}")
    values, indices = sort(input, d, descending=largest)
    if not input.ndim:
        return Sorted(values, indices)
    return Sorted(values.narrow(d, 0, k), indices.narrow(d, 0, k))
