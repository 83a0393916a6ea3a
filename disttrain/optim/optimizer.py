"""What all optimizers share: groups of parameters, their state, and the walk over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.collectives.env import current_env
from disttrain.engine import enable_grad
from disttrain.errors import UnwrappedModel
from disttrain.kernels.arrays import Array
from disttrain.optim.flat import FlatParameters, group_by_memory
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


class Optimizer:
    """Base of all optimizers, as ``torch.optim.Optimizer``.

    A subclass names its state buffers in :meth:`buffers` and writes one step over flat arrays in :meth:`update`.

    Args:
        params: parameters, or dicts with ``params`` and options that differ from the defaults.
        defaults: the options of groups that do not say otherwise.

    Raises:
        ValueError: no parameter, or one that is in two groups.
        TypeError: something that is no Tensor.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self._flats: list[list[FlatParameters]] = []
        self._world_size = current_env().world_size
        if isinstance(params, Tensor):
            raise TypeError(
                "params must be a sequence of Tensors or of dicts, got one Tensor; put it in a list"
            )
        groups: list[Any] = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the state buffers that a group needs."""
        raise NotImplementedError

    def update(
        self, group: dict[str, Any], param: Array, grad: Array, state: dict[str, Array], step: int
    ) -> None:
        """Step once over flat float32 or float64 arrays of one size: change ``param`` and ``state`` in place."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own.

        Raises:
            ValueError: a parameter is in another group already, twice in this one, or no leaf.
        """
        group = dict(param_group)
        given = group["params"]
        params = (
            [given] if isinstance(given, Tensor) else [p[1] if isinstance(p, tuple) else p for p in given]
        )
        known = {id(p) for g in self.param_groups for p in g["params"]}
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"an optimizer can only optimize Tensors, got {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError(
                    f"can't optimize a tensor that is no leaf (shape {list(p.shape)}, made by {p.grad_fn})"
                )
            if id(p) in known:
                raise ValueError(
                    f"a parameter of shape {list(p.shape)} appears in more than one place; give each once"
                )
            known.add(id(p))
        group["params"] = params
        for name, value in self.defaults.items():
            group.setdefault(name, value)
        self.param_groups.append(group)
        self._flats.append(group_by_memory(params))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with ``set_to_none=False`` fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if p._grad is None:
                    continue
                if set_to_none:
                    p._grad = None
                else:
                    p._grad = p._grad.detach()
                    p._grad.zero_()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: computes the loss again (and its gradients) and returns it.

        Returns:
            What ``closure`` returned.

        Raises:
            UnwrappedModel: in a world of several ranks, parameters that no parallel wrapper keeps equal.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        if self._world_size > 1:
            self._check_wrapped()
        for group, flats in zip(self.param_groups, self._flats, strict=True):
            names = self.buffers(group)
            for flat in flats:
                for run in flat.runs():
                    part = slice(run.begin, run.end)
                    state = {name: flat.buffer(name)[part] for name in names}
                    param = flat.array[part]
                    if param.dtype.itemsize > 2:
                        self.update(group, param, run.grad, state, run.step)
                    else:  # half precision steps in float32 and is rounded once
                        wide = param.astype(np.float32)
                        self.update(group, wide, run.grad.astype(np.float32), state, run.step)
                        param[...] = wide
        return loss

    def _check_wrapped(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p._grad is not None and not p._synchronized and not p._grad._synchronized:
                    raise UnwrappedModel(
                        f"optimizer.step() in a world of {self._world_size} ranks on a parameter of shape "
                        f"{list(p.shape)} whose gradient was not averaged over the ranks: they would train apart; "
                        f"wrap the model, after the last change of it: model = "
                        f"disttrain.nn.parallel.DistributedDataParallel(model)"
                    )

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """What the optimizer remembers of each parameter that has made a step: the number of steps and its buffers."""
        found: dict[Tensor, dict[str, Any]] = {}
        for flats in self._flats:
            for flat in flats:
                for i, p in enumerate(flat.params):
                    if flat.steps[i]:
                        part = slice(flat.begins[i], flat.begins[i + 1])
                        found[p] = {"step": flat.steps[i]} | {
                            name: Tensor(buffer[part].reshape(p.shape)) for name, buffer in flat.state.items()
                        }
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the options of all groups and the state of all parameters, these numbered in order; not copied."""
        number = {id(p): i for i, p in enumerate(p for g in self.param_groups for p in g["params"])}
        return {
            "state": {number[id(p)]: s for p, s in self.state.items()},
            "param_groups": [
                {k: v for k, v in g.items() if k != "params"}
                | {"params": [number[id(p)] for p in g["params"]]}
                for g in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned. A state that does not fit changes nothing.

        Raises:
            ValueError: other groups, other numbers of parameters, or other shapes; names all that do not fit.
        """
        groups = state_dict["param_groups"]
        ours, theirs = ([len(g["params"]) for g in gs] for gs in (self.param_groups, groups))
        if ours != theirs:
            raise ValueError(f"the loaded state has groups of {theirs} parameters, this optimizer of {ours}")
        params = [p for g in self.param_groups for p in g["params"]]
        numbers = [n for g in groups for n in g["params"]]
        state = {id(p): state_dict["state"].get(n, {}) for p, n in zip(params, numbers, strict=True)}
        wrong = [
            f"{name} of parameter {i} has shape {list(value.shape)}, expected {list(p.shape)}"
            for i, p in enumerate(params)
            for name, value in state[id(p)].items()
            if name != "step" and isinstance(value, Tensor) and value.shape != p.shape
        ]
        if wrong:
            raise ValueError("the loaded state does not fit: " + "; ".join(wrong))
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update({k: v for k, v in saved.items() if k != "params"})
        for flats in self._flats:
            for flat in flats:
                flat.state.clear()
                for i, p in enumerate(flat.params):
                    loaded = state[id(p)]
                    flat.steps[i] = int(loaded.get("step", 1 if loaded else 0))
                    for name, value in loaded.items():
                        if isinstance(value, Tensor) and name != "step":
                            flat.buffer(name)[flat.begins[i] : flat.begins[i + 1]] = value._array.reshape(-1)

    def __repr__(self) -> str:
        lines = []
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {k}: {v}" for k, v in sorted(group.items()) if k != "params"]
        return f"{type(self).__name__} (\n" + "\n".join(lines) + "\n)"


def check_not_negative(**options: float) -> None:
    """Raise ValueError for the first option below zero."""
    for name, value in options.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
