"""Module: the base of everything that has parameters, as ``torch.nn.Module``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from disttrain import dtypes
from disttrain.engine import no_grad
from disttrain.nn.hooks import BackwardHooks
from disttrain.nn.parameter import Buffer, Parameter
from disttrain.tensors import RemovableHandle, Tensor, destination

Self = TypeVar("Self", bound="Module")
T = TypeVar("T")


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(strict=False)`` passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


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
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        d = self.__dict__
        try:
            hooked = d["_pre_hooks"] or d["_hooks"] or d["_backward_hooks"] or d["_backward_pre_hooks"]
        except KeyError:
            raise _not_initialised(self, "called") from None
        return self._call_hooked(args, kwargs) if hooked else self.forward(*args, **kwargs)

    # ------------------------------------------------------------------------------------- registration

    def __setattr__(self, name: str, value: Any) -> None:
        d = self.__dict__
        if isinstance(value, Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self.register_module(name, value)
        elif isinstance(value, Buffer):
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
        for registry in ("_parameters", "_buffers", "_modules"):
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
        """Return the registry that ``name`` may go to; whatever plain or registered thing had the name is gone."""
        d = self.__dict__
        if registry not in d:
            raise _not_initialised(self, f"given {what} {name!r}")
        if not isinstance(name, str):
            raise TypeError(f"the name of a {what} must be a string, got {type(name).__name__}: {name!r}")
        if not name or "." in name:
            raise KeyError(f"the name of a {what} must not be empty or have a dot, got {name!r}")
        entries: dict[str, Any] = d[registry]
        if name not in entries and hasattr(type(self), name):
            raise KeyError(
                f"{type(self).__name__} has an attribute {name!r} already; give the {what} another name"
            )
        d.pop(name, None)
        for other in ("_parameters", "_buffers", "_modules"):
            if other != registry:
                d[other].pop(name, None)
        return entries

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
            child = module._modules.get(name)
            if child is None:
                known = ", ".join(module._modules) or "none"
                raise AttributeError(
                    f"{type(module).__name__} has no module {name!r} (of {target!r}); its modules: {known}"
                )
            module = child
        return module

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
        entries = self.get_submodule(path).__dict__[registry]
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
            raise ValueError(f"training mode is expected to be boolean, got {type(mode).__name__}: {mode!r}")
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

        As ``torch.nn.Module.to``: ``to(device)``, ``to(dtype)``, ``to(device, dtype)``, ``to(tensor)``.
        Make the optimizer afterwards: it keeps the parameters it was given in memory of its own.

        Raises:
            TypeError: ``dtype`` is no floating point type.
        """
        kind, where = destination(args, kwargs)
        if kind is not None and not kind.is_floating_point:
            raise TypeError(
                f"a module can be converted to a floating point dtype only, got {kind}; convert single tensors "
                f"with Tensor.to()"
            )

        def convert(t: Tensor) -> Tensor:
            return t.to(where, kind if t.is_floating_point() else None)

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

    def cpu(self: Self) -> Self:
        """Move to host memory, in place."""
        return self.to("cpu")

    def cuda(self: Self, device: Any = None) -> Self:
        """Move to a GPU, in place."""
        return self.to("cuda" if device is None else device)

    def _apply(self: Self, convert: Callable[[Tensor], Tensor]) -> Self:
        with no_grad():
            for t in [*self.parameters(), *self.buffers()]:
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

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Tensor]:
        """Return parameters and persistent buffers by name. They share the module's memory: clone what must last.

        Args:
            prefix: put before every name.
            keep_vars: return the parameters themselves instead of detached tensors.
        """
        state = {}
        for path, module in self.named_modules(prefix=prefix.removesuffix("."), remove_duplicate=False):
            for name, value in module._own_state():
                state[f"{path}.{name}" if path else name] = value if keep_vars else value.detach()
        return state

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
        own = self.state_dict(keep_vars=True)
        missing = [name for name in own if name not in state_dict]
        unexpected = [name for name in state_dict if name not in own]
        problems = []
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
                    f"size mismatch for {name}: copying a param with shape {given.shape!r} from checkpoint, the "
                    f"shape in current model is {value.shape!r}."
                )
        if problems:
            raise RuntimeError(
                f"Error(s) in loading state_dict for {type(self).__name__}:\n\t" + "\n\t".join(problems)
            )
        with no_grad():
            for name, value in own.items():
                if name not in state_dict:
                    continue
                if assign:
                    self._replace(name, value, state_dict[name])
                else:
                    value.copy_(state_dict[name].to(value.device))
        return IncompatibleKeys(missing, unexpected)

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
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args, output)`` after ``forward``; what it returns, if not ``None``, is the output.

        Args:
            hook: the function; with ``with_kwargs`` it gets ``(module, args, kwargs, output)``.
            prepend: call it before the hooks that are there.
            with_kwargs: hand over keyword arguments too.
        """
        return _register(self.__dict__["_hooks"], _Hook(hook, with_kwargs), prepend)

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

    def _call_hooked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        d = self.__dict__
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
        for hook in list(d["_hooks"].values()):
            if hook.with_kwargs:
                changed = hook.function(self, args, kwargs, output)
            else:
                changed = hook.function(self, args, output)
            if changed is not None:
                output = changed
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
