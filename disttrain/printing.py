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
    prefix = f"{'Parameter containing: ' if type(t).__name__ == 'Parameter' else ''}tensor("
    if a.size == 0:
        body = "[]" if a.ndim == 1 else f"[], size={tuple(a.shape)}"
    else:
        summarize = a.size > _THRESHOLD
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
        text += (",\n" + " " * len(prefix) if last + len(part) + 2 > _LINE else ", ") + part
    return text + ")"


_LINE: Final = 80
_THRESHOLD: Final = 1000
"""Number of elements above which dimensions are cut to ``_EDGE`` elements at each end."""
_EDGE: Final = 3


def _edges(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the elements that are shown of an array that is cut."""
    for axis, size in enumerate(a.shape):
        if size > 2 * _EDGE:
            a = np.take(a, [*range(_EDGE), *range(size - _EDGE, size)], axis)
    return a


def _format(shown: np.ndarray[Any, Any]) -> tuple[int, Callable[[Any], str]]:
    """Return the width that all elements need and how one is written: whole, with 4 digits, or by powers of 10."""
    show: Callable[[Any], str] = str
    if shown.dtype.kind == "f":
        shown = shown[np.isfinite(shown) & (shown != 0)]  # the others are not aligned
        values = np.abs(shown.astype(np.float64))
        low, high = (values.min(), values.max()) if values.size else (1.0, 1.0)
        whole = bool(np.all(values == np.trunc(values)))
        if high / low > 1000 or high > 1e8 or (not whole and low < 1e-4):
            show = "{:.4e}".format
        elif not whole:
            show = "{:.4f}".format
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
    cut = summarize and len(a) > 2 * _EDGE
    ends = (a[:_EDGE], a[-_EDGE:]) if cut else (a,)
    if a.ndim == 1:
        parts = [[show(v).rjust(width) for v in end.tolist()] for end in ends]
        words = [*parts[0], " ...", *parts[1]] if cut else parts[0]
        count = max(1, (_LINE - indent) // (width + 2))
        lines = [", ".join(words[i : i + count]) for i in range(0, len(words), count)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
    rows = [[_body(row, indent + 1, summarize, width, show) for row in end] for end in ends]
    blocks = [*rows[0], "...", *rows[1]] if cut else rows[0]
    return "[" + ("," + "\n" * (a.ndim - 1) + " " * (indent + 1)).join(blocks) + "]"
