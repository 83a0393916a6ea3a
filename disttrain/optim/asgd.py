"""Averaged stochastic gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import asgd_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_implementation, check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class ASGD(FusedOptimizer):
    """Averaged stochastic gradient descent (Polyak and Juditsky, 1992), as ``torch.optim.ASGD``.

    The average of the points is ``ax`` in the state.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: learning rate.
        lambd: factor of the decay of the parameters and of the learning rate.
        alpha: power of the fall of the learning rate.
        t0: step from which on points are averaged.
        weight_decay: factor of the L2 penalty.
        foreach: accepted as PyTorch's; the step is always fused.
        maximize: go up instead of down.
        differentiable: must be False.
        capturable: accepted as PyTorch's; it changes nothing.

    Raises:
        ValueError: a negative option.
        NotImplementedError: ``differentiable``.
    """

    scalars = ("step", "eta", "mu")

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        check_lr(lr)
        check_not_negative(weight_decay=weight_decay)
        check_implementation(differentiable, foreach)
        super().__init__(
            params,
            {
                "lr": lr,
                "lambd": lambd,
                "alpha": alpha,
                "t0": t0,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "capturable": capturable,
            },
        )

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("ax",)

    def initial(self, group: dict[str, Any], name: str) -> float:
        return {"mu": 1.0, "eta": float(group["lr"])}.get(name, 0.0)

    def update(self, group: dict[str, Any], run: Run) -> None:
        scalars, lambd, lr = run.scalars, group["lambd"], float(group["lr"])
        asgd_step(
            run.param,
            run.grad,
            run.state["ax"],
            eta=scalars["eta"],
            mu=scalars["mu"],
            lambd=lambd,
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
        scalars["eta"] = lr / (1 + lambd * lr * scalars["step"]) ** group["alpha"]
        scalars["mu"] = 1 / max(1, scalars["step"] - group["t0"])
