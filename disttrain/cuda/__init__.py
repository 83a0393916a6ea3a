"""What scripts ask of ``torch.cuda``: whether there are GPUs, and what one does before and after using them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain import missing
from disttrain.cuda import amp
from disttrain.devices import device as Device
from disttrain.devices import is_available, synchronize
from disttrain.errors import OutOfMemoryError
from disttrain.gpu_memory import Usage, usage

__all__ = [
    "OutOfMemoryError",
    "amp",
    "current_device",
    "device_count",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
    "set_device",
    "synchronize",
]


def device_count() -> int:
    """Return the number of GPUs that can be used; 0 without CuPy."""
    if not is_available():
        return 0
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def is_initialized() -> bool:
    """Return whether a GPU can be used: CuPy needs no step before that."""
    return is_available()


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Return whether there is a GPU that computes in bfloat16."""
    return is_available() and get_device_capability() >= (8, 0)


def _cupy_device(device: Any) -> Any:
    if not is_available():
        raise RuntimeError(
            "no GPU can be used: CuPy is not installed, or sees none; ask disttrain.cuda.is_available() first, "
            "and use device 'cpu'"
        )
    import cupy

    index = device if device is None or isinstance(device, int) else Device(device).index
    return cupy.cuda.Device(index)


def current_device() -> int:
    """Return the number of the GPU that is used by default.

    Raises:
        RuntimeError: there is none.
    """
    return int(_cupy_device(None).id)


def set_device(device: Any) -> None:
    """Use a GPU by default: ``0``, ``"cuda:0"`` or a device.

    Raises:
        RuntimeError: there is none.
    """
    _cupy_device(device).use()


def get_device_name(device: Any = None) -> str:
    """Return the name of a GPU.

    Raises:
        RuntimeError: there is none.
    """
    gpu = _cupy_device(device)
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(gpu.id)["name"].decode())


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """Return the compute capability of a GPU, such as ``(9, 0)``.

    Raises:
        RuntimeError: there is none.
    """
    digits = str(_cupy_device(device).compute_capability)
    return int(digits[:-1]), int(digits[-1])


def empty_cache() -> None:
    """Give memory that is not in use back to the GPU; nothing to do without one."""
    if is_available():
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()


def memory_allocated(device: Any = None) -> int:
    """Return the bytes of GPU memory that arrays have, those of captured steps too; 0 without a GPU.

    Counted from the first use of a GPU by this library, while CuPy has its default allocator.
    """
    return _usage(device).used if is_available() else 0


def max_memory_allocated(device: Any = None) -> int:
    """Return the most that :func:`memory_allocated` was, since the start or :func:`reset_peak_memory_stats`."""
    return _usage(device).peak if is_available() else 0


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let :func:`max_memory_allocated` begin anew, with what is in use now."""
    if is_available():
        _usage(device).reset_peak()


def memory_reserved(device: Any = None) -> int:
    """Return the bytes of GPU memory in CuPy's default pool, in use or not; 0 without a GPU."""
    if not is_available():
        return 0
    import cupy

    with _cupy_device(device):
        return int(cupy.get_default_memory_pool().total_bytes())


def _usage(device: Any) -> Usage:
    return usage[int(_cupy_device(device).id)]


def manual_seed(seed: int) -> None:
    """Nothing: numbers for all devices come from the generator that ``disttrain.manual_seed`` seeds."""


manual_seed_all = manual_seed

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
