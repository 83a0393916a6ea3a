"""Rprop: steps that grow while the gradient keeps its sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import rprop_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_implementation, check_lr

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class Rprop(FusedOptimizer):
    """Resilient backpropagation (Riedmiller and Braun, 1993), as ``torch.optim.Rprop``; for full batches.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: how far each element moves at its first step.
        etas: factors of the step size where the sign of the gradient changed, and where it did not.
        step_sizes: smallest and largest step size.
        capturable: accepted as PyTorch's; it changes nothing.
        foreach: accepted as PyTorch's; the step is always fused.
        maximize: go up instead of down.
        differentiable: must be False.

    Raises:
        ValueError: a negative learning rate, or ``etas`` that are not on both sides of 1.
        NotImplementedError: ``differentiable``.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_lr(lr)
        if not 0 < etas[0] < 1 < etas[1]:
            raise ValueError(f"etas must be a number in (0, 1) and one above 1, got {etas}")
        check_implementation(differentiable, foreach)
        super().__init__(
            params,
            {
                "lr": lr,
                "etas": etas,
                "step_sizes": step_sizes,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "capturable": capturable,
            },
        )

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("prev", "step_size")

    def initial(self, group: dict[str, Any], name: str) -> float:
        return float(group["lr"]) if name == "step_size" else 0.0

    def update(self, group: dict[str, Any], run: Run) -> None:
        rprop_step(
            run.param,
            run.grad,
            run.state["prev"],
            run.state["step_size"],
            etas=group["etas"],
            step_sizes=group["step_sizes"],
            maximize=group["maximize"],
        )
