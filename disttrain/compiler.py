"""``torch.compile`` and ``torch.compiler``: nothing is compiled yet, and programs that ask for it run as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disttrain import missing

__all__ = ["compile", "disable", "is_compiling", "reset"]

_warned = False


def compile(
    model: Callable[..., Any] | None = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    backend: Any = "inductor",
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    disable: bool = False,
    **later: Any,
) -> Any:
    """Return ``model`` itself, a module or a function: nothing is compiled yet, which one warning says.

    Without a model it is a decorator. The options are accepted for PyTorch's sake.
    """
    global _warned
    if not _warned and not disable:
        _warned = True
        warnings.warn("compile(): nothing is compiled yet; the model runs as it is", stacklevel=2)
    return (lambda function: function) if model is None else model


def is_compiling() -> bool:
    """Return False."""
    return False


def disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """Return the function; also as ``@disable()``."""
    return (lambda function: function) if fn is None else fn


def reset() -> None:
    """Nothing: no compiled code is kept."""


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
