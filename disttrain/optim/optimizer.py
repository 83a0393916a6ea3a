"""What all optimizers share: groups of parameters, their options and their state."""

from __future__ import annotations

import copy
import functools
import importlib
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from disttrain.collectives.env import current_env
from disttrain.errors import UnwrappedModel
from disttrain.modes import current_tape, replayed
from disttrain.steering import stepped
from disttrain.tensors import RemovableHandle, Tensor

if TYPE_CHECKING:
    Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
    Hooks = OrderedDict[int, Callable[..., Any]]


class _Required:
    def __repr__(self) -> str:
        return "<required parameter>"


required: Any = _Required()
"""As a default: every group must give this option itself."""


class Optimizer:
    """Base of all optimizers, as ``torch.optim.Optimizer``.

    A subclass writes :meth:`step`, which walks ``param_groups`` and keeps what it remembers of a parameter in
    ``state[parameter]``.

    Args:
        params: parameters, pairs of a name and a parameter, or dicts with ``params`` and options that differ from
            the defaults.
        defaults: the options of groups that do not say otherwise.

    Raises:
        ValueError: no parameter, one that is in two groups or no leaf, or names for some parameters only.
        TypeError: something that is no Tensor.

    Warns:
        UserWarning: a parameter is twice in one group.
    """

    _opt_called = False
    """Whether :meth:`step` has been called since a scheduler was made."""
    _stepping = False
    _steps = 0
    """How often :meth:`step` has been called."""
    _sees_whole = False
    """Whether a step looks at parameters as a whole, and not at each element alike."""

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self._make_own()
        self._world_size = current_env().world_size
        if isinstance(params, Tensor):
            raise TypeError(
                f"{type(self).__name__}: params is a list of Tensors or of dicts, got one Tensor; put it in a list"
            )
        self.state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        groups: list[Any] = list(params)
        if not groups:
            raise ValueError(
                f"{type(self).__name__}: there are no parameters to optimize; an exhausted generator gives none"
            )
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)
        if current_env().chaos:
            importlib.import_module("disttrain.chaos").watch(self)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        step = cls.__dict__.get("step")
        if step is not None and not hasattr(step, "hooked"):
            cls.step = _hooked(step)  # type: ignore[method-assign]

    def _make_own(self) -> None:
        """Make what is not part of the state, for a new optimizer and for a copy."""
        self._step_pre_hooks: Hooks = OrderedDict()
        self._step_post_hooks: Hooks = OrderedDict()
        self._state_dict_pre_hooks: Hooks = OrderedDict()
        self._state_dict_post_hooks: Hooks = OrderedDict()
        self._load_pre_hooks: Hooks = OrderedDict()
        self._load_post_hooks: Hooks = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if "_step_pre_hooks" not in vars(self):
            self._make_own()
            self._world_size = current_env().world_size
        for group in self.param_groups:  # saved by a version that had fewer options
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def __repr__(self) -> str:
        groups = []
        for i, group in enumerate(self.param_groups):
            options = "".join(f"    {k}: {group[k]}\n" for k in sorted(group) if k != "params")
            groups.append(f"\nParameter Group {i}\n{options}")
        return f"{type(self).__name__} ({''.join(groups)})"

    # -------------------------------------------------------------------------------------- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own.

        Args:
            param_group: is kept; has ``params``, and gets the options that it lacks.

        Raises:
            TypeError: not a dict, a set of parameters (it has no order), or something that is no Tensor.
            ValueError: a parameter is in another group already or no leaf, an option is missing, or only some
                parameters have names.

        Warns:
            UserWarning: a parameter is twice in this group.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        given = param_group["params"]
        if isinstance(given, set | frozenset):
            raise TypeError(
                "params must be in an order that does not change between runs, got a set; use a list"
            )
        given = [given] if isinstance(given, Tensor) else list(given)
        names = [p[0] for p in given if isinstance(p, tuple)]
        params = [p[1] if isinstance(p, tuple) else p for p in given]
        if names and len(names) < len(params):
            raise ValueError(
                f"give all parameters with names or all without; {len(names)} of {len(params)} have a name"
            )
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"{type(self).__name__}: parameters are Tensors, got {type(p).__name__}")
            if not p.is_leaf and p._retained is None:
                raise ValueError(
                    f"only leaves can be optimized, not a result (shape {list(p.shape)}, made by {p.grad_fn})"
                )
            if self._sees_whole and p._shard is not None:
                raise ValueError(
                    f"{type(self).__name__} looks at whole parameters, and of a sharded one only a part is here; take "
                    f"an optimizer that treats each element alike (Adam), or DistributedDataParallel"
                )
        named = bool(names) or "param_names" in param_group
        for group in self.param_groups:
            if ("param_names" in group) != named:
                raise ValueError(
                    f"give all groups with names of the parameters or all without; this group is "
                    f"{'with' if named else 'without'} names"
                )
        for name, value in self.defaults.items():
            if value is required and name not in param_group:
                raise ValueError(f"the group must say {name!r}, which has no default")
        ids = {id(p) for p in params}
        if len(ids) < len(params):
            warnings.warn(
                f"{len(params) - len(ids)} parameters are more than once in one group, and step as often; "
                f"give each once",
                UserWarning,
                stacklevel=3,
            )
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) in ids:
                    raise ValueError(
                        f"a parameter of shape {list(p.shape)} appears in more than one group; give each once"
                    )
        param_group["params"] = params
        if names:
            param_group["param_names"] = names
        for name, value in self.defaults.items():
            param_group.setdefault(name, value)
        self.param_groups.append(param_group)

    @replayed
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with ``set_to_none=False`` fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if p._grad is None:
                    continue
                if set_to_none:
                    p._grad = None
                else:
                    if p._grad.requires_grad:
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
        raise NotImplementedError(f"{type(self).__name__} does not say how to step")

    def _check_wrapped(self) -> dict[Any, None]:
        """Return the parallel wrappers of what is stepped, in order; raise if ranks would train apart."""
        wrappers: dict[Any, None] = {}
        if self._world_size == 1:
            return wrappers
        for group in self.param_groups:
            for p in group["params"]:
                if p._grad is None:
                    continue
                if p._shard is not None and p._grad._array.shape != p._array.shape:
                    raise UnwrappedModel(
                        f"optimizer.step() on a sharded parameter of shape {list(p._shard.shape)} whose gradient was "
                        f"only accumulated on this rank, under no_sync(); make the last backward before a step outside "
                        f"no_sync(), so that it is averaged"
                    )
                if p._synchronized:
                    wrappers[p._synchronized] = None
                elif not p._grad._synchronized:
                    raise UnwrappedModel(
                        f"optimizer.step() in a world of {self._world_size} ranks on a parameter of shape "
                        f"{list(p.shape)} whose gradient was not averaged over the ranks: they would train apart; "
                        f"wrap the model, after the last change of it: model = "
                        f"disttrain.nn.parallel.DistributedDataParallel(model)"
                    )
        return wrappers

    # -------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return the options of all groups and the state of all parameters, these numbered in order; not copied."""
        for hook in list(self._state_dict_pre_hooks.values()):
            hook(self)
        number = {id(p): i for i, p in enumerate(p for g in self.param_groups for p in g["params"])}
        groups = []
        for group in self.param_groups:
            packed = {k: v for k, v in group.items() if k != "params"}
            packed["params"] = [number[id(p)] for p in group["params"]]
            groups.append(packed)
        state = {number[id(k)] if isinstance(k, Tensor) else k: v for k, v in self.state.items()}
        state = dict(sorted(state.items(), key=lambda kv: kv[0] if isinstance(kv[0], int) else len(number)))
        found: dict[str, Any] = {"state": state, "param_groups": groups}
        for hook in list(self._state_dict_post_hooks.values()):
            changed = hook(self, found)
            if changed is not None:
                found = changed
        return found

    def _own_states(self) -> Iterator[tuple[Tensor, Tensor | None, dict[str, Any], bool]]:
        """Yield each parameter with what this rank steps of it, the state of that, and whether no other rank has it.

        For checkpoints. A sharded parameter is a part itself: see its ``_shard``.
        """
        for group in self.param_groups:
            for p in group["params"]:
                yield p, p, self.state.get(p, {}), False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned. A state that does not fit changes nothing.

        Floating point tensors get the type of their parameter, ``step`` apart.

        Raises:
            ValueError: other groups, other numbers of parameters, or (by optimizers that know theirs) other shapes;
                names all that do not fit.
        """
        state_dict = dict(state_dict)
        for hook in list(self._load_pre_hooks.values()):
            changed = hook(self, state_dict)
            if changed is not None:
                state_dict = changed
        groups = copy.deepcopy(state_dict["param_groups"])
        ours, theirs = ([len(g["params"]) for g in gs] for gs in (self.param_groups, groups))
        if ours != theirs:
            raise ValueError(f"the loaded state has groups of {theirs} parameters, this optimizer of {ours}")
        of_number = {
            n: p
            for old, new in zip(self.param_groups, groups, strict=True)
            for p, n in zip(old["params"], new["params"], strict=True)
        }
        state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for number, value in state_dict["state"].items():
            p = of_number.get(number)
            state[number if p is None else p] = value if p is None else self._fit(p, value)
        self._check_loaded(state, groups)
        for old, new in zip(self.param_groups, groups, strict=True):
            new["params"] = old["params"]
            if "param_names" in old:
                new.setdefault("param_names", old["param_names"])
        self.__setstate__({"state": state, "param_groups": groups})
        for hook in list(self._load_post_hooks.values()):
            hook(self)

    def _fit(self, param: Tensor, value: Any, key: Any = None) -> Any:
        """Return a copy of a loaded value in the type and on the device of ``param``."""
        if isinstance(value, Tensor):
            if key == "step":
                return value.clone()
            kind = self._state_dtype(param, value) if param.dtype.is_floating_point else value.dtype
            return value.detach().to(device=param.device, dtype=kind, copy=True)
        if isinstance(value, dict):
            return {k: self._fit(param, v, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._fit(param, v) for v in value)
        return value

    def _state_dtype(self, param: Tensor, value: Tensor) -> Any:
        return param.dtype

    def _check_loaded(self, state: dict[Any, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
        """Raise ValueError if a loaded state cannot be that of the parameters."""

    # -------------------------------------------------------------------------------------- hooks

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(optimizer, args, kwargs)`` before each step; it may return a new pair ``args, kwargs``.

        ``args`` begins with the optimizer.
        """
        return RemovableHandle(self._step_pre_hooks, hook)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(optimizer, args, kwargs)`` after each step; ``args`` begins with the optimizer."""
        return RemovableHandle(self._step_post_hooks, hook)

    def register_state_dict_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call ``hook(optimizer)`` before :meth:`state_dict`; with ``prepend`` before the other hooks."""
        return _register(self._state_dict_pre_hooks, hook, prepend)

    def register_state_dict_post_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call ``hook(optimizer, state_dict)`` on what :meth:`state_dict` will return; it may return another."""
        return _register(self._state_dict_post_hooks, hook, prepend)

    def register_load_state_dict_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call ``hook(optimizer, state_dict)`` on a shallow copy of what is to be loaded; it may return another."""
        return _register(self._load_pre_hooks, hook, prepend)

    def register_load_state_dict_post_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call ``hook(optimizer)`` after :meth:`load_state_dict`; with ``prepend`` before the other hooks."""
        return _register(self._load_post_hooks, hook, prepend)


_global_pre_hooks: Hooks = OrderedDict()
_global_post_hooks: Hooks = OrderedDict()


def register_optimizer_step_pre_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call ``hook(optimizer, args, kwargs)`` before each step of any optimizer of this process."""
    return RemovableHandle(_global_pre_hooks, hook)


def register_optimizer_step_post_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call ``hook(optimizer, args, kwargs)`` after each step of any optimizer of this process."""
    return RemovableHandle(_global_post_hooks, hook)


def _register(hooks: Hooks, hook: Callable[..., Any], prepend: bool) -> RemovableHandle:
    handle = RemovableHandle(hooks, hook)
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle


def _hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the ``step`` of a subclass with all that happens around a step."""

    @functools.wraps(step)
    def hooked(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        # by way of super().step(), or without __init__()
        if self._stepping or "_step_pre_hooks" not in self.__dict__:
            return step(self, *args, **kwargs)
        tape = current_tape()
        if tape is not None:
            if args or kwargs:
                tape.refuse("optimizer.step() gets a closure, which computes the loss again; call it outside")
            return tape.call(hooked, (self,), {})
        self._opt_called = True
        given: tuple[Any, ...] = (self, *args)
        if _global_pre_hooks or self._step_pre_hooks:
            for hook in [*_global_pre_hooks.values(), *self._step_pre_hooks.values()]:
                changed = hook(self, given, kwargs)
                if changed is not None:
                    if not isinstance(changed, tuple) or len(changed) != 2:
                        raise RuntimeError(
                            f"a hook before step() must return None or a pair (args, kwargs), got {changed!r}"
                        )
                    given, kwargs = changed
        closure = any(a is not None for a in (*given[1:], *kwargs.values()))
        wrappers = self._check_wrapped() if not closure else None
        self._stepping = True
        try:
            result = step(*given, **kwargs)
        finally:
            self._stepping = False
        if wrappers is None:
            wrappers = self._check_wrapped()  # it has made the gradients
        for wrapper in wrappers:
            wrapper.steps += 1
        self._steps += 1
        if _global_post_hooks or self._step_post_hooks:
            for hook in [*self._step_post_hooks.values(), *_global_post_hooks.values()]:
                hook(self, given, kwargs)
        stepped(self._steps, [wrapper.agreement for wrapper in wrappers])
        return result

    hooked.hooked = True  # type: ignore[attr-defined]
    return hooked


# ---------------------------------------------------------------------------------------------- checks of options


def check_lr(lr: Any) -> None:
    """Raise ValueError for a negative learning rate, or one in a tensor of several elements."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"a learning rate in a Tensor must be one element, got shape {list(lr.shape)}")
    if not lr >= 0:
        raise ValueError(f"lr must not be negative, got {lr}")


def check_not_negative(**options: Any) -> None:
    """Raise ValueError for the first option below zero."""
    for name, value in options.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def check_betas(betas: Any) -> None:
    """Raise ValueError for the first beta outside [0, 1)."""
    for i in (0, 1):
        if not 0 <= betas[i] < 1:
            raise ValueError(f"betas[{i}] must be in [0, 1), got {betas[i]}")


def check_implementation(differentiable: bool, foreach: Any = None, fused: Any = None) -> None:
    """Raise for switches between PyTorch's implementations that exclude each other, or that are not here.

    Raises:
        RuntimeError: two of them at once.
        NotImplementedError: steps that autograd records.
    """
    if fused and differentiable:
        raise RuntimeError("fused=True and differentiable=True exclude each other; choose one")
    if fused and foreach:
        raise RuntimeError("fused=True and foreach=True exclude each other; choose one")
    if differentiable:
        raise NotImplementedError(
            "differentiable=True is not in disttrain: an optimizer's step is not recorded; write the update with "
            "tensor operations to differentiate it"
        )
