"""``torch.nn.modules`` and what is below it: PyTorch's homes of the layers, whose names all are in ``disttrain.nn``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import disttrain.nn
from disttrain import missing

_HOMES = (
    "activation adaptive batchnorm channelshuffle container conv distance dropout flatten fold instancenorm lazy "
    "linear loss module normalization padding pixelshuffle pooling rnn sparse transformer upsampling utils"
)


class _Home(ModuleType):
    """A module whose names are those of ``disttrain.nn``."""

    def __getattr__(self, name: str) -> Any:
        if name == "NonDynamicallyQuantizableLinear":  # MultiheadAttention's in PyTorch; here it is a Linear
            return disttrain.nn.Linear
        if name == "LazyModuleMixin":
            from disttrain.nn.lazy import LazyModuleMixin

            return LazyModuleMixin
        if name in vars(disttrain.nn):
            return getattr(disttrain.nn, name)
        raise missing.error(self.__name__.partition(".")[2], name)


def _home(name: str) -> ModuleType:
    full = f"{__name__}.{name}"
    if full not in sys.modules:
        sys.modules[full] = _Home(full, f"PyTorch's home of layers, ``torch.nn.modules.{name}``.")
    return sys.modules[full]


__path__: list[str] = []  # so that `import torch.nn.modules.conv` looks further


def __getattr__(name: str) -> Any:
    if name in _HOMES.split():
        return _home(name)
    if not name.startswith("_") and name in vars(disttrain.nn):
        return getattr(disttrain.nn, name)
    raise missing.error("nn.modules", name)
