"""Adamax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import adamax_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_betas, check_implementation, check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class Adamax(FusedOptimizer):
    """Adamax (Kingma and Ba, 2015), as ``torch.optim.Adamax``.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: learning rate.
        betas: decay of the running mean of the gradient and of its largest size.
        eps: added to the size of each gradient.
        weight_decay: factor of the L2 penalty.
        foreach: accepted as PyTorch's; the step is always fused.
        maximize: go up instead of down.
        differentiable: must be False.
        capturable: accepted as PyTorch's; it changes nothing.

    Raises:
        ValueError: a negative option, or a beta outside [0, 1).
        NotImplementedError: ``differentiable``.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        check_lr(lr)
        check_not_negative(eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        check_implementation(differentiable, foreach)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "capturable": capturable,
            },
        )

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_inf")

    def update(self, group: dict[str, Any], run: Run) -> None:
        beta1, beta2 = group["betas"]
        adamax_step(
            run.param,
            run.grad,
            run.state["exp_avg"],
            run.state["exp_inf"],
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            step=int(run.scalars["step"]),
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
