"""Matrix products, with PyTorch's names and checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from disttrain import engine
from disttrain.functions.common import need_tensors
from disttrain.ops import linalg

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The product of two matrices, vectors, or batches of them (leading dimensions broadcast).

    Raises:
        RuntimeError: the inner sizes or the types differ, or one has no dimensions.
    """
    _check("matmul", input, other)
    return engine.apply(linalg.matmul, input, other)  # type: ignore[no-any-return]


def _check(name: str, input: Tensor, other: Tensor) -> None:
    if not isinstance(other, engine.Tensor_) or not isinstance(input, engine.Tensor_):
        raise TypeError(f"{name}() needs two Tensors, got {type(input).__name__} and {type(other).__name__}")
    if not input.ndim or not other.ndim:
        raise RuntimeError(
            f"{name}(): both arguments need at least 1 dimension, got {input.ndim} and {other.ndim}"
        )
    inner = other.shape[0 if other.ndim == 1 else -2]
    if input.shape[-1] != inner:
        raise RuntimeError(
            f"{name}(): shapes {list(input.shape)} and {list(other.shape)} do not fit: "
            f"{input.shape[-1]} columns against {inner} rows"
        )
    if input.dtype is not other.dtype:
        raise RuntimeError(
            f"{name}() expects one dtype, got {input.dtype} and {other.dtype}; convert one with .to()"
        )


def _ranked(name: str, input: Tensor, other: Tensor, a: int, b: int) -> Tensor:
    need_tensors(name, input, other)
    if input.ndim != a or other.ndim != b:
        raise RuntimeError(
            f"{name}() expects tensors of {a} and {b} dimensions, got shapes {list(input.shape)} and "
            f"{list(other.shape)}"
        )
    return matmul(input, other)


def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices."""
    return _ranked("mm", input, mat2, 2, 2)


def mv(input: Tensor, vec: Tensor) -> Tensor:
    """The product of a matrix and a vector."""
    return _ranked("mv", input, vec, 2, 1)


def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """The inner product of two vectors."""
    return _ranked("dot", input, tensor, 1, 1)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of two batches of matrices.

    Raises:
        RuntimeError: the batches have different sizes.
    """
    need_tensors("bmm", input, mat2)
    if input.ndim == mat2.ndim == 3 and input.shape[0] != mat2.shape[0]:
        raise RuntimeError(f"bmm(): batches of {input.shape[0]} and {mat2.shape[0]} matrices")
    return _ranked("bmm", input, mat2, 3, 3)


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """All products of an element of one vector and one of another."""
    need_tensors("outer", input, vec2)
    if input.ndim != 1 or vec2.ndim != 1:
        raise RuntimeError(f"outer() expects vectors, got shapes {list(input.shape)} and {list(vec2.shape)}")
    return input.unsqueeze(1) * vec2.unsqueeze(0)


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * input + alpha * (mat1 @ mat2)``."""
    need_tensors("addmm", input)
    product = mm(mat1, mat2)
    out = (input if beta == 1 else beta * input) + (product if alpha == 1 else alpha * product)
    if out.shape != product.shape:
        raise RuntimeError(
            f"addmm(): input of shape {list(input.shape)} does not broadcast to that of the product, "
            f"{list(product.shape)}"
        )
    return out
