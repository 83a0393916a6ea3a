"""LARS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import lars_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class LARS(FusedOptimizer):
    """Layer-wise adaptive rates (You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017).

    Each parameter moves in proportion to its own norm. The paper lowers ``lr`` by
    :class:`~disttrain.optim.lr_scheduler.PolynomialLR` of power 2. Where a norm is 0 the own rate is 1.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: learning rate of all parameters.
        momentum: factor of the velocity.
        weight_decay: factor of the L2 penalty.
        trust_coefficient: a parameter's own rate, as a part of its norm over that of its gradient.
        maximize: go up instead of down.

    Raises:
        ValueError: a negative option.
    """

    _sees_whole = True
    scalars = ()

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust_coefficient: float = 1e-3,
        *,
        maximize: bool = False,
    ) -> None:
        check_lr(lr)
        check_not_negative(momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient)
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
                "maximize": maximize,
            },
        )

    takes_extras = True

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",)

    def update(self, group: dict[str, Any], run: Run) -> None:
        lars_step(
            run.param,
            run.grad,
            run.state["momentum_buffer"],
            run.ends,
            lr=float(group["lr"]),
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            trust_coefficient=group["trust_coefficient"],
            maximize=group["maximize"],
            extras=run.extras,
        )
