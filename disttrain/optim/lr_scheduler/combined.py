"""Schedules made of schedules: one after another, or all at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from disttrain.optim.lr_scheduler.base import LRScheduler, set_value
from disttrain.optim.lr_scheduler.plateau import ReduceLROnPlateau
from disttrain.optim.optimizer import Optimizer


class _OfSchedulers(LRScheduler):
    """A scheduler that has others."""

    _schedulers: Sequence[LRScheduler]

    def _check(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None) -> Optimizer:
        """Return the optimizer of all of them."""
        name = type(self).__name__
        if not schedulers:
            raise ValueError(f"{name} needs at least one scheduler, got none")
        for i, scheduler in enumerate(schedulers):
            if not hasattr(scheduler, "optimizer"):
                raise TypeError(
                    f"{name} is made of schedulers, got {type(scheduler).__name__} at index {i}, which has no optimizer"
                )
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    f"{name} cannot hold a ReduceLROnPlateau, whose step() needs a metric; got one at index {i}"
                )
            optimizer = scheduler.optimizer if optimizer is None else optimizer
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"{name} needs schedulers of one optimizer; that at index {i} has another")
        assert optimizer is not None
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "_schedulers"})
        for scheduler, state in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            scheduler.load_state_dict(state)


class SequentialLR(_OfSchedulers):
    """One scheduler after another, as ``torch.optim.lr_scheduler.SequentialLR``.

    Args:
        optimizer: whose learning rates to set.
        schedulers: in their order.
        milestones: epochs at which the next one begins, from its epoch 0.
        last_epoch: number of the last epoch, to continue.

    Raises:
        TypeError: something that is no scheduler.
        ValueError: no scheduler, one of another optimizer, a ReduceLROnPlateau, or milestones that are not one fewer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        self._check(schedulers, optimizer)
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"milestones must be one fewer than schedulers; got {len(milestones)} milestones and "
                f"{len(schedulers)} schedulers"
            )
        self._schedulers = schedulers
        self._milestones = milestones
        self.last_epoch = last_epoch + 1
        self.optimizer = optimizer
        # All have made their first step when they were made: undo it, and make that of the first one.
        for group in optimizer.param_groups:
            set_value(group, "lr", group["initial_lr"])
        self.recursive_undo()
        first = schedulers[bisect_right(milestones, 0)]
        first._initial_step()
        self._last_lr = first.get_last_lr()

    def recursive_undo(self, sched: LRScheduler | None = None) -> None:
        """Take back the last step of a scheduler, or of all that it is made of."""
        scheduler = self if sched is None else sched
        if isinstance(scheduler, _OfSchedulers):
            for inner in scheduler._schedulers:
                self.recursive_undo(inner)
        elif hasattr(scheduler, "last_epoch"):
            scheduler.last_epoch -= 1

    def step(self) -> None:  # type: ignore[override]
        """Go on to the next epoch."""
        self.last_epoch += 1
        index = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[index]
        if index > 0 and self._milestones[index - 1] == self.last_epoch:
            scheduler._update_lr(0)
        else:
            scheduler.step()
        self._last_lr = scheduler.get_last_lr()


class ChainedScheduler(_OfSchedulers):
    """Several schedulers at once, each going on from the others' rates: PyTorch's ``ChainedScheduler``.

    Args:
        schedulers: in their order.
        optimizer: theirs; by default that of the first.

    Raises:
        TypeError: something that is no scheduler.
        ValueError: no scheduler, one of another optimizer, or a ReduceLROnPlateau.
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None) -> None:
        self.optimizer = self._check(schedulers, optimizer)
        self._schedulers = schedulers
        self._last_lr = self._rates()

    def step(self) -> None:  # type: ignore[override]
        """Go on to the next epoch."""
        for scheduler in self._schedulers:
            scheduler.step()
        self._last_lr = self._rates()
