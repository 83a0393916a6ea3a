"""Where old programs look for the modes (``torch.autograd.grad_mode``)."""

from __future__ import annotations

from types import TracebackType

from disttrain.modes import enable_grad, inference_mode, no_grad, set_grad_enabled

__all__ = ["enable_grad", "inference_mode", "no_grad", "set_grad_enabled", "set_multithreading_enabled"]


class set_multithreading_enabled:
    """There for PyTorch's programs: backward runs in the thread that calls it, whatever ``mode`` says."""

    def __init__(self, mode: bool) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
