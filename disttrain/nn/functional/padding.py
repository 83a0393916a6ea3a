"""Padding, with PyTorch's names and defaults."""

from __future__ import annotations

from collections.abc import Sequence

from disttrain import engine
from disttrain.ops import shape as ops
from disttrain.tensors import Tensor


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """``input`` with elements of ``value`` around it; ``pad`` is (before, after) from the last dimension backwards.

    Raises:
        NotImplementedError: a mode other than ``"constant"``.
        RuntimeError: ``pad`` has an odd length or more pairs than there are dimensions.
    """
    if mode != "constant":
        raise NotImplementedError(f"pad() knows the mode 'constant' so far, got {mode!r}")
    if len(pad) % 2 or len(pad) // 2 > input.ndim:
        raise RuntimeError(
            f"pad must hold a pair for each of at most {input.ndim} dimensions, got {list(pad)}"
        )
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    widths = ((0, 0),) * (input.ndim - len(pairs)) + tuple(pairs)
    return engine.apply(ops.pad, input, widths=widths, value=value or 0)  # type: ignore[no-any-return]
