"""``torch.distributed.algorithms.join``: ranks that have different numbers of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from disttrain import missing
from disttrain.parallel.data_parallel import DistributedDataParallel

__all__ = ["Join"]


class Join:
    """``with Join([model]):`` is ``with model.join():`` of a ``DistributedDataParallel``.

    Args:
        joinables: one such model.
        enable: false makes this do nothing.
        throw_on_early_termination: raise on all ranks as soon as one has ended.
        options: of :meth:`.DistributedDataParallel.join`.

    Raises:
        ValueError: there is nothing in ``joinables``.
        NotImplementedError: there is something else, or several.
    """

    def __init__(
        self,
        joinables: Sequence[Any],
        enable: bool = True,
        throw_on_early_termination: bool = False,
        **options: Any,
    ) -> None:
        if not joinables:
            raise ValueError("Join() needs a DistributedDataParallel, got none")
        model = joinables[0]
        if len(joinables) > 1 or not isinstance(model, DistributedDataParallel):
            names = ", ".join(type(j).__name__ for j in joinables)
            raise NotImplementedError(
                f"Join([{names}]) is not in disttrain; it takes one DistributedDataParallel, and a DataLoader without "
                f"a sampler, which deals equally many batches to all ranks, needs none"
            )
        self._inside = model.join(
            enable=enable, throw_on_early_termination=throw_on_early_termination, **options
        )

    def __enter__(self) -> None:
        self._inside.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._inside.__exit__(*error)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
