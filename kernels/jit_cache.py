# mypy: disallow-untyped-calls=False
"""Compiled kernels on disk: made anew when what they call has changed, and by one process at a time."""

import contextlib
import fcntl
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

_PACKAGE = "disttrain.kernels"
_PATIENCE_S = 120.0
"""A process that compiles longer is not waited for."""
_LOOK_S = 0.02


def make_cache(function: Callable[..., Any]) -> Any:
    """Return the cache of a function's compiled code, in place of Numba's own.

    Numba's knows the file of the function, and would go on with old code when a function of another file that it calls
    has changed. And processes that begin together would all compile the same.

    Raises:
        RuntimeError: there is no folder to write to.
    """
    return _cache_class()(function)


@functools.cache
def _cache_class() -> Any:
    from numba.core.caching import FunctionCache

    class KernelCache(FunctionCache):
        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__(function)
            self._parts = digest(function)
            self._lock = -1
            # Numba writes the index before the code, over a file of the function as it was: whoever looked in between,
            # or after a process that was killed there, would run that. So files are named by the function's source.
            stamp = hashlib.sha256(repr(self._impl.locator.get_source_stamp()).encode()).hexdigest()[:12]
            self._all_code = f"{self._impl.filename_base}."
            self._own_code = f"{self._all_code}{stamp}."
            self._cache_file._data_name_pattern = f"{self._own_code}{{number:d}}.nbc"

        def _index_key(self, sig: Any, codegen: Any) -> Any:
            return (*super()._index_key(sig, codegen), self._parts)

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            until = time.monotonic() + _PATIENCE_S
            while True:
                found = super().load_overload(sig, target_context)
                if found is not None or self._acquire():
                    break
                if time.monotonic() > until:
                    return None
                time.sleep(_LOOK_S)
            if found is None:  # perhaps it came between the look and the lock
                found = super().load_overload(sig, target_context)
                if found is not None:
                    self.release()
            return found

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                super().save_overload(sig, data)
                self._remove_old()
            finally:
                self.release()

        def _remove_old(self) -> None:
            """Remove the code of the function as it was."""
            for name in os.listdir(self.cache_path):
                is_code = name.startswith(self._all_code) and name.endswith(".nbc")
                if is_code and not name.startswith(self._own_code):
                    with contextlib.suppress(OSError):  # another process was quicker, or may not
                        os.unlink(os.path.join(self.cache_path, name))

        def _acquire(self) -> bool:
            """Return whether this process may compile: no other does, or it cannot be known."""
            if self._lock >= 0:
                return True
            try:
                self._impl.locator.ensure_cache_path()
                descriptor = os.open(self.cache_path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError:  # a file system without locks
                os.close(descriptor)
                return True
            self._lock = descriptor
            return True

        def release(self) -> None:
            """Let others compile."""
            descriptor, self._lock = self._lock, -1
            if descriptor >= 0:
                os.close(descriptor)

    return KernelCache


def digest(function: Callable[..., Any]) -> str:
    """Return a digest of the other files of the kernels whose functions or modules ``function`` uses, itself or not."""
    plain = _function_of(function)
    if plain is None:
        raise TypeError(f"a kernel is a plain function, got {function!r}")
    own = plain.__code__.co_filename
    files = {file for file in _files(plain, set()) if file != own}
    return hashlib.sha256(b"\0".join(_digest_of(file) for file in sorted(files))).hexdigest()


def _files(function: FunctionType, seen: set[FunctionType]) -> Iterator[str]:
    if function in seen:
        return
    seen.add(function)
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        inner = _function_of(value)
        home = value if isinstance(value, ModuleType) else sys.modules.get(getattr(inner, "__module__", ""))
        if home is None or not home.__name__.startswith(_PACKAGE) or home.__file__ is None:
            continue
        yield home.__file__
        if inner is not None:
            yield from _files(inner, seen)


def _function_of(value: Any) -> FunctionType | None:
    while callable(value) and not isinstance(value, FunctionType) and hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return value if isinstance(value, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@functools.cache
def _digest_of(file: str) -> bytes:
    with open(file, "rb") as opened:
        return hashlib.sha256(opened.read()).digest()
