"""What a recorded operation leaves behind: the graph that backward walks and that ``grad_fn`` shows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from disttrain.ops.types import Op, Vjp

if TYPE_CHECKING:
    from disttrain.modes import Hooks
    from disttrain.tensors import Tensor

Edge = tuple[Any, int]
"""Where a gradient goes: (node, number of its output) or (leaf Tensor, 0)."""

next_sequence = itertools.count().__next__

BEFORE, AFTER = -1, -2
"""Keys of a node's hooks that see all gradients: those that come in, and those that go out as well."""


class RemovableHandle:
    """What registering a hook returns, as ``torch.utils.hooks.RemovableHandle``."""

    _next = itertools.count().__next__  # at once, where threads register hooks

    def __init__(self, hooks: dict[int, Callable[..., Any]], hook: Callable[..., Any]) -> None:
        self.id = RemovableHandle._next()
        self._hooks = hooks
        hooks[self.id] = hook

    def remove(self) -> None:
        """Call the hook no more."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class Node:
    """One recorded operation: what ``grad_fn`` shows, and what exporters walk."""

    __slots__ = (
        "edges",
        "hooks",
        "inputs",
        "line",
        "op",
        "options",
        "outputs",
        "saved",
        "sequence",
        "versions",
        "vjp",
    )

    line: tuple[str, int, str]
    """File, number and function of the user's line that called the operation; set only in anomaly mode."""

    def __init__(
        self,
        op: Op,
        options: dict[str, Any],
        vjp: Vjp,
        saved: tuple[Any, ...] | Packed | None,
        edges: tuple[Edge | None, ...],
        inputs: Sequence[Any],
        outputs: int,
    ) -> None:
        self.op = op
        self.options = options
        self.vjp = vjp
        self.saved = saved
        self.edges = edges
        self.inputs = [
            (a.shape, a.dtype) if e is not None else None for a, e in zip(inputs, edges, strict=True)
        ]
        """Shape and dtype of each argument that wants a gradient."""
        self.outputs = outputs
        self.sequence = next_sequence()
        self.hooks: dict[int, dict[int, Callable[..., Any]]] | None = None
        """By output: functions of the gradient, in the order of their registration; also ``BEFORE``, ``AFTER``."""
        self.versions: list[tuple[int, list[int], int, int]] = []
        """For each saved array that belongs to a Tensor: its place in ``saved``, the version counter, the
        version when saved, and which argument it is (-1, -2, … for the first output, the second, …)."""

    def name(self) -> str:
        """Return the name of the operation in PyTorch's manner: ``MulBackward0`` for ``mul``."""
        return "".join(map(str.capitalize, self.op.__name__.split("_"))) + "Backward0"

    @property
    def next_functions(self) -> tuple[tuple[Node | AccumulateGrad | None, int], ...]:
        """For each argument, the node that its gradient goes to and the number of that node's output."""
        return tuple([(None, 0) if e is None else (gradient_node(e[0]), e[1]) for e in self.edges])

    def register_prehook(self, fn: Callable[[tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call ``fn(grad_outputs)`` before this node is visited; a tuple that it returns replaces them."""
        return self._register(BEFORE, fn)

    def register_hook(self, fn: Callable[[tuple[Any, ...], tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call ``fn(grad_inputs, grad_outputs)`` after this node; a tuple that it returns replaces the former."""
        return self._register(AFTER, fn)

    def _register(self, when: int, fn: Callable[..., Any]) -> RemovableHandle:
        if self.hooks is None:
            self.hooks = {}
        return RemovableHandle(self.hooks.setdefault(when, {}), fn)

    def __repr__(self) -> str:
        return f"<{self.name()} object at {id(self):#x}>"


class AccumulateGrad:
    """The end of a path: where the gradient of a leaf is accumulated, as in ``grad_fn.next_functions``."""

    __slots__ = ("variable",)

    next_functions = ()

    def __init__(self, variable: Tensor) -> None:
        self.variable = variable
        """The leaf."""

    def name(self) -> str:
        """Return PyTorch's name."""
        return "torch::autograd::AccumulateGrad"

    def register_prehook(self, fn: Callable[[tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call ``fn((grad,))`` before the gradient is accumulated; a tuple that it returns replaces it."""

        def hook(g: Any) -> Any:
            changed = fn((g,))
            return changed[0] if isinstance(changed, tuple) else changed

        handle: RemovableHandle = self.variable.register_hook(hook)
        return handle

    def register_hook(self, fn: Callable[[tuple[Any, ...], tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call ``fn((), (grad,))`` after the gradient has been accumulated."""
        leaf = self.variable
        if leaf._after_hooks is None:
            leaf._after_hooks = {}
        return RemovableHandle(leaf._after_hooks, fn)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccumulateGrad) and other.variable is self.variable

    def __hash__(self) -> int:
        return id(self.variable)

    def __repr__(self) -> str:
        return f"<AccumulateGrad object at {id(self.variable):#x}>"


def gradient_node(target: Any) -> Node | AccumulateGrad:
    """Return the node of an edge's target, which is a node or a leaf Tensor."""
    return target if isinstance(target, Node) else AccumulateGrad(target)


class Packed(list[Any]):
    """What a node saved that is to be unpacked: values, and :class:`PackedTensor` or :class:`Lent` for arrays."""

    def unpack(self) -> tuple[Any, ...]:
        """Return what was saved."""
        return tuple([s.unpack() if isinstance(s, PackedTensor | Lent) else s for s in self])


class Lent:
    """What is saved in place of memory that comes back when backward asks for it; see :class:`.modes.Lender`."""

    __slots__ = ()

    def unpack(self) -> Any:
        """Return the array again."""
        raise NotImplementedError


class PackedTensor:
    """What a pack hook made of a saved tensor."""

    __slots__ = ("hooks", "value")

    def __init__(self, hooks: Hooks, tensor: Tensor) -> None:
        self.hooks = hooks
        self.value = hooks[0](tensor)

    def unpack(self) -> Any:
        """Return the array again.

        Raises:
            TypeError: the unpack hook did not return a Tensor.
        """
        return self.unpack_tensor()._array

    def unpack_tensor(self) -> Tensor:
        """Return the tensor again; see :meth:`unpack`."""
        t: Any = self.hooks[1](self.value)
        if not hasattr(t, "_array"):
            raise TypeError(
                f"the unpack hook of saved_tensors_hooks must return a Tensor, got {type(t).__name__}"
            )
        return t  # type: ignore[no-any-return]
