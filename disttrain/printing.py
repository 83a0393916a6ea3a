"""How a Tensor prints: PyTorch's form, four digits, long dimensions cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    elif (
        a.dtype.kind == "f" and np.all(np.isfinite(a)) and np.all(a == np.trunc(a)) and np.abs(a).max() < 1e6
    ):
        body = np.array2string(
            a,
            separator=", ",
            prefix=prefix,
            threshold=1000,
            edgeitems=3,
            formatter={"float_kind": lambda v: f"{v:.0f}."},
        )
    else:
        body = np.array2string(
            a, separator=", ", prefix=prefix, precision=4, floatmode="fixed", threshold=1000, edgeitems=3
        )
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
