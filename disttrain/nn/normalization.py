"""Batch and layer normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttrain import dtypes
from disttrain.functions.creation import empty, ones, tensor, zeros
from disttrain.nn import functional as F
from disttrain.nn import init
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.tensors import Tensor


class _BatchNorm(Module):
    """Normalises each channel (dimension 1) over the batch (Ioffe and Szegedy 2015).

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: weight of a batch in the running values; ``None`` for the mean over all batches so far.
        affine: learn a scale and a shift.
        track_running_stats: keep running values and use them in evaluation.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
        bias: learn a shift, if there is a scale.
    """

    ranks: tuple[int, ...]
    """Numbers of dimensions that the input may have."""
    expects: str

    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        options = {"dtype": dtype, "device": device}
        self.register_parameter("weight", Parameter(empty(num_features, **options)) if affine else None)
        shift = affine and bias
        self.register_parameter("bias", Parameter(empty(num_features, **options)) if shift else None)
        track = track_running_stats
        self.register_buffer("running_mean", zeros(num_features, **options) if track else None)
        self.register_buffer("running_var", ones(num_features, **options) if track else None)
        count = tensor(0, dtype=dtypes.int64, device=device) if track else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget what the running values have seen."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Scale by 1, shift by 0, forget the running values."""
        self.reset_running_stats()
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        shape = input._array.shape
        if len(shape) not in self.ranks or shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}({self.num_features}): expected input of shape "
                f"{self.expects.format(self.num_features)}, got {shape}"
            )
        momentum = 0.0 if self.momentum is None else self.momentum
        count = self.num_batches_tracked
        if self.training and self.track_running_stats and count is not None:
            count.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(count)
        use_batch = self.training or self.running_mean is None
        given = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            self.running_mean if given else None,
            self.running_var if given else None,
            self.weight,
            self.bias,
            use_batch,
            momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    __doc__ = f"Of ``(N, C)`` or ``(N, C, L)``. {_BatchNorm.__doc__}"
    ranks = (2, 3)
    expects = "(N, {0}) or (N, {0}, L)"


class BatchNorm2d(_BatchNorm):
    __doc__ = f"Of images ``(N, C, H, W)``. {_BatchNorm.__doc__}"
    ranks = (4,)
    expects = "(N, {0}, H, W)"


class LayerNorm(Module):
    """Normalises each element of a batch over its last dimensions (Ba et al. 2016).

    Args:
        normalized_shape: the last dimensions of the input.
        eps: added to the variance.
        elementwise_affine: learn a scale and a shift.
        bias: learn a shift, if there is a scale.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = shape
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        options = {"dtype": dtype, "device": device}
        shift = elementwise_affine and bias
        self.register_parameter("weight", Parameter(empty(shape, **options)) if elementwise_affine else None)
        self.register_parameter("bias", Parameter(empty(shape, **options)) if shift else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale by 1, shift by 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )
