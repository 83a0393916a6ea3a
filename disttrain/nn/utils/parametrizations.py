"""Ready-made parametrizations, as ``torch.nn.utils.parametrizations``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from disttrain import missing
from disttrain.functions.linalg import dot, mv
from disttrain.nn.functional.normalization import normalize
from disttrain.nn.module import Module
from disttrain.nn.utils.parametrize import register_parametrization
from disttrain.nn.utils.spectral_norm import as_matrix, default_dim, power_iteration, random_unit
from disttrain.nn.utils.weight_norm import norm_except_dim
from disttrain.tensors import Tensor

M = TypeVar("M", bound=Module)


class _WeightNorm(Module):
    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = -1 if dim is None else dim

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return weight_v * (weight_g / norm_except_dim(weight_v, self.dim))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return norm_except_dim(weight, self.dim), weight


def weight_norm(module: M, name: str = "weight", dim: int | None = 0) -> M:
    """Make a parameter of its length ``original0`` and its direction ``original1`` (Salimans and Kingma 2016).

    States of the older ``nn.utils.weight_norm`` (``<name>_g`` and ``<name>_v``) load too.

    Args:
        module: whose parameter.
        name: of the parameter.
        dim: one length for each index of this dimension; one for all with ``None``.

    Returns:
        ``module``.
    """
    register_parametrization(module, name, _WeightNorm(dim), unsafe=True)

    def rename(module: Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for old, new in (("g", "original0"), ("v", "original1")):
            if f"{prefix}{name}_{old}" in state:
                state[f"{prefix}parametrizations.{name}.{new}"] = state.pop(f"{prefix}{name}_{old}")

    module.register_load_state_dict_pre_hook(rename)
    return module


class _SpectralNorm(Module):
    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, n_power_iterations: int, dim: int, eps: float) -> None:
        super().__init__()
        if n_power_iterations <= 0:
            raise ValueError(f"spectral_norm: n_power_iterations must be positive, got {n_power_iterations}")
        if not -max(weight.ndim, 1) <= dim < max(weight.ndim, 1):
            raise IndexError(
                f"dim must be a dimension of the weight of shape {tuple(weight.shape)}, got {dim}"
            )
        self.dim = dim if dim >= 0 else dim + weight.ndim
        self.eps = eps
        self.n_power_iterations = n_power_iterations
        if weight.ndim > 1:
            matrix = as_matrix(weight.detach(), self.dim)
            u, v = random_unit(matrix.shape[0], matrix, eps), random_unit(matrix.shape[1], matrix, eps)
            self.register_buffer("_u", u)
            self.register_buffer("_v", v)
            power_iteration(matrix.t(), self._v, self._u, 15, eps)  # u first, as PyTorch here

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            unit: Tensor = normalize(weight, dim=0, eps=self.eps)
            return unit
        matrix = as_matrix(weight, self.dim)
        if self.training:
            power_iteration(matrix.detach().t(), self._v, self._u, self.n_power_iterations, self.eps)
        u, v = self._u.clone(), self._v.clone()  # backward may come after the next step
        return weight / dot(u, mv(matrix, v))

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


def spectral_norm(
    module: M, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> M:
    """Divide a parameter by its largest singular value (Miyato et al. 2018).

    Args:
        module: whose parameter.
        name: of the parameter.
        n_power_iterations: steps in each forward in training.
        eps: the smallest length to divide by.
        dim: the dimension of the outputs, by default 0 (1 for transposed convolutions).

    Returns:
        ``module``.

    Raises:
        ValueError: ``module`` has no such parameter, or fewer than one step.
        IndexError: there is no such dimension.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"there is no parameter or buffer {name!r} in {type(module).__name__}")
    function = _SpectralNorm(weight, n_power_iterations, default_dim(module) if dim is None else dim, eps)
    return register_parametrization(module, name, function)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
