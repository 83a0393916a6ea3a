"""Checks for users' tests: of two results that should be close, and of operations of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from disttrain import missing
from disttrain.dtypes import float64
from disttrain.kernels.arrays import Array, is_array, to_host
from disttrain.ops.types import Op

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["assert_close", "check_vjp"]

_TOLERANCES = {
    "float16": (1e-3, 1e-5),
    "bfloat16": (1.6e-2, 1e-5),
    "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7),
}
"""Relative and absolute, by the names of the types; numbers of other types must be equal."""


def assert_close(
    actual: Any,
    expected: Any,
    *,
    allow_subclasses: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = False,
    check_device: bool = True,
    check_dtype: bool = True,
    check_layout: bool = True,
    check_stride: bool = False,
    msg: str | Callable[[str], str] | None = None,
) -> None:
    """Raise unless ``abs(actual - expected) <= atol + rtol * abs(expected)``, as ``torch.testing.assert_close``.

    Args:
        actual: a Tensor, an array, a number, or sequences or mappings of them.
        expected: of the same structure.
        allow_subclasses: whether one may be of a subclass of the other's class.
        rtol: relative tolerance; with ``atol`` by the types, the looser of the two, if neither is given.
        atol: absolute tolerance.
        equal_nan: whether nan equals nan.
        check_device: refuse different devices.
        check_dtype: refuse different types; they are promoted otherwise.
        check_layout: there for PyTorch's signature: all tensors are dense.
        check_stride: refuse different strides.
        msg: what the error says instead, or a function of what it would say.

    Raises:
        AssertionError: they are not close, or differ in structure, shape, type, device or strides.
        ValueError: only one of ``rtol`` and ``atol`` is given.
        TypeError: something that cannot be compared, a number with a Tensor say.
    """
    if (rtol is None) != (atol is None):
        raise ValueError(f"assert_close(): give both rtol and atol or neither, got {rtol} and {atol}")

    def fail(where: str, what: str) -> NoReturn:
        text = f"assert_close(){where}: {what}"
        raise AssertionError(msg(text) if callable(msg) else text if msg is None else msg)

    def compare(a: Any, b: Any, where: str) -> None:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if a.keys() != b.keys():
                fail(where, f"the keys differ: {sorted(map(str, a.keys() ^ b.keys()))}")
            for key in a:
                compare(a[key], b[key], f"{where}[{key!r}]")
        elif _is_sequence(a) and _is_sequence(b):
            if len(a) != len(b):
                fail(where, f"the lengths differ: {len(a)} and {len(b)}")
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                compare(x, y, f"{where}[{i}]")
        elif a is None or b is None:
            if a is not b:
                fail(where, f"one of them is None: {a!r:.60} and {b!r:.60}")
        else:
            if _kind(a) is not _kind(b):
                raise TypeError(
                    f"assert_close(){where} compares like with like, got {type(a).__name__} and {type(b).__name__}"
                )
            compare_tensors(_tensor(a), _tensor(b), where)

    def compare_tensors(a: Tensor, b: Tensor, where: str) -> None:
        if not allow_subclasses and type(a) is not type(b):
            fail(where, f"the classes differ: {type(a).__name__} and {type(b).__name__}")
        if a.shape != b.shape:
            fail(where, f"the shapes differ: {list(a.shape)} and {list(b.shape)}")
        if check_device and a.device != b.device:
            fail(where, f"the devices differ: {a.device} and {b.device}")
        if check_dtype and a.dtype is not b.dtype:
            fail(where, f"the types differ: {a.dtype} and {b.dtype}")
        if check_stride and a.stride() != b.stride():
            fail(where, f"the strides differ: {a.stride()} and {b.stride()}")
        looser = [max(t) for t in zip(*(_tolerances(t) for t in (a, b)), strict=True)]
        relative, absolute = looser if rtol is None or atol is None else (rtol, atol)
        x, y = (_widest(to_host(t.detach()._array)) for t in (a, b))
        with np.errstate(all="ignore"):
            close = (x == y) | (
                np.isfinite(x) & np.isfinite(y) & (abs(x - y) <= absolute + relative * abs(y))
            )
            if equal_nan:
                close |= np.isnan(x) & np.isnan(y)
            if close.all():
                return
            far = np.argwhere(~close)
            at = tuple(far[0].tolist())
            fail(
                where,
                f"{len(far)} of {close.size} elements differ by more than {absolute} + {relative} * expected; "
                f"the first at {list(at)}: {x[at]}, expected {y[at]}; "
                f"largest difference {np.fmax.reduce(abs(x - y), axis=None)}",
            )

    compare(actual, expected, "")


def _is_sequence(x: Any) -> bool:
    return isinstance(x, Sequence) and not isinstance(x, str)


def _kind(x: Any) -> type:
    """Return which things ``x`` can be compared with."""
    from disttrain.tensors import Tensor

    if isinstance(x, bool | int | float | np.generic):
        return float
    return next((kind for kind in (Tensor, np.ndarray, Sequence, Mapping) if isinstance(x, kind)), object)


def _tensor(x: Any) -> Tensor:
    from disttrain.functions.conversion import as_tensor, tensor
    from disttrain.tensors import Tensor

    if isinstance(x, Tensor):
        return x
    if isinstance(x, bool | int | float):
        return tensor(x, dtype=float64) if isinstance(x, float) else tensor(x)
    if is_array(x) or isinstance(x, np.generic):
        return as_tensor(x)
    raise TypeError(f"assert_close() compares tensors, arrays and numbers, got {type(x).__name__}: {x!r:.60}")


def _tolerances(t: Tensor) -> tuple[float, float]:
    return _TOLERANCES.get(str(t.dtype).rpartition(".")[2], (0.0, 0.0))


def _widest(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype.kind not in "iu" else x.astype(np.int64)


def check_vjp(
    op: Op,
    *args: Any,
    seed: int = 0,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    **options: Any,
) -> None:
    """Compare the ``vjp`` of ``op`` with central differences along a random direction, argument by argument.

    Args:
        op: an operation as ``disttrain.ops.types`` describes it; must give the same result each time.
        args: its arguments. Each float64 array is checked; all others (indices, ``None``) are held fixed.
        seed: of the random direction and of the random gradient of the output.
        eps: length of the step to either side, relative to a direction of about unit elements.
        rtol: largest relative difference.
        atol: largest absolute difference.
        options: handed to ``op``.

    Raises:
        AssertionError: a gradient has another shape than its argument can have, is missing, or differs; the
            message names the argument and both numbers.
        TypeError: a floating point array is not float64, or no argument is one.
    """
    checked = [i for i, a in enumerate(args) if is_array(a) and a.dtype == np.float64]
    for i, a in enumerate(args):
        if is_array(a) and a.dtype.kind in "fV" and a.dtype != np.float64:
            raise TypeError(f"check_vjp needs float64 for exact differences, argument {i} is {a.dtype}")
    if not checked:
        raise TypeError("check_vjp got no float64 array to differentiate")
    rng = np.random.default_rng(seed)
    out, saved, vjp = op(*args, **options)
    outs = out if isinstance(out, tuple) else (out,)
    weights = [rng.standard_normal(np.shape(o)) if np.asarray(o).dtype == np.float64 else None for o in outs]
    g = tuple(weights) if isinstance(out, tuple) else weights[0]
    needs = tuple(i in checked for i in range(len(args)))
    grads = vjp(g, needs, *saved)
    if len(grads) != len(args):
        raise AssertionError(f"{op.__name__}: vjp gave {len(grads)} gradients for {len(args)} arguments")

    def value(i: int, step: Any) -> float:
        moved = [a + step if j == i else a for j, a in enumerate(args)]
        result = op(*moved, **options)[0]
        results = result if isinstance(result, tuple) else (result,)
        return float(sum(np.sum(w * r) for w, r in zip(weights, results, strict=True) if w is not None))

    for i in checked:
        if grads[i] is None:
            raise AssertionError(f"{op.__name__}: no gradient for argument {i}, though it was asked for")
        direction = rng.standard_normal(args[i].shape)
        try:
            spread = np.broadcast_to(direction, np.broadcast_shapes(np.shape(grads[i]), args[i].shape))
        except ValueError:
            spread = None
        if spread is None or spread.shape != np.shape(grads[i]):
            raise AssertionError(
                f"{op.__name__}: gradient of argument {i} has shape {np.shape(grads[i])}, "
                f"the argument {args[i].shape}"
            )
        analytic = float(np.sum(grads[i] * spread))
        numeric = (value(i, eps * direction) - value(i, -eps * direction)) / (2 * eps)
        if not abs(analytic - numeric) <= atol + rtol * max(abs(analytic), abs(numeric)):
            raise AssertionError(
                f"{op.__name__}: gradient of argument {i} along a random direction is {analytic:.9g}, "
                f"central differences give {numeric:.9g}"
            )


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
