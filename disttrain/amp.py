"""Mixed precision by PyTorch's names: autocast, which does nothing yet, and the scaler of gradients, which works."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, missing
from disttrain.devices import device as Device
from disttrain.devices import is_available
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.optim.optimizer import Optimizer

__all__ = ["GradScaler", "autocast", "is_autocast_available"]


class autocast:
    """A block (or a decorated function) in mixed precision, as ``torch.autocast``: so far one that changes nothing.

    With ``enabled=False`` it is what PyTorch's is. For a device that is not there it warns and does nothing, as
    PyTorch's.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
        dtype: the type to compute in.
        enabled: whether to do anything.
        cache_enabled: accepted for PyTorch's sake.

    Raises:
        NotImplementedError: mixed precision on a device that is there.
        RuntimeError: no such kind of device.
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
        if device_type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError(f"autocast: there is no kind of device {device_type!r}; use 'cpu' or 'cuda'")
        self.device = device_type
        self.fast_dtype = dtypes.as_dtype(
            (dtypes.bfloat16 if device_type == "cpu" else dtypes.float16) if dtype is None else dtype
        )
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
        if enabled:
            raise NotImplementedError(
                f"autocast to {self.fast_dtype} on {device_type!r} is not in disttrain yet; leave it out, or convert "
                f"the model with model.to({self.fast_dtype})"
            )

    def __enter__(self) -> autocast:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def call(*args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

        return call


def is_autocast_available(device_type: str) -> bool:
    """Return False: no device computes in mixed precision yet."""
    Device(device_type)
    return False


def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Return False: no device computes in mixed precision yet."""
    return False


class GradScaler:
    """Multiplies the loss so that small gradients do not vanish in float16, as ``torch.amp.GradScaler``.

    Use: ``scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()``. A step whose gradients are
    not all finite is skipped, and the scale is lowered.

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
        self._scale = float(init_scale)
        self._growth_factor = growth_factor
        self._backoff_factor = backoff_factor
        self._growth_interval = growth_interval
        self._growth_tracker = 0
        self._unscaled: dict[int, bool] = {}
        """Optimizers (by id) whose gradients were divided since the last update: whether all were finite."""
        self._stepped: set[int] = set()

    def scale(self, outputs: Any) -> Any:
        """Return a loss, or an iterable of losses, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._scale
        if isinstance(outputs, list | tuple):
            return type(outputs)(self.scale(o) for o in outputs)
        if hasattr(outputs, "__iter__"):
            return map(self.scale, outputs)
        raise ValueError(
            f"GradScaler.scale() takes a Tensor, or several in an iterable, got {type(outputs).__name__}"
        )

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, for example to clip them.

        Raises:
            RuntimeError: that was done already since the last :meth:`update`.
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
        finite = True
        ranks: list[Any] = []
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if p.grad.dtype is dtypes.float16:
                        raise ValueError(
                            "unscale_(): a gradient is float16; keep the parameters in float32, use autocast"
                        )
                    p.grad.mul_(1.0 / self._scale)
                    finite = finite and bool(np.isfinite(p.grad._array).all())
                    shard = p._shard if p._shard is not None else p.grad._shard
                    if shard is not None and shard.comm not in ranks:
                        ranks.append(shard.comm)
        for comm in ranks:  # each has seen its parts only
            bad = np.array([not finite])
            comm.all_reduce(bad, bad, op="max")
            finite = not bad[0]
        self._unscaled[id(optimizer)] = finite

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Call ``optimizer.step()`` if all gradients are finite; return what it returns, or ``None``.

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
        if id(optimizer) not in self._unscaled:
            self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        return optimizer.step(*args, **kwargs) if self._unscaled[id(optimizer)] else None

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Lower the scale if a step was skipped, raise it after enough that were not, or set it."""
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = float(new_scale)
        elif not self._unscaled:
            raise RuntimeError(
                "GradScaler.update(): no optimizer has been stepped or unscaled since the last one"
            )
        elif not all(self._unscaled.values()):
            self._scale *= self._backoff_factor
            self._growth_tracker = 0
        else:
            self._growth_tracker += 1
            if self._growth_tracker == self._growth_interval:
                if math.isfinite(self._scale * self._growth_factor):
                    self._scale *= self._growth_factor
                self._growth_tracker = 0
        self._unscaled.clear()
        self._stepped.clear()

    def is_enabled(self) -> bool:
        """Return whether the scaler does anything."""
        return self._enabled

    def get_scale(self) -> float:
        """Return the scale; 1 if disabled."""
        return self._scale if self._enabled else 1.0

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
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
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
        self._scale = state_dict["scale"]
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        self._growth_tracker = state_dict["_growth_tracker"]


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
