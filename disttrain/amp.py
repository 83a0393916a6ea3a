"""Mixed precision by PyTorch's names: ``autocast``, and the scaler of gradients.

What autocast does to which function is in :mod:`disttrain.precision`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, missing, precision
from disttrain.devices import is_available
from disttrain.kernels.arrays import Array, get_array_module, on_gpu, to_host
from disttrain.kernels.optim import folds
from disttrain.modes import replayed
from disttrain.optim.fused import FusedOptimizer
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.optim.optimizer import Optimizer

__all__ = [
    "GradScaler",
    "autocast",
    "autocast_decorator",
    "custom_bwd",
    "custom_fwd",
    "is_autocast_available",
]


class autocast:
    """A block, or each call of a decorated function, in mixed precision, as ``torch.autocast``.

    Products of matrices and convolutions run in ``dtype``, sums and losses that need it in float32, all else in the
    types of its arguments: the lists are PyTorch's. Parameters stay in float32, and so do their gradients; each is
    cast once per outermost block. Tensors in float64, and those of other devices, are never cast. The state is that of
    the thread. Backward does not see it: it computes in the types of forward.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``. For a device that is not there it warns and does nothing, as PyTorch's.
        dtype: bfloat16 or float16; by default :func:`get_autocast_dtype`.
        enabled: with False, what is in the block runs as without autocast, also within another block.
        cache_enabled: keep what a parameter was cast to until the outermost block ends; by default as outside.

    Raises:
        RuntimeError: no such kind of device.
        ValueError: ``device_type`` is no string.
    """

    def __init__(
        self,
        device_type: str,
        dtype: Any = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        if not isinstance(device_type, str):
            raise ValueError(f"autocast: device_type is a string like 'cpu', got {device_type!r:.80}")
        self.device = _known(device_type)
        self.fast_dtype = get_autocast_dtype(device_type) if dtype is None else dtypes.as_dtype(dtype)
        self._cache_enabled = is_autocast_cache_enabled() if cache_enabled is None else cache_enabled
        if enabled and device_type != "cpu" and not (device_type == "cuda" and is_available()):
            warnings.warn(
                f"autocast: device type {device_type!r} is not available; computing as if it were not there",
                stacklevel=2,
            )
            enabled = False
        if enabled and self.fast_dtype not in (dtypes.bfloat16, dtypes.float16):
            warnings.warn(
                f"autocast: dtype {self.fast_dtype} is no lower precision; computing as if it were not there",
                stacklevel=2,
            )
            enabled = False
        self._enabled = enabled

    def __enter__(self) -> autocast:
        old = precision.state()
        restored = (self.device, self.device in old.enabled, old.lower[self.device], old.caching)
        new = old.switched(self.device, self._enabled).lowered(self.device, self.fast_dtype)
        precision.put(
            new._replace(
                caching=self._cache_enabled,
                blocks=(*old.blocks, restored),
                cache=old.cache if old.blocks else {},
            )
        )
        return self

    def __exit__(self, *exc: object) -> None:
        now = precision.state()
        *blocks, (device, enabled, dtype, caching) = now.blocks
        old = (
            now.switched(device, enabled)
            .lowered(device, dtype)
            ._replace(caching=caching, blocks=tuple(blocks))
        )
        if not blocks:
            now.cache.clear()
            old = old._replace(cache=precision.State().cache)
        precision.put(old)

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(func):
            raise TypeError(
                f"autocast decorates a function, got {type(func).__name__}; write `with autocast(...):` for a block"
            )
        return autocast_decorator(self, func)


def autocast_decorator(autocast_instance: autocast, func: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``func`` so that each call is a block of ``autocast_instance``, which threads may share."""

    @functools.wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        with autocast_instance:
            return func(*args, **kwargs)

    return call


def _known(device_type: str) -> str:
    if device_type not in precision.DTYPES:
        raise RuntimeError(
            f"autocast: there is no mixed precision for a kind of device {device_type!r}; use 'cpu' or 'cuda'"
        )
    return device_type


def is_autocast_available(device_type: str) -> bool:
    """Return whether :class:`autocast` takes this kind of device, there or not, as ``torch.amp``'s."""
    return device_type in precision.DTYPES


def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Return whether autocast is on in this thread for a kind of device."""
    return _known(device_type) in precision.state().enabled


def set_autocast_enabled(device_type: str | bool, enabled: bool | None = None) -> None:
    """Switch autocast on or off in this thread; with a bool alone, for ``"cuda"``."""
    if enabled is None:
        device_type, enabled = "cuda", bool(device_type)
    precision.put(precision.state().switched(_known(str(device_type)), enabled))


def get_autocast_dtype(device_type: str) -> dtypes.dtype:
    """Return the lower precision of a kind of device in this thread: bfloat16 on the CPU, float16 on GPUs."""
    return precision.state().lower[_known(device_type)]


def set_autocast_dtype(device_type: str, dtype: dtypes.dtype) -> None:
    """Set the lower precision of a kind of device in this thread."""
    precision.put(precision.state().lowered(_known(device_type), dtypes.as_dtype(dtype)))


def is_autocast_cache_enabled() -> bool:
    """Return whether what parameters are cast to is kept until the outermost block ends."""
    return precision.state().caching


def set_autocast_cache_enabled(enabled: bool) -> None:
    """Set whether it is kept."""
    precision.put(precision.state()._replace(caching=enabled))


def clear_autocast_cache() -> None:
    """Forget what parameters were cast to."""
    precision.state().cache.clear()


def is_autocast_cpu_enabled() -> bool:
    """:func:`is_autocast_enabled` of ``"cpu"``; deprecated in PyTorch."""
    return is_autocast_enabled("cpu")


def set_autocast_cpu_enabled(enabled: bool) -> None:
    """:func:`set_autocast_enabled` of ``"cpu"``; deprecated in PyTorch."""
    set_autocast_enabled("cpu", enabled)


def get_autocast_cpu_dtype() -> dtypes.dtype:
    """:func:`get_autocast_dtype` of ``"cpu"``; deprecated in PyTorch."""
    return get_autocast_dtype("cpu")


def set_autocast_cpu_dtype(dtype: dtypes.dtype) -> None:
    """:func:`set_autocast_dtype` of ``"cpu"``; deprecated in PyTorch."""
    set_autocast_dtype("cpu", dtype)


def get_autocast_gpu_dtype() -> dtypes.dtype:
    """:func:`get_autocast_dtype` of ``"cuda"``; deprecated in PyTorch."""
    return get_autocast_dtype("cuda")


def set_autocast_gpu_dtype(dtype: dtypes.dtype) -> None:
    """:func:`set_autocast_dtype` of ``"cuda"``; deprecated in PyTorch."""
    set_autocast_dtype("cuda", dtype)


def custom_fwd(
    fwd: Callable[..., Any] | None = None, *, device_type: str, cast_inputs: dtypes.dtype | None = None
) -> Callable[..., Any]:
    """Decorate ``forward`` of an ``autograd.Function``, as ``torch.amp.custom_fwd``.

    Args:
        fwd: the function, whose first argument is the context.
        device_type: where its tensors are.
        cast_inputs: where autocast is on, cast floating point arguments but float64 to this type and run with autocast
            off. Without it ``forward`` runs as autocast says.

    Raises:
        ValueError: ``device_type`` is no string.
    """
    if not isinstance(device_type, str):
        raise ValueError(f"custom_fwd: device_type is a string like 'cpu', got {device_type!r:.80}")
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)
    function = fwd

    @functools.wraps(function)
    def call(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        enabled = is_autocast_enabled(device_type)
        ctx._dtype = get_autocast_dtype(device_type)
        ctx._fwd_used_autocast = enabled and cast_inputs is None
        if not enabled or cast_inputs is None:
            return function(ctx, *args, **kwargs)
        with autocast(device_type, enabled=False):
            return function(
                ctx, *_cast(args, device_type, cast_inputs), **_cast(kwargs, device_type, cast_inputs)
            )

    return call


def custom_bwd(bwd: Callable[..., Any] | None = None, *, device_type: str) -> Callable[..., Any]:
    """Decorate ``backward`` of an ``autograd.Function``: it runs with the autocast of its ``forward``.

    Raises:
        ValueError: ``device_type`` is no string.
    """
    if not isinstance(device_type, str):
        raise ValueError(f"custom_bwd: device_type is a string like 'cpu', got {device_type!r:.80}")
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)
    function = bwd

    @functools.wraps(function)
    def call(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        with autocast(device_type, enabled=ctx._fwd_used_autocast, dtype=ctx._dtype):
            return function(ctx, *args, **kwargs)

    return call


def _cast(value: Any, device_type: str, dtype: dtypes.dtype) -> Any:
    """Return ``value`` with the tensors in it, through lists, tuples, dicts and iterators, cast to ``dtype``."""
    if isinstance(value, Tensor):
        cast = value.is_floating_point() and value.dtype is not dtypes.float64
        return value.to(dtype) if cast and value.device.type == device_type else value
    if isinstance(value, str | bytes | np.ndarray):
        return value
    if isinstance(value, Mapping):
        return {key: _cast(v, device_type, dtype) for key, v in value.items()}
    if isinstance(value, Iterable):
        parts = (_cast(v, device_type, dtype) for v in value)
        return type(value)(parts) if isinstance(value, list | tuple) else parts
    return value


class GradScaler:
    """Multiplies the loss so that small gradients do not vanish in float16, as ``torch.amp.GradScaler``.

    Use: ``scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()``. A step whose gradients are
    not all finite is skipped, and the scale is lowered. On a GPU the scale stays there: neither :meth:`step` nor
    :meth:`update` waits for it, with the optimizers that :meth:`step` names.

    Args:
        device: where the model is; for ``"cuda"`` without a GPU the scaler is disabled, with a warning.
        init_scale: the first scale.
        growth_factor: by what the scale is multiplied after ``growth_interval`` steps without a skipped one.
        backoff_factor: by what it is multiplied after a skipped step.
        growth_interval: see there.
        enabled: if not, ``scale`` returns the loss and ``step`` calls ``optimizer.step``.

    Raises:
        ValueError: a growth factor of at most 1, or a backoff factor of at least 1.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._device = device
        self._enabled = enabled
        if enabled and device == "cuda" and not is_available():
            warnings.warn("GradScaler: no GPU is available; scaling nothing", stacklevel=2)
            self._enabled = False
        if self._enabled:
            if growth_factor <= 1.0:
                raise ValueError(f"growth_factor must be above 1, got {growth_factor}")
            if backoff_factor >= 1.0:
                raise ValueError(f"backoff_factor must be below 1, got {backoff_factor}")
        self._scale: Array = np.array([init_scale], np.float32)
        """Moves to the GPU, with the number below, when something there is scaled."""
        self._growth_tracker: Array = np.zeros(1, np.int32)
        self._growth_factor = growth_factor
        self._backoff_factor = backoff_factor
        self._growth_interval = growth_interval
        self._unscaled: dict[int, Array] = {}
        """Of optimizers (by id) whose gradients were looked at since the last update: (1,) int32 where the gradients
        are, 1 if any is not finite."""
        self._stepped: set[int] = set()

    def scale(self, outputs: Any) -> Any:
        """Return a loss, or an iterable of losses, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            if outputs.itemsize > 2:
                return outputs * self._factor(outputs)
            wide = outputs.to(dtypes.float32)  # the scale may not fit into half precision
            return (wide * self._factor(outputs)).to(outputs.dtype)
        if isinstance(outputs, list | tuple):
            return type(outputs)(self.scale(o) for o in outputs)
        if hasattr(outputs, "__iter__"):
            return map(self.scale, outputs)
        raise ValueError(
            f"GradScaler.scale() takes a Tensor, or several in an iterable, got {type(outputs).__name__}"
        )

    @replayed
    def _factor(self, beside: Tensor) -> Tensor:
        """Return the scale where a loss is, in memory of its own: backward needs it, and :meth:`update` changes it."""
        self._move_beside(beside._array)
        return Tensor._of(self._scale.copy().reshape(()))

    def _move_beside(self, x: Array) -> None:
        xp = get_array_module(x)
        if get_array_module(self._scale) is not xp:
            self._scale, self._growth_tracker = (
                xp.asarray(to_host(a)) for a in (self._scale, self._growth_tracker)
            )

    def _inverse(self) -> Array:
        """Return one over the scale, rounded once, beside it."""
        return (1.0 / self._scale.astype(np.float64)).astype(np.float32)

    @replayed
    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, for example to clip them.

        Raises:
            RuntimeError: that was done already since the last :meth:`update`.
            ValueError: a gradient is float16.
        """
        if not self._enabled:
            return
        if id(optimizer) in self._stepped:
            raise RuntimeError(
                "unscale_(): this optimizer has had its step(); unscale before it, update() begins anew"
            )
        if id(optimizer) in self._unscaled:
            raise RuntimeError(
                "unscale_(): the gradients of this optimizer are unscaled already; call update() before the next time"
            )
        inverse = self._inverse()
        self._look(optimizer, lambda grad, bad: _unscale(grad, inverse, bad))
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad._version_counter[0] += 1

    def _look(self, optimizer: Optimizer, look: Callable[[Array, Array], None]) -> None:
        """Note whether gradients are finite: ``look`` is called with each, and with where to say that it is not."""
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if any(p.grad.dtype is dtypes.float16 for p in params):
            raise ValueError(
                "unscale_(): a gradient is float16; keep the parameters in float32, use autocast"
            )
        grads = (
            optimizer.grads() if isinstance(optimizer, FusedOptimizer) else [p.grad._array for p in params]
        )
        if params:
            self._move_beside(params[0].grad._array)
        bad = get_array_module(self._scale).zeros(1, np.int32)
        for grad in grads:
            look(grad, bad)
        ranks: list[Any] = []
        for p in params:
            shard = p._shard if p._shard is not None else p.grad._shard
            if shard is not None and shard.comm not in ranks:
                ranks.append(shard.comm)
        for comm in ranks:  # each has seen its parts only
            comm.all_reduce(bad, bad, op="max")
        self._unscaled[id(optimizer)] = bad

    @replayed
    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Call ``optimizer.step()`` if all gradients are finite; return what it returns, or ``None``.

        Of parameters on a GPU, SGD, Adam, AdamW, LARS and LAMB skip the step there: nothing waits to know.

        Raises:
            RuntimeError: that was done already since the last :meth:`update`, or a closure was given.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise RuntimeError(
                "GradScaler.step(): an optimizer that calls a closure cannot be scaled; give enabled=False for it"
            )
        if id(optimizer) in self._stepped:
            raise RuntimeError(
                "GradScaler.step(): this optimizer has had its step; call update() before the next one"
            )
        there = not args and _steps_on_gpu(optimizer)
        factor = None
        if id(optimizer) not in self._unscaled:
            if there:
                self._look(optimizer, _find_bad)
                factor = self._inverse()
            else:
                self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        bad = self._unscaled[id(optimizer)]
        if there:
            assert isinstance(optimizer, FusedOptimizer)
            return optimizer.step_scaled(factor, bad)
        return None if to_host(bad)[0] else optimizer.step(*args, **kwargs)

    @replayed
    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Lower the scale if a step was skipped, raise it after enough that were not, or set it."""
        if not self._enabled:
            return
        if isinstance(new_scale, Tensor):
            self._move_beside(new_scale._array)
            self._scale[...] = new_scale._array
        elif new_scale is not None:
            self._scale.fill(new_scale)
        elif not self._unscaled:
            raise RuntimeError(
                "GradScaler.update(): no optimizer has been stepped or unscaled since the last one"
            )
        else:
            first, *rest = self._unscaled.values()
            for bad in rest:
                first = first | bad
            folds.update_scale(
                *(self._scale, self._growth_tracker, first),
                growth=self._growth_factor,
                backoff=self._backoff_factor,
                interval=self._growth_interval,
            )
        self._unscaled.clear()
        self._stepped.clear()

    def is_enabled(self) -> bool:
        """Return whether the scaler does anything."""
        return self._enabled

    def get_scale(self) -> float:
        """Return the scale; 1 if disabled. Waits for a GPU that has it."""
        return float(to_host(self._scale)[0]) if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        """Return the growth factor."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Set the growth factor."""
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        """Return the backoff factor."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set the backoff factor."""
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        """Return the growth interval."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Set the growth interval."""
        self._growth_interval = new_interval

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs; empty if disabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": int(to_host(self._growth_tracker)[0]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises:
            RuntimeError: the state is that of a disabled scaler.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "GradScaler.load_state_dict(): the dict is empty; a GradScaler with enabled=False saves such a one"
            )
        self._scale = np.array([state_dict["scale"]], np.float32)
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        self._growth_tracker = np.array([state_dict["_growth_tracker"]], np.int32)


def _steps_on_gpu(optimizer: Optimizer) -> bool:
    """Return whether the step of an optimizer can be skipped by a number on the GPU."""
    return (
        isinstance(optimizer, FusedOptimizer)
        and optimizer.takes_extras
        and all(on_gpu(p._array) for group in optimizer.param_groups for p in group["params"])
    )


def _find_bad(grad: Array, bad: Array) -> None:
    folds.find_bad(get_array_module(grad).ascontiguousarray(grad).reshape(-1), bad)


def _unscale(grad: Array, inverse: Array, bad: Array) -> None:
    if grad.flags.c_contiguous:
        return folds.unscale_(grad.reshape(-1), inverse, bad)
    flat = grad.reshape(-1)  # a copy
    folds.unscale_(flat, inverse, bad)
    grad[...] = flat.reshape(grad.shape)
    return None


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
