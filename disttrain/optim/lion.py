"""Lion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import lion_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_betas, check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class Lion(FusedOptimizer):
    """Lion, evolved sign momentum (Chen et al., "Symbolic discovery of optimization algorithms", 2023).

    Wants a learning rate 3 to 10 times smaller than Adam's, and a weight decay as much larger.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: how far each element moves.
        betas: part of the running mean in the direction of a step, and decay of the running mean.
        weight_decay: factor of the decay of the parameters, times ``lr``.
        maximize: go up instead of down.

    Raises:
        ValueError: a negative option, or a beta outside [0, 1).
    """

    scalars = ()

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        check_lr(lr)
        check_not_negative(weight_decay=weight_decay)
        check_betas(betas)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "maximize": maximize,
            },
        )

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    def update(self, group: dict[str, Any], run: Run) -> None:
        beta1, beta2 = group["betas"]
        lion_step(
            run.param,
            run.grad,
            run.state["exp_avg"],
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
