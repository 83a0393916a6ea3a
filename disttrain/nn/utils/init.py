"""Layers whose first values do not matter, as ``torch.nn.utils.skip_init``."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from disttrain.nn.module import Module
from disttrain.random import get_rng_state, set_rng_state

__all__ = ["skip_init"]

M = TypeVar("M", bound=Module)


def skip_init(module_cls: type[M], *args: Any, **kwargs: Any) -> M:
    """Return a layer whose values are not to be counted on, without using up random numbers.

    Args:
        module_cls: the class of the layer.
        args: its arguments.
        kwargs: likewise; ``device`` is where the layer will be.

    Raises:
        RuntimeError: not a class of modules, or one that takes no ``device``.
    """
    if not (inspect.isclass(module_cls) and issubclass(module_cls, Module)):
        raise RuntimeError(f"skip_init() makes an nn.Module, got {module_cls!r}")
    if "device" not in inspect.signature(module_cls).parameters:
        raise RuntimeError(f"skip_init() needs a class that takes a device; {module_cls.__name__} does not")
    state = get_rng_state()
    try:
        return module_cls(*args, **kwargs)
    finally:
        set_rng_state(state)
