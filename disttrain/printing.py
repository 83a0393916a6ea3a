"""How a Tensor prints: PyTorch's form, four digits, long dimensions cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        options: dict[str, Any] = {"precision": 4, "floatmode": "fixed"}
        if a.dtype.kind == "f" and _whole(a):
            shown = a[np.isfinite(a) & (a != 0)].flat[:1000]
            width = max((len(f"{v:.0f}") for v in shown), default=1)
            options = {
                "formatter": {"float_kind": lambda v: f"{v:.0f}{'.' * bool(np.isfinite(v))}".rjust(width)}
            }
        body = np.array2string(a, separator=", ", prefix=prefix, threshold=1000, edgeitems=3, **options)
        body = body.replace(", ..., ", ",  ..., ")
    parts = [body]
    if t.device.type != "cpu":
        parts.append(f"device='{t.device}'")
    if t.dtype not in (context.current().default_dtype, dtypes.int64, dtypes.bool_):
        parts.append(f"dtype={t.dtype!r}")
    if t.grad_fn is not None:
        parts.append(f"grad_fn={t.grad_fn!r}")
    elif t.requires_grad:
        parts.append("requires_grad=True")
    return prefix + ", ".join(parts) + ")"


def _whole(a: np.ndarray[Any, Any]) -> bool:
    finite = a[np.isfinite(a)]
    return bool(np.all(finite == np.trunc(finite)) and np.abs(finite).max(initial=0) < 1e6)
