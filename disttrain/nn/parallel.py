"""PyTorch's place for ``DistributedDataParallel``, which lives in ``disttrain.parallel``."""

from typing import Any

__all__ = ["DistributedDataParallel"]  # noqa: F822 (see __getattr__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"disttrain.nn.parallel has no {name!r}; it has {', '.join(__all__)}")
    from disttrain.parallel import data_parallel  # loads the collectives, which a plain module does not need

    return getattr(data_parallel, name)
