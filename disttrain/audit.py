"""What a rank did, in digests: its batches, what each operation and layer returned, gradients, parameters of each step.

``disttrain audit`` has it written on several numbers of processes and compares: `launcher/audit.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.autograd.anomaly_mode import users_line
from disttrain.collectives.env import current_env
from disttrain.context import grad_enabled
from disttrain.kernels.arrays import is_array, to_host
from disttrain.modes import changed
from disttrain.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from disttrain.nn.module import Module
    from disttrain.nodes import Node


class _Recorder:
    """The record of one rank: a line of JSON for each event, ``[kind, step, name, class, digest]``."""

    def __init__(self, folder: str, rank: int, steps: int) -> None:
        self.file = open(Path(folder, f"rank{rank}"), "w", buffering=1)  # noqa: SIM115  until the rank ends
        self.limit = steps
        self.names: dict[int, str] = {}
        """Of parameters, by ``id``."""
        self.made: dict[int, int] = {}
        """Steps of each optimizer, by ``id``."""
        self.models = 0
        self.watched: set[Module] = set()
        self.layers: list[str] = []
        """The layers in whose forward the rank is, the innermost last."""
        self.made_by: dict[int, str] = {}
        """What made each node of the graph, in words, by ``id``."""

    # What follows is a ``modes.Watch``.

    def forward(self, node: Node, inputs: Sequence[Any], outs: Sequence[Any]) -> None:
        file, line, _ = users_line()
        layer = f" in {self.layers[-1]}" if self.layers else ""
        place = file.removeprefix(os.getcwd() + os.sep)
        self.made_by[id(node)] = f"{node.op.__name__}(){layer} at {place}:{line}"
        self.write("op", self.made_by[id(node)], "", *outs)

    def visiting(self, visit: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
        def watched(node: Node, g: Any, *rest: Any) -> Sequence[Any]:
            grads = visit(node, g, *rest)
            if (name := self.made_by.get(id(node))) is not None:
                self.write("backward", name, "", *grads)
            return grads

        return watched

    def enter(self, layer: str) -> None:
        self.layers.append(layer)

    def leave(self, layer: str) -> None:
        while self.layers and self.layers.pop() != layer:  # those inside raised
            pass

    def write(self, kind: str, name: str, what: str, *values: Any) -> None:
        step = max(self.made.values(), default=0)
        self.file.write(json.dumps([kind, step, name, what, _digest(values)]) + "\n")


_recorders: dict[int, _Recorder] = {}


def watch(model: Module) -> None:
    """Record what becomes of ``model`` on the calling rank, if its job is audited."""
    env = current_env()
    if env.rank not in _recorders:
        if not _recorders:
            register_optimizer_step_pre_hook(_before_step)
            register_optimizer_step_post_hook(_after_step)
        _recorders[env.rank] = _Recorder(env.audit, env.rank, env.audit_steps)
    recorder = _recorders[env.rank]
    recorder.models += 1
    prefix = f"model {recorder.models}: " if recorder.models > 1 else ""
    for name, p in model.named_parameters():
        recorder.names.setdefault(id(p), prefix + name)
    model.register_forward_pre_hook(
        lambda m, args, kwargs: recorder.write("input", prefix, type(m).__name__, args, kwargs),
        with_kwargs=True,
    )
    for name, module in model.named_modules():
        if module in recorder.watched:
            continue
        recorder.watched.add(module)
        place = prefix + (name or "the whole model")
        layer = f"{place} ({type(module).__name__})"
        module.register_forward_pre_hook(lambda m, _, layer=layer: recorder.enter(layer))

        def returned(m: Module, _: Any, out: Any, place: str = place, layer: str = layer) -> None:
            recorder.leave(layer)
            recorder.write("forward", place, type(m).__name__, out)

        module.register_forward_hook(returned)
    grad_enabled.set(changed(watch=recorder))


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    recorder = _recorders.get(current_env().rank)
    if recorder is None:
        return
    if recorder.made.get(id(optimizer), 0) >= recorder.limit:
        raise SystemExit(0)  # enough; every rank is here
    for name, p in _parameters(recorder, optimizer):
        recorder.write("gradient", name, "", p._grad)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    recorder = _recorders.get(current_env().rank)
    if recorder is None:
        return
    for name, p in _parameters(recorder, optimizer):
        recorder.write("parameter" if p._shard is None else "part", name, "", p)
    recorder.made_by.clear()
    recorder.made[id(optimizer)] = recorder.made.get(id(optimizer), 0) + 1


def _parameters(recorder: _Recorder, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [(recorder.names.get(id(p), f"parameter {i}"), p) for i, p in enumerate(params)]


def _digest(value: Any) -> str:
    found = hashlib.blake2b(digest_size=8)
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, Tensor) or is_array(value):
        array = to_host(value._array if isinstance(value, Tensor) else value)
        found.update(f"{array.dtype.name}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    elif isinstance(value, dict):
        for key, part in value.items():
            found.update(repr(key).encode())
            _add(found, part)
    elif isinstance(value, list | tuple):
        for part in value:
            _add(found, part)
    elif isinstance(value, bool | int | float | str | None):
        found.update(repr(value).encode())
