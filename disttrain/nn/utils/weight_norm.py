"""Weights as a length times a direction, by a hook (Salimans and Kingma 2016), as ``torch.nn.utils.weight_norm``."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from disttrain.functions.norm import norm
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.tensors import Tensor

M = TypeVar("M", bound=Module)


def norm_except_dim(v: Tensor, dim: int) -> Tensor:
    """Return the norm over all dimensions but ``dim``, which are kept; over all of them for -1."""
    if dim == -1:
        return norm(v)
    others = [d for d in range(v.ndim) if d != dim % v.ndim]
    return norm(v, 2, others, keepdim=True) if others else v.abs()


class WeightNorm:
    """The hook: before ``forward`` it makes the weight of its length and its direction."""

    def __init__(self, name: str, dim: int) -> None:
        self.name = name
        self.dim = dim

    def compute_weight(self, module: Module) -> Tensor:
        """Return ``g * v / |v|``."""
        g, v = getattr(module, self.name + "_g"), getattr(module, self.name + "_v")
        return v * (g / norm_except_dim(v, self.dim))  # type: ignore[no-any-return]

    def __call__(self, module: Module, args: Any) -> None:
        setattr(module, self.name, self.compute_weight(module))


def weight_norm(module: M, name: str = "weight", dim: int | None = 0) -> M:
    """Replace a parameter by its length ``<name>_g`` and its direction ``<name>_v``.

    Args:
        module: whose parameter.
        name: of the parameter.
        dim: one length for each index of this dimension; one for all with ``None``.

    Returns:
        ``module``.

    Raises:
        RuntimeError: the parameter is normalised already.
    """
    warnings.warn(
        "nn.utils.weight_norm() is the old way; nn.utils.parametrizations.weight_norm() is the new one",
        FutureWarning,
        stacklevel=2,
    )
    if find_hook(module, WeightNorm, name) is not None:
        raise RuntimeError(f"weight_norm: {name} has been split so already")
    hook = WeightNorm(name, -1 if dim is None else dim)
    weight = getattr(module, name)
    length = norm_except_dim(weight.detach(), hook.dim)
    delattr(module, name)
    module.register_parameter(name + "_g", Parameter(length))
    module.register_parameter(name + "_v", Parameter(weight.detach()))
    hook(module, None)
    module.register_forward_pre_hook(hook)
    return module


def remove_weight_norm(module: M, name: str = "weight") -> M:
    """Undo :func:`weight_norm`.

    Raises:
        ValueError: the parameter is not normalised.
    """
    key = find_hook(module, WeightNorm, name)
    if key is None:
        raise ValueError(f"remove_weight_norm(): {type(module).__name__} has no weight_norm of {name!r}")
    weight = module.__dict__["_pre_hooks"].pop(key).function.compute_weight(module)
    for part in ("_g", "_v"):
        delattr(module, name + part)
    module.__dict__.pop(name, None)
    module.register_parameter(name, Parameter(weight.detach()))
    return module


def find_hook(module: Module, kind: type[Any], name: str) -> int | None:
    """Return the number of the pre-hook of that kind for the parameter ``name``."""
    for key, hook in module.__dict__["_pre_hooks"].items():
        if isinstance(hook.function, kind) and hook.function.name == name:
            return int(key)
    return None
