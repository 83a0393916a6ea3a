"""What users call to get gradients, by PyTorch's names (``torch.autograd``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import engine
from disttrain.engine import enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from disttrain.errors import GradientError

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = [
    "backward",
    "enable_grad",
    "grad",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]


def inference_mode(mode: bool | Callable[..., Any] = True) -> Any:
    """Record nothing, as :class:`no_grad`; ``mode=False`` changes nothing.

    Unlike PyTorch's, what is made inside may be used outside in what is recorded.
    """
    if callable(mode):  # `@inference_mode` without parentheses
        return no_grad()(mode)
    return no_grad() if mode else set_grad_enabled(is_grad_enabled())


_weight: ContextVar[float | None] = ContextVar("backward_weight", default=None)
"""The ``weight`` given to the backward that is running, for those who average gradients."""
_accumulates: ContextVar[bool] = ContextVar("backward_accumulates", default=True)
"""Whether the pass that is running brings gradients to all leaves, and not only to those that were asked for."""


def _as_sequence(x: Any) -> Sequence[Any]:
    return (x,) if x is None or isinstance(x, engine.Tensor_) else tuple(x)


def _roots(
    tensors: Sequence[Tensor], grads: Sequence[Tensor | None], create_graph: bool
) -> list[tuple[Any, Any]]:
    if len(grads) != len(tensors):
        raise ValueError(f"{len(tensors)} tensors need as many gradients, got {len(grads)}")
    roots = []
    for t, g in zip(tensors, grads, strict=True):
        edge = t._edge()
        if edge is None:
            raise GradientError(
                "backward from a tensor that does not require grad: nothing it was made from does, or "
                "it was made under no_grad()"
            )
        if g is None:
            if t.numel() != 1:
                raise GradientError(
                    f"backward() without a gradient needs a scalar, got shape {list(t.shape)}; "
                    f"reduce it first, for example with .mean()"
                )
            g = engine.Tensor_(np.ones_like(t._array))
        elif g.shape != t.shape:
            raise GradientError(
                f"the gradient of a tensor of shape {list(t.shape)} cannot have shape {list(g.shape)}"
            )
        roots.append((edge, g if create_graph else g._array))
    return roots


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    *,
    inputs: Sequence[Tensor] | None = None,
    weight: float | None = None,
) -> None:
    """Accumulate the gradients of ``tensors`` into their leaves; see :meth:`disttrain.Tensor.backward`."""
    roots_of = _as_sequence(tensors)
    grads = _as_sequence(grad_tensors) if grad_tensors is not None else (None,) * len(roots_of)
    retain = create_graph if retain_graph is None else retain_graph
    roots = _roots(roots_of, grads, create_graph)
    token = _weight.set(weight)
    try:
        if inputs is None:
            engine.run_backward(roots, retain_graph=retain, create_graph=create_graph)
            return
        leaves = _as_sequence(inputs)
        found = _run_to(roots, [_edge_of(t) for t in leaves], retain_graph=retain, create_graph=create_graph)
        for t, g in zip(leaves, found, strict=True):
            if g is not None:
                t._accumulate(g)
    finally:
        _weight.reset(token)


def _run_to(roots: list[tuple[Any, Any]], wanted: list[engine.Edge], **modes: bool) -> list[Any]:
    token = _accumulates.set(False)
    try:
        return engine.run_backward(roots, wanted=wanted, **modes)
    finally:
        _accumulates.reset(token)


def _edge_of(t: Tensor) -> engine.Edge:
    edge = t._edge()
    if edge is None:
        raise GradientError("one of the inputs does not require grad; call requires_grad_() on it first")
    return edge


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    *,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """Return the gradients of ``outputs`` with respect to ``inputs``, accumulating nothing, as ``torch.autograd.grad``.

    Args:
        outputs: one or several tensors; each of one element unless ``grad_outputs`` is given.
        inputs: one or several tensors that require grad.
        grad_outputs: gradients of the outputs.
        retain_graph: keep the graph for another pass; by default if ``create_graph``.
        create_graph: record the pass, so that the result can be differentiated again.
        only_inputs: there for PyTorch's signature; must be true.
        allow_unused: return ``None`` for an input that the outputs do not depend on, instead of raising.
        materialize_grads: return zeros for such an input.

    Raises:
        GradientError: an input does not require grad, or the outputs do not depend on it.
        ValueError: ``only_inputs`` is false.
    """
    if not only_inputs:
        raise ValueError("only_inputs=False does not exist; use backward() to accumulate into all leaves")
    outs, ins = _as_sequence(outputs), _as_sequence(inputs)
    grads = _as_sequence(grad_outputs) if grad_outputs is not None else (None,) * len(outs)
    found = _run_to(
        _roots(outs, grads, create_graph),
        [_edge_of(t) for t in ins],
        create_graph=create_graph,
        retain_graph=create_graph if retain_graph is None else retain_graph,
    )
    results = []
    for i, (t, g) in enumerate(zip(ins, found, strict=True)):
        if g is None and materialize_grads:
            g = np.zeros_like(t._array)
        elif g is None and not allow_unused:
            raise GradientError(
                f"input {i} of shape {list(t.shape)} was not used to compute the outputs; give "
                f"allow_unused=True if that is meant"
            )
        results.append(g if g is None or isinstance(g, engine.Tensor_) else engine.Tensor_(g))
    return tuple(results)


def backward_weight() -> float | None:
    """Return the ``weight`` given to the backward pass that is running, for those who average gradients."""
    return _weight.get()


def accumulates() -> bool:
    """Return whether the pass that is running brings gradients to all leaves; one of :func:`grad` does not."""
    return _accumulates.get()
