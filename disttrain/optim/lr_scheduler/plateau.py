"""A schedule that waits until nothing improves."""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

from disttrain.optim.lr_scheduler.base import LRScheduler, check_optimizer, set_value, warn_of_epoch
from disttrain.optim.optimizer import Optimizer


class ReduceLROnPlateau(LRScheduler):
    """Lower the rate when a metric no longer improves, as ``torch.optim.lr_scheduler.ReduceLROnPlateau``.

    Args:
        optimizer: whose learning rates to set.
        mode: ``"min"`` or ``"max"``: which metric is better.
        factor: of the rate, when it is lowered.
        patience: epochs without improvement that are borne.
        threshold: by how much a better metric must be better.
        threshold_mode: ``"rel"``, as a part of the best; or ``"abs"``.
        cooldown: epochs after a reduction that do not count.
        min_lr: lowest rate, or one for each group.
        eps: smaller reductions are not made.

    Raises:
        TypeError: not an optimizer.
        ValueError: a factor of 1 or more, an unknown mode, or a list of a wrong length.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: list[float] | float = 0,
        eps: float = 1e-8,
    ) -> None:
        if factor >= 1.0:
            raise ValueError(f"factor must be below 1, got {factor}")
        check_optimizer(optimizer)
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode must be 'rel' or 'abs', got {threshold_mode!r}")
        groups = len(optimizer.param_groups)
        if isinstance(min_lr, list | tuple):
            if len(min_lr) != groups:
                raise ValueError(f"min_lr must be one per group; got {len(min_lr)} for {groups} groups")
            self.default_min_lr: float | None = None
            self.min_lrs = list(min_lr)
        else:
            self.default_min_lr = min_lr
            self.min_lrs = [min_lr] * groups
        self.factor = factor
        self.optimizer = optimizer
        self.patience = patience
        self.cooldown = cooldown
        self.eps = eps
        self.last_epoch = 0
        self._last_lr = self._rates()
        self.mode = mode
        self.mode_worse = math.inf if mode == "min" else -math.inf
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self._reset()

    def _reset(self) -> None:
        self.best = self.mode_worse
        self.cooldown_counter = 0
        self.num_bad_epochs = 0

    def step(self, metrics: SupportsFloat, epoch: Any = None) -> None:  # type: ignore[override]
        """Go on to the next epoch.

        Args:
            metrics: what should improve; a number, or a Tensor of one element.
            epoch: deprecated.
        """
        value = float(metrics)
        if epoch is not None:
            warn_of_epoch()
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        better, waiting = self._is_better(value, self.best), self.in_cooldown
        if better:
            self.best = value
        if waiting:
            self.cooldown_counter -= 1
        self.num_bad_epochs = 0 if better or waiting else self.num_bad_epochs + 1
        if self.num_bad_epochs > self.patience:
            self._reduce_lr()
            self.num_bad_epochs, self.cooldown_counter = 0, self.cooldown
        self._last_lr = self._rates()

    @property
    def in_cooldown(self) -> bool:
        """Whether epochs do not count yet."""
        return self.cooldown_counter > 0

    def _reduce_lr(self) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.min_lrs):
            if self.default_min_lr is None:
                raise RuntimeError(
                    f"min_lr was given for {len(self.min_lrs)} groups and the optimizer now has {len(groups)}; "
                    f"set scheduler.min_lrs anew after add_param_group()"
                )
            self.min_lrs = [self.default_min_lr] * len(groups)
        for group, least in zip(groups, self.min_lrs, strict=True):
            before = float(group["lr"])
            after = max(before * self.factor, least)
            if before - after > self.eps:
                set_value(group, "lr", after)

    def _is_better(self, a: float, best: float) -> bool:
        by = self.threshold if self.mode == "max" else -self.threshold
        limit = best * (1.0 + by) if self.threshold_mode == "rel" else best + by
        return a > limit if self.mode == "max" else a < limit
