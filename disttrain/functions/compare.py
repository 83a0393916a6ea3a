"""Comparisons, logic and bits of each element, and comparisons of whole tensors, with PyTorch's names.

They have no gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from disttrain import engine
from disttrain.defaults import result_type
from disttrain.functions.common import Operand, as_operand, binary, cast, need_tensors
from disttrain.kernels.arrays import get_array_module
from disttrain.ops import elementwise, special
from disttrain.ops.types import Op

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _compare(op: Op, input: Tensor, other: Operand) -> Tensor:
    if not isinstance(input, engine.Tensor_):
        need_tensors(op.__name__, input)
    return binary(op, input, other)


def eq(input: Tensor, other: Operand) -> Tensor:
    """``input == other``, element by element."""
    return _compare(elementwise.eq, input, other)


def ne(input: Tensor, other: Operand) -> Tensor:
    """``input != other``, element by element."""
    return _compare(elementwise.ne, input, other)


def lt(input: Tensor, other: Operand) -> Tensor:
    """``input < other``, element by element."""
    return _compare(elementwise.lt, input, other)


def le(input: Tensor, other: Operand) -> Tensor:
    """``input <= other``, element by element."""
    return _compare(elementwise.le, input, other)


def gt(input: Tensor, other: Operand) -> Tensor:
    """``input > other``, element by element."""
    return _compare(elementwise.gt, input, other)


def ge(input: Tensor, other: Operand) -> Tensor:
    """``input >= other``, element by element."""
    return _compare(elementwise.ge, input, other)


def logical_and(input: Tensor, other: Tensor) -> Tensor:
    """Whether both are not zero."""
    need_tensors("logical_and", input, other)
    return engine.apply(elementwise.logical_and, input, other)  # type: ignore[no-any-return]


def logical_or(input: Tensor, other: Tensor) -> Tensor:
    """Whether one is not zero."""
    need_tensors("logical_or", input, other)
    return engine.apply(elementwise.logical_or, input, other)  # type: ignore[no-any-return]


def logical_xor(input: Tensor, other: Tensor) -> Tensor:
    """Whether exactly one is not zero."""
    need_tensors("logical_xor", input, other)
    return engine.apply(elementwise.logical_xor, input, other)  # type: ignore[no-any-return]


def bitwise_and(input: Operand, other: Operand) -> Tensor:
    """``input & other`` on integers or booleans."""
    return _bits(elementwise.bitwise_and, input, other)


def bitwise_or(input: Operand, other: Operand) -> Tensor:
    """``input | other`` on integers or booleans."""
    return _bits(elementwise.bitwise_or, input, other)


def bitwise_xor(input: Operand, other: Operand) -> Tensor:
    """``input ^ other`` on integers or booleans."""
    return _bits(elementwise.bitwise_xor, input, other)


def _bits(op: Op, input: Operand, other: Operand) -> Tensor:
    kind = result_type(as_operand(input), as_operand(other))
    if kind.is_floating_point:
        raise RuntimeError(f"{op.__name__}() needs integers or booleans, got {kind}")
    return binary(op, input, other)


def bitwise_left_shift(input: Operand, other: Operand) -> Tensor:
    """``input << other`` on integers."""
    return _shift("bitwise_left_shift", special.left_shift, input, other)


def bitwise_right_shift(input: Operand, other: Operand) -> Tensor:
    """``input >> other`` on integers; the sign is kept."""
    return _shift("bitwise_right_shift", special.right_shift, input, other)


def _shift(name: str, op: Op, input: Operand, other: Operand) -> Tensor:
    operands = [as_operand(x) for x in (input, other)]
    kind = result_type(*operands)
    if not any(isinstance(x, engine.Tensor_) for x in operands) or kind.category != 1:
        raise RuntimeError(f"{name}() needs tensors of integers, got {input!r:.80} and {other!r:.80}")
    x, y = (
        x if isinstance(x, engine.Tensor_) else np.asarray(x, kind.numpy)
        for x in (cast(x, kind.numpy) for x in operands)
    )
    return engine.apply(op, x, y)  # type: ignore[no-any-return]


def equal(input: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have equal shapes and elements; NaN equals nothing.

    Raises:
        RuntimeError: the types differ in kind or size.
    """
    need_tensors("equal", input, other)
    return input.shape == other.shape and bool((input == other).all())


def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """Return where ``|input - other| <= atol + rtol * |other|``, a boolean tensor of the broadcast shape.

    Infinities are close to themselves alone.

    Raises:
        RuntimeError: the types or the shapes differ beyond broadcasting, or a tolerance is negative.
    """
    need_tensors("isclose", input, other)
    if input.dtype is not other.dtype:
        raise RuntimeError(
            f"isclose() expects one dtype, got {input.dtype} and {other.dtype}; convert one with .to()"
        )
    if rtol < 0 or atol < 0:
        raise RuntimeError(f"isclose() needs tolerances of at least 0, got rtol={rtol}, atol={atol}")
    x, y = input._array, other._array
    xp = get_array_module(x)
    if x.dtype.kind != "f":  # bfloat16 has no isclose; booleans cannot be subtracted; integers wrap around
        x, y = x.astype(np.float64), y.astype(np.float64)
    try:
        return engine.Tensor_._of(xp.asarray(xp.isclose(x, y, rtol, atol, equal_nan)))  # type: ignore[no-any-return]
    except ValueError as error:
        raise RuntimeError(
            f"isclose(): shapes {list(input.shape)} and {list(other.shape)} do not broadcast"
        ) from error


def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Return whether all elements are close in the sense of :func:`isclose`."""
    return bool(isclose(input, other, rtol, atol, equal_nan).all())


def is_nonzero(input: Tensor) -> bool:
    """Return whether the only element of ``input`` is not zero.

    Raises:
        RuntimeError: there is more than one element, or none.
    """
    need_tensors("is_nonzero", input)
    if input.numel() != 1:
        raise RuntimeError(f"is_nonzero() needs a tensor of one element, got shape {list(input.shape)}")
    return bool(input.item())


def is_same_size(input: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have equal shapes."""
    need_tensors("is_same_size", input, other)
    return input.shape == other.shape


def is_floating_point(input: Tensor) -> bool:
    """Return whether the elements are floating point numbers."""
    need_tensors("is_floating_point", input)
    return input.dtype.is_floating_point


def is_signed(input: Tensor) -> bool:
    """Return whether the type of the elements holds negative numbers."""
    need_tensors("is_signed", input)
    return input.dtype.is_signed


def is_complex(input: Tensor) -> bool:
    """Return False: no tensor holds complex numbers."""
    need_tensors("is_complex", input)
    return False


def numel(input: Tensor) -> int:
    """Return the number of elements."""
    need_tensors("numel", input)
    return input.numel()


greater, greater_equal, less, less_equal, not_equal = gt, ge, lt, le, ne
