"""Operations that users define with their own gradient, as ``torch.autograd.Function``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import engine, missing
from disttrain.context import grad_enabled
from disttrain.errors import GradientError
from disttrain.kernels.arrays import is_array
from disttrain.modes import Lender, Mode, changed, enable_grad, no_grad
from disttrain.nodes import Edge, Lent, Node, PackedTensor, next_sequence
from disttrain.ops.types import no_vjp

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["BackwardCFunction", "Function", "FunctionCtx", "once_differentiable"]


class FunctionCtx:
    """What ``forward`` and ``backward`` are given as ``ctx``; attributes of any name may be set on it."""

    needs_input_grad: tuple[bool, ...] = ()
    """For each argument of ``forward``, whether its gradient is wanted; so ``backward`` may leave work undone."""
    _to_save: tuple[Any, ...] = ()
    _dirty: tuple[Any, ...] = ()
    _non_differentiable: tuple[Any, ...] = ()
    _materialize = True

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep arguments, outputs or other tensors for ``backward``, which finds them in ``saved_tensors``.

        A change in place of one of them before that is an error, and an output makes no cycle of references.
        """
        self._to_save = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """There for programs that also define a forward-mode ``jvp``, which does not exist here."""

    def mark_dirty(self, *args: Tensor) -> None:
        """Say which arguments ``forward`` changed in place; it must return them."""
        self._dirty = args

    def mark_non_differentiable(self, *args: Tensor) -> None:
        """Say which outputs have no gradient."""
        self._non_differentiable = args

    def set_materialize_grads(self, value: bool) -> None:
        """Give ``backward`` zeros (``True``, as it is at first) or ``None`` for outputs that nobody used."""
        self._materialize = value


class BackwardCFunction(FunctionCtx, Node):
    """A recorded call of a :class:`Function`: its ``ctx`` and its ``grad_fn`` in one."""

    _function: type[Function]
    _saved: tuple[_Saved | None, ...] | None = ()
    _tensor_inputs: list[bool]
    _metas: list[tuple[tuple[int, ...], np.dtype[Any]] | None]
    """Shape and type of each output that is a tensor."""

    def __init__(self) -> None:
        self.hooks = None
        self.versions = []
        self.options = {}
        self.saved = None  # what marks such a node for the engine
        self.vjp = no_vjp
        self.op = self._function  # type: ignore[assignment]

    def name(self) -> str:
        """Return the name of the Function with ``Backward`` behind it."""
        return type(self).__name__

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What ``save_for_backward`` kept.

        Raises:
            GradientError: backward has freed it, or one was changed in place since.
        """
        if self._saved is None:
            raise GradientError(
                f"the graph cannot be followed a second time: what {self._function.__name__} saved has been "
                f"freed; give retain_graph=True to the first backward() or grad()"
            )
        return tuple([None if s is None else s.tensor(self) for s in self._saved])

    def release(self) -> None:
        """Free what was saved, after backward has passed."""
        self._saved = None

    def backward(self, g: Any, needs: tuple[bool, ...], create_graph: bool) -> list[Any]:
        """Return the gradients that the user's ``backward`` gives, checked."""
        given = []
        for one, meta in zip(g if self.outputs > 1 else (g,), self._metas, strict=True):
            if one is None and meta is not None and self._materialize:
                one = np.zeros(*meta)
            given.append(engine.Tensor_._of(one) if is_array(one) else one)
        backward, name = self._function.backward, self.name()
        if backward is Function.backward:
            backward = self._function.vjp
        grads = backward(self, *given)
        if type(grads) is not tuple:
            grads = (grads,)
        n = len(self.edges)
        if len(grads) < n or any(extra is not None for extra in grads[n:]):
            raise GradientError(
                f"{name}: backward must return {n} gradients, got {len(grads)}: one for each argument of forward, "
                f"None for those that have none"
            )
        return [self._checked(i, one, needs[i], create_graph) for i, one in enumerate(grads[:n])]

    def _checked(self, i: int, g: Any, need: bool, create_graph: bool) -> Any:
        if g is None:
            return None
        name = self.name()
        if not isinstance(g, engine.Tensor_):
            raise GradientError(
                f"{name}: backward returns Tensors and None, got {type(g).__name__} as gradient {i}"
            )
        if not self._tensor_inputs[i]:
            raise GradientError(
                f"{name}: argument {i} of forward is no Tensor, so backward must return None for it, got a Tensor"
            )
        if not need:
            return None
        shape, _ = self.inputs[i]  # type: ignore[misc]
        fits = g.ndim >= len(shape) and all(
            want in (1, have) for want, have in zip(reversed(shape), reversed(g.shape), strict=False)
        )
        if not fits:
            raise GradientError(
                f"{name}: gradient {i} must have a shape like its input, {list(shape)}, got {list(g.shape)}"
            )
        return g if create_graph else g._array


class _Saved:
    """A tensor in ``save_for_backward``, at the version that it had."""

    __slots__ = ("array", "counter", "edge", "kept", "lent", "packed", "version")

    def __init__(self, t: Tensor, ctx: BackwardCFunction) -> None:
        if t.is_inference():
            raise GradientError(
                "a tensor made in inference_mode() cannot be kept for backward; clone() it first, or use "
                "no_grad() in place of inference_mode()"
            )
        self.counter, self.version = t._version_counter, t._version_counter[0]
        edge = t._edge()
        self.edge: Edge | None = None
        """Of a saved output: its number; the node itself would make a cycle."""
        self.packed: PackedTensor | None = None
        own = edge is not None and edge[0] is ctx
        mode: Mode = grad_enabled.get()
        hooks = None if isinstance(mode, bool) or not mode.hooks else mode.hooks[-1]
        lent = self.counter.lend(t._array) if isinstance(self.counter, Lender) and hooks is None else None
        self.lent: Lent | None = lent if isinstance(lent, Lent) else None
        self.kept: Tensor | None = None if own or hooks is not None or self.lent is not None else t
        self.array = t._array if own and hooks is None else None
        if own:
            self.edge = (None, t._index)
        elif hooks is not None:
            self.edge = edge
        if hooks is not None:
            with no_grad():
                self.packed = PackedTensor(hooks, t.detach())

    def tensor(self, ctx: BackwardCFunction) -> Tensor:
        """Return the tensor with its history."""
        if self.packed is None and self.counter[0] != self.version:
            raise GradientError(
                f"{ctx._function.__name__}: a tensor that it saved for backward was modified by an inplace operation: "
                f"it is at version {self.counter[0]}, expected {self.version}; clone() it before the change"
            )
        if self.kept is not None:
            return self.kept
        if self.lent is not None:
            return engine.Tensor_._of(self.lent.unpack())  # type: ignore[no-any-return]
        array = self.array if self.packed is None else self.packed.unpack()
        t: Tensor = engine.Tensor_._of(array)
        if self.edge is not None:
            target, index = self.edge
            if target is not None and not isinstance(target, Node):
                with enable_grad():  # what the hooks gave back, with the history of the leaf
                    return _InPlaceOf.apply(target, t)  # type: ignore[no-any-return]
            t._node, t._index = (ctx if target is None else target), index
        return t


class Function:
    """An operation with a gradient of its own: subclass it and call ``YourFunction.apply(...)``.

    Define static methods ``forward(ctx, *args)``, or ``forward(*args)`` and ``setup_context(ctx, inputs, output)``,
    and ``backward(ctx, *grad_outputs)``, which returns a gradient (or ``None``) for each argument. ``forward`` runs
    unrecorded; so does ``backward``, unless with ``create_graph=True``: then what it does to its arguments and to
    ``ctx.saved_tensors`` is recorded, so that gradients of any order come by themselves.
    """

    generate_vmap_rule = False
    _backward_cls: type[BackwardCFunction]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._backward_cls = type(cls.__name__ + "Backward", (BackwardCFunction,), {"_function": cls})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            "a Function is not made or called itself: define static methods and call "
            f"{type(self).__name__}.apply(...) on the class"
        )

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """Compute the outputs; see the class."""
        raise NotImplementedError("a Function needs a static method forward(ctx, ...); this one has none")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """Save what ``backward`` needs; see the class."""
        raise NotImplementedError("this Function has no setup_context(ctx, inputs, output)")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Compute the gradients of the arguments; see the class."""
        raise NotImplementedError(
            "a Function needs a static method backward(ctx, *gradients), or vjp, to be differentiated; this one "
            "has neither"
        )

    @staticmethod
    def vjp(ctx: Any, *grad_outputs: Any) -> Any:
        """Another name for :meth:`backward`."""
        return Function.backward(ctx, *grad_outputs)

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Call ``forward`` and record the call.

        Raises:
            GradientError: an argument is marked dirty and not returned, or is a leaf that requires a gradient.
            TypeError: what ``save_for_backward`` was given is not a Tensor.
        """
        two_steps = cls.setup_context is not Function.setup_context
        if two_steps or kwargs:
            args = _bound(cls.forward, args, kwargs, skip=0 if two_steps else 1)
        Tensor = engine.Tensor_
        ctx = cls._backward_cls()
        mode = grad_enabled.get()
        edges = tuple([a._edge() if isinstance(a, Tensor) else None for a in args]) if mode else ()
        recorded = any(edges)
        ctx.needs_input_grad = (
            tuple([e is not None for e in edges])
            if mode
            else tuple([isinstance(a, Tensor) and bool(a.requires_grad) for a in args])
        )
        token = grad_enabled.set(changed(grad=False, watch=None))
        try:
            if two_steps:
                output = cls.forward(*args)
                cls.setup_context(ctx, args, output)
            else:
                output = cls.forward(ctx, *args)
        finally:
            grad_enabled.reset(token)
        if not isinstance(output, tuple) and not isinstance(output, Tensor):
            return output
        outs = output if isinstance(output, tuple) else (output,)
        ctx.sequence = next_sequence()
        ctx.edges = edges
        ctx.outputs = len(outs)
        ctx.inputs = [
            None if e is None else (a._array.shape, a._array.dtype) for a, e in zip(args, edges, strict=False)
        ]
        ctx._tensor_inputs = [isinstance(a, Tensor) for a in args]
        ctx._metas = [(o._array.shape, o._array.dtype) if isinstance(o, Tensor) else None for o in outs]
        _check_dirty(ctx, args, outs, recorded)
        results = tuple([_finish(ctx, i, o, args, recorded) for i, o in enumerate(outs)])
        for i, t in enumerate(ctx._to_save):
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(
                    f"save_for_backward() takes Tensors and None, got {type(t).__name__} as argument {i}"
                )
        if recorded:
            finished = dict(zip(map(id, outs), results, strict=True))
            ctx._saved = tuple(
                [None if t is None else _Saved(_same(t, finished, args), ctx) for t in ctx._to_save]
            )
            if not isinstance(mode, bool) and mode.watch is not None:
                arrays = [a._array if isinstance(a, Tensor) else a for a in args]
                mode.watch.forward(ctx, arrays, [r._array for r in results if isinstance(r, Tensor)])
        ctx._to_save = ctx._dirty = ctx._non_differentiable = ()
        return results if isinstance(output, tuple) else results[0]


def _bound(forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any], skip: int) -> tuple[Any, ...]:
    """Return all arguments of ``forward`` by position, defaults included."""
    filled = inspect.signature(forward).bind(*(None,) * skip, *args, **kwargs)
    filled.apply_defaults()
    if filled.kwargs:
        raise TypeError(f"keyword-only arguments of {forward.__qualname__} cannot be given to apply()")
    return filled.args[skip:]


def _is_in(t: Any, tensors: Sequence[Any]) -> bool:
    return any(t is other for other in tensors)


def _same(t: Tensor, finished: dict[int, Any], args: Sequence[Any]) -> Tensor:
    """Return the output that was made of ``t``, if it is one and not also an argument."""
    return t if _is_in(t, args) else finished.get(id(t), t)


def _check_dirty(ctx: BackwardCFunction, args: Sequence[Any], outs: Sequence[Any], recorded: bool) -> None:
    for t in ctx._dirty:
        if not _is_in(t, outs):
            raise GradientError(
                "mark_dirty(): a tensor that forward changes in place must also be what it returns, and one is not"
            )
        if recorded and _is_in(t, args):
            engine.check_in_place(t)


def _finish(ctx: BackwardCFunction, index: int, out: Any, args: Sequence[Any], recorded: bool) -> Any:
    """Return an output of ``forward`` with its history."""
    if not isinstance(out, engine.Tensor_):
        return out
    is_input, dirty = _is_in(out, args), _is_in(out, ctx._dirty)
    differentiable = recorded and out.dtype.is_floating_point and not _is_in(out, ctx._non_differentiable)
    if dirty and is_input:
        out._version_counter[0] += 1
        if differentiable:
            engine.rebase(out, (ctx, index))
        return out
    if is_input or out._base is not None or (not recorded and out.requires_grad):
        shared = is_input or any(
            isinstance(a, engine.Tensor_) and a._version_counter is out._version_counter for a in args
        )
        out = out.detach()
        if differentiable and shared:
            out._frozen = (
                f"Output {index} of {ctx._function.__name__} is a view and is being modified inplace: it shares the "
                f"memory of an argument, whose history would not follow; clone() it in forward()"
            )
    if differentiable:
        out._node, out._index = ctx, index
    elif not is_input:
        out._node, out._requires_grad = None, False
    return out


def once_differentiable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a ``backward`` that cannot be differentiated itself; an attempt to raises ``RuntimeError``."""

    @functools.wraps(fn)
    def wrapper(ctx: Any, *args: Any) -> Any:
        with no_grad():
            outputs = fn(ctx, *args)
        if not engine.is_grad_enabled():
            return outputs
        sources = [a for a in args if isinstance(a, engine.Tensor_) and a.requires_grad]
        if not sources:
            return outputs
        several = isinstance(outputs, tuple)
        guarded = [
            _Once.apply(o.detach(), *sources)
            if isinstance(o, engine.Tensor_) and o.dtype.is_floating_point
            else o
            for o in (outputs if several else (outputs,))
        ]
        return tuple(guarded) if several else guarded[0]

    return wrapper


class _InPlaceOf(Function):
    """Its second argument, whose gradient goes to the first."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


class _Once(Function):
    """Its first argument, as something that depends on the others and has no gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise GradientError(
            "trying to differentiate twice a function that was marked with @once_differentiable"
        )


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
