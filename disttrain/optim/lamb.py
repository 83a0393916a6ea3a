"""LAMB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import lamb_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_betas, check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class LAMB(FusedOptimizer):
    """LAMB (You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020).

    The direction is Adam's with weight decay; its length is that of the parameter, times ``lr``. Where a norm is 0 the
    direction keeps its own length.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the divisor.
        weight_decay: part of the parameter that is added to its direction.
        maximize: go up instead of down.

    Raises:
        ValueError: a negative option, or a beta outside [0, 1).
    """

    _sees_whole = True

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
    ) -> None:
        check_lr(lr)
        check_not_negative(eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
            },
        )

    takes_extras = True

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def update(self, group: dict[str, Any], run: Run) -> None:
        beta1, beta2 = group["betas"]
        lamb_step(
            run.param,
            run.grad,
            run.state["exp_avg"],
            run.state["exp_avg_sq"],
            run.ends,
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            step=int(run.scalars["step"]),
            maximize=group["maximize"],
            extras=run.extras,
        )
