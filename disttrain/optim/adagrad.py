"""Adagrad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import adagrad_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_implementation, check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class Adagrad(FusedOptimizer):
    """Adagrad (Duchi et al., 2011), as ``torch.optim.Adagrad``.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: learning rate.
        lr_decay: how fast the learning rate falls with the steps.
        weight_decay: factor of the L2 penalty.
        initial_accumulator_value: what the sum of the squares begins with.
        eps: added to the divisor.
        foreach: accepted as PyTorch's; the step is always fused.
        maximize: go up instead of down.
        differentiable: must be False.
        fused: accepted as PyTorch's; the step is always fused.

    Raises:
        ValueError: a negative option.
        NotImplementedError: ``differentiable``.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_lr(lr)
        check_not_negative(
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
        )
        check_implementation(differentiable, foreach, fused)
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "fused": fused,
            },
        )
        self._make_state()

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    def initial(self, group: dict[str, Any], name: str) -> float:
        return float(self.defaults["initial_accumulator_value"]) if name == "sum" else 0.0

    def update(self, group: dict[str, Any], run: Run) -> None:
        adagrad_step(
            run.param,
            run.grad,
            run.state["sum"],
            lr=float(group["lr"]) / (1 + (run.scalars["step"] - 1) * group["lr_decay"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )
