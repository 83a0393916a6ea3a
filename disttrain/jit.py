"""``torch.jit``: nothing is compiled or traced here; what only marks code for that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain import missing

__all__ = ["export", "ignore", "is_scripting", "is_tracing", "load", "save", "script", "trace", "unused"]

_WHY = "nothing is compiled; call the module or function itself"
script = missing.refused("jit.script", _WHY)
trace = missing.refused("jit.trace", _WHY)
save = missing.refused("jit.save", "save the module with disttrain.save()")
load = missing.refused("jit.load", "load a module of disttrain.save() with disttrain.load()")


def is_scripting() -> bool:
    """Return False."""
    return False


def is_tracing() -> bool:
    """Return False."""
    return False


def export(fn: Any) -> Any:
    """Return ``fn``."""
    return fn


def unused(fn: Any) -> Any:
    """Return ``fn``."""
    return fn


def ignore(drop: Any = False, **kwargs: Any) -> Any:
    """Return the function; also as ``@ignore()``."""
    return drop if callable(drop) else lambda fn: fn


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
