"""RMSprop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import rmsprop_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_implementation, check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class RMSprop(FusedOptimizer):
    """RMSprop (Hinton, 2012; centered: Graves, 2013), as ``torch.optim.RMSprop``.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: learning rate.
        alpha: decay of the running mean of the square.
        eps: added to the divisor.
        weight_decay: factor of the L2 penalty.
        momentum: factor of the velocity.
        centered: divide by the root of the variance.
        capturable: accepted as PyTorch's; it changes nothing.
        foreach: accepted as PyTorch's; the step is always fused.
        maximize: go up instead of down.
        differentiable: must be False.

    Raises:
        ValueError: a negative option.
        NotImplementedError: ``differentiable``.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_lr(lr)
        check_not_negative(eps=eps, momentum=momentum, weight_decay=weight_decay, alpha=alpha)
        check_implementation(differentiable, foreach)
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "alpha": alpha,
                "eps": eps,
                "centered": centered,
                "weight_decay": weight_decay,
                "capturable": capturable,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
            },
        )

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (
            "square_avg",
            *(("momentum_buffer",) if group["momentum"] > 0 else ()),
            *(("grad_avg",) if group["centered"] else ()),
        )

    def update(self, group: dict[str, Any], run: Run) -> None:
        rmsprop_step(
            run.param,
            run.grad,
            run.state["square_avg"],
            run.state.get("grad_avg"),
            run.state.get("momentum_buffer"),
            lr=float(group["lr"]),
            alpha=group["alpha"],
            eps=group["eps"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
