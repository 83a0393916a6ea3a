"""Functions that make tensors from data and sizes, with PyTorch's names and defaults."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import context, dtypes, engine
from disttrain.devices import current
from disttrain.devices import device as Device
from disttrain.functions.common import fitting, need_tensors
from disttrain.functions.shape import given
from disttrain.layouts import need_strided, preserve_format
from disttrain.ops import strided
from disttrain.ops.shape import kept_order

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _dtype(dtype: Any) -> np.dtype[Any]:
    default = context.current().default_dtype
    return (default if dtype is None else dtypes.as_dtype(dtype)).numpy


def _new(array: Any, requires_grad: bool, device: Any = None) -> Tensor:
    t: Tensor = engine.Tensor_._of(array)
    if device is not None:
        t = t.to(device)
    return t.requires_grad_() if requires_grad else t


def tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False
) -> Tensor:
    """A tensor that holds a copy of ``data``: a number, nested sequences, an array or a tensor.

    Python floats give the default floating point type, integers int64; arrays, and tensors of one element among
    numbers, keep their type.

    Raises:
        TypeError: the data are text, or numbers stand beside sequences.
        ValueError: the nested sequences have uneven lengths, or hold tensors of several elements or integers that
            int64 cannot hold.
        RuntimeError: the data are no numbers, or too large for the type.
    """
    kind = None if dtype is None else _dtype(dtype)
    if isinstance(data, engine.Tensor_):
        array = data._array.copy()
    elif isinstance(data, np.ndarray | np.generic):
        array = np.array(_forwards("tensor", data))
        if array.dtype.kind in "OUSMm":
            raise TypeError(
                f"an array of {array.dtype} cannot become a tensor; convert it to a type of numbers"
            )
    else:
        array = _from_sequence(data, kind)
    if kind is not None:
        given = isinstance(data, engine.Tensor_ | np.ndarray)
        if array.dtype.kind in "fi" and kind.kind in "iu" and not given:
            if not _fits(array, kind):
                raise RuntimeError(
                    f"tensor(): {data!r:.80} cannot be converted to {kind}: it is out of range"
                )
            array = array.astype(
                np.int64, copy=False
            )  # a negative float wraps around in uint8 as an integer does
        with np.errstate(all="ignore"):
            array = array.astype(kind, copy=False)
    return _new(array, requires_grad, device)


def _fits(array: Any, kind: np.dtype[Any]) -> bool:
    """Return whether all numbers lie in the range of a type of integers; uint8 takes negative ones too."""
    limits = np.iinfo(kind)
    if array.dtype.kind == "i" and kind.itemsize == 8:
        return True
    least = limits.min if limits.min or array.dtype.kind == "f" else -limits.max
    return bool(((array >= float(least)) & (array <= float(limits.max))).all())


_PYTHON: dict[type, dtypes.dtype | None] = {bool: dtypes.bool_, int: dtypes.int64, float: None}
"""The types of Python's numbers; ``None`` for the default."""


def _from_sequence(data: Any, kind: np.dtype[Any] | None = None) -> Any:
    """Return an array of nested sequences (or a number), in the type that PyTorch infers unless ``kind`` is given."""
    found = _types_in(data)
    for t in found:
        if isinstance(t, type) and t not in _PYTHON:
            error = TypeError if t in (str, bytes) or kind is not None else RuntimeError
            raise error(f"a tensor holds numbers or booleans, got {t.__name__}: {data!r:.80}")
    if not all(map(_PYTHON.__contains__, found)):
        data = _without_tensors(data)
    try:
        array = np.array(data)
    except ValueError:
        raise _unevenness(data) from None
    if array.dtype.kind == "O" or array.dtype == np.uint64:
        if kind is not None and kind.kind in "fV":
            return np.array(data, np.float64)  # integers of any length
        raise ValueError(f"integers must fit into int64, got {data!r:.80}")
    if kind is not None:
        return array
    default = context.current().default_dtype
    wanted = functools.reduce(dtypes.promote_types, [_PYTHON.get(t, t) or default for t in found or {float}])
    return array.astype(wanted.numpy, copy=False)


def _types_in(data: Any) -> set[Any]:
    """Return the types of what nested sequences hold: Python's, and dtypes of arrays and tensors."""
    if isinstance(data, engine.Tensor_ | np.ndarray | np.generic):
        return {dtypes.of(data._array if isinstance(data, engine.Tensor_) else data)}
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        return {type(data)}
    types = set(map(type, data))
    if types <= _PYTHON.keys():
        return types
    return set().union(*map(_types_in, data))


def _without_tensors(data: Any) -> Any:
    if isinstance(data, engine.Tensor_):
        if data.numel() != 1:
            raise (ValueError if data.dtype.is_floating_point else TypeError)(
                f"only tensors of one element can stand among numbers, got shape {list(data.shape)}; use stack()"
            )
        return data.item()
    return [_without_tensors(d) for d in data] if isinstance(data, list | tuple) else data


def _unevenness(data: Any, depth: int = 0) -> Exception:
    """Return the error that says what is uneven in nested sequences."""
    sequences = [isinstance(d, Sequence | np.ndarray) for d in data]
    if not all(sequences):
        return TypeError(f"sequences and numbers stand side by side at dim {depth} of the data: {data!r:.80}")
    lengths = [len(d) for d in data]
    for n in lengths:
        if n != lengths[0]:
            return ValueError(
                f"the nested sequences are uneven: {lengths[0]} and {n} elements in dimension {depth + 1}"
            )
    return next(
        (_unevenness(d, depth + 1) for d in data if len({np.shape(e) for e in d if np.ndim(e) < 2}) > 1),
        ValueError(f"the nested sequences are uneven: {data!r:.80}"),
    )


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """``data`` as a tensor, sharing memory with an array or tensor where no conversion is needed."""
    if isinstance(data, engine.Tensor_):
        t = data
    elif isinstance(data, np.ndarray):
        t = from_numpy(data)
    else:
        t = tensor(data, dtype=dtype)
    result: Tensor = t.to(dtypes.as_dtype(dtype) if dtype is not None else t.dtype).to(device or t.device)
    return result


def asarray(
    obj: Any, *, dtype: Any = None, device: Any = None, copy: bool | None = None, requires_grad: bool = False
) -> Tensor:
    """``obj`` as a tensor, in memory of its own if ``copy``, in the same memory if ``copy`` is false.

    Raises:
        ValueError: ``copy`` is false, but the memory cannot be shared.
    """
    shares = isinstance(obj, engine.Tensor_ | np.ndarray)
    t = as_tensor(obj, dtype, device)
    alike = shares and np.may_share_memory(t._array, obj._array if isinstance(obj, engine.Tensor_) else obj)
    if copy is False and not alike and t.numel():
        raise ValueError(
            f"asarray(): {type(obj).__name__} cannot become {t.dtype} on {t.device} without a copy"
        )
    if copy and alike:
        t = t.clone()
    return t.requires_grad_() if requires_grad else t


def frombuffer(
    buffer: Any, *, dtype: Any, count: int = -1, offset: int = 0, requires_grad: bool = False
) -> Tensor:
    """A tensor of one dimension over the memory of a Python buffer.

    Args:
        buffer: ``bytes``, ``bytearray``, ``memoryview``, an array.
        dtype: of the elements.
        count: how many; -1 for all that are there.
        offset: where in the buffer they begin, in bytes.
        requires_grad: record operations on the result.

    Raises:
        ValueError: the buffer is too short, or holds no whole number of elements.
    """
    return _new(np.frombuffer(buffer, _dtype(dtype), count, offset), requires_grad)


def from_numpy(ndarray: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that shares the array's memory.

    Raises:
        TypeError: not an array, or of a type no tensor can have.
        ValueError: the bytes of its elements are in foreign order.
    """
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy() expects a numpy.ndarray, got {type(ndarray).__name__}")
    if not ndarray.dtype.isnative:
        raise ValueError(
            f"from_numpy(): the byte order of {ndarray.dtype} is not this machine's; convert the array with "
            f"astype(array.dtype.newbyteorder('='))"
        )
    return engine.Tensor_._of(_forwards("from_numpy", ndarray))  # type: ignore[no-any-return]


_HOST, _GPU = (1, 3), (2, 13)
"""DLPack's kinds of devices: the host's memory, pinned or not; that of GPUs, managed or not."""


def from_dlpack(ext_tensor: Any, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor that shares the memory of another library's array, as ``torch.from_dlpack``.

    Args:
        ext_tensor: an object with ``__dlpack__`` and ``__dlpack_device__``.
        device: where the result is, by default where the array is.
        copy: True for memory of its own; False if it must be shared.

    Raises:
        TypeError: no such object, or of a type that no tensor can have.
        ValueError: ``copy=False`` and another ``device``.
        BufferError: memory of another kind of device.
    """
    if not hasattr(ext_tensor, "__dlpack__") or not hasattr(ext_tensor, "__dlpack_device__"):
        raise TypeError(
            f"from_dlpack() takes an array with __dlpack__ and __dlpack_device__, got {type(ext_tensor).__name__}; "
            f"give the array itself, not a capsule"
        )
    kind = int(ext_tensor.__dlpack_device__()[0])
    if kind in _HOST:
        array = np.from_dlpack(ext_tensor)
    elif kind in _GPU:
        with current(Device("cuda")) as cupy:
            array = cupy.from_dlpack(ext_tensor)
    else:
        raise BufferError(
            f"from_dlpack(): memory of DLPack's device {kind} is neither the host's nor a CUDA GPU's"
        )
    shared: Tensor = engine.Tensor_._of(_forwards("from_dlpack", array))
    t = shared if device is None else shared.to(device)
    if t is not shared and copy is False:
        raise ValueError(f"from_dlpack(): an array on {shared.device} cannot be on {t.device} without a copy")
    return t.clone() if copy and t is shared else t


def _forwards(name: str, array: Any) -> Any:
    """Return an array whose strides a tensor can have.

    Raises:
        ValueError: a stride is negative.
    """
    if min(array.strides, default=0) < 0:
        raise ValueError(f"{name}(): the array has negative strides {array.strides}; copy() it first")
    return array


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
    array = _ordered(np.empty(_size("empty", sizes, size), _dtype(dtype)), memory_format)
    return _new(array, requires_grad, device)


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
    flat = np.empty(strided.extent(shape, steps), _dtype(dtype))
    array = np.lib.stride_tricks.as_strided(flat, shape, tuple(s * flat.itemsize for s in steps))
    return _new(array, requires_grad, device)


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
    return _new(np.zeros(_size("zeros", sizes, size), _dtype(dtype)), requires_grad, device)


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
    return _new(np.ones(_size("ones", sizes, size), _dtype(dtype)), requires_grad, device)


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
    kind = _dtype(dtype)
    return _new(filled("full", lambda v: np.full(shape, v, kind), value, kind), requires_grad, device)


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
    array = make(input._array, _dtype(dtype or input.dtype), kept_order(input._array) if kept else "C")
    if not kept:
        array = _ordered(array, memory_format)
    return _new(array, requires_grad, device or input.device)


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
    kind = np.dtype(np.int64) if dtype is None and whole else _dtype(dtype)
    if kind == np.int64 and not whole:
        if step and not int(step):
            raise ValueError(f"arange(): step {step} is zero as {dtypes.as_dtype(dtype)}")
        start, end, step, whole = int(start), int(end), int(step), True
    if step == 0 or (end - start) * step < 0:
        raise RuntimeError(f"arange(): step {step} does not lead from {start} to {end}")
    count = -(-(end - start) // step) if whole else math.ceil((end - start) / step)
    if kind.kind in "iu":
        start, step = int(start), int(step)
    return _new((start + step * np.arange(count)).astype(kind, copy=False), requires_grad, device)


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
    kind = _dtype(dtype)
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
    return _new(_line(start, end, count, kind), requires_grad, device)


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
        return _new(powers.astype(kind), requires_grad, device)


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
    return _new(np.eye(rows, columns, dtype=_dtype(dtype)), requires_grad, device)


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
