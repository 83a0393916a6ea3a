"""Batch, instance, group, layer, root mean square and local response normalisation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from disttrain import dtypes, engine
from disttrain.autograd import backward_weight
from disttrain.functions.conversion import tensor
from disttrain.functions.creation import empty, ones, zeros
from disttrain.modes import current_tape
from disttrain.nn import functional as F
from disttrain.nn import init
from disttrain.nn.functional.normalization import batch_norm_add_relu
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.ops import sync_norm
from disttrain.ops.types import Array
from disttrain.tensors import Tensor


class _Norm(Module):
    """What normalisations by channel share: a scale, a shift and running values."""

    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    _not_in_old_states = ("num_batches_tracked",)

    def _set_up(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: Any,
        dtype: Any,
        bias: bool,
    ) -> None:
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

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class _BatchNorm(_Norm):
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

    ranks: tuple[int, ...] = ()
    """Numbers of dimensions that the input may have; any from 2 if there is none."""
    expects: str

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
        self._set_up(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.normalize(input)

    def normalize(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return ``input`` normalised; plus ``residual``, of its shape and dtype, and after ReLU, if that is wanted."""
        self._check(input)
        momentum, use_batch = self._begin()
        given = not self.training or self.track_running_stats
        return batch_norm_add_relu(
            input,
            self.running_mean if given else None,
            self.running_var if given else None,
            self.weight,
            self.bias,
            use_batch,
            momentum,
            self.eps,
            residual,
            relu,
        )

    def _check(self, input: Tensor) -> None:
        shape = input._array.shape
        fits = len(shape) in self.ranks if self.ranks else len(shape) >= 2
        counts = self.weight is not None or self.running_mean is not None  # else nothing has num_features
        if not fits or (counts and shape[1] != self.num_features):
            error = RuntimeError if fits else ValueError
            raise error(
                f"{type(self).__name__}({self.num_features}): expected input of shape "
                f"{self.expects.format(self.num_features)}, got {shape}"
            )

    def _begin(self) -> tuple[float, bool]:
        """Count the batch; return its weight in the running values, and whether it is normalised by itself."""
        momentum = 0.0 if self.momentum is None else self.momentum
        count = self.num_batches_tracked
        if self.training and self.track_running_stats and count is not None:
            count.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(count)
        return momentum, self.training or self.running_mean is None


class BatchNorm1d(_BatchNorm):
    __doc__ = f"Of ``(N, C)`` or ``(N, C, L)``. {_BatchNorm.__doc__}"
    ranks = (2, 3)
    expects = "(N, {0}) or (N, {0}, L)"


class BatchNorm2d(_BatchNorm):
    __doc__ = f"Of images ``(N, C, H, W)``. {_BatchNorm.__doc__}"
    ranks = (4,)
    expects = "(N, {0}, H, W)"


class BatchNorm3d(_BatchNorm):
    __doc__ = f"Of volumes ``(N, C, D, H, W)``. {_BatchNorm.__doc__}"
    ranks = (5,)
    expects = "(N, {0}, D, H, W)"


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all ranks together, in training; else that of this rank.

    All ranks of the group must call it, forward and backward, in the same order. Gradients are those of the sum
    of the ranks' losses, each counted in proportion to its samples where that is known, as wrappers of data
    parallelism do, which average them. A batch may be empty on some of the ranks.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: weight of a batch in the running values; ``None`` for the mean over all batches so far.
        affine: learn a scale and a shift.
        track_running_stats: keep running values and use them in evaluation.
        process_group: the ranks, by default all.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
        bias: learn a shift, if there is a scale.
    """

    expects = "(N, {0}, *)"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        from disttrain import distributed  # only who trains on several ranks pays for its import

        if not self.training or distributed.get_world_size(self.process_group) == 1:
            return super().forward(input)
        tape = current_tape()
        if tape is not None:
            tape.refuse("the ranks of SyncBatchNorm exchange sums inside an operation; train without capture")
        self._check(input)
        momentum, _ = self._begin()
        group = self.process_group
        running = [self.running_mean, self.running_var] if self.track_running_stats else [None, None]

        def total(x: Array) -> Array:
            summed = Tensor._of(x)
            distributed.all_reduce(summed, group=group)
            return summed._array

        def weighted(x: Array) -> Array:
            weight = backward_weight()
            return total(x * weight) / (weight or 1.0)

        out: Tensor = engine.apply(
            sync_norm.sync_batch_norm,
            input,
            self.weight,
            self.bias,
            running_mean=None if running[0] is None else running[0]._array,
            running_var=None if running[1] is None else running[1]._array,
            momentum=momentum,
            eps=self.eps,
            total=total,
            weighted=weighted,
        )
        for t in running:
            if t is not None:
                t._version_counter[0] += 1
        return out

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: Any = None) -> Module:
        """Return ``module`` with a SyncBatchNorm, of the same parameters and buffers, for each BatchNorm in it."""
        converted = module
        if isinstance(module, _BatchNorm):
            made = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
                bias=module.bias is not None,
            )
            made.weight, made.bias = module.weight, module.bias
            made.running_mean, made.running_var = module.running_mean, module.running_var
            made.num_batches_tracked = module.num_batches_tracked
            made.train(module.training)
            converted = made
        for name, child in module.named_children():
            converted.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return converted


class _InstanceNorm(_Norm):
    """Normalises each channel of each element of the batch (Ulyanov et al. 2016).

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: weight of a batch in the running values.
        affine: learn a scale and a shift.
        track_running_stats: keep running values and use them in evaluation.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
        bias: learn a shift, if there is a scale.
    """

    axes: int
    expects: str

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self._set_up(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias)

    def forward(self, input: Tensor) -> Tensor:
        shape = input._array.shape
        single = len(shape) == self.axes + 1
        if not single and len(shape) != self.axes + 2:
            raise ValueError(
                f"{type(self).__name__}: expected input of shape (N, {self.num_features}, {self.expects}) or without "
                f"N, got {tuple(shape)}"
            )
        channels = shape[0 if single else 1]
        if channels != self.num_features:
            message = (
                f"{type(self).__name__}({self.num_features}): got an input of {channels} channels, of shape "
                f"{tuple(shape)}"
            )
            if self.affine:
                raise ValueError(message)
            warnings.warn(f"{message}; without affine that makes no difference", stacklevel=2)
        out = F.instance_norm(
            input.unsqueeze(0) if single else input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
        )
        return out.squeeze(0) if single else out


class InstanceNorm1d(_InstanceNorm):
    __doc__ = f"Of lines ``(N, C, L)`` or ``(C, L)``. {_InstanceNorm.__doc__}"
    axes = 1
    expects = "L"


class InstanceNorm2d(_InstanceNorm):
    __doc__ = f"Of images ``(N, C, H, W)`` or ``(C, H, W)``. {_InstanceNorm.__doc__}"
    axes = 2
    expects = "H, W"


class InstanceNorm3d(_InstanceNorm):
    __doc__ = f"Of volumes ``(N, C, D, H, W)`` or ``(C, D, H, W)``. {_InstanceNorm.__doc__}"
    axes = 3
    expects = "D, H, W"


class GroupNorm(Module):
    """Normalises each group of channels of each element of the batch (Wu and He 2018).

    Args:
        num_groups: into so many groups the channels are split.
        num_channels: number of channels.
        eps: added to the variance.
        affine: learn a scale and a shift of each channel.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
        bias: learn a shift, if there is a scale.

    Raises:
        ValueError: ``num_groups`` does not divide ``num_channels``.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(f"num_groups={num_groups} must divide num_channels, got {num_channels}")
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        options = {"dtype": dtype, "device": device}
        self.register_parameter("weight", Parameter(empty(num_channels, **options)) if affine else None)
        shift = affine and bias
        self.register_parameter("bias", Parameter(empty(num_channels, **options)) if shift else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale by 1, shift by 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """Divides by the root mean square over the last dimensions (Zhang and Sennrich 2019).

    Args:
        normalized_shape: the last dimensions of the input.
        eps: added to the mean square; by default the spacing of numbers at 1.
        elementwise_affine: learn a scale.
        device: where the parameter is.
        dtype: of the parameter, by default the default dtype.
    """

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = shape
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        weight = Parameter(empty(shape, dtype=dtype, device=device)) if elementwise_affine else None
        self.register_parameter("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale by 1."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class LocalResponseNorm(Module):
    """Divides by a power of the mean square over nearby channels (Krizhevsky et al. 2012).

    Args:
        size: number of channels in the mean.
        alpha: factor of the mean.
        beta: exponent.
        k: added before.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, input: Tensor) -> Tensor:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


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
