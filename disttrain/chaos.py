"""Carrying out ``disttrain launch --chaos``: imported by an optimizer in a job for which faults are ordered."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from disttrain.collectives import control
from disttrain.collectives.chaos import Fault, parse
from disttrain.collectives.env import WorkerEnv, current_env

if TYPE_CHECKING:
    from disttrain.optim.optimizer import Optimizer
    from disttrain.tensors import RemovableHandle, Tensor

_logger = logging.getLogger("disttrain")


def watch(optimizer: Optimizer) -> None:
    """Do to the calling rank what is ordered for it, at the steps of ``optimizer``."""
    env = current_env()
    faults = [fault for fault in parse(env.chaos, env.world_size) if fault.rank == env.rank]
    if faults:
        watcher = _Watcher(faults)
        watcher.prepare(optimizer)
        optimizer.register_step_post_hook(watcher.stepped)


class _Watcher:
    """Counts the steps of one optimizer."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._faults = list(faults)
        self._steps = 0
        self._since = time.monotonic()
        self._hooks: list[RemovableHandle] = []

    def stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._steps += 1
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for fault in self._faults:
            match fault.what:
                case "slow" if fault.step <= self._steps:
                    if fault.step == self._steps:
                        _tell(fault)
                    time.sleep((fault.factor - 1.0) * (time.monotonic() - self._since))
                case "cut" if fault.step == self._steps:
                    _tell(fault)  # the launcher does it
                case "kill" if fault.step == self._steps:
                    _tell(fault)
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stop" if fault.step == self._steps:
                    _tell(fault)
                    os.kill(os.getpid(), signal.SIGSTOP)
        self._since = time.monotonic()
        self.prepare(optimizer)

    def prepare(self, optimizer: Optimizer) -> None:
        """Have the gradients of the next step spoiled, if that is ordered."""
        due = [f for f in self._faults if f.what == "nan" and f.step == self._steps + 1]
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        for fault in due:
            told: list[Fault] = []
            self._hooks += [p.register_hook(partial(_spoil, fault, told)) for p in params]


def _spoil(fault: Fault, told: list[Fault], gradient: Tensor) -> Tensor:
    if not told:
        told.append(fault)
        _tell(fault)
    return gradient * math.nan


def _tell(fault: Fault) -> None:
    """Say what happens now, in the log and to the launcher, which notes it."""
    env = current_env()
    _logger.warning("chaos: %s", fault)
    if env.control:
        control.post_chaos(
            env.control,
            run=env.run_id,
            generation=env.generation,
            process=WorkerEnv.from_environ().process,
            rank=env.rank,
            fault=str(fault),
        )
