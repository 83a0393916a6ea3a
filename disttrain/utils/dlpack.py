"""``torch.utils.dlpack``: tensors to other libraries and back, without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain import missing
from disttrain.functions.conversion import from_dlpack

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["from_dlpack", "to_dlpack"]


def to_dlpack(tensor: Tensor) -> Any:
    """Return the memory of a tensor as a DLPack capsule; see ``Tensor.__dlpack__``."""
    return tensor.__dlpack__()


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
