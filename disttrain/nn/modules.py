"""``torch.nn.modules`` and what is below it: PyTorch's homes of the layers, whose names all are in ``disttrain.nn``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import disttrain.nn
from disttrain import missing

_HOMES = (
    "activation adaptive batchnorm channelshuffle container conv distance dropout flatten fold instancenorm lazy "
    "linear loss module normalization padding pixelshuffle pooling rnn sparse transformer upsampling utils"
)


_PRIVATE = {
    "_AdaptiveAvgPoolNd": "pooling._AdaptiveAvgPool",
    "_AdaptiveMaxPoolNd": "pooling._AdaptiveMaxPool",
    "_AvgPoolNd": "pooling._AvgPool",
    "_BatchNorm": "normalization._BatchNorm",
    "_ConvNd": "conv._ConvNd",
    "_ConvTransposeNd": "conv._ConvTranspose",
    "_DropoutNd": "dropout._Dropout",
    "_InstanceNorm": "normalization._InstanceNorm",
    "_Loss": "loss._Loss",
    "_MaxPoolNd": "pooling._MaxPool",
    "_NormBase": "normalization._Norm",
    "_WeightedLoss": "loss._WeightedLoss",
}
"""PyTorch's private base classes, which scripts ask isinstance() for or derive from, and what they are here."""


def _ntuple(n: int) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that repeats a value ``n`` times; what is a sequence already becomes a tuple."""

    def parse(x: Any) -> tuple[Any, ...]:
        return tuple(x) if isinstance(x, Iterable) else (x,) * n

    return parse


_UTILS = {
    "_ntuple": _ntuple,
    **{f"_{word}": _ntuple(n) for n, word in enumerate(("single", "pair", "triple", "quadruple"), 1)},
}
"""What layers that people write take from PyTorch's ``nn.modules.utils``."""


class _Home(ModuleType):
    """A module whose names are those of ``disttrain.nn``."""

    def __getattr__(self, name: str) -> Any:
        if name == "NonDynamicallyQuantizableLinear":  # MultiheadAttention's in PyTorch; here it is a Linear
            return disttrain.nn.Linear
        if name == "LazyModuleMixin":
            from disttrain.nn.lazy import LazyModuleMixin

            return LazyModuleMixin
        if name in _PRIVATE:
            home, _, private = _PRIVATE[name].partition(".")
            return getattr(importlib.import_module(f"disttrain.nn.{home}"), private)
        if name in _UTILS and self.__name__.endswith(".utils"):
            return _UTILS[name]
        if name in vars(disttrain.nn):
            return getattr(disttrain.nn, name)
        raise missing.error(self.__name__.partition(".")[2], name)


def _home(name: str) -> ModuleType:
    full = f"{__name__}.{name}"
    if full not in sys.modules:
        sys.modules[full] = _Home(full, f"PyTorch's home of layers, ``torch.nn.modules.{name}``.")
    return sys.modules[full]


for _name in _HOMES.split():
    _home(_name)  # there at once, so that `import disttrain.nn.modules.conv` finds it
__path__: list[str] = []  # so that `import torch.nn.modules.conv` looks further


def __getattr__(name: str) -> Any:
    if name in _HOMES.split():
        return _home(name)
    if not name.startswith("_") and name in vars(disttrain.nn):
        return getattr(disttrain.nn, name)
    raise missing.error("nn.modules", name)
