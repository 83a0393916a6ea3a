"""The default floating point type of the calling rank."""

from __future__ import annotations

from typing import Any

from disttrain import context, dtypes, engine


def get_default_dtype() -> dtypes.dtype:
    """Return the type of tensors made from Python floats."""
    return context.current().default_dtype


def set_default_dtype(d: Any) -> None:
    """Set the type of tensors made from Python floats on the calling rank.

    Raises:
        TypeError: not a floating point type.
    """
    kind = dtypes.as_dtype(d)
    if not kind.is_floating_point:
        raise TypeError(f"the default dtype must be a floating point type, got {kind}")
    context.current().default_dtype = kind


def result_type(tensor1: Any, tensor2: Any) -> dtypes.dtype:
    """Return the type in which an operation on two operands takes place."""
    arrays = tuple(x._array if isinstance(x, engine.Tensor_) else x for x in (tensor1, tensor2))
    return dtypes.as_dtype(dtypes.result_type(arrays, context.current().default_dtype))
