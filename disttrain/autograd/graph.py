"""The graph of recorded operations as users see it, by PyTorch's names (``torch.autograd.graph``)."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from disttrain import backward_pass, missing
from disttrain.errors import GradientError
from disttrain.modes import Mode, Recording, Switch, changed
from disttrain.nodes import AccumulateGrad, Node, RemovableHandle, gradient_node

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = [
    "GradientEdge",
    "Node",
    "disable_saved_tensors_hooks",
    "get_gradient_edge",
    "increment_version",
    "register_multi_grad_hook",
    "save_on_cpu",
    "saved_tensors_hooks",
]


class GradientEdge(NamedTuple):
    """Where the gradient of a tensor goes, without the tensor; stands for it in ``grad()`` and ``backward()``."""

    node: Node | AccumulateGrad
    output_nr: int


def get_gradient_edge(tensor: Tensor) -> GradientEdge:
    """Return where the gradient of ``tensor`` goes.

    Raises:
        RuntimeError: it does not require grad.
    """
    edge = tensor._edge()
    if edge is None:
        raise GradientError(
            "get_gradient_edge(): the tensor does not require grad, so no edge of the graph leads to it"
        )
    return GradientEdge(gradient_node(edge[0]), edge[1])


def increment_version(tensor: Tensor | tuple[Tensor, ...] | list[Tensor]) -> None:
    """Tell autograd that the memory of ``tensor`` was changed by something that it cannot see."""
    for t in tensor if isinstance(tensor, tuple | list) else (tensor,):
        t._version_counter[0] += 1


_disabled: ContextVar[str | None] = ContextVar("saved_tensors_hooks_disabled", default=None)
"""What to say where hooks on what is saved are forbidden."""


@contextmanager
def disable_saved_tensors_hooks(error_message: str) -> Iterator[None]:
    """Let :class:`saved_tensors_hooks` raise RuntimeError with ``error_message`` inside a ``with`` block."""
    mode: Mode = changed()
    if isinstance(mode, Recording) and mode.hooks:
        raise RuntimeError(error_message)
    token = _disabled.set(error_message)
    try:
        yield
    finally:
        _disabled.reset(token)


class _MultiHandle(RemovableHandle):
    def __init__(self, handles: list[RemovableHandle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def register_multi_grad_hook(
    tensors: Sequence[Tensor], fn: Callable[..., Any], *, mode: str = "all"
) -> RemovableHandle:
    """Call ``fn`` once per backward pass when the gradients of several tensors are there.

    As ``torch.autograd.graph.register_multi_grad_hook``. What ``fn`` returns is ignored.

    Args:
        tensors: whose gradients to wait for. They must require grad; with ``mode="any"`` others are left out.
        fn: called with a list of one gradient per tensor, ``None`` where none came; with ``mode="any"`` with the
            first gradient alone.
        mode: ``"all"`` waits for every gradient that the pass will bring, ``"any"`` for the first.

    Raises:
        ValueError: another mode.
        RuntimeError: a tensor does not require grad.
    """
    if mode not in ("all", "any"):
        raise ValueError(f'register_multi_grad_hook(): mode must be "all" or "any", got {mode!r}')
    passes: weakref.WeakKeyDictionary[backward_pass.Pass, list[Any]] = weakref.WeakKeyDictionary()
    lock = threading.Lock()

    def hook_of(i: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            running = backward_pass.running_pass()
            assert running is not None
            with lock:
                found = passes.get(running)
                first = found is None
                if found is None:
                    found = passes[running] = [[None] * len(tensors), sum(map(running.reaches, tensors))]
                grads = found[0]
                grads[i] = grad
                found[1] -= 1
                complete = found[1] == 0
            if mode == "any":
                if first:
                    fn(grad)
            elif complete:
                fn(list(grads))

        return hook

    if mode == "any":
        tensors = [t for t in tensors if t.requires_grad]
    return _MultiHandle([t.register_hook(hook_of(i)) for i, t in enumerate(tensors)])


class saved_tensors_hooks(Switch):
    """Let ``pack_hook`` turn each tensor that is saved for backward into something, and ``unpack_hook`` back again.

    As ``torch.autograd.graph.saved_tensors_hooks``, for what is recorded inside the ``with`` block. Which tensors an
    operation saves is its own affair, and need not be what PyTorch's saves.

    Args:
        pack_hook: called with a tensor without history, unrecorded; must not change it.
        unpack_hook: called with what ``pack_hook`` returned; must return a tensor of the same shape, type and values.
    """

    def __init__(self, pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]) -> None:
        forbidden = _disabled.get()
        if forbidden is not None:
            raise RuntimeError(forbidden)
        super().__init__()
        self.pack_hook, self.unpack_hook = pack_hook, unpack_hook

    def _mode(self) -> Mode:
        hooks = changed(grad=True)
        outer = hooks.hooks if isinstance(hooks, Recording) else ()
        return changed(hooks=(*outer, (self.pack_hook, self.unpack_hook)))

    def _again(self) -> Switch:
        return saved_tensors_hooks(self.pack_hook, self.unpack_hook)


class save_on_cpu(saved_tensors_hooks):
    """Keep what is saved for backward in host memory, as ``torch.autograd.graph.save_on_cpu``.

    Args:
        pin_memory: there for PyTorch's signature; without a GPU there is nothing to pin.
        device_type: the same.
    """

    def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
        def pack(t: Tensor) -> Any:
            return t.device, t if t.device.type == "cpu" else t.cpu()

        def unpack(packed: Any) -> Tensor:
            device, t = packed
            moved: Tensor = t.to(device)
            return moved

        super().__init__(pack, unpack)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
