"""What scripts written for ``torchrun`` import: ``torch.distributed.elastic.multiprocessing.errors``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from disttrain import missing

__all__ = ["record"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def record(fn: _Function, error_handler: Any = None) -> _Function:
    """Return ``fn`` as it is; use as a decorator of ``main``, as PyTorch's.

    Nothing has to be recorded: the launcher knows the traceback of every rank that fails, and the report of the job
    is the first one.

    Args:
        fn: what the script does.
        error_handler: must be None.

    Raises:
        NotImplementedError: ``error_handler``.
    """
    if error_handler is not None:
        raise NotImplementedError(
            "record(error_handler=...) is not in disttrain: report.json in the run directory has the errors"
        )
    return fn


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
