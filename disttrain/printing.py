"""How a Tensor prints: PyTorch's form, four digits, long dimensions cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from disttrain import context, dtypes
from disttrain.kernels.arrays import to_host

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def tensor_repr(t: Tensor) -> str:
    """Return ``tensor([...])`` with what differs from the defaults behind it."""
    a = to_host(t._array)
    if a.dtype.kind == "V":
        a = a.astype(np.float32)
    prefix = "tensor("
    if a.size == 0:
        body = "[]" if a.ndim == 1 else f"[], size={tuple(a.shape)}"
    else:
        summarize = a.size > _options.threshold
        width, show = _format(_edges(a) if summarize else a)
        body = _body(a, len(prefix), summarize, width, show)
    parts = [body]
    if t.device.type != "cpu":
        parts.append(f"device='{t.device}'")
    if t.dtype not in (context.current().default_dtype, dtypes.int64, dtypes.bool_):
        parts.append(f"dtype={t.dtype!r}")
    if t.grad_fn is not None:
        parts.append(f"grad_fn=<{t.grad_fn.name()}>")
    elif t.requires_grad:
        parts.append("requires_grad=True")
    text = prefix + parts[0]
    for part in parts[1:]:  # on a line of its own where the last one is full
        last = len(text) - text.rfind("\n") + 1
        text += (",\n" + " " * len(prefix) if last + len(part) + 2 > _options.line else ", ") + part
    return f"Parameter containing:\n{text})" if type(t).__name__ == "Parameter" else text + ")"


class _Options:
    """What :func:`set_printoptions` sets."""

    precision = 4
    threshold: float = 1000
    """Number of elements above which dimensions are cut to ``edge`` elements at each end."""
    edge = 3
    line = 80
    powers: bool | None = None
    """Whether floats are written by powers of 10; by default as their range suggests."""


_options = _Options()
_PROFILES: Final = {"default": (4, 1000, 3, 80), "short": (2, 1000, 2, 80), "full": (4, math.inf, 3, 80)}


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors print, as ``torch.set_printoptions``.

    Args:
        precision: digits behind the point. [4]
        threshold: elements above which a tensor is cut. [1000]
        edgeitems: elements at each end of a dimension that is cut. [3]
        linewidth: characters in a line. [80]
        profile: ``default``, ``short`` or ``full``: sets all of these; the others that are given come after it.
        sci_mode: whether floats are written by powers of 10; ``None``: as their range suggests.
    """
    if profile in _PROFILES:
        _options.precision, _options.threshold, _options.edge, _options.line = _PROFILES[profile]
    if precision is not None:
        _options.precision = precision
    if threshold is not None:
        _options.threshold = threshold
    if edgeitems is not None:
        _options.edge = edgeitems
    if linewidth is not None:
        _options.line = linewidth
    _options.powers = sci_mode


def _edges(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the elements that are shown of an array that is cut."""
    for axis, size in enumerate(a.shape):
        if size > 2 * _options.edge:
            a = np.take(a, [*range(_options.edge), *range(size - _options.edge, size)], axis)
    return a


def _format(shown: np.ndarray[Any, Any]) -> tuple[int, Callable[[Any], str]]:
    """Return the width that all elements need and how one is written: whole, with some digits, or by powers of 10."""
    show: Callable[[Any], str] = str
    if shown.dtype.kind == "f":
        shown = shown[np.isfinite(shown) & (shown != 0)]  # the others are not aligned
        values = np.abs(shown.astype(np.float64))
        low, high = (values.min(), values.max()) if values.size else (1.0, 1.0)
        whole = bool(np.all(values == np.trunc(values)))
        with np.errstate(over="ignore"):
            ratio = high / low
        powers = ratio > 1000 or high > 1e8 or (not whole and low < 1e-4)
        if powers if _options.powers is None else _options.powers:
            show = f"{{:.{_options.precision}e}}".format
        elif not whole:
            show = f"{{:.{_options.precision}f}}".format
        else:
            show = _whole
    return max((len(show(v)) for v in shown.ravel().tolist()), default=1), show


def _whole(v: float) -> str:
    return f"{v:.0f}." if math.isfinite(v) else str(v)


def _body(
    a: np.ndarray[Any, Any], indent: int, summarize: bool, width: int, show: Callable[[Any], str]
) -> str:
    if a.ndim == 0:
        return show(a.item())
    cut = summarize and len(a) > 2 * _options.edge
    ends = (a[: _options.edge], a[-_options.edge :]) if cut else (a,)
    if a.ndim == 1:
        parts = [[show(v).rjust(width) for v in end.tolist()] for end in ends]
        words = [*parts[0], " ...", *parts[1]] if cut else parts[0]
        count = max(1, (_options.line - indent) // (width + 2))
        lines = [", ".join(words[i : i + count]) for i in range(0, len(words), count)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
    rows = [[_body(row, indent + 1, summarize, width, show) for row in end] for end in ends]
    blocks = [*rows[0], "...", *rows[1]] if cut else rows[0]
    return "[" + ("," + "\n" * (a.ndim - 1) + " " * (indent + 1)).join(blocks) + "]"
