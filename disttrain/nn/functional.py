"""Functions of neural networks without state, with PyTorch's names and defaults (``torch.nn.functional``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttrain import engine, random
from disttrain.functions.activation import (
    check_float,
    elu,
    gelu,
    leaky_relu,
    log_softmax,
    relu,
    silu,
    softmax,
    softplus,
)
from disttrain.functions.creation import one_hot
from disttrain.functions.elementwise import sigmoid, tanh
from disttrain.functions.shape import pad
from disttrain.nn.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    mse_loss,
    nll_loss,
)
from disttrain.ops import conv, linalg, norm, pool
from disttrain.ops import dropout as dropout_ops
from disttrain.ops import embedding as embedding_ops
from disttrain.tensors import Tensor

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "bilinear",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv2d",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]

Pair = int | Sequence[int]


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
    _check_dtypes("linear", input, weight, bias)
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
    _check_dtypes("bilinear", input1, weight, bias)
    _check_dtypes("bilinear", input2, weight)
    outs, in1, in2 = weight.shape
    if input1.shape[:-1] != input2.shape[:-1] or (input1.shape[-1], input2.shape[-1]) != (in1, in2):
        raise ValueError(
            f"bilinear: expected inputs of shapes (*, {in1}) and (*, {in2}), got {tuple(input1.shape)} and "
            f"{tuple(input2.shape)}"
        )
    rows = linear(input1, weight.permute(0, 2, 1).reshape(outs * in2, in1))
    out = (rows.reshape(*input1.shape[:-1], outs, in2) @ input2.unsqueeze(-1)).squeeze(-1)
    return out if bias is None else out + bias


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of images with filters.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        weight: ``(out_channels, C // groups, KH, KW)``.
        bias: ``(out_channels,)`` or ``None``.
        stride: step between windows.
        padding: rows and columns of zeros on each side; ``"valid"`` for none, ``"same"`` for as many as keep
            the size.
        dilation: step between the pixels of a window.
        groups: channels are split into so many groups that do not see each other.

    Returns:
        ``(N, out_channels, OH, OW)``, in channels-last memory; without ``N`` if the input has none.

    Raises:
        ValueError: shapes or options that do not fit together.
        TypeError: the dtypes differ.
    """
    _check_dtypes("conv2d", input, weight, bias)
    if weight._array.ndim != 4:
        raise ValueError(f"conv2d: weight must be (O, C // groups, KH, KW), got shape {weight._array.shape}")
    steps, spread = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    if isinstance(padding, str):
        input, edges = _named_padding(input, padding, weight._array.shape[2:], steps, spread)
    else:
        edges = pair("conv2d", "padding", padding)
    channels = weight._array.shape[1] * groups
    input, batched = _images("conv2d", input, str(channels))
    out = engine.apply(
        conv.conv2d, input, weight, bias, stride=steps, padding=edges, dilation=spread, groups=groups
    )
    return out if batched else out.squeeze(0)  # type: ignore[no-any-return]


def _named_padding(
    input: Tensor, padding: str, kernel: Sequence[int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise ValueError(f'conv2d: padding must be "same", "valid" or a number, got {padding!r}')
    if stride != (1, 1):
        raise ValueError(f'conv2d: padding="same" needs stride 1, got stride={stride}')
    rows, cols = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if rows % 2 or cols % 2:  # one more at the end
        input = pad(input, (0, cols % 2, 0, rows % 2))
    return input, (rows // 2, cols // 2)


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: size of a window.
        stride: step between windows; by default ``kernel_size``.
        padding: rows and columns of ``-inf`` on each side.
        dilation: step between the pixels of a window.
        ceil_mode: keep windows that stick out at the end.
        return_indices: also return where each element is, ``row * W + column`` as int64.

    Raises:
        ValueError: windows that do not fit.
    """
    check_float("max_pool2d", input)
    input, batched = _images("max_pool2d", input)
    size = pair("max_pool2d", "kernel_size", kernel_size)
    out, where = engine.apply(
        pool.max_pool2d,
        input,
        kernel=size,
        stride=size if stride is None else pair("max_pool2d", "stride", stride),
        padding=pair("max_pool2d", "padding", padding),
        dilation=pair("max_pool2d", "dilation", dilation),
        ceil_mode=ceil_mode,
    )
    if not batched:
        out, where = out.squeeze(0), where.squeeze(0)
    return (out, where.long()) if return_indices else out


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: size of a window.
        stride: step between windows; by default ``kernel_size``.
        padding: rows and columns of zeros on each side.
        ceil_mode: keep windows that stick out at the end.
        count_include_pad: padding counts in the divisor.
        divisor_override: divide by this instead of the number of pixels.

    Raises:
        ValueError: windows that do not fit, or a divisor of 0.
    """
    check_float("avg_pool2d", input)
    input, batched = _images("avg_pool2d", input)
    size = pair("avg_pool2d", "kernel_size", kernel_size)
    out = engine.apply(
        pool.avg_pool2d,
        input,
        kernel=size,
        stride=size if stride is None else pair("avg_pool2d", "stride", stride),
        padding=pair("avg_pool2d", "padding", padding),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )
    return out if batched else out.squeeze(0)  # type: ignore[no-any-return]


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """Means over an even division of the images into ``output_size`` (``None``: as many as there are pixels).

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        output_size: ``(OH, OW)``, or one number for both.

    Raises:
        ValueError: a size below 1, or images without pixels.
    """
    check_float("adaptive_avg_pool2d", input)
    input, batched = _images("adaptive_avg_pool2d", input)
    wanted = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
    if len(wanted) != 2:
        raise ValueError(f"adaptive_avg_pool2d: output_size must be one or two numbers, got {output_size!r}")
    sizes = tuple(have if want is None else want for want, have in zip(wanted, input.shape[2:], strict=True))
    out = engine.apply(pool.adaptive_avg_pool2d, input, output_size=sizes)
    return out if batched else out.squeeze(0)  # type: ignore[no-any-return]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel over the batch and all other dimensions (Ioffe and Szegedy 2015).

    Args:
        input: ``(N, C, *)``.
        running_mean: ``(C,)``, **updated in place** in training, used outside of it.
        running_var: ``(C,)``, likewise, with the unbiased variance.
        weight: scale ``(C,)`` or ``None``.
        bias: shift ``(C,)`` or ``None``.
        training: take mean and variance from ``input``.
        momentum: weight of this batch in the running values.
        eps: added to the variance.

    Raises:
        ValueError: one value per channel in training, missing running values outside of it, or wrong shapes.
        TypeError: ``input`` is no floating point tensor.
    """
    check_float("batch_norm", input)
    out = engine.apply(
        norm.batch_norm,
        input,
        weight,
        bias,
        running_mean=None if running_mean is None else running_mean._array,
        running_var=None if running_var is None else running_var._array,
        training=training,
        momentum=momentum,
        eps=eps,
    )
    if training:
        for running in (running_mean, running_var):
            if running is not None:
                running._version_counter[0] += 1
    return out  # type: ignore[no-any-return]


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last dimensions (Ba et al. 2016).

    Args:
        input: its shape ends with ``normalized_shape``.
        normalized_shape: the dimensions to normalise over.
        weight: scale, of ``normalized_shape``, or ``None``.
        bias: shift, of ``normalized_shape``, or ``None``.
        eps: added to the variance.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: ``input`` is no floating point tensor.
    """
    check_float("layer_norm", input)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    return engine.apply(  # type: ignore[no-any-return]
        norm.layer_norm, input, weight, bias, normalized_shape=shape, eps=eps
    )


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of a table by number.

    Args:
        input: integers in ``[0, rows)``, any shape.
        weight: the table, ``(rows, embedding_dim)``.
        padding_idx: the row that gets no gradient.

    Returns:
        ``(*input.shape, embedding_dim)``.

    Raises:
        IndexError: an index out of range; names it and its place.
        TypeError: ``input`` does not hold integers.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"embedding() needs a Tensor of integers, got {type(input).__name__}")
    return engine.apply(  # type: ignore[no-any-return]
        embedding_ops.embedding, weight, input, padding_idx=padding_idx
    )


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, zero each element with probability ``p`` and divide the others by ``1 - p``.

    The random bits are the next of the calling rank's generator (Srivastava et al. 2014).

    Raises:
        ValueError: ``p`` is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be a probability in [0, 1], got {p}")
    check_float("dropout", input)
    if not training or p == 0:
        return input
    bits = random.bits32(input.numel()).reshape(input._array.shape)
    if inplace:
        return engine.write_in_place(input, dropout_ops.dropout, bits, p=p)
    return engine.apply(dropout_ops.dropout, input, bits, p=p)  # type: ignore[no-any-return]


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """``input`` over its ``p``-norm along ``dim``, or over ``eps`` if that is larger."""
    return input / input.norm(p, dim, keepdim=True).clamp(min=eps)


def pair(name: str, what: str, value: Pair) -> tuple[int, int]:
    """Return ``value``, one number or two, as two.

    Raises:
        ValueError: another number of numbers.
        TypeError: not whole numbers.
    """
    if isinstance(value, int):
        return value, value
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if not values or not all(isinstance(v, int) for v in values):
        raise TypeError(f"{name}: {what} must be one or two integers, got {value!r}")
    if len(values) > 2:
        raise ValueError(f"{name}: {what} must be one or two integers, got {value!r}")
    return values[0], values[-1]


def _images(name: str, input: Tensor, channels: str = "C") -> tuple[Tensor, bool]:
    """Return ``input`` as a batch of images, and whether it was one."""
    shape = input._array.shape
    if len(shape) == 4:
        return input, True
    if len(shape) == 3:
        return input.unsqueeze(0), False
    raise ValueError(
        f"{name}: expected images (N, {channels}, H, W) or one image ({channels}, H, W), got shape {shape}"
    )


def _check_dtypes(name: str, input: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    check_float(name, input)
    kind = weight._array.dtype
    if input._array.dtype != kind or (bias is not None and bias._array.dtype != kind):
        also = "" if bias is None or bias._array.dtype == kind else f" and bias {bias.dtype}"
        raise TypeError(
            f"{name}: expected one dtype, got input {input.dtype}, weight {weight.dtype}{also}; convert with .to()"
        )
