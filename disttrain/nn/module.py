"""Module: the base of everything that has parameters, as ``torch.nn.Module``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from disttrain import compiler, dtypes
from disttrain.engine import no_grad
from disttrain.modes import current_tape
from disttrain.nn.hooks import BackwardHooks
from disttrain.nn.parameter import Buffer, Parameter
from disttrain.tensors import RemovableHandle, Tensor, destination

Self = TypeVar("Self", bound="Module")
T = TypeVar("T")

_EXTRA = "_extra_state"
_REGISTRIES = ("_parameters", "_buffers", "_modules")


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(strict=False)`` passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"_IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


class _StateHooks:
    """What is called around taking and loading a module's state; made when the first is registered."""

    def __init__(self) -> None:
        self.before_saving: dict[int, Callable[..., Any]] = {}
        self.after_saving: dict[int, Callable[..., Any]] = {}
        self.before_loading: dict[int, Callable[..., Any]] = {}
        self.after_loading: dict[int, Callable[..., Any]] = {}


class Module:
    """A function with parameters, made of other modules.

    Parameters, buffers and modules assigned to attributes are registered in the order of assignment; a subclass
    calls ``super().__init__()`` first and defines ``forward``.
    """

    training: bool
    """Whether the module is in training mode; see :meth:`train` and :meth:`eval`."""

    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]

    _state_hooks: _StateHooks | None = None
    _not_in_old_states: tuple[str, ...] = ()
    """Buffers that a state may lack, because those of old programs do; they keep their values."""

    def __init__(self) -> None:
        fields: dict[str, Any] = {
            "training": True,
            "_parameters": {},
            "_buffers": {},
            "_modules": {},
            "_not_persistent": set(),
            "_pre_hooks": {},
            "_hooks": {},
            "_backward_pre_hooks": {},
            "_backward_hooks": {},
        }
        self.__dict__.update(fields)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; every subclass defines it.

        Raises:
            NotImplementedError: this one does not.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward(); define it in the class")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        d = self.__dict__
        try:
            hooked = d["_pre_hooks"] or d["_hooks"] or d["_backward_hooks"] or d["_backward_pre_hooks"]
        except KeyError:
            raise _not_initialised(self, "called") from None
        tape = current_tape()
        if tape is not None:
            tape.modules[id(self)] = self
        return self._call_hooked(args, kwargs) if hooked else self.forward(*args, **kwargs)

    # ------------------------------------------------------------------------------------- registration

    def __setattr__(self, name: str, value: Any) -> None:
        d = self.__dict__
        if isinstance(value, Parameter):
            self._vacate(name, "_parameters")
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self._vacate(name, "_modules")
            self.register_module(name, value)
        elif isinstance(value, Buffer):
            self._vacate(name, "_buffers")
            self.register_buffer(name, value, value.persistent)
        elif name in d.get("_parameters", ()):
            if value is not None:
                raise TypeError(
                    f"cannot assign {type(value).__name__} as parameter {name!r}; wrap it in nn.Parameter, or "
                    f"assign None"
                )
            self._parameters[name] = None
        elif name in d.get("_modules", ()):
            if value is not None:
                raise TypeError(
                    f"cannot assign {type(value).__name__} as child module {name!r}; assign an nn.Module or None"
                )
            self._modules[name] = None
        elif name in d.get("_buffers", ()):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(
                    f"cannot assign {type(value).__name__} as buffer {name!r}; assign a Tensor or None"
                )
            self._buffers[name] = value
        else:
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        d = self.__dict__
        for registry in _REGISTRIES:
            entries = d.get(registry)
            if entries is not None and name in entries:
                return entries[name]
        if "_parameters" not in d and not name.startswith("__"):
            raise _not_initialised(self, f"asked for {name!r}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for entries in (self._parameters, self._buffers, self._modules):
            if name in entries:
                del entries[name]
                self.__dict__["_not_persistent"].discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter (or keep the name for one, with ``None``).

        Raises:
            TypeError: not a Parameter.
            KeyError: the name has a dot or is empty, or belongs to something else.
        """
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"cannot register {type(param).__name__} as parameter {name!r}; wrap it in nn.Parameter"
            )
        self._claim(name, "_parameters", "parameter")[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that belongs to the state but is not learnt.

        Args:
            name: of the attribute.
            tensor: the buffer, or ``None`` to keep the name.
            persistent: whether it is part of the state dict.

        Raises:
            TypeError: not a Tensor.
            KeyError: the name has a dot or is empty, or belongs to something else.
        """
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"cannot register {type(tensor).__name__} as buffer {name!r}; give a Tensor")
        self._claim(name, "_buffers", "buffer")[name] = tensor
        not_persistent = self.__dict__["_not_persistent"]
        not_persistent.discard(name) if persistent else not_persistent.add(name)

    def register_module(self, name: str, module: Module | None) -> None:
        """Add a child module (or keep the name for one, with ``None``).

        Raises:
            TypeError: not a Module.
            KeyError: the name has a dot or is empty, or belongs to something else.
        """
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"cannot register {type(module).__name__} as module {name!r}; give an nn.Module")
        self._claim(name, "_modules", "module")[name] = module

    add_module = register_module

    def _claim(self, name: str, registry: str, what: str) -> dict[str, Any]:
        """Return the registry that ``name`` may go to, where only one of its own kind has the name already."""
        d = self.__dict__
        if registry not in d:
            raise _not_initialised(self, f"given {what} {name!r}")
        if not isinstance(name, str):
            raise TypeError(f"the name of a {what} must be a string, got {type(name).__name__}: {name!r}")
        if not name or "." in name:
            raise KeyError(f"the name of a {what} must not be empty or have a dot, got {name!r}")
        entries: dict[str, Any] = d[registry]
        if name in entries:
            return entries
        if hasattr(type(self), name):
            raise KeyError(
                f"the class {type(self).__name__} defines {name!r}, which would hide the {what}; remove it there or "
                f"give the {what} another name"
            )
        if name in d or any(name in d[other] for other in _REGISTRIES):
            raise KeyError(
                f"{type(self).__name__} has an attribute {name!r} already; give the {what} another name, or "
                f"assign it to the attribute"
            )
        return entries

    def _vacate(self, name: str, registry: str) -> None:
        """Forget what had ``name``, if it is not in ``registry`` itself: something is assigned in its place."""
        d = self.__dict__
        d.pop(name, None)
        for other in _REGISTRIES:
            if other != registry and other in d:
                d[other].pop(name, None)

    # ------------------------------------------------------------------------------------- walking the tree

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Yield this module and all below it, each once, with names like ``"encoder.0"``."""
        memo = set() if memo is None else memo
        if remove_duplicate and self in memo:
            return
        memo.add(self)
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                yield from child.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it, each once."""
        return (m for _, m in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules directly below, each once, with their names."""
        seen: set[Module] = set()
        for name, child in self._modules.items():
            if child is not None and child not in seen:
                seen.add(child)
                yield name, child

    def children(self) -> Iterator[Module]:
        """Yield the modules directly below, each once."""
        return (m for _, m in self.named_children())

    def _named(
        self, registry: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules: Iterable[tuple[str, Module]] = [(prefix, self)]
        if recurse:
            modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in modules:
            for name, value in module.__dict__[registry].items():
                if value is None or (remove_duplicate and id(value) in seen):
                    continue
                seen.add(id(value))
                yield f"{path}.{name}" if path else name, value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield the parameters, shared ones once, with names like ``"encoder.0.weight"``."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield the parameters, shared ones once."""
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers, shared ones once, with their names."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers, shared ones once."""
        return (b for _, b in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """Return the module of a name like ``"encoder.0"``; the module itself for ``""``.

        Raises:
            AttributeError: there is none.
        """
        module = self
        for name in target.split(".") if target else ():
            children = module._unwrapped()._modules
            child = children.get(name)
            if child is None:
                known = ", ".join(children) or "none"
                raise AttributeError(
                    f"{type(module).__name__} has no module {name!r} (of {target!r}); its modules: {known}"
                )
            module = child
        return module

    def set_submodule(self, target: str, module: Module, strict: bool = False) -> None:
        """Put ``module`` at a name like ``"encoder.0"``.

        Args:
            target: the name.
            module: what to put there.
            strict: only in the place of another.

        Raises:
            ValueError: the name is empty, or ``module`` is no Module.
            AttributeError: there is nothing on the way, or, with ``strict``, at the name.
        """
        if not target:
            raise ValueError("set_submodule(): target is empty; name the submodule, like 'layers.0'")
        if not isinstance(module, Module):
            raise ValueError(f"expected an nn.Module, got {type(module).__name__}: {module!r:.80}")
        path, _, last = target.rpartition(".")
        owner = self.get_submodule(path)._unwrapped()
        if last not in owner._modules:
            if strict:
                raise AttributeError(
                    f"{type(owner).__name__} has no module {last!r} to replace (of {target!r})"
                )
            if hasattr(owner, last):
                raise AttributeError(
                    f"{last!r} of {type(owner).__name__} is no module; it cannot be replaced by one"
                )
        owner.register_module(last, module)

    def _unwrapped(self) -> Module:
        """Return the module that names of parts refer to: itself, but for a wrapper that adds nothing to names."""
        return self

    def get_parameter(self, target: str) -> Parameter:
        """Return the parameter of a name like ``"encoder.0.weight"``.

        Raises:
            AttributeError: there is none.
        """
        return self._get(target, "_parameters", "parameter")  # type: ignore[no-any-return]

    def get_buffer(self, target: str) -> Tensor:
        """Return the buffer of a name like ``"norm.running_mean"``.

        Raises:
            AttributeError: there is none.
        """
        return self._get(target, "_buffers", "buffer")  # type: ignore[no-any-return]

    def _get(self, target: str, registry: str, what: str) -> Any:
        path, _, name = target.rpartition(".")
        entries = self.get_submodule(path)._unwrapped().__dict__[registry]
        if entries.get(name) is None:
            raise AttributeError(f"no {what} {target!r}; {what}s there: {', '.join(entries) or 'none'}")
        return entries[name]

    # ------------------------------------------------------------------------------------- changing all of it

    def apply(self: Self, fn: Callable[[Module], object]) -> Self:
        """Call ``fn`` with each module below and with this one last, and return this one."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Switch to training mode (or to evaluation), here and below: what Dropout and BatchNorm look at.

        Raises:
            ValueError: ``mode`` is no bool.
        """
        if not isinstance(mode, bool):
            raise ValueError(f"train(): mode is True or False, got {type(mode).__name__}: {mode!r}")
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self: Self) -> Self:
        """Switch to evaluation mode, here and below."""
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Let all parameters be trained, or freeze them."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or fill them with zeros."""
        for p in self.parameters():
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.detach_().zero_()

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Move parameters and buffers to a device and/or convert the floating point ones, in place.

        As ``torch.nn.Module.to``: ``to(device)``, ``to(dtype)``, ``to(device, dtype)``, ``to(tensor)``, and
        ``to(memory_format=...)``, which is for parameters and buffers of four or five dimensions.
        Make the optimizer afterwards: it keeps the parameters it was given in memory of its own.

        Raises:
            TypeError: ``dtype`` is no floating point type.
            RuntimeError: a parameter has not as many dimensions as ``memory_format`` is for.
        """
        order = kwargs.pop("memory_format", None)
        kind, where = destination(args, kwargs)
        if kind is not None and not kind.is_floating_point:
            raise TypeError(
                f"a module can be converted to a floating point dtype only, got {kind}; convert single tensors "
                f"with Tensor.to()"
            )

        def convert(t: Tensor) -> Tensor:
            new = t.to(where, kind if t.is_floating_point() else None)
            return new.to(memory_format=order) if order is not None and t.ndim in (4, 5) else new

        return self._apply(convert)

    def float(self: Self) -> Self:
        """Convert to float32, in place."""
        return self.to(dtypes.float32)

    def double(self: Self) -> Self:
        """Convert to float64, in place."""
        return self.to(dtypes.float64)

    def half(self: Self) -> Self:
        """Convert to float16, in place."""
        return self.to(dtypes.float16)

    def bfloat16(self: Self) -> Self:
        """Convert to bfloat16, in place."""
        return self.to(dtypes.bfloat16)

    def type(self: Self, dst_type: Any) -> Self:
        """Convert all parameters and buffers, also those of integers, to a type, in place."""
        kind = dtypes.as_dtype(dst_type)
        return self._apply(lambda t: t.to(kind))

    def to_empty(self: Self, *, device: Any, recurse: bool = True) -> Self:
        """Move to a device without the values, in place."""
        return self._apply(
            lambda t: t.new_empty(t.shape, device="cpu" if device is None else device), recurse
        )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile nothing, which one warning says; see :func:`disttrain.compile`."""
        compiler.compile(self, *args, **kwargs)

    def share_memory(self: Self) -> Self:
        """Return this module: ranks that are threads share memory, and processes exchange gradients instead."""
        return self

    def cpu(self: Self) -> Self:
        """Move to host memory, in place."""
        return self.to("cpu")

    def cuda(self: Self, device: Any = None) -> Self:
        """Move to a GPU, in place."""
        return self.to("cuda" if device is None else device)

    def _apply(self: Self, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with no_grad():
            for t in [*self.parameters(recurse), *self.buffers(recurse)]:
                new = convert(t)
                if new is t:
                    continue
                grad = t.grad
                t.grad = None
                t._slot = None  # of the old type or place
                t.data = new
                t.grad = None if grad is None else convert(grad)
        return self

    # ------------------------------------------------------------------------------------- state

    def state_dict(
        self,
        *args: Any,
        destination: dict[str, Tensor] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Tensor]:
        """Return parameters and persistent buffers by name. They share the module's memory: clone what must last.

        Args:
            args: deprecated: destination, prefix and keep_vars by position.
            destination: add them to this dict and return it.
            prefix: put before every name.
            keep_vars: return the parameters themselves instead of detached tensors.
        """
        if args:
            warnings.warn(
                "state_dict(): give destination, prefix and keep_vars by name; by position is deprecated",
                FutureWarning,
                stacklevel=2,
            )
            options: list[Any] = [destination, prefix, keep_vars]
            options[: len(args)] = args
            destination, prefix, keep_vars = options
        state: dict[str, Tensor] = {} if destination is None else destination
        hooks = self._state_hooks
        if hooks is not None:
            for hook in list(hooks.before_saving.values()):
                hook(self, prefix, keep_vars)
        for name, value in self._own_state():
            state[prefix + name] = value if keep_vars else value.detach()
        if type(self).get_extra_state is not Module.get_extra_state:
            state[prefix + _EXTRA] = self.get_extra_state()
        for name, child in self._modules.items():
            if child is not None:
                child.state_dict(destination=state, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        if hooks is not None:
            for hook in list(hooks.after_saving.values()):
                changed = hook(self, state, prefix, {})
                state = state if changed is None else changed
        return state

    def get_extra_state(self) -> Any:
        """Return what belongs to the state beside tensors; a subclass that has such defines it and its counterpart."""
        raise RuntimeError(f"{type(self).__name__} defines no get_extra_state()")

    def set_extra_state(self, state: Any) -> None:
        """Take what :meth:`get_extra_state` returned."""
        raise RuntimeError(
            f"the state holds an extra state for {type(self).__name__}, which defines no set_extra_state()"
        )

    def register_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, prefix, keep_vars)`` before the state of this module is taken."""
        return RemovableHandle(self._around_state().before_saving, hook)

    def register_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, state_dict, prefix, local_metadata)`` after; it may change ``state_dict`` in place."""
        return RemovableHandle(self._around_state().after_saving, hook)

    _register_state_dict_hook = register_state_dict_post_hook

    def register_load_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook`` before a state is loaded.

        Its arguments are ``(module, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
        error_msgs)``; it may change ``state_dict``, which is a copy, and add to the lists.
        """
        return RemovableHandle(self._around_state().before_loading, hook)

    def register_load_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, incompatible_keys)`` after a state was loaded; it may change the lists of keys."""
        return RemovableHandle(self._around_state().after_loading, hook)

    def _around_state(self) -> _StateHooks:
        if self._state_hooks is None:
            self._state_hooks = _StateHooks()
        return self._state_hooks

    def _own_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, param in self._parameters.items():
            if param is not None:
                yield name, param
        not_persistent = self.__dict__["_not_persistent"]
        for name, buffer in self._buffers.items():
            if buffer is not None and name not in not_persistent:
                yield name, buffer

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Copy the tensors of ``state_dict`` into the parameters and buffers of these names.

        Everything is checked before anything is changed, so that a refused state leaves the module as it was.

        Args:
            state_dict: what :meth:`state_dict` returned, here or in another program.
            strict: names must agree.
            assign: take the tensors themselves (their memory and type) instead of copying.

        Returns:
            The names that were missing and those that were not expected (none if ``strict``).

        Raises:
            TypeError: ``state_dict`` is no mapping.
            RuntimeError: names every missing and unexpected key and every wrong shape.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"expected state_dict to be a mapping, got {type(state_dict).__name__}")
        state_dict = dict(state_dict)
        own: dict[str, Any] = {}
        extras: dict[str, Module] = {}
        missing: list[str] = []
        unexpected: list[str] = []
        problems: list[str] = []
        modules = [(f"{path}." if path else "", m) for path, m in self.named_modules(remove_duplicate=False)]
        for prefix, module in modules:
            hooks = module._state_hooks
            for hook in list(hooks.before_loading.values()) if hooks is not None else ():
                hook(module, state_dict, prefix, {}, strict, missing, unexpected, problems)
            for name, value in module._own_state():
                if prefix + name in state_dict or name not in module._not_in_old_states:
                    own[prefix + name] = value
            if prefix + _EXTRA in state_dict or type(module).get_extra_state is not Module.get_extra_state:
                extras[prefix + _EXTRA] = module
        missing += [name for name in (*own, *extras) if name not in state_dict]
        unexpected += [name for name in state_dict if name not in own and name not in extras]
        if strict and missing:
            problems.append("Missing key(s) in state_dict: " + ", ".join(f'"{n}"' for n in missing) + ".")
        if strict and unexpected:
            problems.append(
                "Unexpected key(s) in state_dict: " + ", ".join(f'"{n}"' for n in unexpected) + "."
            )
        for name, value in own.items():
            given = state_dict.get(name, value)
            if not isinstance(given, Tensor):
                problems.append(f"{name} must be a Tensor, got {type(given).__name__}.")
            elif given.shape != value.shape:
                problems.append(
                    f"size mismatch for {name}: given {tuple(given.shape)}, the module has {tuple(value.shape)}."
                )
        if problems:
            raise RuntimeError(
                f"load_state_dict(): this does not fit {type(self).__name__}:\n\t" + "\n\t".join(problems)
            )
        with no_grad():
            for name, value in own.items():
                if name not in state_dict:
                    continue
                if assign:
                    self._replace(name, value, state_dict[name])
                else:
                    value.copy_(state_dict[name].to(value.device))
        for name, module in extras.items():
            if name in state_dict:
                module.set_extra_state(state_dict[name])
        keys = IncompatibleKeys(missing, unexpected)
        for _, module in modules:
            hooks = module._state_hooks
            for hook in list(hooks.after_loading.values()) if hooks is not None else ():
                hook(module, keys)
        return keys

    def _replace(self, name: str, old: Tensor, new: Tensor) -> None:
        path, _, last = name.rpartition(".")
        owner = self.get_submodule(path)
        if isinstance(old, Parameter):
            owner._parameters[last] = (
                new if isinstance(new, Parameter) else Parameter(new.detach(), old.requires_grad)
            )
        else:
            owner._buffers[last] = new

    # ------------------------------------------------------------------------------------- hooks

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args)`` before ``forward``; what it returns, if not ``None``, replaces the arguments.

        Args:
            hook: the function; with ``with_kwargs`` it gets ``(module, args, kwargs)`` and returns both.
            prepend: call it before the hooks that are there.
            with_kwargs: hand over keyword arguments too.
        """
        return _register(self.__dict__["_pre_hooks"], _Hook(hook, with_kwargs), prepend)

    def register_forward_hook(
        self,
        hook: Callable[..., Any],
        *,
        prepend: bool = False,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> RemovableHandle:
        """Call ``hook(module, args, output)`` after ``forward``; what it returns, if not ``None``, is the output.

        Args:
            hook: the function; with ``with_kwargs`` it gets ``(module, args, kwargs, output)``.
            prepend: call it before the hooks that are there.
            with_kwargs: hand over keyword arguments too.
            always_call: call it, with ``None`` for the output, also if ``forward`` raises.
        """
        return _register(self.__dict__["_hooks"], _Hook(hook, with_kwargs, always_call), prepend)

    def register_full_backward_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, grad_output)`` before backward goes through the module; it may replace them."""
        return _register(self.__dict__["_backward_pre_hooks"], hook, prepend)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call ``hook(module, grad_input, grad_output)`` after backward went through the module.

        What it returns, if not ``None``, replaces ``grad_input`` (a tuple, one for each positional argument,
        ``None`` for those without gradient).
        """
        return _register(self.__dict__["_backward_hooks"], hook, prepend)

    register_backward_hook = register_full_backward_hook
    """PyTorch's deprecated hook of the last operation of ``forward``; here it is that of the whole module."""

    def _call_hooked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        d = self.__dict__
        called: set[int] = set()
        try:
            for hook in list(d["_pre_hooks"].values()):
                if hook.with_kwargs:
                    changed = hook.function(self, args, kwargs)
                    if changed is not None:
                        if not isinstance(changed, tuple) or len(changed) != 2:
                            raise RuntimeError(
                                f"a forward pre-hook with kwargs must return None or (args, kwargs), got {changed!r}"
                            )
                        args, kwargs = changed
                else:
                    changed = hook.function(self, args)
                    if changed is not None:
                        args = changed if isinstance(changed, tuple) else (changed,)
            backward = None
            if d["_backward_hooks"] or d["_backward_pre_hooks"]:
                backward = BackwardHooks(self, d["_backward_pre_hooks"], d["_backward_hooks"])
                args = backward.watch_inputs(args)
            output = self.forward(*args, **kwargs)
            if backward is not None:
                output = backward.watch_outputs(output)
            for key, hook in list(d["_hooks"].items()):
                called.add(key)
                changed = hook.function(self, args, *([kwargs] if hook.with_kwargs else ()), output)
                if changed is not None:
                    output = changed
        except BaseException:  # also what ends a checkpoint's second run early
            for key, hook in list(d["_hooks"].items()):
                if not hook.always_call or key in called:
                    continue
                try:
                    hook.function(self, args, *([kwargs] if hook.with_kwargs else ()), None)
                except Exception as e:  # the error of forward is the one to report
                    warnings.warn(
                        f"forward raised, and then a hook with always_call=True did too: {e!r}", stacklevel=2
                    )
            raise
        return output

    # ------------------------------------------------------------------------------------- how it prints

    def extra_repr(self) -> str:
        """Return what ``repr`` shows between the parentheses; subclasses define it."""
        return ""

    def _get_name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        lines = self.extra_repr().split("\n") if self.extra_repr() else []
        children = [f"({n}): {_indent(repr(m))}" for n, m in self._modules.items()]
        if not children and len(lines) <= 1:
            return f"{self._get_name()}({''.join(lines)})"
        return f"{self._get_name()}(\n  " + "\n  ".join([*lines, *children]) + "\n)"


class _Hook(NamedTuple):
    function: Callable[..., Any]
    with_kwargs: bool
    always_call: bool = False


def _register(hooks: dict[int, Any], hook: Any, prepend: bool) -> RemovableHandle:
    handle = RemovableHandle(hooks, hook)
    if prepend:
        later = [k for k in hooks if k != handle.id]
        for k in later:
            hooks[k] = hooks.pop(k)
    return handle


def _indent(text: str) -> str:
    return text.replace("\n", "\n  ")


def _not_initialised(module: Module, what: str) -> AttributeError:
    return AttributeError(
        f"{type(module).__name__} was {what} before Module.__init__() ran; call super().__init__() first in "
        f"its __init__"
    )
