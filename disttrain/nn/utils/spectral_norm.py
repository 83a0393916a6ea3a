"""Weights divided by their largest singular value, by a hook (Miyato et al. 2018), as in ``torch.nn.utils``."""

from __future__ import annotations

from typing import Any, TypeVar

from disttrain.engine import no_grad
from disttrain.functions.creation import empty
from disttrain.functions.linalg import dot, mv
from disttrain.nn.functional.normalization import normalize
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.nn.utils.weight_norm import find_hook
from disttrain.tensors import Tensor

M = TypeVar("M", bound=Module)


def as_matrix(weight: Tensor, dim: int) -> Tensor:
    """Return the weight with ``dim`` first and all other dimensions as one."""
    if dim % max(weight.ndim, 1):
        weight = weight.movedim(dim, 0)
    return weight.reshape(weight.shape[0], -1)


def power_iteration(matrix: Tensor, u: Tensor, v: Tensor, steps: int, eps: float) -> None:
    """Bring ``u`` and ``v`` nearer to the first singular vectors, in place."""
    with no_grad():
        for _ in range(steps):
            v.copy_(normalize(mv(matrix.t(), u), dim=0, eps=eps))
            u.copy_(normalize(mv(matrix, v), dim=0, eps=eps))


def random_unit(size: int, like: Tensor, eps: float) -> Tensor:
    """Return a random vector of length 1."""
    unit: Tensor = normalize(empty(size, dtype=like.dtype, device=like.device).normal_(), dim=0, eps=eps)
    return unit


def default_dim(module: Module) -> int:
    """Return the dimension of the outputs of a layer's weight."""
    return 1 if type(module).__name__.startswith("ConvTranspose") else 0


class SpectralNorm:
    """The hook: before ``forward`` it divides the weight by its largest singular value."""

    def __init__(self, name: str, n_power_iterations: int, dim: int, eps: float) -> None:
        self.name = name
        self.n_power_iterations = n_power_iterations
        self.dim = dim
        self.eps = eps

    def compute_weight(self, module: Module, iterate: bool) -> Tensor:
        """Return the weight, after steps of the power iteration if ``iterate``."""
        weight = getattr(module, self.name + "_orig")
        u, v = getattr(module, self.name + "_u"), getattr(module, self.name + "_v")
        matrix = as_matrix(weight, self.dim)
        if iterate:
            power_iteration(matrix.detach(), u, v, self.n_power_iterations, self.eps)
            u, v = u.clone(), v.clone()  # backward may come after the next step
        return weight / dot(u, mv(matrix, v))  # type: ignore[no-any-return]

    def __call__(self, module: Module, args: Any) -> None:
        setattr(module, self.name, self.compute_weight(module, module.training))


def spectral_norm(
    module: M, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> M:
    """Divide a parameter, kept as ``<name>_orig``, by its largest singular value before each ``forward``.

    Args:
        module: whose parameter.
        name: of the parameter.
        n_power_iterations: steps in each forward in training.
        eps: the smallest length to divide by.
        dim: the dimension of the outputs, by default 0 (1 for transposed convolutions).

    Returns:
        ``module``.

    Raises:
        RuntimeError: the parameter is normalised already.
        ValueError: fewer than one step.
    """
    if find_hook(module, SpectralNorm, name) is not None:
        raise RuntimeError(f"spectral_norm: {name} has been normalised so already")
    if n_power_iterations <= 0:
        raise ValueError(f"spectral_norm: n_power_iterations must be positive, got {n_power_iterations}")
    hook = SpectralNorm(name, n_power_iterations, default_dim(module) if dim is None else dim, eps)
    weight = getattr(module, name)
    matrix = as_matrix(weight.detach(), hook.dim)
    delattr(module, name)
    module.register_parameter(name + "_orig", weight)
    setattr(module, name, weight.data)
    module.register_buffer(name + "_u", random_unit(matrix.shape[0], matrix, eps))
    module.register_buffer(name + "_v", random_unit(matrix.shape[1], matrix, eps))
    module.register_forward_pre_hook(hook)
    return module


def remove_spectral_norm(module: M, name: str = "weight") -> M:
    """Undo :func:`spectral_norm`.

    Raises:
        ValueError: the parameter is not normalised.
    """
    key = find_hook(module, SpectralNorm, name)
    if key is None:
        raise ValueError(f"remove_spectral_norm(): {type(module).__name__} has no spectral_norm of {name!r}")
    hook = module.__dict__["_pre_hooks"].pop(key).function
    with no_grad():
        weight = hook.compute_weight(module, False)
    module.__dict__.pop(name, None)
    for part in ("_u", "_v", "_orig"):
        delattr(module, name + part)
    module.register_parameter(name, Parameter(weight.detach()))
    return module
