"""Layers that take the number of their input's channels from the first batch, and are ordinary layers from then on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from disttrain.dtypes import int64
from disttrain.engine import no_grad
from disttrain.functions.conversion import tensor
from disttrain.nn.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Sizes,
    _ConvNd,
)
from disttrain.nn.linear import Linear
from disttrain.nn.module import Module
from disttrain.nn.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    _Norm,
)
from disttrain.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from disttrain.tensors import Tensor


class LazyModuleMixin(Module):
    """What makes a module lazy; it comes before the module among the base classes.

    The constructor makes parameters (:class:`~disttrain.nn.UninitializedParameter`) and buffers without a shape, and
    ``initialize_parameters``, which gets the arguments of the first call, gives them one. The first call ends with
    the module being a ``cls_to_become``, if the class names one. As ``torch.nn.modules.lazy.LazyModuleMixin``.

    Call the module once before it is wrapped for data parallelism, and convert and move it before that call. An
    optimizer keeps its parameters through it.
    """

    cls_to_become: ClassVar[type[Module] | None] = None

    _passed_over: frozenset[str] = frozenset()
    """What the state that is being loaded leaves without a shape."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._load_hook = self.register_load_state_dict_pre_hook(self._lazy_load_hook)
        self._initialize_hook = self.register_forward_pre_hook(self._infer_parameters, with_kwargs=True)

    def initialize_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Give all parameters and buffers the shapes that go with the arguments of the first call.

        Raises:
            NotImplementedError: the class does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define initialize_parameters()")

    def has_uninitialized_params(self) -> bool:
        """Return whether a parameter or a buffer of this module has no shape yet."""
        return any(is_lazy(t) for t in (*self._parameters.values(), *self._buffers.values()))

    def _infer_parameters(
        self, module: LazyModuleMixin, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        with no_grad():
            module.initialize_parameters(*args, **(kwargs or {}))
        if module.has_uninitialized_params():
            raise RuntimeError(
                f"{type(module).__name__}: initialize_parameters() left without a shape "
                + ", ".join(n for n, t in (module._parameters | module._buffers).items() if is_lazy(t))
            )
        module._initialize_hook.remove()
        module._load_hook.remove()
        del module._initialize_hook, module._load_hook
        if module.cls_to_become is not None:
            module.__class__ = module.cls_to_become  # type: ignore[assignment]

    def _lazy_load_hook(
        self,
        module: LazyModuleMixin,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the shapes of a state that has some; pass over what has none on either side."""
        passed_over = set()
        for name, own in module._own_state():
            if not is_lazy(own):
                continue
            key = prefix + name
            given = state_dict.get(key)
            if given is None or is_lazy(given):
                passed_over.add(name)
                if state_dict.pop(key, None) is None:
                    missing_keys.append(key)
            elif isinstance(given, Tensor):
                own.materialize(given.shape)  # type: ignore[attr-defined]
        module._passed_over = frozenset(passed_over)

    def _own_state(self) -> Iterator[tuple[str, Tensor]]:
        # load_state_dict() asks right after the hook above, and compares shapes, which these have not
        passed_over, self._passed_over = self._passed_over, frozenset()
        return ((name, value) for name, value in super()._own_state() if name not in passed_over)


class LazyLinear(LazyModuleMixin, Linear):
    """A :class:`~disttrain.nn.Linear` whose ``in_features`` is the size of the first input's last dimension.

    Args:
        out_features: size of the output's last dimension.
        bias: learn a bias.
        device: where the parameters will be.
        dtype: of the parameters, by default the default dtype.
    """

    cls_to_become = Linear

    def __init__(self, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(0, 0, False)
        self.weight = UninitializedParameter(device=device, dtype=dtype)
        self.out_features = out_features
        if bias:
            self.bias = UninitializedParameter(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the parameters again, if they have a shape."""
        if not self.has_uninitialized_params() and self.in_features:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        """Give the parameters the shapes that go with ``input``."""
        if not self.has_uninitialized_params():
            self.in_features = self.weight.shape[-1]  # the state that was loaded had shapes
            return
        self.in_features = input.shape[-1]
        _materialize(self.weight, self.out_features, self.in_features)
        _materialize(self.bias, self.out_features)
        self.reset_parameters()


class _LazyConvNd(LazyModuleMixin, _ConvNd):
    """What lazy convolutions, transposed or not, share."""

    def _set_lazy(self, out_channels: int, bias: bool, device: Any, dtype: Any) -> None:
        self.weight = UninitializedParameter(device=device, dtype=dtype)
        self.out_channels = out_channels
        if bias:
            self.bias = UninitializedParameter(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the parameters again, if they have a shape."""
        if not self.has_uninitialized_params() and self.in_channels:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor, *args: Any, **kwargs: Any) -> None:
        """Give the parameters the shapes that go with ``input``.

        Raises:
            RuntimeError: ``input`` is no image of this many dimensions.
            ValueError: its channels cannot be split into the groups.
        """
        if not self.has_uninitialized_params():
            self.in_channels = self.weight.shape[not self.transposed] * (
                1 if self.transposed else self.groups
            )
            return
        n = self.axes
        if input.ndim not in (n + 1, n + 2):
            raise RuntimeError(
                f"{type(self).__name__}: input has {n + 2} dimensions, or {n + 1} without a batch, got shape "
                f"{list(input.shape)}"
            )
        channels = input.shape[-n - 1]
        if channels % self.groups:
            raise ValueError(
                f"{type(self).__name__}: groups={self.groups} must divide the channels of input, got {channels}"
            )
        self.in_channels = channels
        outer, inner = (channels, self.out_channels) if self.transposed else (self.out_channels, channels)
        _materialize(self.weight, outer, inner // self.groups, *self.kernel_size)
        _materialize(self.bias, self.out_channels)
        self.reset_parameters()


class _LazyConv(_LazyConvNd):
    """A convolution whose ``in_channels`` is the number of the first input's channels.

    Args:
        out_channels: number of filters.
        kernel_size: size of a filter.
        stride: step between windows.
        padding: rows and columns on each side; ``"valid"`` for none, ``"same"`` for as many as keep the size.
        dilation: step between the pixels of a window.
        groups: channels are split into so many groups that do not see each other.
        bias: learn a bias.
        padding_mode: what the padding holds: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: where the parameters will be.
        dtype: of the parameters, by default the default dtype.

    Raises:
        ValueError: an unknown padding.
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(0, 0, kernel_size, stride, padding, dilation, groups, False, padding_mode)
        self._set_lazy(out_channels, bias, device, dtype)


class LazyConv1d(_LazyConv, Conv1d):
    __doc__ = f"Of lines. {_LazyConv.__doc__}"
    cls_to_become = Conv1d


class LazyConv2d(_LazyConv, Conv2d):
    __doc__ = f"Of images. {_LazyConv.__doc__}"
    cls_to_become = Conv2d


class LazyConv3d(_LazyConv, Conv3d):
    __doc__ = f"Of volumes. {_LazyConv.__doc__}"
    cls_to_become = Conv3d


class _LazyConvTranspose(_LazyConvNd):
    """A transposed convolution whose ``in_channels`` is the number of the first input's channels.

    Args:
        out_channels: channels of the output.
        kernel_size: size of a filter.
        stride: step between windows in the output.
        padding: rows and columns to leave out at each side of the output.
        output_padding: rows and columns to add at its end.
        groups: channels are split into so many groups that do not see each other.
        bias: learn a bias.
        dilation: step between the pixels of a window.
        padding_mode: only ``"zeros"``.
        device: where the parameters will be.
        dtype: of the parameters, by default the default dtype.

    Raises:
        ValueError: another ``padding_mode``.
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            0, 0, kernel_size, stride, padding, output_padding, groups, False, dilation, padding_mode
        )
        self._set_lazy(out_channels, bias, device, dtype)


class LazyConvTranspose1d(_LazyConvTranspose, ConvTranspose1d):
    __doc__ = f"Of lines. {_LazyConvTranspose.__doc__}"
    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_LazyConvTranspose, ConvTranspose2d):
    __doc__ = f"Of images. {_LazyConvTranspose.__doc__}"
    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_LazyConvTranspose, ConvTranspose3d):
    __doc__ = f"Of volumes. {_LazyConvTranspose.__doc__}"
    cls_to_become = ConvTranspose3d


class _LazyNorm(LazyModuleMixin, _Norm):
    """A normalisation whose ``num_features`` is the number of the first input's channels.

    Args:
        eps: added to the variance.
        momentum: weight of a batch in the running values; ``None`` for the mean over all batches so far.
        affine: learn a scale and a shift.
        track_running_stats: keep running values and use them in evaluation.
        device: where the parameters will be.
        dtype: of the parameters, by default the default dtype.
        bias: learn a shift, if there is a scale.
    """

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(0, eps, momentum, False, False, device, dtype, bias=False)
        self.affine = affine
        self.track_running_stats = track_running_stats
        if affine:
            self.weight = UninitializedParameter(device=device, dtype=dtype)
            if bias:
                self.bias = UninitializedParameter(device=device, dtype=dtype)
        if track_running_stats:
            self.running_mean = UninitializedBuffer(device=device, dtype=dtype)
            self.running_var = UninitializedBuffer(device=device, dtype=dtype)
            self.num_batches_tracked = tensor(0, dtype=int64, device=device)

    def reset_parameters(self) -> None:
        """Scale by 1, shift by 0, forget the running values; if they have a shape."""
        if not self.has_uninitialized_params() and self.num_features:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        """Give the parameters and the running values the shapes that go with ``input``."""
        uninitialized = self.has_uninitialized_params()
        self.num_features = input.shape[self._channel_axis(input)]
        if uninitialized:
            for t in (self.weight, self.bias, self.running_mean, self.running_var):
                _materialize(t, self.num_features)
            self.reset_parameters()

    def _channel_axis(self, input: Tensor) -> int:
        return 1


class LazyBatchNorm1d(_LazyNorm, BatchNorm1d):
    __doc__ = f"Of ``(N, C)`` or ``(N, C, L)``. {_LazyNorm.__doc__}"
    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_LazyNorm, BatchNorm2d):
    __doc__ = f"Of images ``(N, C, H, W)``. {_LazyNorm.__doc__}"
    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_LazyNorm, BatchNorm3d):
    __doc__ = f"Of volumes ``(N, C, D, H, W)``. {_LazyNorm.__doc__}"
    cls_to_become = BatchNorm3d


class _LazyInstanceNorm(_LazyNorm):
    axes: int

    def _channel_axis(self, input: Tensor) -> int:
        return -self.axes - 1  # a single image has no dimension before its channels


class LazyInstanceNorm1d(_LazyInstanceNorm, InstanceNorm1d):
    __doc__ = f"Of lines ``(N, C, L)`` or ``(C, L)``. {_LazyNorm.__doc__}"
    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_LazyInstanceNorm, InstanceNorm2d):
    __doc__ = f"Of images ``(N, C, H, W)`` or ``(C, H, W)``. {_LazyNorm.__doc__}"
    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_LazyInstanceNorm, InstanceNorm3d):
    __doc__ = f"Of volumes ``(N, C, D, H, W)`` or ``(C, D, H, W)``. {_LazyNorm.__doc__}"
    cls_to_become = InstanceNorm3d


def _materialize(t: Tensor | None, *shape: int) -> None:
    if is_lazy(t):
        t.materialize(shape)  # type: ignore[union-attr]
