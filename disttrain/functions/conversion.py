"""Functions that make tensors from data that is there, with PyTorch's names and defaults."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import context, dtypes, engine
from disttrain.devices import current
from disttrain.devices import device as Device

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def dtype_or_default(dtype: Any) -> np.dtype[Any]:
    default = context.current().default_dtype
    return (default if dtype is None else dtypes.as_dtype(dtype)).numpy


def new(array: Any, requires_grad: bool, device: Any = None) -> Tensor:
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
    kind = None if dtype is None else dtype_or_default(dtype)
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
            # A negative float wraps around in uint8 as an integer does.
            array = array.astype(np.int64, copy=False)
        with np.errstate(all="ignore"):
            array = array.astype(kind, copy=False)
    return new(array, requires_grad, device)


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
    return new(np.frombuffer(buffer, dtype_or_default(dtype), count, offset), requires_grad)


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
