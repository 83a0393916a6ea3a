"""Averages of weights over the steps: stochastic weight averaging and exponential moving averages.

Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018; by the names of
``torch.optim.swa_utils``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from disttrain import dtypes, missing
from disttrain.engine import no_grad
from disttrain.functions.conversion import tensor
from disttrain.modes import replayed
from disttrain.nn.module import Module
from disttrain.nn.normalization import _BatchNorm
from disttrain.optim.lr_scheduler.base import LRScheduler, one_per_group
from disttrain.optim.optimizer import Optimizer
from disttrain.tensors import Tensor

__all__ = [
    "SWALR",
    "AveragedModel",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]

Average = Callable[[Tensor, Tensor, Any], Tensor]
MultiAverage = Callable[[list[Tensor], list[Tensor], Any], None]


def get_ema_avg_fn(decay: float = 0.999) -> Average:
    """Return a function of an average, a new value and their number that gives the exponential moving average.

    Raises:
        ValueError: ``decay`` outside [0, 1].
    """
    _check_decay(decay)

    def average(averaged: Tensor, current: Tensor, number: Any) -> Tensor:
        with no_grad():
            return decay * averaged + (1 - decay) * current

    return average


def get_ema_multi_avg_fn(decay: float = 0.999) -> MultiAverage:
    """Return a function that moves a list of averages towards new values, exponentially.

    Raises:
        ValueError: ``decay`` outside [0, 1].
    """
    _check_decay(decay)

    def average(averaged: list[Tensor], current: list[Tensor], number: Any) -> None:
        with no_grad():
            for old, new in zip(averaged, current, strict=True):
                if old.is_floating_point():
                    old.lerp_(new, 1 - decay)
                else:
                    old.copy_(old * decay + new * (1 - decay))

    return average


def get_swa_avg_fn() -> Average:
    """Return a function of an average, a new value and their number that gives the equal average."""

    def average(averaged: Tensor, current: Tensor, number: Any) -> Tensor:
        with no_grad():
            moved: Tensor = averaged + (current - averaged) / (number + 1)
            return moved

    return average


def get_swa_multi_avg_fn() -> MultiAverage:
    """Return a function that takes new values into a list of equal averages."""

    def average(averaged: list[Tensor], current: list[Tensor], number: Any) -> None:
        with no_grad():
            for old, new in zip(averaged, current, strict=True):
                if old.is_floating_point():
                    old.lerp_(new, 1 / (float(number) + 1))
                else:
                    old.copy_(old + (new - old) / (float(number) + 1))

    return average


class AveragedModel(Module):
    """A copy of a model whose parameters are the averages of the model's, as ``torch.optim.swa_utils.AveragedModel``.

    Call :meth:`update_parameters` after the steps that are to count. The averages start as the model that is given
    first. Of a model that a parallel wrapper has, the module inside is copied: the ranks' averages are equal because
    their models are.

    Args:
        model: the model.
        device: where the averages live; where the model does by default.
        avg_fn: a function of an average, a new value and the number of values before that gives the new average.
        multi_avg_fn: the same for lists of tensors of one type, in place.
        use_buffers: average the buffers too; else they are taken from the model.

    Raises:
        AssertionError: both functions are given.
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: Module,
        device: Any = None,
        avg_fn: Average | None = None,
        multi_avg_fn: MultiAverage | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise AssertionError("give avg_fn or multi_avg_fn, not both")
        self.module = copy.deepcopy(_inner(model))
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", tensor(0, dtype=dtypes.int64, device=device))
        self.avg_fn = avg_fn
        self.multi_avg_fn = multi_avg_fn
        self.use_buffers = use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the averaged model."""
        return self.module(*args, **kwargs)

    @replayed
    def update_parameters(self, model: Module) -> None:
        """Take the model's parameters into the averages.

        Raises:
            ValueError: the model has other parameters or buffers than the one that was copied.
        """
        model = _inner(model)
        ours, theirs = list(self.module.parameters()), list(model.parameters())
        buffers = list(zip(self.module.buffers(), model.buffers(), strict=False))
        if len(ours) != len(theirs):
            raise ValueError(
                f"the model has {len(theirs)} parameters, the averages are of one with {len(ours)}"
            )
        averaged, current = [p.detach() for p in ours], [p.detach() for p in theirs]
        if self.use_buffers:
            averaged += [b.detach() for b, _ in buffers]
            current += [b.detach() for _, b in buffers]
        current = [c.to(a.device) for a, c in zip(averaged, current, strict=True)]
        number = self.n_averaged
        with no_grad():
            if number.item() == 0:
                for a, c in zip(averaged, current, strict=True):
                    a.copy_(c)
            elif self.avg_fn is not None:
                for a, c in zip(averaged, current, strict=True):
                    a.copy_(self.avg_fn(a, c, number))
            else:
                average = self.multi_avg_fn or get_swa_multi_avg_fn()
                kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
                for a, c in zip(averaged, current, strict=True):
                    olds, news = kinds.setdefault((a.dtype, str(a.device)), ([], []))
                    olds.append(a)
                    news.append(c)
                for olds, news in kinds.values():
                    average(olds, news, number)
            if not self.use_buffers:
                for mine, other in buffers:
                    mine.detach().copy_(other.detach().to(mine.device))
            number.add_(1)


def update_bn(loader: Iterable[Any], model: Module, device: Any = None) -> None:
    """Compute the statistics of a model's BatchNorm layers anew, as ``torch.optim.swa_utils.update_bn``.

    Averaged weights never saw the data, so the statistics are not theirs. All batches count the same.

    Args:
        loader: gives the inputs, or tuples that begin with them.
        model: is called on each; without BatchNorm nothing is done.
        device: where inputs are moved first.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if not layers:
        return
    momenta = [m.momentum for m in layers]
    training = model.training
    with no_grad():
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # equal weights
        model.train()
        try:
            for batch in loader:
                x = batch[0] if isinstance(batch, list | tuple) else batch
                model(x if device is None else x.to(device))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
            model.train(training)


class SWALR(LRScheduler):
    """Go to a constant learning rate and stay, as ``torch.optim.swa_utils.SWALR``.

    Args:
        optimizer: whose learning rates to set.
        swa_lr: the rate, or one for each group.
        anneal_epochs: how long it takes.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        last_epoch: number of the last epoch, to continue.

    Raises:
        ValueError: an unknown strategy, a number of epochs that is no integer from 0 on, or a list of a wrong length.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ) -> None:
        for rate, group in zip(
            one_per_group("swa_lr", optimizer, swa_lr), optimizer.param_groups, strict=True
        ):
            group["swa_lr"] = rate
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}")
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ValueError(f"anneal_epochs must be an integer from 0 on, got {anneal_epochs}")
        self._anneal_strategy = anneal_strategy
        self.anneal_epochs = anneal_epochs
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        self._warn_if_called_by_user()
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._part(step - 1), self._part(step)
        rates = []
        for group in self.optimizer.param_groups:
            lr, goal = group["lr"], group["swa_lr"]
            # Where it would have begun, from where it is: another scheduler may have been at work.
            start = goal if before == 1 else (lr - before * goal) / (1 - before)
            rates.append(goal * now + start * (1 - now))
        return rates

    def _part(self, step: int) -> float:
        t = max(0.0, min(1.0, step / max(1, self.anneal_epochs)))
        return t if self._anneal_strategy == "linear" else (1 - math.cos(math.pi * t)) / 2


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must be in [0, 1], got {decay}")


def _inner(model: Module) -> Module:
    """Return the module inside a parallel wrapper, which cannot be copied; any other module as it is."""
    from disttrain.parallel.data_parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
