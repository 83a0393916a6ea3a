"""PyTorch's place for wrappers of modules: ``DistributedDataParallel`` lives in ``disttrain.parallel``."""

from typing import Any

from disttrain import missing
from disttrain.nn.data_parallel import DataParallel, data_parallel

__all__ = ["DataParallel", "DistributedDataParallel", "data_parallel"]  # noqa: F822 (see __getattr__)

__path__: list[str] = []  # so that `import torch.nn.parallel.distributed` looks further


_elsewhere = missing.of(__name__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        return _elsewhere(name)
    from disttrain.parallel import (
        data_parallel as wrapper,
    )  # loads the collectives, which a plain module does not need

    return getattr(wrapper, name)
