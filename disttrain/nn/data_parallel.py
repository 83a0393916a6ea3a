"""``nn.DataParallel``: on one device, PyTorch's too only calls the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttrain.nn.module import Module


class DataParallel(Module):
    """Calls ``module``, as ``torch.nn.DataParallel`` does with one device or none.

    Several GPUs of one process are not used: start one rank for each with ``disttrain launch`` and wrap the module
    in ``DistributedDataParallel``.

    Args:
        module: what is called; its parameters are those of ``module``.
        device_ids: at most one.
        output_device: accepted for PyTorch's sake.
        dim: accepted for PyTorch's sake.

    Raises:
        NotImplementedError: several devices.
    """

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
    ) -> None:
        super().__init__()
        _check(device_ids)
        self.module = module

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return what the module returns."""
        return self.module(*inputs, **kwargs)


def data_parallel(
    module: Module,
    inputs: Any,
    device_ids: Sequence[Any] | None = None,
    output_device: Any = None,
    dim: int = 0,
    module_kwargs: dict[str, Any] | None = None,
) -> Any:
    """Return ``module(*inputs)``, as ``torch.nn.parallel.data_parallel`` does with one device or none.

    Raises:
        NotImplementedError: several devices.
    """
    _check(device_ids)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,) if inputs is not None else ()
    return module(*arguments, **(module_kwargs or {}))


def _check(device_ids: Sequence[Any] | None) -> None:
    if device_ids is not None and len(device_ids) > 1:
        raise NotImplementedError(
            f"DataParallel over {len(device_ids)} devices is not in disttrain: start one rank for each with "
            f"`disttrain launch -n {len(device_ids)}`, and use DistributedDataParallel"
        )
