"""The backward pass: walks the operations that :mod:`disttrain.engine` has recorded.

Nodes are visited in the reverse of the order in which they were recorded, each as soon as all its users have been
visited, so that a leaf's gradient is complete, and may be sent to other ranks, as early as can be.
"""

from __future__ import annotations

import heapq
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import engine
from disttrain.context import autocast_state, grad_enabled
from disttrain.errors import GradientError
from disttrain.kernels.arrays import Array, get_array_module, is_array
from disttrain.modes import changed, current_tape
from disttrain.nodes import AFTER, BEFORE, Edge, Node
from disttrain.ops.shape import sum_to_shape
from disttrain.ops.types import SAVED_FOR, WRITES, call

if TYPE_CHECKING:
    from disttrain.tape import Tape
    from disttrain.tensors import Tensor


class Slot:
    """A stretch of a flat buffer where the gradient of one leaf lives, given by an optimizer or a parallel wrapper."""

    __slots__ = ("_alone", "array", "flat", "offered", "offset", "scale")

    def __init__(self, flat: Array, offset: int, shape: tuple[int, ...]) -> None:
        self.flat = flat
        self.offset = offset
        self.array = flat[offset : offset + int(np.prod(shape, dtype=np.int64))].reshape(shape)
        self.scale = 1.0
        """Factor of every gradient that is accumulated here: the weight of this rank's samples."""
        self.offered: Array | None = None
        """The array over this memory into which the backward pass lets a gradient be written; see :func:`_offer`."""
        self._alone = sys.getrefcount(self.array)

    def is_held(self, leaf: Tensor) -> bool:
        """Return whether somebody keeps the memory: with ``p.grad.detach()`` or ``p.grad.numpy()``, say."""
        given = leaf._given_grad() if leaf._given_grad is not None else None
        known = self._alone + (given is not None and given._array is self.array)
        return sys.getrefcount(self.array) > known

    def vacate(self, leaf: Tensor) -> bool:
        """Return whether the memory may be written; who kept the Tensor that was the last gradient gets a copy."""
        given = leaf._given_grad() if leaf._given_grad is not None else None
        known = given is not None and given._array is self.array
        if sys.getrefcount(self.array) > self._alone + known:
            return False
        if known:
            given._array = self.array.copy()  # type: ignore[union-attr]
        return True


_FREED = ("freed",)


class Pass:
    """A backward pass that is running."""

    __slots__ = ("__weakref__", "callbacks", "receivers", "undo", "users", "weight")

    def __init__(self, weight: float | None = None) -> None:
        self.weight = weight
        """How many samples the loss stands for, if the caller has said it; for those who average gradients."""
        self.callbacks: list[Callable[[], None]] = []
        """What to call at its end."""
        self.undo: list[Callable[[BaseException], None]] = []
        """What to call with the error that has ended it too early."""
        self.users: dict[Any, int] = {}
        """The nodes and leaves below its roots."""
        self.receivers: set[Any] | None = None
        """Those of them that get a gradient, if not all do."""

    def reaches(self, t: Tensor) -> bool:
        """Return whether the pass goes to where the gradient of ``t`` goes."""
        edge = t._edge()
        return (
            edge is not None
            and edge[0] in self.users
            and (self.receivers is None or edge[0] in self.receivers)
        )


_running: ContextVar[Pass | None] = ContextVar("backward_pass", default=None)


def queue_callback(
    callback: Callable[[], None], on_error: Callable[[BaseException], None] | None = None
) -> None:
    """Call ``callback`` once the backward pass that is running has reached all leaves.

    Args:
        callback: not called if the pass raises before.
        on_error: called with what the pass, or the callback of anybody, raises.

    Raises:
        RuntimeError: no backward pass is running in this thread.
    """
    running = _running.get()
    if running is None:
        raise RuntimeError("queue_callback() works only inside a backward pass")
    tape = current_tape()
    if tape is not None:
        tape.refuse(
            "something is to be called at the end of backward, as sharded modules ask for; leave them out of the step"
        )
    running.callbacks.append(callback)
    if on_error is not None:
        running.undo.append(on_error)


def running_pass() -> Pass | None:
    """Return the backward pass that is running in this thread."""
    return _running.get()


def run_backward(
    roots: Iterable[tuple[Edge, Any]],
    *,
    retain_graph: bool,
    create_graph: bool,
    wanted: Sequence[Edge] | None = None,
    weight: float | None = None,
) -> list[Any]:
    """Walk from ``roots`` to the leaves.

    Args:
        roots: where to begin, and with which gradient (arrays; Tensors if ``create_graph``).
        retain_graph: keep what the nodes saved, so that backward can pass again.
        create_graph: record backward itself.
        wanted: return the gradients that arrive at these edges and accumulate into no leaf.
        weight: see :class:`Pass`.

    Returns:
        One gradient per wanted edge, ``None`` where nothing arrived.
    """
    running = Pass(weight)
    before = grad_enabled.get()
    token, mode = _running.set(running), grad_enabled.set(changed(grad=create_graph))
    casting = autocast_state.set(None)  # backward computes in the types of forward
    tape = current_tape()
    try:
        visit = _visit
        if not isinstance(before, bool) and before.watch is not None:
            visit = before.watch.visiting(_visit)
        if tape is not None:
            tape.note(open_pass, (weight,))
        found = _walk(roots, retain_graph, create_graph, wanted, visit, running, tape)
        if tape is not None:
            tape.note(close_pass, ())
            grad_enabled.set(changed(tape=None))
        for callback in running.callbacks:
            callback()
        return found
    except BaseException as error:
        for undo in running.undo:
            undo(error)
        raise
    finally:
        autocast_state.reset(casting)
        grad_enabled.reset(mode)
        _running.reset(token)


_opened: ContextVar[tuple[Any, ...] | None] = ContextVar("opened_pass", default=None)
"""How to end the pass of a replayed step."""


def open_pass(weight: float | None) -> None:
    """Begin what a backward pass does beside arithmetic, where a captured step is replayed."""
    _opened.set((_running.set(Pass(weight)), grad_enabled.set(False), autocast_state.set(None)))


def close_pass(error: BaseException | None = None) -> None:
    """End what :func:`open_pass` began, if anything; too early if there is an ``error``."""
    opened, running = _opened.get(), _running.get()
    if opened is None or running is None:
        return
    _opened.set(None)
    try:
        if error is not None:
            raise error
        for callback in running.callbacks:
            callback()
    except BaseException as e:
        for undo in running.undo:
            undo(e)
        if e is not error:
            raise
    finally:
        for variable, token in zip((_running, grad_enabled, autocast_state), opened, strict=True):
            variable.reset(token)


@np.errstate(all="ignore")  # infinities and nan go where they go, without a warning, as in PyTorch
def _walk(
    roots: Iterable[tuple[Edge, Any]],
    retain_graph: bool,
    create_graph: bool,
    wanted: Sequence[Edge] | None,
    visit: Callable[..., Sequence[Any]],
    running: Pass,
    tape: Tape | None,
) -> list[Any]:
    roots = list(roots)
    users, nodes = _count_users([edge[0] for edge, _ in roots])
    capture: dict[tuple[int, int], Any] = {}
    useful: set[Any] | None = None
    receivers: set[Any] | None = None
    if wanted is not None:
        capture = {(id(target), index): None for target, index in wanted}
        targets = {target for target, _ in wanted}
        useful = _useful(nodes, targets)
        receivers = useful | targets
    running.users, running.receivers = users, receivers

    buffers: dict[Any, list[Any]] = {}
    owned: set[Edge] = set()
    """Where the buffer holds a sum of our own: what a vjp returned may be in several places."""
    ready: list[tuple[int, Node]] = []

    def send(target: Any, index: int, g: Any) -> None:
        slots = buffers.get(target)
        if slots is None:
            slots = buffers[target] = [None] * (target.outputs if isinstance(target, Node) else 1)
        before = slots[index]
        if before is None:
            slots[index] = g
        elif (target, index) in owned:
            before += g
            if tape is not None:
                tape.note(operator.iadd, (before, g), None, changes=before)
        elif create_graph:
            slots[index] = before + g
        else:
            slots[index] = (
                before + g if before.ndim else np.asarray(before + g)
            )  # NumPy makes scalars of these
            if tape is not None:
                tape.note(operator.add, (before, g), slots[index])
            owned.add((target, index))

    def arrived(target: Any) -> None:
        """Account for one user of ``target`` that has been visited; go on with it after the last."""
        left = users[target] = users[target] - 1
        if left:
            return
        if isinstance(target, Node):
            heapq.heappush(ready, (-target.sequence, target))
            return
        g = buffers.pop(target, (None,))[0]
        if g is None:
            return
        if target._hooks:
            g = _run_hooks(target._hooks, g, create_graph)
        if (id(target), 0) in capture:
            capture[id(target), 0] = g
        elif wanted is None:
            if tape is None:
                target._accumulate(g)
            else:
                tape.accumulate(target, g)

    for (target, index), g in roots:
        send(target, index, g)
    for (target, _), _ in roots:
        arrived(target)
    while ready:
        _, node = heapq.heappop(ready)
        gs = buffers.pop(node, None)
        grads: Sequence[Any] = (None,) * len(node.edges)
        if gs is not None:
            if node.hooks:
                for index, hooks in node.hooks.items():
                    if index >= 0 and gs[index] is not None:
                        gs[index] = _run_hooks(hooks, gs[index], create_graph)
            if capture:
                for index, g in enumerate(gs):
                    if (id(node), index) in capture:
                        capture[id(node), index] = g
            if useful is None or node in useful:
                if node.hooks and BEFORE in node.hooks:
                    gs = _run_node_hooks(node, BEFORE, create_graph, gs)
                into = None
                if node.vjp in WRITES and wanted is None and not create_graph:
                    into = _offer(node, users, buffers)
                    if tape is not None and into is not None:
                        tape.note(offer_again, (node.edges[WRITES[node.vjp]][0],), into)  # type: ignore[index]
                grads = visit(node, gs if node.outputs > 1 else gs[0], create_graph, receivers, into, tape)
                if node.hooks and AFTER in node.hooks:
                    grads = _run_node_hooks(node, AFTER, create_graph, grads, gs)
                if not retain_graph:
                    saved = node.saved
                    if saved:
                        if type(saved) is not tuple or any(map(is_array, saved)) or node.vjp in SAVED_FOR:
                            node.saved = _FREED
                    elif saved is None:
                        node.release()  # type: ignore[attr-defined]
        for edge, g, meta in zip(node.edges, grads, node.inputs, strict=True):
            if edge is None:
                continue
            if g is not None:
                shape, kind = meta  # type: ignore[misc]
                made = g
                if g.shape != shape:
                    g = call(sum_to_shape, g, shape=shape)
                if create_graph:
                    if g._array.dtype != kind:
                        g = g.to(kind)
                else:
                    if type(g) is not np.ndarray and not is_array(g):
                        g = np.asarray(g)
                    if g.dtype != kind:
                        g = g.astype(kind)
                    if g is not made and tape is not None:
                        tape.note(_fit, (made, shape, kind), g)
                send(edge[0], edge[1], g)
            arrived(edge[0])
    return [capture.get((id(target), index)) for target, index in wanted or ()]


def _fit(g: Any, shape: tuple[int, ...], kind: Any) -> Array:
    """Return a gradient as ``_walk`` makes it of what a ``vjp`` returned: summed and cast to fit its argument."""
    if g.shape != shape:
        g = sum_to_shape(g, shape=shape)[0]
    return np.asarray(g).astype(kind, copy=False) if not is_array(g) else g.astype(kind, copy=False)


def _count_users(roots: list[Any]) -> tuple[dict[Any, int], list[Node]]:
    """Return how many visited edges lead to each node and leaf below ``roots``, and the nodes."""
    users: dict[Any, int] = {}
    nodes: list[Node] = []
    stack = []
    for target in roots:
        seen = users.get(target)
        users[target] = (seen or 0) + 1
        if seen is None:
            stack.append(target)
    while stack:
        node = stack.pop()
        if not isinstance(node, Node):
            continue
        nodes.append(node)
        for edge in node.edges:
            if edge is not None:
                target = edge[0]
                seen = users.get(target)
                if seen is None:
                    users[target] = 1
                    stack.append(target)
                else:
                    users[target] = seen + 1
    return users, nodes


def _useful(nodes: list[Node], targets: set[Any]) -> set[Any]:
    """Return the nodes from which some target can be reached."""
    useful: set[Any] = set()
    for node in sorted(nodes, key=lambda n: n.sequence):  # arguments come before results
        if any(e is not None and (e[0] in targets or e[0] in useful) for e in node.edges):
            useful.add(node)
    return useful


def _run_hooks(hooks: dict[int, Callable[..., Any]], g: Any, create_graph: bool) -> Any:
    """Return the gradient after each hook, which sees and may replace it as a Tensor."""
    t = g if create_graph else engine.Tensor_._of(g)
    for hook in list(hooks.values()):
        new = hook(t)
        if new is None:
            continue
        if not isinstance(new, engine.Tensor_):
            raise TypeError(f"a hook must return a Tensor or None, got {type(new).__name__}: {new!r:.80}")
        if new._array.shape != t._array.shape or new._array.dtype != t._array.dtype:
            raise GradientError(
                f"a hook has changed the gradient from shape {list(t.shape)} and {t.dtype} to {list(new.shape)} and "
                f"{new.dtype}; both must stay"
            )
        t = new
    return t if create_graph else t._array


def _run_node_hooks(
    node: Node, when: int, create_graph: bool, grads: Sequence[Any], incoming: Sequence[Any] | None = None
) -> list[Any]:
    """Return the gradients after the hooks of a node, which see all of them as Tensors."""

    def tensors(gs: Sequence[Any]) -> tuple[Any, ...]:
        return tuple([g if g is None or not is_array(g) else engine.Tensor_._of(g) for g in gs])

    assert node.hooks is not None
    now = tensors(grads)
    for hook in list(node.hooks[when].values()):
        new = hook(now) if incoming is None else hook(now, tensors(incoming))
        if new is None:
            continue
        new = new if isinstance(new, tuple | list) else (new,)
        if len(new) != len(now):
            raise GradientError(
                f"a hook of {node.op.__name__} must return {len(now)} gradients, got {len(new)}"
            )
        now = tuple(new)
    return [g if g is None or create_graph else g._array for g in now]


def _offer(node: Node, users: dict[Any, int], buffers: dict[Any, list[Any]]) -> Array | None:
    """Return where a gradient that ``node`` makes is to be kept: the slot of a leaf that gets no other in this pass."""
    argument = WRITES[node.vjp]
    edge = node.edges[argument]
    if edge is None or isinstance(edge[0], Node) or node.hooks:
        return None
    leaf = edge[0]
    slot = leaf._slot
    if (
        slot is None
        or slot.scale == 0.0
        or leaf._grad is not None
        or leaf._hooks
        or leaf._after_hooks
        or users[leaf] != 1
        or leaf in buffers
        or node.inputs[argument] != (slot.array.shape, slot.array.dtype)
        or not slot.vacate(leaf)
    ):
        return None
    slot.offered = slot.array.view()
    return slot.offered


def offer_again(leaf: Tensor) -> Array | None:
    """Return what :func:`_offer` did when a step was captured; ``None`` if somebody keeps that memory now."""
    slot = leaf._slot
    if slot is None or slot.scale == 0.0 or leaf._grad is not None or not slot.vacate(leaf):
        return None
    slot.offered = slot.array.view()
    return slot.offered


def _visit(
    node: Node,
    g: Any,
    create_graph: bool,
    receivers: set[Any] | None,
    into: Array | None,
    tape: Tape | None,
) -> Sequence[Any]:
    """Return the gradients of the node's arguments, one of them written to ``into`` if the node can."""
    needs = tuple([e is not None and (receivers is None or e[0] in receivers) for e in node.edges])
    saved = node.saved
    if saved is _FREED:
        raise GradientError(
            f"the graph cannot be followed a second time: what {node.op.__name__} saved has been freed; "
            f"give retain_graph=True to the first backward() or grad()"
        )
    if type(saved) is not tuple:
        if saved is None:
            return node.backward(g, needs, create_graph)  # type: ignore[attr-defined,no-any-return]
        saved = saved.unpack()  # type: ignore[union-attr]
    for k, counter, version, _ in node.versions:
        if counter[0] != version:
            raise GradientError(
                f"a tensor of shape {tuple(saved[k].shape)} that {node.op.__name__} needs for its gradient was "
                f"modified by an inplace operation: it is at version {counter[0]}, expected {version}; clone() it "
                f"before the change"
            )
    if create_graph:
        saved = _as_tensors(node, saved)
    if tape is not None and not create_graph:
        return tape.gradients(node, g, needs, saved, into)
    return node.vjp(g, needs, *saved) if into is None else node.vjp(g, needs, *saved, into=into)


def _as_tensors(node: Node, saved: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what a node saved with Tensors in place of arrays: arguments and outputs keep their history."""
    sources = {k: j for k, _, _, j in node.versions}
    tensors: list[Any] = list(saved)
    for k, s in enumerate(saved):
        if not is_array(s):
            continue
        edge: Edge | None = None
        if k in sources:
            j = sources[k]
            edge = (node, -1 - j) if j < 0 else node.edges[j]
        if edge is not None and not isinstance(edge[0], Node):
            tensors[k] = edge[0]
        else:
            tensors[k] = t = engine.Tensor_._of(s)
            if edge is not None:
                t._node, t._index = edge
    return tuple(tensors)


def accumulate(leaf: Tensor, g: Any) -> None:
    """Bring the gradient ``g`` to ``leaf``, and tell those who wait for it."""
    tape = current_tape()
    if tape is None:
        leaf._accumulate(g)
    else:
        tape.accumulate(leaf, g)


def accumulate_grad(leaf: Tensor, g: Any) -> None:
    """Add ``g`` (an array; a Tensor when backward is recorded) to the gradient of ``leaf``.

    The one place where gradients reach leaves. A leaf with a :class:`Slot` keeps its gradient there.
    """
    slot = leaf._slot
    if slot is not None and slot.scale == 0.0 and is_array(g):
        g = get_array_module(g).zeros_like(g)  # of no samples: even a nan counts for nothing
    if not is_array(g):
        leaf._grad = g if leaf._grad is None else leaf._grad + g
    elif leaf._grad is not None:
        into = leaf._grad._array
        if slot is not None and slot.scale != 1.0:
            g = g * np.asarray(slot.scale, g.dtype)
        get_array_module(g).add(into, g, out=into)
        leaf._grad._version_counter[0] += 1
    elif slot is None or not slot.vacate(leaf):
        leaf._grad = engine.Tensor_._of(g.copy())  # never g itself: other leaves may have got the same array
        if slot is not None and slot.scale != 1.0:
            leaf._grad._array *= np.asarray(slot.scale, g.dtype)
    else:
        written = g is slot.offered
        slot.offered = None
        if slot.scale != 1.0:
            get_array_module(g).multiply(g, np.asarray(slot.scale, g.dtype), out=slot.array)
        elif not written:
            slot.array[...] = g
        leaf._give_slot()
