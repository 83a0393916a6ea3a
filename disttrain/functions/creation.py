"""Functions that make tensors from data and sizes, with PyTorch's names and defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import context, dtypes, engine
from disttrain.functions.common import sizes

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _dtype(dtype: Any) -> np.dtype[Any]:
    default = context.current().default_dtype
    return (default if dtype is None else dtypes.as_dtype(dtype, default)).numpy


def _new(array: Any, requires_grad: bool, device: Any = None) -> Tensor:
    t: Tensor = engine.Tensor_(array)
    if device is not None:
        t = t.to(device)
    return t.requires_grad_() if requires_grad else t


def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor that holds a copy of ``data``: a number, nested sequences, an array or a tensor.

    Python floats give the default floating point type, integers int64; arrays keep their type.

    Raises:
        TypeError: the data are neither numbers nor booleans.
        ValueError: the nested sequences have uneven lengths.
    """
    if isinstance(data, engine.Tensor_):
        array = data._array.copy()
    elif isinstance(data, np.ndarray | np.generic):
        array = np.array(data)
    else:
        array = _from_sequence(data, None if dtype is None else _dtype(dtype))
    if dtype is not None:
        array = array.astype(_dtype(dtype), copy=False)
    return _new(array, requires_grad, device)


def _from_sequence(data: Any, kind: np.dtype[Any] | None = None) -> Any:
    """Return an array of ``data``; Python floats as ``kind`` wants them, by default in the default type."""
    if isinstance(data, list | tuple) and data and isinstance(data[0], engine.Tensor_):
        return np.stack([_from_sequence(d) if not isinstance(d, engine.Tensor_) else d._array for d in data])
    array = np.array(data)
    if kind is None and array.dtype == np.float64 and not _holds_arrays(data):
        return array.astype(context.current().default_dtype.numpy)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"a tensor holds numbers or booleans, got {type(data).__name__}: {data!r:.80}")
    return array


def _holds_arrays(data: Any) -> bool:
    while isinstance(data, list | tuple) and data:
        data = data[0]
    return isinstance(data, np.ndarray | np.generic)


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """``data`` as a tensor, sharing memory with an array or tensor where no conversion is needed."""
    if isinstance(data, engine.Tensor_):
        t = data
    elif isinstance(data, np.ndarray):
        t = engine.Tensor_(data)
    else:
        t = tensor(data, dtype=dtype)
    result: Tensor = t.to(dtypes.as_dtype(dtype) if dtype is not None else t.dtype).to(device or t.device)
    return result


def from_numpy(ndarray: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that shares the array's memory.

    Raises:
        TypeError: not an array, or of a type no tensor can have.
    """
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy() expects a numpy.ndarray, got {type(ndarray).__name__}")
    return engine.Tensor_(ndarray)  # type: ignore[no-any-return]


def _size(size: Any) -> tuple[int, ...]:
    shape = sizes(size)
    if min(shape, default=0) < 0:
        raise RuntimeError(f"the sizes of a tensor must not be negative, got {list(shape)}")
    return shape


def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor whose elements are not set."""
    return _new(np.empty(_size(size), _dtype(dtype)), requires_grad, device)


def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros."""
    return _new(np.zeros(_size(size), _dtype(dtype)), requires_grad, device)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones."""
    return _new(np.ones(_size(size), _dtype(dtype)), requires_grad, device)


def full(
    size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of ``fill_value``, in that number's type unless ``dtype`` is given."""
    value = fill_value.item() if isinstance(fill_value, engine.Tensor_) else fill_value
    kind = _dtype(type(value) if dtype is None else dtype)
    return _new(np.full(_size((size,)), value, kind), requires_grad, device)


def empty_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor like ``input`` whose elements are not set."""
    return _new(np.empty(input.shape, _dtype(dtype or input.dtype)), requires_grad, device or input.device)


def zeros_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of zeros like ``input``."""
    return _new(np.zeros(input.shape, _dtype(dtype or input.dtype)), requires_grad, device or input.device)


def ones_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones like ``input``."""
    return _new(np.ones(input.shape, _dtype(dtype or input.dtype)), requires_grad, device or input.device)


def full_like(
    input: Tensor, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of ``fill_value`` like ``input``."""
    return _new(
        np.full(input.shape, fill_value, _dtype(dtype or input.dtype)), requires_grad, device or input.device
    )


def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers from ``start`` (or 0) up to, not including, ``end``; int64 if all are integers.

    Raises:
        RuntimeError: ``step`` is zero or leads away from ``end``.
    """
    if end is None:
        start, end = 0, start
    start, end, step = (x.item() if isinstance(x, engine.Tensor_) else x for x in (start, end, step))
    if dtype is not None and not dtypes.as_dtype(dtype).is_floating_point:
        start, end, step = int(start), int(end), int(step)
    if step == 0 or (end - start) * step < 0:
        raise RuntimeError(f"arange(): step {step} does not lead from {start} to {end}")
    whole = all(isinstance(x, int | np.integer) for x in (start, end, step))
    kind = np.dtype(np.int64) if dtype is None and whole else _dtype(dtype)
    count = -(-(end - start) // step) if whole else int(np.ceil((end - start) / step))
    return _new((start + step * np.arange(count)).astype(kind), requires_grad, device)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """``steps`` numbers evenly spaced from ``start`` to ``end``, both included."""
    if steps < 0:
        raise RuntimeError(f"linspace(): the number of steps must not be negative, got {steps}")
    return _new(np.linspace(start, end, steps).astype(_dtype(dtype)), requires_grad, device)


def eye(
    n: int, m: int | None = None, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """An ``n`` by ``m`` matrix with ones on its diagonal."""
    _size((n, n if m is None else m))
    return _new(np.eye(n, m, dtype=_dtype(dtype)), requires_grad, device)


def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """int64 zeros with a one at each class of ``input``; shape ``(*input.shape, num_classes)``.

    Raises:
        RuntimeError: a class is negative or not below ``num_classes``.
    """
    labels = input._array
    count = num_classes if num_classes >= 0 else int(labels.max(initial=-1)) + 1
    if labels.size and (labels.min() < 0 or labels.max() >= count):
        raise RuntimeError(
            f"one_hot(): classes must be in [0, {count}), got {labels.min()} to {labels.max()}"
        )
    return engine.Tensor_((labels[..., None] == np.arange(count)).astype(np.int64))  # type: ignore[no-any-return]
