"""Schedules along a cosine (Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017)."""

from __future__ import annotations

import math
from typing import Any

from disttrain.optim.lr_scheduler.base import LRScheduler, set_value
from disttrain.optim.optimizer import Optimizer


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial rate to ``eta_min`` in ``T_max`` epochs, and back in as many.

    As ``torch.optim.lr_scheduler.CosineAnnealingLR``.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        self._warn_if_called_by_user()
        t, low, rates = self.last_epoch, self.eta_min, self._rates()
        if self._is_initial:
            return rates
        if self._step_count == 1 and t > 0:
            return self._get_closed_form_lr()
        if (t - 1 - self.T_max) % (2 * self.T_max) == 0:  # from the bottom there is no ratio to go up by
            rise = (1 - math.cos(math.pi / self.T_max)) / 2
            return [lr + (base - low) * rise for lr, base in zip(rates, self.base_lrs, strict=True)]
        ratio = (1 + math.cos(math.pi * t / self.T_max)) / (1 + math.cos(math.pi * (t - 1) / self.T_max))
        return [ratio * (lr - low) + low for lr in rates]

    def _get_closed_form_lr(self) -> list[Any]:
        height = (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
        return [self.eta_min + (base - self.eta_min) * height for base in self.base_lrs]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a cosine down to ``eta_min``, again and again, as ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts``.

    Args:
        optimizer: whose learning rates to set.
        T_0: epochs until the first restart.
        T_mult: how many times longer each period is than the one before.
        eta_min: the smallest rate.
        last_epoch: number of the last epoch, to continue.

    Raises:
        ValueError: a period that is no positive integer, a factor that is no integer of at least 1, or an
            ``eta_min`` that is no number.
    """

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        for name, number in (("T_0", T_0), ("T_mult", T_mult)):
            if number < 1 or not isinstance(number, int):
                raise ValueError(f"{name} must be an integer of at least 1, got {number}")
        if not isinstance(eta_min, float | int):
            raise ValueError(f"eta_min must be a number, got {eta_min!r} of type {type(eta_min).__name__}")
        self.T_0 = T_0
        self.T_i = T_0
        """Length of this period."""
        self.T_mult = T_mult
        self.eta_min = eta_min
        self.T_cur: float = last_epoch
        """Epochs since the last restart."""
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        self._warn_if_called_by_user()
        height = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2
        return [self.eta_min + (base - self.eta_min) * height for base in self.base_lrs]

    def _period(self, epoch: float) -> tuple[int, float]:
        """Return how long the period is that an epoch lies in, and how far in it the epoch is."""
        if self.T_mult == 1 or epoch < self.T_0:
            return self.T_0, epoch % self.T_0
        growth = self.T_mult - 1
        restarts = int(math.log(1 + epoch / self.T_0 * growth, self.T_mult))  # lengths are a geometric series
        length = self.T_0 * self.T_mult**restarts
        return length, epoch - (length - self.T_0) / growth

    def step(self, epoch: Any = None) -> None:
        """Go on to the next epoch, or to any; fractions of epochs are welcome.

        Raises:
            ValueError: a negative epoch.
        """
        if epoch is not None and epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        if epoch is None and self.last_epoch >= 0:
            self.last_epoch += 1
            restarts, self.T_cur = divmod(self.T_cur + 1, self.T_i)
            if restarts >= 1:
                self.T_i *= self.T_mult
        else:
            self.T_i, self.T_cur = self._period(epoch or 0)
            self.last_epoch = math.floor(epoch or 0)
        with self._within_step():
            rates = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            set_value(group, "lr", lr)
        self._last_lr = self._rates()
