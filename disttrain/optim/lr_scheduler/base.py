"""What all schedulers share: when rates are set, and what is remembered."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from disttrain.engine import no_grad
from disttrain.modes import replayed
from disttrain.optim.optimizer import Optimizer
from disttrain.tensors import Tensor


class LRScheduler:
    """Base of all schedulers, as ``torch.optim.lr_scheduler.LRScheduler``: each :meth:`step` sets the learning rates.

    A subclass writes :meth:`get_lr`, from the current rates so that schedulers can be combined, and may write
    ``_get_closed_form_lr``, from the initial ones, for ``step(epoch)``.

    Args:
        optimizer: whose learning rates to set.
        last_epoch: -1 to begin; to continue, the number of the last epoch (``initial_lr`` must be in the groups).

    Raises:
        TypeError: not an optimizer.
        KeyError: to continue, but a group has no ``initial_lr``.
    """

    _get_lr_called_within_step = False
    _is_initial = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "step" in cls.__dict__:
            cls.step = replayed(cls.__dict__["step"])  # type: ignore[method-assign]

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        check_optimizer(optimizer)
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", copied(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param_groups[{i}] has no 'initial_lr'; load the optimizer's state before continuing from "
                    f"epoch {last_epoch}, or begin with last_epoch=-1"
                )
        self.base_lrs: list[Any] = values_of(optimizer, "initial_lr")
        self.last_epoch = last_epoch
        if not hasattr(optimizer.step, "hooked"):  # somebody replaced it before: count those calls
            optimizer.step = _counted(optimizer, optimizer.step)  # type: ignore[method-assign]
        self._initial_step()

    def _initial_step(self) -> None:
        """Set the rates of the first epoch."""
        self._step_count = 0
        self._is_initial = True
        try:
            self.step()
        finally:
            self._is_initial = False

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each group at epoch ``last_epoch``; called by :meth:`step`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what the learning rates are")

    def get_last_lr(self) -> list[Any]:
        """Return the learning rate of each group, as this scheduler last set it."""
        return self._last_lr

    @replayed
    def step(self, epoch: Any = None) -> None:
        """Go on to the next epoch; to ``epoch``, if it is given, by the closed form where there is one.

        Warns:
            UserWarning: the optimizer has not stepped before, or ``epoch`` is given.
        """
        if self._step_count == 1:
            if not hasattr(self.optimizer.step, "hooked"):
                warnings.warn(
                    "optimizer.step was replaced after the scheduler was made, so it is not known whether it is "
                    "called before scheduler.step(); replace it before",
                    UserWarning,
                    stacklevel=2,
                )
            elif not self.optimizer._opt_called:
                warnings.warn(
                    "scheduler.step() is called before optimizer.step(): the first learning rate of the schedule is "
                    "skipped; call optimizer.step() first",
                    UserWarning,
                    stacklevel=2,
                )
        self._step_count += 1
        if epoch is not None:
            warn_of_epoch()
        self._update_lr(epoch)

    def _update_lr(self, epoch: Any = None) -> None:
        with self._within_step():
            if epoch is None:
                self.last_epoch += 1
                rates = self.get_lr()
            else:
                self.last_epoch = epoch
                closed_form = getattr(self, "_get_closed_form_lr", self.get_lr)
                rates = closed_form()
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            set_value(group, "lr", lr)
        self._last_lr: list[Any] = values_of(self.optimizer, "lr")

    @contextmanager
    def _within_step(self) -> Iterator[None]:
        self._get_lr_called_within_step = True
        try:
            yield
        finally:
            self._get_lr_called_within_step = False

    def _warn_if_called_by_user(self) -> None:
        if not self._get_lr_called_within_step:
            warnings.warn(
                "get_lr() computes the next learning rate; for the one that was set call get_last_lr()",
                UserWarning,
                stacklevel=3,
            )

    def _rates(self) -> list[Any]:
        return values_of(self.optimizer, "lr")

    def _rates_times(self, factor: float) -> list[Any]:
        return [group["lr"] * factor for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs; of functions that the user gave, the attributes only."""
        return {k: v for k, v in vars(self).items() if k != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        vars(self).update(state_dict)


def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError for what is no optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"a scheduler needs an Optimizer, got {type(optimizer).__name__}")


def warn_of_epoch() -> None:
    """Warn that epochs should not be given to ``step()``."""
    warnings.warn(
        "scheduler.step(epoch) is deprecated and uses the closed form where there is one; call scheduler.step()",
        UserWarning,
        stacklevel=3,
    )


def copied(value: Any) -> Any:
    """Return a number as it is, one in a Tensor as a copy."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def values_of(optimizer: Optimizer, key: str) -> list[Any]:
    """Return an option of each group."""
    return [copied(group[key]) for group in optimizer.param_groups]


def set_value(group: dict[str, Any], key: str, value: Any) -> None:
    """Set an option of a group; one in a Tensor in place."""
    if isinstance(group[key], Tensor):
        with no_grad():
            group[key].fill_(float(value))
    else:
        group[key] = value


def one_per_group(name: str, optimizer: Optimizer, value: Any) -> list[Any]:
    """Return a value for each group, from one for all or a list.

    Raises:
        ValueError: a list of another length.
    """
    groups = len(optimizer.param_groups)
    if not isinstance(value, list | tuple):
        return [copied(value) for _ in range(groups)]
    if len(value) != groups:
        raise ValueError(
            f"{name} must be one value or one per group; got {len(value)} values for {groups} groups"
        )
    return [copied(v) for v in value]


def function_state(function: Callable[..., Any] | None) -> dict[str, Any] | None:
    """Return what can be saved of a user's function: the attributes of a callable object."""
    if function is None or isinstance(function, types.FunctionType):
        return None
    return vars(function).copy()


def _counted(optimizer: Optimizer, step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def counted(*args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True
        return step(*args, **kwargs)

    counted.hooked = True  # type: ignore[attr-defined]
    return counted
