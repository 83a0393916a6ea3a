"""L-BFGS: a quasi-Newton method that remembers its last steps instead of a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.engine import enable_grad, no_grad
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.optim.line_search import strong_wolfe
from disttrain.optim.optimizer import Optimizer, check_lr
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.optim.optimizer import Params

_LEAST_CURVATURE = 1e-10


class LBFGS(Optimizer):
    """L-BFGS (Liu and Nocedal, 1989; Nocedal and Wright, "Numerical optimization"), as ``torch.optim.LBFGS``.

    A step makes up to ``max_iter`` iterations, and calls its closure for the loss at every point it tries. The
    parameters are one long vector, with zeros where there is no gradient; there can be one group only.

    Args:
        params: parameters, or pairs of a name and a parameter.
        lr: length of an iteration; the first that a line search tries.
        max_iter: iterations of a step.
        max_eval: calls of the closure in a step; 1.25 times ``max_iter`` by default.
        tolerance_grad: stop when no element of the gradient is larger.
        tolerance_change: stop when the loss, and the parameters, change by less.
        history_size: how many iterations are remembered.
        line_search_fn: ``"strong_wolfe"``, or None.

    Raises:
        ValueError: a negative learning rate, or several groups.
    """

    _sees_whole = True

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        check_lr(lr)
        super().__init__(
            params,
            {
                "lr": lr,
                "max_iter": max_iter,
                "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
                "tolerance_grad": tolerance_grad,
                "tolerance_change": tolerance_change,
                "history_size": history_size,
                "line_search_fn": line_search_fn,
            },
        )
        if len(self.param_groups) != 1:
            raise ValueError(
                f"LBFGS takes all parameters as one vector and so has one group; got {len(self.param_groups)} groups"
            )

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Make one step, of several iterations.

        Args:
            closure: forgets the gradients, computes the loss and its gradients, and returns it.

        Returns:
            What ``closure`` returned first.

        Raises:
            RuntimeError: a line search that is unknown.
        """
        with no_grad():
            return self._step(closure)

    def _step(self, closure: Callable[[], Any]) -> Any:
        group = self.param_groups[0]
        lr, max_iter, max_eval = float(group["lr"]), group["max_iter"], group["max_eval"]
        search = group["line_search_fn"]
        if search not in (None, "strong_wolfe"):
            raise RuntimeError(f"line_search_fn must be 'strong_wolfe' or None, got {search!r}")
        state = self.state[group["params"][0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        first_loss, loss, grad = self._evaluate(closure)
        evaluations = 1
        state["func_evals"] += 1
        if _largest(grad) <= group["tolerance_grad"]:
            return first_loss
        memory = _Memory.of(state, group["history_size"])
        direction, t = _array(state.get("d")), state.get("t")
        t = None if t is None else float(t)
        before = _array(state.get("prev_flat_grad"))
        iterations = 0
        while iterations < max_iter:
            iterations += 1
            state["n_iter"] += 1
            if state["n_iter"] == 1:
                memory.clear()
                direction = -grad
                t = min(1.0, 1.0 / float(get_array_module(grad).abs(grad).sum())) * lr
            else:
                memory.add(grad - before, direction * direction.dtype.type(t))
                direction = memory.direction(grad)
                t = lr
            before, loss_before = grad, loss
            slope = float(grad @ direction)
            if slope > -group["tolerance_change"]:
                break
            calls = 0
            if search is not None:
                start = [p._array.copy() for p in group["params"]]

                def at(
                    t: float, start: list[Array] = start, direction: Array = direction
                ) -> tuple[float, Array]:
                    self._move(t, direction)
                    _, loss, grad = self._evaluate(closure)
                    for p, array in zip(group["params"], start, strict=True):
                        p._array[...] = array
                        p._version_counter[0] += 1
                    return loss, grad

                loss, grad, t, calls = strong_wolfe(
                    at, t, direction, loss, grad, slope, max_calls=max_eval - evaluations
                )
                self._move(t, direction)
            else:
                self._move(t, direction)
                if iterations != max_iter:  # the next step begins with this call
                    _, loss, grad = self._evaluate(closure)
                    calls = 1
            evaluations += calls
            state["func_evals"] += calls
            if (
                evaluations >= max_eval
                or _largest(grad) <= group["tolerance_grad"]
                or _largest(direction * direction.dtype.type(t)) <= group["tolerance_change"]
                or abs(loss - loss_before) < group["tolerance_change"]
            ):
                break
        if iterations:
            memory.keep(state)
            state["d"], state["t"] = Tensor._of(direction), t
            state["prev_flat_grad"], state["prev_loss"] = Tensor._of(before), loss_before
        return first_loss

    def _evaluate(self, closure: Callable[[], Any]) -> tuple[Any, float, Array]:
        """Return what the closure returns, that as a number, and all gradients as one vector."""
        with enable_grad():
            loss = closure()
        self._check_wrapped()
        parts = [
            get_array_module(p._array).zeros(p._array.size, p._array.dtype)
            if p._grad is None
            else p._grad._array.reshape(-1)
            for p in self.param_groups[0]["params"]
        ]
        return loss, float(loss), get_array_module(*parts).concatenate(parts)

    def _move(self, t: float, direction: Array) -> None:
        begin = 0
        for p in self.param_groups[0]["params"]:
            end = begin + p._array.size
            part = direction[begin:end].reshape(p._array.shape)
            p._array[...] += (part * part.dtype.type(t)).astype(p._array.dtype, copy=False)
            p._version_counter[0] += 1
            begin = end


class _Memory:
    """The last steps and what the gradient changed by, oldest first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changes: list[Array] = []
        self.steps: list[Array] = []
        self.inverses: list[float] = []
        self.scale = 1.0

    @classmethod
    def of(cls, state: dict[str, Any], size: int) -> _Memory:
        memory = cls(size)
        memory.changes = [_array(a) for a in state.get("old_dirs") or ()]
        memory.steps = [_array(a) for a in state.get("old_stps") or ()]
        memory.inverses = [float(r) for r in state.get("ro") or ()]
        memory.scale = float(state.get("H_diag") or 1.0)
        return memory

    def keep(self, state: dict[str, Any]) -> None:
        state["old_dirs"] = [Tensor._of(a) for a in self.changes]
        state["old_stps"] = [Tensor._of(a) for a in self.steps]
        state["ro"] = [Tensor._of(_scalar(r, a)) for r, a in zip(self.inverses, self.changes, strict=True)]
        state["H_diag"] = Tensor._of(_scalar(self.scale, self.changes[-1])) if self.changes else self.scale

    def clear(self) -> None:
        self.changes, self.steps, self.inverses, self.scale = [], [], [], 1.0

    def add(self, change: Array, step: Array) -> None:
        curvature = float(change @ step)
        if curvature <= _LEAST_CURVATURE:
            return
        if len(self.changes) == self.size:
            del self.changes[0], self.steps[0], self.inverses[0]
        self.changes.append(change)
        self.steps.append(step)
        self.inverses.append(1.0 / curvature)
        self.scale = curvature / float(change @ change)

    def direction(self, grad: Array) -> Array:
        """Return the approximate inverse Hessian times ``-grad`` (Nocedal and Wright, algorithm 7.4)."""
        T = grad.dtype.type
        q = -grad
        factors = []
        for y, s, r in zip(self.changes[::-1], self.steps[::-1], self.inverses[::-1], strict=True):
            a = float(s @ q) * r
            q -= T(a) * y
            factors.append(a)
        q *= T(self.scale)
        for y, s, r, a in zip(self.changes, self.steps, self.inverses, factors[::-1], strict=True):
            q += T(a - float(y @ q) * r) * s
        return q


def _array(value: Any) -> Any:
    return value._array if isinstance(value, Tensor) else value


def _scalar(value: float, like: Array) -> Array:
    return np.array(value, like.dtype)


def _largest(x: Array) -> float:
    return float(get_array_module(x).abs(x).max()) if x.size else -math.inf
