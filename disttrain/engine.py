"""Recording operations as they run: what backward (:mod:`disttrain.backward_pass`) walks.

A recorded operation is a :class:`Node`. Its ``edges`` say where the gradient of each argument goes: to the
node that made the argument, or to the leaf Tensor itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.context import grad_enabled
from disttrain.errors import GradientError
from disttrain.kernels.arrays import Array, copy_into, is_array
from disttrain.modes import (
    Counter,
    Lender,
    Recording,
    current_tape,
    enable_grad,
    is_grad_enabled,
    is_inference_mode_enabled,
    new_counter,
    no_grad,
    set_grad_enabled,
)
from disttrain.nodes import Edge, Node, Packed, PackedTensor
from disttrain.ops.shape import view_scatter, view_scatter_vjp
from disttrain.ops.types import SAVED_FOR, Op, Vjp, no_vjp

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = [
    "Edge",
    "Node",
    "adopt",
    "apply",
    "apply_view",
    "apply_views",
    "check_in_place",
    "enable_grad",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "new_counter",
    "no_grad",
    "observe",
    "rebase",
    "refresh_view",
    "set_grad_enabled",
    "write_in_place",
]

Tensor_: Any = None  # the class Tensor, put here by disttrain.tensors, whose methods need this module first


# PyTorch never warns of infinities and nan. An op that can make them sets np.errstate, but for the cheapest, +, - and
# *, to which it would add a third of their time: their warnings are dropped here, and by apply() where they are errors.
warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"disttrain\.")

_MISFITS = ("broadcast", "remapping", "cannot assign", "shape mismatch")  # in NumPy's messages about shapes


def apply(op: Op, *inputs: Any, **options: Any) -> Any:
    """Return the output of ``op`` as a Tensor (or a tuple of them), recorded if any argument wants a gradient.

    Args:
        op: see ``disttrain.ops.types``.
        inputs: Tensors, and Python numbers or arrays where no gradient is wanted.
        options: handed to ``op``.
    """
    arrays = [i._array if isinstance(i, Tensor_) else i for i in inputs]
    try:
        out, saved, vjp = op(*arrays, **options)
    except ValueError as e:
        if not any(words in str(e) for words in _MISFITS):
            raise
        shapes = " and ".join([str(list(a.shape)) for a in arrays if is_array(a)])
        raise RuntimeError(f"{op.__name__}(): shapes {shapes} do not broadcast to one shape") from e
    except RuntimeWarning:  # NumPy's, of an infinity or nan, where the user made errors of warnings
        with np.errstate(all="ignore"):
            out, saved, vjp = op(*arrays, **options)
    node = None
    mode = grad_enabled.get()
    if type(out) is tuple:
        versions = [new_counter() for _ in out]
        if mode is not True and mode is not False and mode.tape is not None:
            mode.tape.forward(op, options, inputs, arrays, out, saved)
        if vjp is not no_vjp and mode:
            node = _record(op, options, vjp, saved, inputs, arrays, out, versions, mode)
        return tuple([_wrap(o, node, i, versions[i]) for i, o in enumerate(out)])
    if type(out) is not np.ndarray and not is_array(
        out
    ):  # NumPy turns arrays without dimensions into scalars
        scalar, out = out, np.asarray(out)
        saved = tuple([out if s is scalar else s for s in saved])
    if mode is True or mode is False:
        version = [0]
    else:
        if mode.tape is not None:
            mode.tape.forward(op, options, inputs, arrays, out, saved)
        version = new_counter()
    if vjp is not no_vjp and mode:
        node = _record(op, options, vjp, saved, inputs, arrays, (out,), (version,), mode)
    t: Tensor = Tensor_.__new__(Tensor_)  # _wrap(), without the call
    t._array = out
    t._version_counter = version
    if node is not None and out.dtype.kind in "fV":
        t._node = node
    return t


def _record(
    op: Op,
    options: dict[str, Any],
    vjp: Vjp,
    saved: tuple[Any, ...],
    inputs: Sequence[Any],
    arrays: Sequence[Any],
    outs: tuple[Array, ...],
    versions: Sequence[list[int]],
    mode: bool | Recording,
) -> Node | None:
    edges = tuple([i._edge() if isinstance(i, Tensor_) else None for i in inputs])
    if not any(edges):
        return None
    users = SAVED_FOR.get(vjp) if None in edges else None
    if users is not None:
        wanted = {j for j, edge in enumerate(edges) if edge is not None}
        saved = tuple([None if wanted.isdisjoint(u) else s for s, u in zip(saved, users, strict=True)])
    node = Node(op, options, vjp, saved, edges, arrays, len(outs))
    if mode is not True and mode.tape is not None:  # type: ignore[union-attr]
        mode.tape.attach(node)  # type: ignore[union-attr]
    kept = saved
    for k, s in enumerate(saved):
        if type(s) is not np.ndarray and not is_array(s):
            continue
        for j, a in enumerate(arrays):
            if s is a:
                if isinstance(inputs[j], Tensor_):
                    counter = inputs[j]._version_counter
                    if type(counter) is list:
                        pass
                    elif isinstance(counter, Lender):
                        saved = (*saved[:k], counter.lend(s), *saved[k + 1 :])
                    else:
                        raise GradientError(
                            f"{op.__name__} has to keep its argument {j} for backward, "
                            f"of shape {list(a.shape)}, which was made in inference_mode(); clone() it first, or use "
                            f"no_grad() in place of inference_mode()"
                        )
                    node.versions.append((k, counter, counter[0], j))
                break
        else:
            for j, o in enumerate(outs):
                if s is o:
                    node.versions.append((k, versions[j], 0, -1 - j))
    if saved is not kept:
        node.saved = saved
    if mode is not True:
        observe(node, mode, arrays, outs)
    if saved is not kept and isinstance(node.saved, tuple):
        node.saved = Packed(node.saved)
    return node


def observe(node: Node, mode: Any, arrays: Sequence[Any], outs: Sequence[Array]) -> None:
    """Do with a new node what a mode beyond "on" asks for: check what it computed, pack what it saved."""
    if mode.watch is not None:
        mode.watch.forward(node, arrays, outs)
    hooks = mode.hooks[-1] if mode.hooks else None
    if hooks is None or not isinstance(node.saved, tuple) or not any(map(is_array, node.saved)):
        return
    with no_grad():
        node.saved = Packed([PackedTensor(hooks, Tensor_._of(s)) if is_array(s) else s for s in node.saved])
    node.versions = [(k, [0], 0, j) for k, _, _, j in node.versions]  # what comes back is not what was saved


def _wrap(out: Array, node: Node | None, index: int, version: list[int]) -> Tensor:
    t: Tensor = Tensor_.__new__(Tensor_)
    t._array = out
    t._version_counter = version
    if node is not None and out.dtype.kind in "fV":  # V: bfloat16; indices and masks have no gradient
        t._node = node
        t._index = index
    return t


def apply_view(op: Op, x: Tensor, **options: Any) -> Tensor:
    """Return the output of an op that gives a view of its argument's memory (or, for ``reshape``, may)."""
    t: Tensor = apply(op, x, **options)
    if not t._array.size or np.may_share_memory(t._array, x._array):
        _make_view(t, x, op, options)
    return t


def apply_views(
    op: Op, x: Tensor, each: Sequence[tuple[Op, dict[str, Any]]], **options: Any
) -> tuple[Tensor, ...]:
    """Return the outputs of an op that gives several views; ``each`` says by which op and options one is made alone."""
    outs: tuple[Tensor, ...] = apply(op, x, **options)
    for t, (alone, chosen) in zip(outs, each, strict=True):
        _make_view(t, x, alone, chosen)
    return outs


def _make_view(t: Tensor, x: Tensor, op: Op, options: dict[str, Any]) -> None:
    """Let ``t``, which ``op`` makes of ``x``, be a view of it."""
    t._version_counter = x._version_counter
    base = t._base = x if x._base is None else x._base
    t._chain = (*x._chain, (op, options))
    t._seen = base._history
    if base._layout:
        t._layout = base._layout


def refresh_view(t: Tensor) -> None:
    """Make the history of a view that of its base again, after some other view or the base was changed in place."""
    base = t._base
    assert base is not None
    if t._seen == base._history or _is_void(t, base):
        return
    t._seen = base._history
    again = base
    with enable_grad():
        for op, options in t._chain:
            again = apply(op, again, **options)
    t._node, t._index = again._node, again._index
    if t._retained is not None:
        t._retain()


def _is_void(t: Tensor, base: Tensor) -> bool:
    """Return whether a view can have no history, because its base was given another shape after it was taken.

    Raises:
        RuntimeError: it would need one.
    """
    if t._layout == base._layout:
        return False
    if base._edge() is not None:
        raise RuntimeError(
            "the tensor that this one is a view of was given another shape in place (by transpose_(), squeeze_() or "
            "their like) after the view was taken, so that its gradient cannot be followed; take the view again"
        )
    return True


def write_in_place(x: Tensor, op: Op, *others: Any, **options: Any) -> Tensor:
    """Run ``op(x, *others)`` and write its output into ``x``; the history of ``x`` and of its base follow.

    Raises:
        GradientError: ``x`` is a leaf that requires a gradient, or a view of one.
        RuntimeError: the output has another shape than ``x``, or a type that ``x`` cannot hold.
    """
    check_in_place(x)
    mode = grad_enabled.get()
    if mode is not True and mode is not False and mode.hooks:
        return adopt(x, apply(op, _apart(x), *others, **options))
    result: Tensor = apply(op, x, *others, **options)
    node = result._node
    if node is not None and node.saved is not None:
        for i, (k, _, _, j) in enumerate(node.versions):
            if node.saved[k] is x._array:  # it is about to be overwritten
                kept = x._array.copy()
                if not isinstance(mode, bool) and mode.tape is not None:
                    mode.tape.note(_copy, (x._array,), kept)
                node.saved = (*node.saved[:k], kept, *node.saved[k + 1 :])
                node.versions[i] = (k, [0], 0, j)
    return adopt(x, result)


def _copy(array: Array) -> Array:
    return array.copy()


def _apart(x: Tensor) -> Tensor:
    """Return ``x`` with its history in memory of its own, so that hooks may keep what is about to be overwritten."""
    edge = x._edge()
    array = x._array.copy()
    tape = current_tape()
    if tape is not None:
        tape.note(_copy, (x._array,), array)
    t: Tensor = Tensor_._of(array)
    if edge is not None:
        t._node, t._index = edge
    return t


def check_in_place(x: Tensor) -> None:
    """Raise the error that PyTorch raises where ``x`` must not be changed in place, or would lose its gradient."""
    if isinstance(x._version_counter, Counter) and not is_inference_mode_enabled():
        raise RuntimeError(
            "this tensor cannot be changed in place outside inference_mode(), in which it was made; "
            "clone() it first, or use no_grad() in place of inference_mode()"
        )
    if not grad_enabled.get():
        return
    if x._frozen is not None:
        raise GradientError(x._frozen)
    root = x if x._base is None else x._base
    if root._node is None and root._requires_grad:
        what = "a leaf tensor" if root is x else "a view of a leaf tensor"
        raise GradientError(
            f"{what} that requires grad is being changed in place; do it under "
            f"disttrain.no_grad(), or on a clone"
        )


def adopt(x: Tensor, result: Tensor) -> Tensor:
    """Write ``result`` into the memory of ``x`` and make its history that of ``x``.

    Raises:
        RuntimeError: the result has another shape than ``x``, or a type that ``x`` cannot hold.
    """
    if result._array.shape != x._array.shape:
        raise RuntimeError(
            f"an in-place operation cannot change the shape: the result has shape {list(result.shape)}, "
            f"the tensor {list(x.shape)}"
        )
    if result.dtype is not x.dtype:
        if result.dtype.category > x.dtype.category:
            raise RuntimeError(
                f"result type {result.dtype} cannot be written into a tensor of {x.dtype}; "
                f"convert the tensor first"
            )
        result = result.to(x.dtype)
    if x._array.size and not getattr(x._array.flags, "writeable", True):
        raise RuntimeError(
            "the tensor cannot be written: its memory is read-only, or several of its elements are one "
            "(expand() makes such tensors); clone() it first"
        )
    if x._array.size:
        x._array[...] = result._array
        tape = current_tape()
        if tape is not None:
            tape.note(copy_into, (x._array, result._array), None, changes=x._array)
    x._version_counter[0] += 1
    if grad_enabled.get():
        rebase(x, result._edge())
    return x


def rebase(x: Tensor, edge: Edge | None) -> None:
    """Let the history of ``x`` (and of the tensor that it is a view of) be that of what was just written into it."""
    base = x._base
    if base is None:
        if edge is not None or x._node is not None:
            x._node, x._index = edge if edge is not None else (None, 0)
            x._history += 1
            if x._retained is not None:
                x._retain()
        return
    old = base._edge()
    if edge is None and old is None:
        return
    refresh_view(x)
    if x._layout != base._layout:
        raise RuntimeError(
            "what requires grad was written into a view of a tensor that was given another shape in place after the "
            "view was taken; take the view again"
        )
    node = Node(
        view_scatter,
        {"chain": x._chain},
        view_scatter_vjp,
        (x._chain,),
        (old, edge),
        (base._array, x._array),
        1,
    )
    mode = grad_enabled.get()
    if mode is not True:
        observe(node, mode, (), ())
    base._node, base._index = node, 0
    base._history += 1
    if base._retained is not None:
        base._retain()
    refresh_view(x)
