"""Functions that make tensors from sizes and values, with PyTorch's names and defaults."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import context, dtypes, engine
from disttrain.functions.common import fitting, need_tensors
from disttrain.functions.conversion import dtype_or_default, new
from disttrain.functions.shape import given
from disttrain.layouts import need_strided, preserve_format
from disttrain.ops import strided
from disttrain.ops.shape import kept_order

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _size(name: str, args: tuple[Any, ...], size: Any = None) -> tuple[int, ...]:
    shape = given(name, "size", args, size)
    if any(isinstance(n, bool) for n in args):
        raise TypeError(f"{name}(): sizes must be integers, got {args!r}")
    if min(shape, default=0) < 0:
        raise RuntimeError(f"{name}(): sizes must not be negative, got {list(shape)}")
    return shape


def _ordered(array: Any, memory_format: Any) -> Any:
    """Return a new array in the memory format asked for."""
    axes = None if memory_format is None else memory_format.axes
    if axes is None:
        return array
    if len(axes) != array.ndim:
        raise RuntimeError(f"{memory_format!r} is for {len(axes)} dimensions, got shape {list(array.shape)}")
    return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))


def empty(
    *sizes: Any,
    size: Any = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """A tensor whose elements are not set."""
    need_strided(layout)
    array = _ordered(np.empty(_size("empty", sizes, size), dtype_or_default(dtype)), memory_format)
    return new(array, requires_grad, device)


def empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor with the strides given, in elements, whose elements are not set."""
    need_strided(layout)
    shape, steps = _size("empty_strided", (size,)), tuple(map(operator.index, stride))
    if len(shape) != len(steps) or min(steps, default=0) < 0:
        raise RuntimeError(f"empty_strided(): sizes {list(shape)} and strides {list(steps)} do not fit")
    flat = np.empty(strided.extent(shape, steps), dtype_or_default(dtype))
    array = np.lib.stride_tricks.as_strided(flat, shape, tuple(s * flat.itemsize for s in steps))
    return new(array, requires_grad, device)


def zeros(
    *sizes: Any,
    size: Any = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of zeros."""
    need_strided(layout)
    return new(np.zeros(_size("zeros", sizes, size), dtype_or_default(dtype)), requires_grad, device)


def ones(
    *sizes: Any,
    size: Any = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of ones."""
    need_strided(layout)
    return new(np.ones(_size("ones", sizes, size), dtype_or_default(dtype)), requires_grad, device)


def _number(name: str, value: Any) -> Any:
    """Return a Python number, or that in a tensor without dimensions."""
    if isinstance(value, engine.Tensor_) and not value.ndim:
        return value.item()
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, bool | int | float):
        raise TypeError(f"{name}() needs a number, got {type(value).__name__}: {value!r:.80}")
    return value


def filled(name: str, make: Any, value: Any, kind: np.dtype[Any]) -> Any:
    """Return ``make(value)`` for a number that the type can hold."""
    return make(fitting(name, _number(name, value), kind))


def full(
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of ``fill_value``, in that number's type unless ``dtype`` is given.

    Raises:
        RuntimeError: the type cannot hold the number.
        TypeError: ``size`` is no sequence, or ``fill_value`` no number.
    """
    need_strided(layout)
    if not isinstance(size, list | tuple):
        raise TypeError(f"full(): size must be a sequence of integers, got {size!r:.80}")
    shape = _size("full", (size,))
    if dtype is None and isinstance(fill_value, engine.Tensor_):
        dtype = fill_value.dtype
    value = _number("full", fill_value)
    if dtype is None and not isinstance(value, float):
        dtype = type(value)
    kind = dtype_or_default(dtype)
    return new(filled("full", lambda v: np.full(shape, v, kind), value, kind), requires_grad, device)


def scalar_tensor(
    s: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor without dimensions that holds a number, in the default floating point type."""
    kind = context.current().default_dtype if dtype is None else dtype
    return full((), s, dtype=kind, layout=layout, device=device, requires_grad=requires_grad)


def _like(
    make: Any,
    input: Tensor,
    dtype: Any,
    layout: Any,
    device: Any,
    requires_grad: bool,
    memory_format: Any,
) -> Tensor:
    """Return ``make(array, dtype, order)`` as a tensor; like ``input`` in what is not given, in its order in memory."""
    need_strided(layout)
    if not isinstance(input, engine.Tensor_):
        raise TypeError(f"expected a Tensor, got {type(input).__name__}: {input!r:.80}")
    kept = memory_format is None or memory_format is preserve_format
    array = make(
        input._array, dtype_or_default(dtype or input.dtype), kept_order(input._array) if kept else "C"
    )
    if not kept:
        array = _ordered(array, memory_format)
    return new(array, requires_grad, device or input.device)


def empty_like(
    input: Tensor,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """A tensor like ``input`` whose elements are not set."""
    return _like(np.empty_like, input, dtype, layout, device, requires_grad, memory_format)


def zeros_like(
    input: Tensor,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """A tensor of zeros like ``input``."""
    return _like(np.zeros_like, input, dtype, layout, device, requires_grad, memory_format)


def ones_like(
    input: Tensor,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """A tensor of ones like ``input``."""
    return _like(np.ones_like, input, dtype, layout, device, requires_grad, memory_format)


def full_like(
    input: Tensor,
    fill_value: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """A tensor of ``fill_value`` like ``input``."""

    def make(array: Any, kind: np.dtype[Any], order: Any) -> Any:
        return filled("full_like", lambda v: np.full_like(array, v, kind, order), fill_value, kind)

    return _like(make, input, dtype, layout, device, requires_grad, memory_format)


_MISSING: Any = object()


def arange(
    start: Any = _MISSING,
    end: Any = _MISSING,
    step: Any = 1,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers from ``start`` (or 0) up to, not including, ``end``; int64 if all are integers.

    Raises:
        RuntimeError: ``step`` is zero or leads away from ``end``, or a number is not finite.
    """
    need_strided(layout)
    if end is _MISSING or end is None:
        start, end = 0, start
    if end is _MISSING:
        raise TypeError("arange() needs end")
    start = 0 if start is _MISSING else start
    start, end, step = (_number("arange", x) for x in (start, end, step))
    if dtype is not None and dtypes.as_dtype(dtype).category == 0:
        raise RuntimeError("arange() of booleans is not defined; give another dtype")
    if not all(map(math.isfinite, (start, end, step))):
        raise RuntimeError(f"arange(): numbers must be finite, got {start}, {end}, {step}")
    whole = all(isinstance(x, int) for x in (start, end, step))
    kind = np.dtype(np.int64) if dtype is None and whole else dtype_or_default(dtype)
    if kind == np.int64 and not whole:
        if step and not int(step):
            raise ValueError(f"arange(): step {step} is zero as {dtypes.as_dtype(dtype)}")
        start, end, step, whole = int(start), int(end), int(step), True
    if step == 0 or (end - start) * step < 0:
        raise RuntimeError(f"arange(): step {step} does not lead from {start} to {end}")
    count = -(-(end - start) // step) if whole else math.ceil((end - start) / step)
    if kind.kind in "iu":
        start, step = int(start), int(step)
    return new((start + step * np.arange(count)).astype(kind, copy=False), requires_grad, device)


def _steps(name: str, start: Any, end: Any, steps: Any, dtype: Any) -> tuple[Any, Any, int, np.dtype[Any]]:
    for x in (start, end):
        if isinstance(x, engine.Tensor_) and x.ndim:
            raise RuntimeError(
                f"{name}(): start and end must be numbers or tensors without dimensions, got shape {list(x.shape)}"
            )
    start, end = _number(name, start), _number(name, end)
    count = operator.index(steps)
    if count < 0:
        raise RuntimeError(f"{name}(): the number of steps must not be negative, got {count}")
    kind = dtype_or_default(dtype)
    if kind.kind == "b":
        raise RuntimeError(f"{name}() of booleans is not defined; give another dtype")
    return start, end, count, kind


def linspace(
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:
    """``steps`` numbers evenly spaced from ``start`` to ``end``, both included.

    Raises:
        RuntimeError: ``steps`` is negative, or an end has dimensions.
    """
    need_strided(layout)
    start, end, count, kind = _steps("linspace", start, end, steps, dtype)
    return new(_line(start, end, count, kind), requires_grad, device)


def _line(start: Any, end: Any, count: int, kind: np.dtype[Any]) -> Any:
    """Return evenly spaced numbers, symmetric from both ends, as PyTorch computes them: in the type itself."""
    whole = kind.kind in "iu"
    if whole:
        if not math.isfinite(start) or not math.isfinite(end):
            raise RuntimeError(f"{start} to {end} cannot be converted to {kind}: they must be finite")
        start, end = int(start), int(end)
    work: Any = np.dtype(np.float64) if whole else kind
    first, last = work.type(start), work.type(end)
    if count == 1:
        return np.full(1, first).astype(kind)
    step = (last - first) / work.type(max(count - 1, 1))
    i = np.arange(count)
    up, down = first + step * i.astype(work), last - step * (count - 1 - i).astype(work)
    return np.where(i < count // 2, up, down).astype(kind)


def logspace(
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:
    """``steps`` powers of ``base`` with exponents evenly spaced from ``start`` to ``end``, both included.

    Raises:
        RuntimeError: ``steps`` is negative, or an end has dimensions.
    """
    need_strided(layout)
    start, end, count, kind = _steps("logspace", start, end, steps, dtype)
    wide = np.dtype(np.float64)
    if kind.kind in "iu":
        if not math.isfinite(start) or not math.isfinite(end):
            raise RuntimeError(
                f"logspace(): {start} to {end} cannot be converted to {kind}: they must be finite"
            )
        start, end = int(start), int(end)
    with np.errstate(all="ignore"):
        powers = float(base) ** _line(start, end, count, wide)
        return new(powers.astype(kind), requires_grad, device)


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:
    """An ``n`` by ``m`` matrix with ones on its diagonal."""
    need_strided(layout)
    if isinstance(n, bool) or isinstance(m, bool):
        raise TypeError(f"eye(): the sizes must be integers, got {n!r} and {m!r}")
    rows, columns = _size("eye", (n, n if m is None else m))
    return new(np.eye(rows, columns, dtype=dtype_or_default(dtype)), requires_grad, device)


def vander(x: Tensor, *, N: int | None = None) -> Tensor:
    """Powers 0 to ``N - 1`` of the last dimension, as ``torch.linalg.vander``; by default as many as it has numbers.

    Raises:
        RuntimeError: ``x`` has no dimensions, or ``N`` (given, or the size of the last dimension) is less than 2.
    """
    if not x.ndim and N is None:
        raise RuntimeError("linalg.vander() of a tensor without dimensions needs N")
    grown = x if x.ndim else x.reshape(1)
    count = grown.shape[-1] if N is None else N
    if count <= 1:
        raise RuntimeError(f"linalg.vander(): N must be greater than 1, got {count}")
    return _powers(grown, count)


def top_vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    """Powers of a vector, rising from left to right if ``increasing``, else falling, as ``torch.vander``.

    Raises:
        RuntimeError: ``x`` is no vector, or ``N`` is negative.
    """
    if x.ndim != 1:
        raise RuntimeError(f"vander() takes a vector, got shape {list(x.shape)}")
    if N is not None and N < 0:
        raise RuntimeError(f"vander(): N must not be negative, got {N}")
    powers = _powers(x, x.shape[0] if N is None else N)
    return powers if increasing else powers.flip(-1)


def _powers(x: Tensor, count: int) -> Tensor:
    if x.dtype.category < 2:
        x = x.to(dtypes.int64)
    columns: list[Tensor] = []
    for _ in range(count):
        columns.append(columns[-1] * x if columns else x.new_ones(x.shape))
    if not columns:
        return x.new_empty(*x.shape, 0)
    from disttrain.functions.join import stack

    return stack(columns, -1)


def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """int64 zeros with a one at each class of ``input``; shape ``(*input.shape, num_classes)``.

    Raises:
        RuntimeError: a class is negative or not below ``num_classes``, or ``input`` does not hold int64.
        TypeError: ``input`` is no Tensor.
    """
    need_tensors("one_hot", input)
    if input.dtype is not dtypes.int64:
        raise RuntimeError(f"one_hot(): classes are int64, got {input.dtype}; use .long()")
    if num_classes < -1 or (num_classes == 0 and input.numel()):
        raise RuntimeError(
            f"one_hot(): num_classes must be positive, or -1 for as many as occur, got {num_classes}"
        )
    if num_classes <= 0 and not input.numel():
        raise RuntimeError("one_hot(): cannot infer the number of classes from a tensor without elements")
    labels = input._array
    count = num_classes if num_classes >= 0 else int(labels.max(initial=-1)) + 1
    if labels.size and (labels.min() < 0 or labels.max() >= count):
        raise RuntimeError(
            f"one_hot(): classes must be in [0, {count}), got {labels.min()} to {labels.max()}"
        )
    return engine.Tensor_._of((labels[..., None] == np.arange(count)).astype(np.int64))  # type: ignore[no-any-return]
