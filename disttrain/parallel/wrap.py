"""Which modules of a model become units of their own, as ``torch.distributed.fsdp.wrap``.

A policy is a function ``(module, recurse, nonwrapped_numel)``: with ``recurse=True`` it says whether to look inside a
module, with ``recurse=False`` whether the module is to be a unit, given how many elements of its parameters are in
none yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from disttrain import missing
from disttrain.nn.attention import MultiheadAttention
from disttrain.nn.container import ModuleDict, ModuleList
from disttrain.nn.module import Module

__all__ = [
    "CustomPolicy",
    "ModuleWrapPolicy",
    "always_wrap_policy",
    "enable_wrap",
    "lambda_auto_wrap_policy",
    "size_based_auto_wrap_policy",
    "transformer_auto_wrap_policy",
    "wrap",
]

Policy = Callable[..., Any]
_wrapper: ContextVar[tuple[Any, dict[str, Any]] | None] = ContextVar("wrapper", default=None)
"""What :func:`wrap` wraps in, and the options."""


@contextmanager
def enable_wrap(*, wrapper_cls: Any, **wrapper_kwargs: Any) -> Iterator[None]:
    """Let :func:`wrap` wrap modules in ``wrapper_cls``, with these options, in a ``with`` block."""
    token = _wrapper.set((wrapper_cls, wrapper_kwargs))
    try:
        yield
    finally:
        _wrapper.reset(token)


def wrap(module: Module, **wrap_overrides: Any) -> Module:
    """Return ``module`` wrapped as :func:`enable_wrap` says, with other options; itself outside of such a block."""
    found = _wrapper.get()
    if found is None:
        return module
    wrapper, options = found
    return wrapper(module, **{**options, **wrap_overrides})  # type: ignore[no-any-return]


def always_wrap_policy(*args: Any, **kwargs: Any) -> bool:
    """Make every module a unit."""
    return True


def lambda_auto_wrap_policy(
    module: Module, recurse: bool, nonwrapped_numel: int, lambda_fn: Callable[[Module], bool]
) -> bool:
    """Make a unit of each module for which ``lambda_fn`` is true."""
    return recurse or lambda_fn(module)


def transformer_auto_wrap_policy(
    module: Module, recurse: bool, nonwrapped_numel: int, transformer_layer_cls: set[type[Module]]
) -> bool:
    """Make a unit of each module of one of the classes ``transformer_layer_cls``."""
    return recurse or isinstance(module, tuple(transformer_layer_cls))


def size_based_auto_wrap_policy(
    module: Module,
    recurse: bool,
    nonwrapped_numel: int,
    min_num_params: int = int(1e8),
    force_leaf_modules: set[type[Module]] | None = None,
    exclude_wrap_modules: set[type[Module]] | None = None,
) -> bool:
    """Make a unit of each module that has enough elements of parameters in no unit yet.

    Args:
        module: the module in question.
        recurse: whether it is asked if to look inside.
        nonwrapped_numel: elements of the module's parameters that are in no unit.
        min_num_params: how many are enough.
        force_leaf_modules: classes whose inside stays together; attention by default.
        exclude_wrap_modules: classes that are no unit; lists and dicts of modules by default.
    """
    leaves = (MultiheadAttention,) if force_leaf_modules is None else tuple(force_leaf_modules)
    excluded = (ModuleList, ModuleDict) if exclude_wrap_modules is None else tuple(exclude_wrap_modules)
    enough = nonwrapped_numel >= min_num_params
    if recurse:
        return enough and not isinstance(module, leaves)
    return enough and not isinstance(module, excluded)


size_based_auto_wrap_policy.EXCLUDE_WRAP_MODULES = {ModuleList, ModuleDict}  # type: ignore[attr-defined]
size_based_auto_wrap_policy.FORCE_LEAF_MODULES = {MultiheadAttention}  # type: ignore[attr-defined]


class ModuleWrapPolicy:
    """Make a unit of each module of one of some classes.

    Args:
        module_classes: the classes.
    """

    def __init__(self, module_classes: Iterable[type[Module]]) -> None:
        self._classes = tuple(module_classes)

    def __call__(self, module: Module, recurse: bool, *args: Any, **kwargs: Any) -> bool:
        return recurse or isinstance(module, self._classes)

    def __repr__(self) -> str:
        return f"ModuleWrapPolicy({', '.join(c.__name__ for c in self._classes)})"


class CustomPolicy:
    """Make a unit of each module for which a function says so.

    Args:
        lambda_fn: of a module; true, false, or the options of its unit that are not the outermost one's.

    Raises:
        ValueError: when it is asked, if ``lambda_fn`` returns something else.
    """

    def __init__(self, lambda_fn: Callable[[Module], bool | dict[str, Any]]) -> None:
        self._function = lambda_fn

    def __call__(self, module: Module, recurse: bool, *args: Any, **kwargs: Any) -> bool | dict[str, Any]:
        if recurse:
            return True
        answer = self._function(module)
        if not isinstance(answer, bool | dict):
            raise ValueError(f"lambda_fn must return True, False or a dict of options, got {answer!r:.80}")
        return answer


def choose(root: Module, policy: Policy, ignored: set[Module]) -> dict[Module, dict[str, Any]]:
    """Return the modules inside ``root`` that ``policy`` makes units, the inner ones first, and their own options."""
    chosen: dict[Module, dict[str, Any]] = {}
    taken: set[int] = set()

    def free(module: Module) -> int:
        return sum(p.numel() for p in module.parameters() if id(p) not in taken)

    def visit(module: Module, is_root: bool) -> None:
        # Attention computes with the weights of the layer inside it, and does not call that.
        leaf = isinstance(module, MultiheadAttention)
        if not leaf and policy(module=module, recurse=True, nonwrapped_numel=free(module)):
            for child in module.children():
                if child not in chosen and child not in ignored and child.__dict__.get("_unit") is None:
                    visit(child, False)
        if is_root or type(module).forward is Module.forward:  # a container, whose forward nobody calls
            return
        answer = policy(module=module, recurse=False, nonwrapped_numel=free(module))
        if answer is not False and answer != {}:
            chosen[module] = answer if isinstance(answer, dict) else {}
            taken.update(id(p) for p in module.parameters())

    visit(root, True)
    return chosen


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
