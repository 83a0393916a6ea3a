"""The graph of recorded operations as users see it, by PyTorch's names (``torch.autograd.graph``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from disttrain.errors import GradientError
from disttrain.modes import Mode, Recording, Switch, changed
from disttrain.nodes import AccumulateGrad, Node, gradient_node

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = [
    "GradientEdge",
    "Node",
    "get_gradient_edge",
    "increment_version",
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
            "It is not possible to get the gradient edge for a Tensor that does not require gradients"
        )
    return GradientEdge(gradient_node(edge[0]), edge[1])


def increment_version(tensor: Tensor | tuple[Tensor, ...] | list[Tensor]) -> None:
    """Tell autograd that the memory of ``tensor`` was changed by something that it cannot see."""
    for t in tensor if isinstance(tensor, tuple | list) else (tensor,):
        t._version_counter[0] += 1


class saved_tensors_hooks(Switch):
    """Let ``pack_hook`` turn each tensor that is saved for backward into something, and ``unpack_hook`` back again.

    As ``torch.autograd.graph.saved_tensors_hooks``, for what is recorded inside the ``with`` block. Which tensors an
    operation saves is its own affair, and need not be what PyTorch's saves.

    Args:
        pack_hook: called with a tensor without history, unrecorded; must not change it.
        unpack_hook: called with what ``pack_hook`` returned; must return a tensor of the same shape, type and values.
    """

    def __init__(self, pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]) -> None:
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
