"""Adam and AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.kernels.optim import adam_step
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.optimizer import check_betas, check_implementation, check_lr, check_not_negative
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.optim.flat import Run
    from disttrain.optim.optimizer import Params


class Adam(FusedOptimizer):
    """Adam (Kingma and Ba, 2015), as ``torch.optim.Adam``.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the root of the second moment.
        weight_decay: factor of the L2 penalty.
        amsgrad: divide by the largest second moment so far (Reddi et al., 2018).
        foreach: accepted as PyTorch's; the step is always fused.
        maximize: go up instead of down.
        capturable: accepted as PyTorch's; it changes nothing.
        differentiable: must be False.
        fused: accepted as PyTorch's; the step is always fused.
        decoupled_weight_decay: shrink the parameters themselves, as :class:`AdamW`.

    Raises:
        ValueError: a negative option, a beta outside [0, 1), or betas that are not two floats or two Tensors.
        NotImplementedError: ``differentiable``.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        check_lr(lr)
        check_not_negative(eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        if not any(all(isinstance(b, kind) for b in betas) for kind in (float, Tensor)):
            raise ValueError(f"betas must be two floats or two Tensors, got {betas!r}")
        for name, value in (("lr", lr), ("betas[0]", betas[0]), ("betas[1]", betas[1])):
            if not isinstance(value, Tensor):
                continue
            if foreach and not capturable:
                raise ValueError(f"{name} in a Tensor needs capturable=True when foreach=True; give a float")
            if value.numel() != 1:
                raise ValueError(f"{name} in a Tensor must be one element, got shape {list(value.shape)}")
        check_implementation(differentiable, foreach, fused)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(map(float, betas)),
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
                "fused": fused,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )

    takes_extras = True

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if group["amsgrad"] else ())

    def update(self, group: dict[str, Any], run: Run) -> None:
        beta1, beta2 = group["betas"]
        adam_step(
            run.param,
            run.grad,
            run.state["exp_avg"],
            run.state["exp_avg_sq"],
            run.state.get("max_exp_avg_sq"),
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            step=int(run.scalars["step"]),
            maximize=group["maximize"],
            extras=run.extras,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as ``torch.optim.AdamW``.

    The options are those of :class:`Adam`; ``weight_decay`` shrinks the parameters themselves.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )
