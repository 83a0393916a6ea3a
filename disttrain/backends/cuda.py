"""``torch.backends.cuda``: settings, of which only ``matmul.allow_tf32`` is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from disttrain import missing, settings


class _MatMul:
    __slots__ = (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
        "allow_fp16_reduced_precision_reduction",
        "fp32_precision",
    )

    def __init__(self) -> None:
        self.allow_fp16_accumulation = False
        self.allow_fp16_reduced_precision_reduction = True
        self.allow_bf16_reduced_precision_reduction = True
        self.fp32_precision = "none"

    @property
    def allow_tf32(self) -> bool:
        """Whether GPUs may round factors in float32 to TF32, as ``disttrain.set_float32_matmul_precision`` says too."""
        return settings.get_float32_matmul_precision() != "highest"

    @allow_tf32.setter
    def allow_tf32(self, allowed: bool) -> None:
        settings.set_float32_matmul_precision("high" if allowed else "highest")


matmul = _MatMul()
"""How GPUs multiply matrices. Half precision is always summed in float32: only ``allow_tf32`` is read."""

_attention = {"flash": True, "mem_efficient": True, "math": True, "cudnn": True}


def is_built() -> bool:
    """Return False: no CUDA code was compiled in; CuPy compiles it when it is used."""
    return False


def enable_flash_sdp(enabled: bool) -> None:
    """Keep the switch; attention has one implementation here."""
    _attention["flash"] = bool(enabled)


def enable_mem_efficient_sdp(enabled: bool) -> None:
    """Keep the switch; attention has one implementation here."""
    _attention["mem_efficient"] = bool(enabled)


def enable_math_sdp(enabled: bool) -> None:
    """Keep the switch; attention has one implementation here."""
    _attention["math"] = bool(enabled)


def enable_cudnn_sdp(enabled: bool) -> None:
    """Keep the switch; attention has one implementation here."""
    _attention["cudnn"] = bool(enabled)


def flash_sdp_enabled() -> bool:
    """Return what :func:`enable_flash_sdp` has set."""
    return _attention["flash"]


def mem_efficient_sdp_enabled() -> bool:
    """Return what :func:`enable_mem_efficient_sdp` has set."""
    return _attention["mem_efficient"]


def math_sdp_enabled() -> bool:
    """Return what :func:`enable_math_sdp` has set."""
    return _attention["math"]


def cudnn_sdp_enabled() -> bool:
    """Return what :func:`enable_cudnn_sdp` has set."""
    return _attention["cudnn"]


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
