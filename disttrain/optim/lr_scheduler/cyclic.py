"""Schedules that go up and down in step with the momentum (Smith, 2017; Smith and Topin, 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from disttrain.optim.lr_scheduler.base import (
    LRScheduler,
    check_optimizer,
    function_state,
    one_per_group,
    set_value,
)
from disttrain.optim.optimizer import Optimizer


class _WithMomentum(LRScheduler):
    """A scheduler that may set the momentum too: ``momentum``, or the first of ``betas``."""

    def _begin_momentum(
        self, optimizer: Optimizer, base_momentum: Any, max_momentum: Any, begin: bool
    ) -> tuple[list[Any], list[Any]]:
        """Give the groups the momentum of the first step; return the smallest and the largest of each."""
        if "momentum" not in optimizer.defaults and "betas" not in optimizer.defaults:
            raise ValueError(
                f"cycle_momentum needs an optimizer with momentum or betas, {type(optimizer).__name__} has none; "
                f"give cycle_momentum=False"
            )
        self.use_beta1 = "betas" in optimizer.defaults
        low = one_per_group("base_momentum", optimizer, base_momentum)
        high = one_per_group("max_momentum", optimizer, max_momentum)
        if begin:
            for small, large, group in zip(low, high, optimizer.param_groups, strict=True):
                self._set_momentum(group, large)
                group["max_momentum"] = large
                group["base_momentum"] = small
        return low, high

    def _set_momentum(self, group: dict[str, Any], momentum: float) -> None:
        if self.use_beta1:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


class CyclicLR(_WithMomentum):
    """Up from ``base_lr`` to ``max_lr`` and down again, as ``torch.optim.lr_scheduler.CyclicLR``.

    Smith, "Cyclical learning rates for training neural networks", 2017. Steps are batches, not epochs.

    Args:
        optimizer: whose learning rates to set.
        base_lr: lowest rate, or one for each group; replaces the optimizer's.
        max_lr: highest rate of the first cycle, or one for each group.
        step_size_up: steps on the way up.
        step_size_down: steps on the way down; as many by default.
        mode: ``"triangular"``; ``"triangular2"`` halves the height each cycle; ``"exp_range"`` multiplies it by
            ``gamma`` each step.
        gamma: see ``mode``.
        scale_fn: a function that gives the factor of the height; ``mode`` is ignored.
        scale_mode: whether ``scale_fn`` is of the ``"cycle"``, counted from 1, or of the ``"iterations"``.
        cycle_momentum: move the momentum the other way.
        base_momentum: lowest momentum, or one for each group.
        max_momentum: highest momentum, or one for each group.
        last_epoch: number of the last step, to continue.

    Raises:
        TypeError: not an optimizer.
        ValueError: an unknown mode, lists of a wrong length, or ``cycle_momentum`` without momentum.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | list[float],
        max_lr: float | list[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float = 0.8,
        max_momentum: float = 0.9,
        last_epoch: int = -1,
    ) -> None:
        check_optimizer(optimizer)
        if mode not in ("triangular", "triangular2", "exp_range") and scale_fn is None:
            raise ValueError(
                f"mode must be 'triangular', 'triangular2' or 'exp_range', got {mode!r}; or give a scale_fn"
            )
        self.optimizer = optimizer
        base_lrs = one_per_group("base_lr", optimizer, base_lr)
        if last_epoch == -1:
            for lr, group in zip(base_lrs, optimizer.param_groups, strict=True):
                set_value(group, "lr", lr)
        self.max_lrs = one_per_group("max_lr", optimizer, max_lr)
        up = float(step_size_up)
        self.total_size = up + (up if step_size_down is None else float(step_size_down))
        self.step_ratio = up / self.total_size
        self.mode = mode
        self.gamma = gamma
        self._scale_fn_custom = scale_fn
        self.scale_mode = scale_mode
        if scale_fn is None:
            self.scale_mode = "iterations" if mode == "exp_range" else "cycle"
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self.base_momentums, self.max_momentums = self._begin_momentum(
                optimizer, base_momentum, max_momentum, last_epoch == -1
            )
        super().__init__(optimizer, last_epoch)
        self.base_lrs = base_lrs

    def scale_fn(self, x: float) -> float:
        """Return the factor of the height in cycle, or at step, ``x``."""
        if self._scale_fn_custom is not None:
            return self._scale_fn_custom(x)
        if self.mode == "triangular2":
            return float(1 / 2.0 ** (x - 1))
        return float(self.gamma**x) if self.mode == "exp_range" else 1.0

    def get_lr(self) -> list[Any]:
        self._warn_if_called_by_user()
        cycles = 1.0 + self.last_epoch / self.total_size
        cycle = math.floor(cycles)
        x = cycles - cycle
        height = x / self.step_ratio if x <= self.step_ratio else (x - 1) / (self.step_ratio - 1)
        scale = self.scale_fn(cycle if self.scale_mode == "cycle" else self.last_epoch)
        if self.cycle_momentum:
            groups = zip(self.optimizer.param_groups, self.base_momentums, self.max_momentums, strict=True)
            for group, low, high in groups:
                self._set_momentum(group, high - (high - low) * height * scale)
        return [
            low + (high - low) * height * scale for low, high in zip(self.base_lrs, self.max_lrs, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"_scale_fn_custom": function_state(self._scale_fn_custom)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "_scale_fn_custom"})
        attributes = state_dict["_scale_fn_custom"]
        if attributes is not None:
            vars(self._scale_fn_custom).update(attributes)


class OneCycleLR(_WithMomentum):
    """One cycle: up to ``max_lr``, then far below where it began, as ``torch.optim.lr_scheduler.OneCycleLR``.

    Smith and Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018.
    Steps are batches, not epochs.

    Args:
        optimizer: whose learning rates to set.
        max_lr: highest rate, or one for each group.
        total_steps: length of the cycle; or else ``epochs`` and ``steps_per_epoch``.
        epochs: how many epochs the cycle has.
        steps_per_epoch: how many steps an epoch has.
        pct_start: part of the cycle that goes up; a float.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        cycle_momentum: move the momentum the other way.
        base_momentum: lowest momentum, or one for each group.
        max_momentum: highest momentum, or one for each group.
        div_factor: the rate begins at ``max_lr`` over this.
        final_div_factor: and ends at where it began over this.
        three_phase: go down to where it began as slowly as up, and only then further.
        last_epoch: number of the last step, to continue.

    Raises:
        TypeError: not an optimizer.
        ValueError: no length, or an option outside its range; and from :meth:`step`, when the cycle is over.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        check_optimizer(optimizer)
        if total_steps is not None:
            lengths = {"total_steps": total_steps}
        elif epochs is not None and steps_per_epoch is not None:
            lengths = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
        else:
            raise ValueError("give the length of the cycle: total_steps, or epochs and steps_per_epoch")
        for name, value in lengths.items():
            if not isinstance(value, int) or value <= 0:
                raise ValueError(f"{name} must be a positive integer, got {value}")
        if not isinstance(pct_start, float) or not 0 <= pct_start <= 1:
            raise ValueError(f"pct_start must be a float in [0, 1], got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}")
        self.optimizer = optimizer
        self.total_steps = math.prod(lengths.values())
        up = float(pct_start * self.total_steps) - 1
        rise = _phase(up, "initial_lr", "max_lr", "max_momentum", "base_momentum")
        last = self.total_steps - 1
        self._schedule_phases: list[dict[str, Any]]
        if three_phase:
            down = float(2 * pct_start * self.total_steps) - 2
            self._schedule_phases = [
                rise,
                _phase(down, "max_lr", "initial_lr", "base_momentum", "max_momentum"),
                _phase(last, "initial_lr", "min_lr", "max_momentum", "max_momentum"),
            ]
        else:
            self._schedule_phases = [
                rise,
                _phase(last, "max_lr", "min_lr", "base_momentum", "max_momentum"),
            ]
        self._anneal_func_type = anneal_strategy
        max_lrs = one_per_group("max_lr", optimizer, max_lr)
        if last_epoch == -1:
            for highest, group in zip(max_lrs, optimizer.param_groups, strict=True):
                group["initial_lr"] = highest / div_factor
                group["max_lr"] = highest
                group["min_lr"] = group["initial_lr"] / final_div_factor
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self._begin_momentum(optimizer, base_momentum, max_momentum, last_epoch == -1)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        self._warn_if_called_by_user()
        step = self.last_epoch
        if step > self.total_steps:
            raise ValueError(f"step {step} of a cycle of {self.total_steps} steps; make it longer")
        begin, phase = 0.0, self._schedule_phases[0]
        for phase in self._schedule_phases:
            if step <= phase["end_step"] or phase is self._schedule_phases[-1]:
                break
            begin = phase["end_step"]
        part = (step - begin) / (phase["end_step"] - begin)
        rates = []
        for group in self.optimizer.param_groups:
            rates.append(self._anneal(group[phase["start_lr"]], group[phase["end_lr"]], part))
            if self.cycle_momentum:
                start, end = group[phase["start_momentum"]], group[phase["end_momentum"]]
                self._set_momentum(group, self._anneal(start, end, part))
        return rates

    def _anneal(self, start: Any, end: Any, part: float) -> Any:
        if self._anneal_func_type == "linear":
            return (end - start) * part + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)


def _phase(end: float, start_lr: str, end_lr: str, start_momentum: str, end_momentum: str) -> dict[str, Any]:
    return {
        "end_step": end,
        "start_lr": start_lr,
        "end_lr": end_lr,
        "start_momentum": start_momentum,
        "end_momentum": end_momentum,
    }
