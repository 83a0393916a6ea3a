"""NAdam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import nadam_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_betas, check_implementation, check_lr, check_not_negative

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params
    from disttrain.tensors import Tensor


class NAdam(FusedOptimizer):
    """Adam with Nesterov momentum (Dozat, 2016), as ``torch.optim.NAdam``.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the divisor.
        weight_decay: factor of the L2 penalty.
        momentum_decay: how fast the momentum comes to its full size.
        decoupled_weight_decay: shrink the parameters themselves, as AdamW.
        foreach: accepted as PyTorch's; the step is always fused.
        maximize: go up instead of down.
        capturable: accepted as PyTorch's; it changes nothing.
        differentiable: must be False.

    Raises:
        ValueError: a negative option, or a beta outside [0, 1).
        NotImplementedError: ``differentiable``.
    """

    scalars = ("step", "mu_product")

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_lr(lr)
        check_not_negative(eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay)
        check_betas(betas)
        check_implementation(differentiable, foreach)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
            },
        )

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def initial(self, group: dict[str, Any], name: str) -> float:
        return float(name == "mu_product")

    def update(self, group: dict[str, Any], run: Run) -> None:
        beta1, beta2 = group["betas"]
        lr, weight_decay = float(group["lr"]), group["weight_decay"]
        decoupled = group["decoupled_weight_decay"]
        step = run.scalars["step"]
        mu = beta1 * (1.0 - 0.5 * 0.96 ** (step * group["momentum_decay"]))
        next_mu = beta1 * (1.0 - 0.5 * 0.96 ** ((step + 1) * group["momentum_decay"]))
        kind = run.scalar_type  # the product is rounded after each step
        product = run.scalars["mu_product"] = float(kind(run.scalars["mu_product"]) * kind(mu))
        nadam_step(
            run.param,
            run.grad,
            run.state["exp_avg"],
            run.state["exp_avg_sq"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            grad_factor=lr * (1.0 - mu) / (1.0 - product),
            avg_factor=lr * next_mu / (1.0 - product * next_mu),
            step=int(step),
            weight_decay=0.0 if decoupled else weight_decay,
            decay=1 - lr * weight_decay if decoupled else 1.0,
            maximize=group["maximize"],
        )
