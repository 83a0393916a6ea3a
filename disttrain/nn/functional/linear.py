"""Linear maps, with PyTorch's names and defaults."""

from __future__ import annotations

from disttrain import engine
from disttrain.nn.functional.checks import check_dtypes
from disttrain.ops import linalg
from disttrain.tensors import Tensor


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``.

    Args:
        input: ``(*, in_features)``.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)`` or ``None``.

    Returns:
        ``(*, out_features)``.

    Raises:
        ValueError: the shapes do not fit.
        TypeError: the dtypes differ, or something is no floating point tensor.
    """
    check_dtypes("linear", input, weight, bias)
    shape, of = input._array.shape, weight._array.shape
    if len(of) != 2:
        raise ValueError(f"linear: weight must be (out_features, in_features), got shape {of}")
    if not shape or shape[-1] != of[1]:
        raise ValueError(
            f"linear: expected input of shape (*, {of[1]}) for a weight of shape {of}, got {shape}; flatten or "
            f"reshape the input, or change in_features"
        )
    if bias is not None and bias._array.shape != of[:1]:
        raise ValueError(f"linear: bias must have shape ({of[0]},), got {bias._array.shape}")
    return engine.apply(linalg.linear, input, weight, bias)  # type: ignore[no-any-return]


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y[k] = sum_ij input1[i] * weight[k, i, j] * input2[j] + bias[k]``.

    Args:
        input1: ``(*, in1_features)``.
        input2: ``(*, in2_features)``, with the same leading dimensions.
        weight: ``(out_features, in1_features, in2_features)``.
        bias: ``(out_features,)`` or ``None``.

    Returns:
        ``(*, out_features)``.

    Raises:
        ValueError: the shapes do not fit.
        TypeError: the dtypes differ.
    """
    check_dtypes("bilinear", input1, weight, bias)
    check_dtypes("bilinear", input2, weight)
    outs, in1, in2 = weight.shape
    if input1.shape[:-1] != input2.shape[:-1] or (input1.shape[-1], input2.shape[-1]) != (in1, in2):
        raise ValueError(
            f"bilinear: expected inputs of shapes (*, {in1}) and (*, {in2}), got {tuple(input1.shape)} and "
            f"{tuple(input2.shape)}"
        )
    rows = linear(input1, weight.permute(0, 2, 1).reshape(outs * in2, in1))
    out = (rows.reshape(*input1.shape[:-1], outs, in2) @ input2.unsqueeze(-1)).squeeze(-1)
    return out if bias is None else out + bias
