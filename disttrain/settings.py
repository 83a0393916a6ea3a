"""Settings of the process that scripts make before they train."""

from __future__ import annotations

import warnings
from typing import Any

from disttrain.devices import device as Device
from disttrain.kernels import cublaslt
from disttrain.kernels.threads import of_environment, set_threads, threads

__all__ = [
    "are_deterministic_algorithms_enabled",
    "get_default_device",
    "get_float32_matmul_precision",
    "get_num_interop_threads",
    "get_num_threads",
    "is_deterministic_algorithms_warn_only_enabled",
    "set_default_device",
    "set_float32_matmul_precision",
    "set_num_interop_threads",
    "set_num_threads",
    "use_deterministic_algorithms",
]


class _Settings:
    precision = "highest"
    deterministic = False
    warn_only = False


_settings = _Settings()


def set_float32_matmul_precision(precision: str) -> None:
    """Say how precise products of float32 matrices are: ``"highest"``, or ``"high"`` or ``"medium"`` for TF32 on a GPU.

    On the CPU they are always of full precision, which none forbids.

    Raises:
        ValueError: another word.
    """
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f"precision must be 'highest', 'high' or 'medium', got {precision!r}")
    _settings.precision = precision
    cublaslt.settings.tf32 = precision != "highest"


def get_float32_matmul_precision() -> str:
    """Return what :func:`set_float32_matmul_precision` has set."""
    return _settings.precision


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Keep the switch: every algorithm here is deterministic, so that there is nothing to choose."""
    _settings.deterministic, _settings.warn_only = bool(mode), bool(warn_only)


def are_deterministic_algorithms_enabled() -> bool:
    """Return what :func:`use_deterministic_algorithms` has set."""
    return _settings.deterministic


def is_deterministic_algorithms_warn_only_enabled() -> bool:
    """Return what :func:`use_deterministic_algorithms` has set."""
    return _settings.warn_only


def get_num_threads() -> int:
    """Return how many threads one operation may use: at first ``OMP_NUM_THREADS``, else the number of cores."""
    return threads()


def set_num_threads(n: int) -> None:
    """Let an operation use ``n`` threads; no result depends on how many.

    Products and convolutions in float32 and attention do. What the BLAS library computes, products in float64 and small
    ones, keeps the number that it was loaded with, which a warning says where it is another.

    Raises:
        RuntimeError: ``n`` is not positive.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"set_num_threads() takes an int, got {type(n).__name__}")
    if n < 1:
        raise RuntimeError(f"set_num_threads(): n must be positive, got {n}")
    set_threads(n)
    if n != of_environment():
        warnings.warn(
            f"set_num_threads({n}) is not for what the BLAS library computes, products in float64 and small ones: it "
            f"was loaded with {of_environment()}; start the program with OMP_NUM_THREADS={n}",
            stacklevel=2,
        )


def get_num_interop_threads() -> int:
    """Return 1: operations run one after the other."""
    return 1


def set_num_interop_threads(n: int) -> None:
    """Check ``n``: operations run one after the other.

    Raises:
        RuntimeError: ``n`` is not positive.
    """
    if n < 1:
        raise RuntimeError(f"set_num_interop_threads(): n must be positive, got {n}")


def get_default_device() -> Device:
    """Return ``device("cpu")``: where tensors are made unless one says otherwise."""
    return Device("cpu")


def set_default_device(device: Any) -> None:
    """Accept ``"cpu"`` and ``None``.

    Raises:
        NotImplementedError: another device; tensors are made on the CPU unless ``device=`` says otherwise.
    """
    if device is not None and Device(device).type != "cpu":
        raise NotImplementedError(
            f"set_default_device({str(device)!r}) is not in disttrain: make tensors with device={str(device)!r}"
        )
