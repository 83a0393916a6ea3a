"""Checks that users can run on operations of their own."""

from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import missing
from disttrain.kernels.arrays import is_array
from disttrain.ops.types import Op

__all__ = ["check_vjp"]


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
