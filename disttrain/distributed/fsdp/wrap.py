"""PyTorch's place (``torch.distributed.fsdp.wrap``) for what is in :mod:`disttrain.parallel.wrap`."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.parallel.wrap import (
    CustomPolicy,
    ModuleWrapPolicy,
    always_wrap_policy,
    enable_wrap,
    lambda_auto_wrap_policy,
    size_based_auto_wrap_policy,
    transformer_auto_wrap_policy,
    wrap,
)

__all__ = [
    "CustomPolicy",
    "ModuleWrapPolicy",
    "always_wrap_policy",
    "enable_wrap",
    "lambda_auto_wrap_policy",
    "size_based_auto_wrap_policy",
    "transformer_auto_wrap_policy",
    "wrap",
]

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
