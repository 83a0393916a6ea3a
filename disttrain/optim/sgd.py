"""Stochastic gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import sgd_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_implementation, check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class SGD(FusedOptimizer):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: learning rate.
        momentum: factor of the velocity.
        dampening: part of the gradient that does not enter the velocity.
        weight_decay: factor of the L2 penalty.
        nesterov: look ahead along the velocity.
        maximize: go up instead of down.
        foreach: accepted as PyTorch's; the step is always fused.
        differentiable: must be False.
        fused: accepted as PyTorch's; the step is always fused.

    Raises:
        ValueError: a negative option, or Nesterov without momentum or with dampening.
        NotImplementedError: ``differentiable``.
    """

    scalars = ()

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_lr(lr)
        check_not_negative(momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(
                f"nesterov needs a momentum and no dampening, got momentum={momentum}, dampening={dampening}"
            )
        check_implementation(differentiable, foreach, fused)
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
            },
        )

    takes_extras = True

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def update(self, group: dict[str, Any], run: Run) -> None:
        sgd_step(
            run.param,
            run.grad,
            run.state.get("momentum_buffer"),
            lr=float(group["lr"]),
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            first_step=run.fresh,
            maximize=group["maximize"],
            extras=run.extras,
        )
