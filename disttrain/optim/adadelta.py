"""Adadelta."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import adadelta_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_implementation, check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class Adadelta(FusedOptimizer):
    """Adadelta (Zeiler, 2012), as ``torch.optim.Adadelta``.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: factor of the step.
        rho: decay of the running means.
        eps: added under the roots.
        weight_decay: factor of the L2 penalty.
        foreach: accepted as PyTorch's; the step is always fused.
        capturable: accepted as PyTorch's; it changes nothing.
        maximize: go up instead of down.
        differentiable: must be False.

    Raises:
        ValueError: a negative option, or ``rho`` above 1.
        NotImplementedError: ``differentiable``.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_lr(lr)
        if not 0 <= rho <= 1:
            raise ValueError(f"rho must be in [0, 1], got {rho}")
        check_not_negative(eps=eps, weight_decay=weight_decay)
        check_implementation(differentiable, foreach)
        super().__init__(
            params,
            {
                "lr": lr,
                "rho": rho,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "capturable": capturable,
                "foreach": foreach,
                "differentiable": differentiable,
            },
        )

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def update(self, group: dict[str, Any], run: Run) -> None:
        adadelta_step(
            run.param,
            run.grad,
            run.state["square_avg"],
            run.state["acc_delta"],
            lr=float(group["lr"]),
            rho=group["rho"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
