"""Parameters that are functions of others, as ``torch.nn.utils.parametrize``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from disttrain import missing
from disttrain.engine import no_grad
from disttrain.nn.container import ModuleDict, ModuleList
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.tensors import Tensor

M = TypeVar("M", bound=Module)

_cache: ContextVar[dict[tuple[int, str], Tensor] | None] = ContextVar("parametrizations", default=None)


@contextmanager
def cached() -> Iterator[None]:
    """Compute each parametrized tensor only once inside of a ``with`` block."""
    token = _cache.set(_cache.get() or {})
    try:
        yield
    finally:
        _cache.reset(token)


class ParametrizationList(ModuleList):
    """The functions that make a tensor, one after another, and what they make it of: ``original``.

    If the first function's ``right_inverse`` gives several tensors, these are ``original0``, ``original1`` …
    """

    def __init__(self, modules: list[Module], original: Tensor, unsafe: bool = False) -> None:
        super().__init__(modules)
        self.unsafe = unsafe
        before = original.detach().clone()
        value: Any = before
        with no_grad():
            for module in reversed(modules):
                inverse = getattr(module, "right_inverse", None)
                if inverse is not None:
                    value = inverse(value)
        self.is_tensor = isinstance(value, Tensor)
        if not self.is_tensor and not (
            isinstance(value, list | tuple) and all(isinstance(v, Tensor) for v in value)
        ):
            raise ValueError(f"right_inverse must return a Tensor or several, got {type(value).__name__}")
        values = [value] if self.is_tensor else list(value)
        self.ntensors = len(values)
        for name, v in zip(self._names(), values, strict=True):
            if not isinstance(original, Parameter):
                self.register_buffer(name, v)
            elif self.is_tensor:  # the same Parameter, so that an optimizer that has it goes on
                original.data = v
                self.register_parameter(name, original)
            else:
                self.register_parameter(name, Parameter(v, original.requires_grad))
        if not unsafe:
            _check_alike(self(), before)

    def _names(self) -> list[str]:
        return ["original"] if self.is_tensor else [f"original{i}" for i in range(self.ntensors)]

    def right_inverse(self, value: Tensor) -> None:
        """Set what the tensor is made of so that it becomes ``value``.

        Raises:
            RuntimeError: a function has no ``right_inverse``.
        """
        with no_grad():
            result: Any = value
            for module in reversed(list(self)):
                if not hasattr(module, "right_inverse"):
                    raise RuntimeError(
                        f"{type(module).__name__} has no right_inverse(); it cannot be assigned to"
                    )
                result = module.right_inverse(result)
            for name, v in zip(self._names(), [result] if self.is_tensor else result, strict=True):
                own = getattr(self, name)
                if v.shape == own.shape:
                    own.copy_(v)
                else:
                    own.data = v

    def forward(self) -> Tensor:
        first, *rest = list(self)
        out: Tensor = first(*[getattr(self, name) for name in self._names()])
        for module in rest:
            out = module(out)
        return out


def type_before_parametrizations(module: Module) -> type[Module]:
    """Return the class that a module had before its first parametrization."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def _check_alike(made: Tensor, before: Tensor) -> None:
    if made.shape != before.shape or made.dtype is not before.dtype:
        raise ValueError(
            f"a parametrization must keep shape and dtype, unless unsafe=True: it made "
            f"{tuple(made.shape)} {made.dtype} of {tuple(before.shape)} {before.dtype}"
        )


def register_parametrization(
    module: M, tensor_name: str, parametrization: Module, *, unsafe: bool = False
) -> M:
    """Let ``parametrization`` make the parameter or buffer ``tensor_name`` of ``module`` whenever it is asked for.

    What it is made of is ``module.parametrizations.<tensor_name>.original``. A function may have a ``right_inverse``,
    used now (unless the tensor is parametrized already) and in assignments.

    Args:
        module: whose tensor.
        tensor_name: of the parameter or buffer.
        parametrization: a module from the tensor (or what its ``right_inverse`` gives) to the tensor.
        unsafe: do not check that shape and dtype are kept.

    Returns:
        ``module``.

    Raises:
        ValueError: ``module`` has no such tensor, or shape or dtype change.
    """
    parametrization.train(module.training)
    if is_parametrized(module, tensor_name):
        functions: Any = module.parametrizations[tensor_name]
        before = getattr(module, tensor_name)
        if not unsafe:
            _check_alike(parametrization(before), before)
        functions.append(parametrization)
        functions.unsafe |= unsafe
        return module
    if tensor_name not in module._parameters and tensor_name not in module._buffers:
        raise ValueError(
            f"register_parametrization(): there is no parameter or buffer {tensor_name!r} in {type(module).__name__}"
        )
    functions = ParametrizationList([parametrization], getattr(module, tensor_name), unsafe)
    delattr(module, tensor_name)
    if not is_parametrized(module):
        cls = type(module)
        module.__class__ = type(f"Parametrized{cls.__name__}", (cls,), {})
        module.parametrizations = ModuleDict()
    setattr(type(module), tensor_name, property(_getter(tensor_name), _setter(tensor_name)))
    module.parametrizations[tensor_name] = functions
    return module


def _getter(name: str) -> Any:
    def get(module: Any) -> Tensor:
        made = _cache.get()
        if made is None:
            return module.parametrizations[name]()  # type: ignore[no-any-return]
        key = (id(module), name)
        if key not in made:
            made[key] = module.parametrizations[name]()
        return made[key]

    return get


def _setter(name: str) -> Any:
    def set(module: Any, value: Tensor) -> None:
        made = _cache.get()
        if made is not None:
            made.pop((id(module), name), None)
        module.parametrizations[name].right_inverse(value)

    return set


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Return whether a module, or one of its tensors, is parametrized."""
    functions = module._modules.get("parametrizations")
    if not isinstance(functions, ModuleDict) or not len(functions):
        return False
    return tensor_name is None or tensor_name in functions


def remove_parametrizations(module: M, tensor_name: str, leave_parametrized: bool = True) -> M:
    """Make a tensor a plain parameter or buffer again.

    Args:
        module: whose tensor.
        tensor_name: of the tensor.
        leave_parametrized: with the value that it has; otherwise with that of ``original``.

    Returns:
        ``module``.

    Raises:
        ValueError: the tensor is not parametrized, or it is made of several and so has no ``original``.
    """
    if not is_parametrized(module, tensor_name):
        raise ValueError(f"{type(module).__name__} has no parametrization on {tensor_name!r}")
    functions: Any = module.parametrizations[tensor_name]
    if not leave_parametrized and not functions.is_tensor:
        raise ValueError(
            "remove_parametrizations(): several tensors make this one, so leave_parametrized=False has none to put back"
        )
    learnt = any(isinstance(getattr(functions, n), Parameter) for n in functions._names())
    if leave_parametrized:
        with no_grad():
            value = functions()
    else:
        value = functions.original
    trained = any(getattr(functions, n).requires_grad for n in functions._names())
    delattr(type(module), tensor_name)
    del module.parametrizations[tensor_name]
    if not is_parametrized(module):
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
    if learnt:
        if functions.is_tensor:  # the same Parameter, so that an optimizer that has it goes on
            kept = functions.original
            kept.data = value.detach()
        else:
            kept = Parameter(value.detach(), trained)
        module.register_parameter(tensor_name, kept)
    else:
        module.register_buffer(tensor_name, value.detach())
    return module


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
