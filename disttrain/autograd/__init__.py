"""What users call to get gradients, by PyTorch's names (``torch.autograd``)."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import backward_pass, context, engine
from disttrain.autograd import anomaly_mode, function, grad_mode, graph
from disttrain.autograd.anomaly_mode import (
    detect_anomaly,
    is_anomaly_check_nan_enabled,
    is_anomaly_enabled,
    set_detect_anomaly,
)
from disttrain.autograd.function import Function
from disttrain.autograd.grad_mode import set_multithreading_enabled
from disttrain.errors import GradientError
from disttrain.modes import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from disttrain.nodes import AccumulateGrad, Edge

if TYPE_CHECKING:
    from disttrain.autograd.checks import gradcheck, gradgradcheck
    from disttrain.tensors import Tensor

__all__ = [
    "Function",
    "Variable",
    "anomaly_mode",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "function",
    "functional",
    "grad",
    "grad_mode",
    "gradcheck",
    "gradgradcheck",
    "graph",
    "inference_mode",
    "is_anomaly_check_nan_enabled",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
    "set_multithreading_enabled",
]


def __getattr__(name: str) -> Any:
    if name == "functional":  # works on Tensors, whose class needs this module first
        return importlib.import_module("disttrain.autograd.functional")
    if name in ("gradcheck", "gradgradcheck"):
        return getattr(importlib.import_module("disttrain.autograd.checks"), name)
    return importlib.import_module("disttrain.missing").of(__name__)(name)


class _IsTensor(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, engine.Tensor_)


class Variable(metaclass=_IsTensor):
    """What tensors were called in old programs, as ``torch.autograd.Variable``: every Tensor is one.

    ``Variable(t)`` is a tensor over the memory of ``t``, without its history.
    """

    def __new__(cls, data: Tensor, requires_grad: bool = False, volatile: Any = None) -> Any:
        if not isinstance(data, engine.Tensor_):
            raise TypeError(f"Variable() is made of a Tensor, got {type(data).__name__}")
        return data.detach().requires_grad_(requires_grad)


_accumulates: ContextVar[bool] = ContextVar("backward_accumulates", default=True)
"""Whether the pass that is running brings gradients to all leaves, and not only to those that were asked for."""


def _as_sequence(x: Any) -> Sequence[Any]:
    if x is None or isinstance(x, engine.Tensor_ | graph.GradientEdge):
        return (x,)
    if not isinstance(x, tuple | list):
        try:
            return tuple(x)
        except TypeError:
            raise TypeError(
                f"expected a Tensor or a sequence of them, got {type(x).__name__}: {x!r:.80}"
            ) from None
    return x


def _edge_of(t: Any) -> Edge | None:
    if isinstance(t, graph.GradientEdge):
        node: Any = t.node
        return (node.variable, 0) if isinstance(node, AccumulateGrad) else (node, t.output_nr)
    if not isinstance(t, engine.Tensor_):
        raise TypeError(f"gradients flow between Tensors, got {type(t).__name__}: {t!r:.80}")
    edge: Edge | None = t._edge()
    return edge


def _roots(
    tensors: Sequence[Any], grads: Sequence[Tensor | None], create_graph: bool
) -> list[tuple[Any, Any]]:
    if len(grads) != len(tensors):
        raise GradientError(
            f"got {len(tensors)} tensors and {len(grads)} gradients; give one for each, or None"
        )
    roots = []
    for i, (t, g) in enumerate(zip(tensors, grads, strict=True)):
        edge = _edge_of(t)
        if g is not None and not isinstance(g, engine.Tensor_):
            raise TypeError(
                f"each gradient to start from is a Tensor or None, got {type(g).__name__}: {g!r:.80}"
            )
        if edge is None:
            raise GradientError(
                f"tensor {i} does not require grad: nothing that it was made from does, or it was made under no_grad()"
            )
        if isinstance(t, graph.GradientEdge):
            if g is None:
                raise GradientError(
                    "backward from a GradientEdge needs a gradient: it does not know its shape"
                )
        elif g is None:
            if t.numel() != 1:
                raise GradientError(
                    f"backward() without a gradient needs a scalar, got shape {list(t.shape)}; reduce it first, for "
                    f"example with .mean(), or give the gradient"
                )
            g = engine.Tensor_._of(np.ones_like(t._array))
        else:
            if g.shape != t.shape:
                raise GradientError(
                    f"gradient {i} must have the shape of its tensor, {list(t.shape)}, got {list(g.shape)}"
                )
            g = g.to(t.dtype)
        assert g is not None
        roots.append((edge, g if create_graph else g._array))
    return roots


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    grad_variables: Any = None,
    inputs: Any = None,
    *,
    weight: float | None = None,
) -> None:
    """Accumulate the gradients of ``tensors`` into their leaves; see :meth:`disttrain.Tensor.backward`.

    Args:
        tensors: one or several tensors that require grad.
        grad_tensors: their gradients; ``None`` for a tensor of one element.
        retain_graph: keep the graph for another pass; by default if ``create_graph``.
        create_graph: record the pass.
        grad_variables: an old name of ``grad_tensors``.
        inputs: accumulate only into these, Tensors or the edges that lead to leaves.
        weight: see :meth:`disttrain.Tensor.backward`.

    Raises:
        GradientError: see :meth:`disttrain.Tensor.backward`; also if ``inputs`` is empty.
    """
    if grad_variables is not None:
        if grad_tensors is not None:
            raise GradientError("grad_tensors and grad_variables (its old name) cannot both be given")
        grad_tensors = grad_variables
    roots_of = _as_sequence(tensors)
    grads = _as_sequence(grad_tensors) if grad_tensors is not None else (None,) * len(roots_of)
    retain = create_graph if retain_graph is None else retain_graph
    if inputs is not None and not len(_as_sequence(inputs)):
        raise GradientError("backward(): inputs is empty; leave it out to reach all leaves")
    roots = _roots(roots_of, grads, create_graph)
    if inputs is None:
        backward_pass.run_backward(roots, retain_graph=retain, create_graph=create_graph, weight=weight)
        return
    leaves = _as_sequence(inputs)
    found = _run_to(roots, _wanted(leaves), retain_graph=retain, create_graph=create_graph, weight=weight)
    for t, g in zip(leaves, found, strict=True):
        if isinstance(t, graph.GradientEdge):
            t = getattr(t.node, "variable", None)  # that of a result leads to no tensor
        if g is not None and t is not None and t._retained is None:  # else the pass has kept it already
            backward_pass.accumulate(t, g)


def _run_to(roots: list[tuple[Any, Any]], wanted: list[Edge], **modes: Any) -> list[Any]:
    token = _accumulates.set(False)
    try:
        return backward_pass.run_backward(roots, wanted=wanted, **modes)
    finally:
        _accumulates.reset(token)


def _wanted(inputs: Sequence[Any]) -> list[Edge]:
    edges = []
    for i, t in enumerate(inputs):
        edge = _edge_of(t)
        if edge is None:
            raise GradientError(
                f"grad(): input {i} does not require grad; call requires_grad_() on it before it is used"
            )
        edges.append(edge)
    return edges


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """Return the gradients of ``outputs`` with respect to ``inputs``, accumulating nothing, as ``torch.autograd.grad``.

    Args:
        outputs: one or several tensors; each of one element unless ``grad_outputs`` is given.
        inputs: one or several tensors that require grad.
        grad_outputs: gradients of the outputs.
        retain_graph: keep the graph for another pass; by default if ``create_graph``.
        create_graph: record the pass, so that the result can be differentiated again.
        only_inputs: there for PyTorch's signature; ignored.
        allow_unused: return ``None`` for an input that the outputs do not depend on, instead of raising.
        is_grads_batched: the first dimension of each of ``grad_outputs`` counts passes, which are made one after the
            other; the results have it too.
        materialize_grads: return zeros for an unused input.

    Raises:
        GradientError: an input does not require grad, or the outputs do not depend on it.
        ValueError: ``allow_unused=False`` contradicts ``materialize_grads``.

    Warns:
        FutureWarning: ``only_inputs`` is false.
    """
    if not only_inputs:
        warnings.warn(
            "grad(only_inputs=False) accumulates nothing, as with True: the argument is ignored; call backward() to "
            "accumulate into all leaves",
            FutureWarning,
            stacklevel=2,
        )
    if materialize_grads and allow_unused is False:
        raise ValueError(
            "grad(): materialize_grads=True gives zeros for unused inputs; leave allow_unused=False out"
        )
    outs, ins = _as_sequence(outputs), _as_sequence(inputs)
    if not ins:
        raise GradientError("grad(): inputs is empty; give the tensors to differentiate by")
    retain = create_graph if retain_graph is None else retain_graph
    if is_grads_batched:
        found = _one_by_one(outs, ins, grad_outputs, retain, create_graph)
    else:
        grads = _as_sequence(grad_outputs) if grad_outputs is not None else (None,) * len(outs)
        found = _run_to(
            _roots(outs, grads, create_graph), _wanted(ins), create_graph=create_graph, retain_graph=retain
        )
    results = []
    for i, (t, g) in enumerate(zip(ins, found, strict=True)):
        if g is None and materialize_grads:
            if isinstance(t, graph.GradientEdge):
                raise GradientError(
                    f"grad(): the outputs do not depend on input {i}, and a GradientEdge does not know the shape of "
                    f"the zeros for it; leave materialize_grads=True out"
                )
            g = engine.Tensor_._of(np.zeros_like(t._array)).requires_grad_(create_graph)
        elif g is None and not allow_unused:
            raise GradientError(
                f"grad(): the outputs do not depend on input {i}; allow_unused=True gives None for such an input"
            )
        results.append(g if g is None or isinstance(g, engine.Tensor_) else engine.Tensor_._of(g))
    return tuple(results)


def _one_by_one(
    outs: Sequence[Any], ins: Sequence[Any], grad_outputs: Any, retain: bool, create_graph: bool
) -> list[Any]:
    """Return the gradients for each row of ``grad_outputs``, stacked."""
    given = _as_sequence(grad_outputs)
    sizes = {g.shape[0] for g in given if g is not None and g.ndim}
    if len(sizes) != 1 or any(g is not None and not g.ndim for g in given):
        raise ValueError(
            "is_grads_batched=True needs grad_outputs whose first dimensions, the number of passes, are equal"
        )
    (n,) = sizes
    rows = []
    for i in range(n):
        roots = _roots(outs, [None if g is None else g[i] for g in given], create_graph)
        found = _run_to(roots, _wanted(ins), create_graph=create_graph, retain_graph=retain or i + 1 < n)
        rows.append(
            [g if g is None or isinstance(g, engine.Tensor_) else engine.Tensor_._of(g) for g in found]
        )
    from disttrain.functions.join import stack

    return [None if column[0] is None else stack(column) for column in zip(*rows, strict=True)]


def backward_weight() -> float:
    """Return what this rank counts in averages of gradients over ranks: the ``weight`` given to the running pass.

    If none was given it is the number of samples that the DataLoader dealt last, else 1.
    """
    running = backward_pass.running_pass()
    if running is not None and running.weight is not None:
        return running.weight
    dealt = context.current().dealt
    return 1.0 if dealt is None else float(dealt.samples)


def accumulates() -> bool:
    """Return whether the pass that is running brings gradients to all leaves; one of :func:`grad` does not."""
    return _accumulates.get()
