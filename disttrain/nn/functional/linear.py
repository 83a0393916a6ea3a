"""Linear maps, with PyTorch's names and defaults."""

from __future__ import annotations

from disttrain import engine
from disttrain.functions.linalg import matmul
from disttrain.ops import linalg
from disttrain.precision import autocasts
from disttrain.tensors import Tensor


@autocasts
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``.

    Args:
        input: ``(*, in_features)``.
        weight: ``(out_features, in_features)``, or ``(in_features,)``.
        bias: ``(out_features,)``, without dimensions for a weight that is a vector, or ``None``.

    Returns:
        ``(*, out_features)``, or ``(*,)`` for a weight that is a vector.

    Raises:
        RuntimeError: the shapes do not fit, or the dtypes differ.
        TypeError: something is no Tensor.
    """
    _check("linear", input, weight, bias)
    shape, of = input._array.shape, weight._array.shape
    if len(of) not in (1, 2):
        raise RuntimeError(
            f"linear: weight must be (out_features, in_features) or (in_features,), got shape {of}"
        )
    if not shape or shape[-1] != of[-1]:
        raise RuntimeError(
            f"linear: expected input of shape (*, {of[-1]}) for a weight of shape {of}, got {shape}; flatten or "
            f"reshape the input, or change in_features"
        )
    if bias is not None and bias._array.shape != of[:-1]:
        if len(bias._array.shape) > 1 or bias._array.size not in (1, *of[:-1]):
            raise RuntimeError(f"linear: bias must have shape {of[:-1]}, got {bias._array.shape}")
        bias = bias.reshape(()).expand(of[:-1]) if bias._array.size == 1 else bias
    if len(of) == 1 or input._array.dtype.kind not in "fV":
        out = matmul(input, weight.t())
        return out if bias is None else out + bias
    return engine.apply(linalg.linear, input, weight, bias)  # type: ignore[no-any-return]


def _check(name: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for t in (input, weight, bias):
        if t is not None and not isinstance(t, Tensor):
            raise TypeError(
                f"{name}() needs Tensors, got {type(t).__name__}; convert it with disttrain.tensor()"
            )
    kind = input._array.dtype
    if weight._array.dtype != kind or (bias is not None and bias._array.dtype != kind):
        also = "" if bias is None or bias._array.dtype == kind else f" and bias {bias.dtype}"
        raise RuntimeError(
            f"{name}: expected one dtype, got input {input.dtype}, weight {weight.dtype}{also}; convert with .to()"
        )


@autocasts
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
        RuntimeError: the shapes do not fit, or the dtypes differ.
        TypeError: something is no Tensor.
    """
    _check("bilinear", input1, weight, bias)
    _check("bilinear", input2, weight, None)
    if weight.ndim != 3:
        raise RuntimeError(
            f"bilinear: weight must be (out_features, in1_features, in2_features), got shape {tuple(weight.shape)}"
        )
    outs, in1, in2 = weight.shape
    if not (input1.ndim and input2.ndim):
        raise RuntimeError("bilinear: the inputs must have one dimension or more, got a tensor without")
    if input1.shape[:-1] != input2.shape[:-1] or (input1.shape[-1], input2.shape[-1]) != (in1, in2):
        raise RuntimeError(
            f"bilinear: expected inputs of shapes (*, {in1}) and (*, {in2}), got {tuple(input1.shape)} and "
            f"{tuple(input2.shape)}"
        )
    if bias is not None and bias.shape != (outs,):
        raise RuntimeError(f"bilinear: bias must have shape ({outs},), got {tuple(bias.shape)}")
    rows = linear(input1, weight.permute(0, 2, 1).reshape(outs * in2, in1))
    out = (rows.reshape(*input1.shape[:-1], outs, in2) @ input2.unsqueeze(-1)).squeeze(-1)
    return out if bias is None else out + bias
