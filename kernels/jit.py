"""Compile a function for the CPU with Numba when it is first called, never when it is imported."""

import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy

from disttrain.kernels import simd
from disttrain.kernels.arrays import Array
from disttrain.kernels.jit_cache import make_cache

_logger = logging.getLogger("disttrain")


class Kernel:
    """A function that Numba compiles at its first call for each combination of argument types.

    Compiled code releases the GIL and is kept on disk: beside the source, or in the user's cache folder if
    the package is read-only (``NUMBA_CACHE_DIR`` overrides both). A kernel calls no other kernel; it may
    call each :func:`helper`, the functions of this module (:func:`exp` to :func:`total`) and those of
    :mod:`~disttrain.kernels.simd`.

    Args:
        function: loops over arrays, in the part of Python that Numba knows.
        fastmath: LLVM flags that this kernel's reduction may use. Never ``nnan`` or ``ninf``: they compile
            non-finite checks away.
    """

    def __init__(self, function: Callable[..., Any], fastmath: set[str]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._fastmath = fastmath
        self._dispatcher: Any = None
        self._cache: Any = None
        """Of the compiled code on disk, once the kernel is known to Numba; None if there is no place for it."""
        self._misses = 0

    def __call__(self, *args: Any) -> Any:
        return (self._dispatcher or self._load())(*args)

    def _load(self) -> Any:
        import numba
        from numba.extending import register_jitable

        with _loading:
            if self._dispatcher is not None:  # another thread was quicker
                return self._dispatcher
            _overload_functions()
            simd.define()
            while _helpers:
                register_jitable(forceinline=True)(_helpers.pop())
            _keep_freed_memory()
            options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
            dispatcher = numba.njit(**options, fastmath=self._fastmath or False)(self._function)
            try:
                self._cache = dispatcher._cache = make_cache(self._function)
            except RuntimeError as error:  # no folder to write to
                _logger.warning(
                    "compiled kernels are not kept for the next run: %s; set NUMBA_CACHE_DIR", error
                )
            # What it calls for types that it does not know: a call with others costs nothing beside.
            dispatcher._compile_for_args = functools.partial(self._compile, dispatcher._compile_for_args)
            self._dispatcher = dispatcher
        return dispatcher

    def _compile(self, compile_for: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Load compiled code for these arguments from the disk, or compile it, and say so."""
        start = time.perf_counter()
        try:
            code = compile_for(*args, **kwargs)
        except BaseException:
            if self._cache is not None:
                self._cache.release()
            raise
        misses = sum(self._dispatcher.stats.cache_misses.values())
        if misses > self._misses:  # else it came from the disk
            self._misses = misses
            _report(self._function.__name__, time.perf_counter() - start)
        return code


def jit(function: Callable[..., Any] | None = None, *, fastmath: set[str] | None = None) -> Any:
    """Make a :class:`Kernel` of a function; use as a decorator, with or without arguments."""
    if function is None:
        return functools.partial(jit, fastmath=fastmath)
    return Kernel(function, fastmath or set())


_helpers: list[Callable[..., Any]] = []
"""Those that Numba does not know yet."""
_loading = threading.Lock()


def helper(function: Callable[..., Any]) -> Any:
    """Let kernels call ``function``, which becomes a part of them; use as a decorator."""
    _helpers.append(function)
    return function


@functools.cache
def _keep_freed_memory() -> None:
    """Make glibc keep what a training step frees for the next step, instead of giving it back to the kernel.

    Every page that it gives back costs a fault when it comes again, a fifth of a step of LeNet. As
    documented in mallopt(3), freeing a large block raises the size from which blocks are mapped one by one
    (to at most 32 MiB) and the size from which free memory is given back (to twice that). The block itself is
    never touched, so takes no memory; under another C library this does nothing.
    """
    numpy.empty(31 << 20, numpy.uint8)


compiled: list[str] = []
"""The names of the kernels that this process has compiled, once for each combination of types."""
_SLOW_S = 1.0
_seconds_compiling = 0.0


def _report(name: str, seconds: float) -> None:
    """Say once per process that time goes into compiling, when it is noticeable."""
    global _seconds_compiling
    compiled.append(name)
    before = _seconds_compiling
    _seconds_compiling += seconds
    if before < _SLOW_S <= _seconds_compiling:
        _logger.warning(
            "compiling CPU kernels: %.1f s so far (now %s); later runs load them from disk",
            _seconds_compiling,
            name,
        )


def exp(x: float) -> float:
    """``e ** x``; in a kernel on float32 a polynomial that vectorises, right to 1 unit in the last place."""
    return math.exp(x)


def exp_down(x: float) -> float:
    """``e ** x`` of 64 or less: two thirds of the time of :func:`exp`. In a kernel on float32 wrong above."""
    return math.exp(x)


def sigmoid(x: float) -> float:
    """``1 / (1 + e ** -x)``, without overflow; in a kernel on float32 in a form that vectorises."""
    return 1 / (1 + math.exp(-x))


def erf(x: float) -> float:
    """The error function; in a kernel on float32 a rational function that vectorises, to 5e-7 relative."""
    return math.erf(x)


def tanh(x: float) -> float:
    """The hyperbolic tangent; in a kernel on float32 in a form that vectorises, to 2e-7 relative."""
    return math.tanh(x)


def largest(row: Array) -> float:
    """Largest of one or more elements; in a kernel 16 at a time. If one is NaN, it or some other element."""
    return float(max(row))


def total(row: Array) -> float:
    """Sum; in a kernel in a fixed order, that of 16 interleaved sums, which vectorises."""
    return float(sum(row))


@functools.cache
def _overload_functions() -> None:
    """Tell Numba what the functions above are.

    Its own ``exp`` and ``erf`` call libm, which no loop vectorises around; neither does one around a fold in
    the order of the elements.
    """
    import numpy as np
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic, overload, register_jitable

    f32 = np.float32

    @intrinsic
    def multiply_add(typing, a, b, c):  # type: ignore[no-untyped-def]
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 3)
            return builder.call(
                cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.f32"), args
            )

        return types.float32(types.float32, types.float32, types.float32), emit

    fma: Any = multiply_add  # fused where the machine can, and the same for all elements of an array

    # Added to a float32 of less than 4 million this rounds it to a whole number n, and the lowest bits are those of n;
    # with an offset o those of n + o, which shifted to the exponent's place are 2 ** (n + o - 127) if this is normal.
    rounder = 1.5 * 2.0**23
    offset_down, offset_up = f32(rounder + 127 + 30), f32(rounder + 127 - 1)

    @register_jitable(forceinline=True)
    def power(
        x: Any, offset: Any
    ) -> Any:  # e ** x times 2 ** 30 or 0.5. The polynomial is that of Cephes' expf.
        rounded = fma(x, f32(1.44269504088896341), offset)
        n = rounded - offset
        r = fma(n, f32(2.12194440e-4), fma(n, f32(-0.693359375), x))
        p = fma(f32(1.9875691500e-4), r, f32(1.3981999507e-3))
        p = fma(p, r, f32(8.3334519073e-3))
        p = fma(p, r, f32(4.1665795894e-2))
        p = fma(p, r, f32(1.6666665459e-1))
        p = fma(p, r, f32(5.0000001201e-1))
        p = fma(p, r * r, r) + f32(1.0)
        return p * np.int32(np.float32(rounded).view(np.int32) << 23).view(f32)

    def exp32(x: Any) -> Any:  # The comparisons, here and below, keep NaN.
        x = f32(-104.0) if x < f32(-104.0) else x
        x = f32(89.0) if x > f32(89.0) else x
        down = x < f32(0)  # two factors, chosen by the sign, so that both ends of the range are reached
        return power(x, offset_down if down else offset_up) * (f32(2.0**-30) if down else f32(2.0))

    def exp_down32(x: Any) -> Any:
        x = f32(-104.0) if x < f32(-104.0) else x
        return power(x, offset_down) * f32(2.0**-30)

    def sigmoid32(x: Any) -> Any:  # Beside 1, e ** -87 is nothing.
        x = f32(-89.0) if x < f32(-89.0) else x
        x = f32(87.0) if x > f32(87.0) else x
        return f32(1.0) / fma(power(-x, offset_up), f32(2.0), f32(1.0))

    def erf32(x: Any) -> Any:  # Eigen's rational approximation
        x = f32(-4.0) if x < f32(-4.0) else x
        x = f32(4.0) if x > f32(4.0) else x
        s = x * x
        p = fma(f32(-2.72614225801306e-10), s, f32(2.77068142495902e-08))
        p = fma(p, s, f32(-2.10102402082508e-06))
        p = fma(p, s, f32(-5.69250639462346e-05))
        p = fma(p, s, f32(-7.34990630326855e-04))
        p = fma(p, s, f32(-2.95459980854025e-03))
        p = fma(p, s, f32(-1.60960333262415e-02))
        q = fma(f32(-1.45660718464996e-05), s, f32(-2.13374055278905e-04))
        q = fma(q, s, f32(-1.68282697438203e-03))
        q = fma(q, s, f32(-7.37332916720468e-03))
        q = fma(q, s, f32(-1.42647390514189e-02))
        return x * p / q

    def tanh32(x: Any) -> Any:  # Cephes' tanhf near 0, and e ** x further out
        s = x * x
        p = fma(f32(-5.70498872745e-3), s, f32(2.06390887954e-2))
        p = fma(p, s, f32(-5.37397155531e-2))
        p = fma(p, s, f32(1.33314422036e-1))
        p = fma(p, s, f32(-3.33332819422e-1))
        near = fma(p * s, x, x)
        size = np.abs(x)
        e = exp_down(f32(-2.0) * size)
        far = f32(1.0) - (e + e) / (f32(1.0) + e)
        return near if size < f32(0.625) else np.copysign(far, x)

    def sigmoid64(x: Any) -> Any:
        return 1 / (1 + math.exp(-x))

    def tanh64(x: Any) -> Any:
        return math.tanh(x)

    def exp64(x: Any) -> Any:
        return math.exp(x)

    def erf64(x: Any) -> Any:
        return math.erf(x)

    def largest32(row: Any) -> Any:
        whole = row.size - row.size % 16
        top = row[0]
        if whole:
            at = simd.pointer(row, 0)
            lanes = simd.load(at, 0)
            for k in range(16, whole, 16):
                lanes = simd.maximum(lanes, simd.load(at, k))
            one = simd.highest(lanes)
            top = one if one > top else top
        for k in range(whole, row.size):
            top = row[k] if row[k] > top else top
        return top

    def total32(row: Any) -> Any:
        sum_ = f32(0)
        whole = row.size - row.size % 16
        if whole:
            at = simd.pointer(row, 0)
            lanes = simd.load(at, 0)
            for k in range(16, whole, 16):
                lanes = lanes + simd.load(at, k)
            sum_ = simd.add_up(lanes)
        for k in range(whole, row.size):
            sum_ += row[k]
        return sum_

    def in_vectors(row: Any) -> bool:
        return bool(row.dtype == types.float32 and row.layout == "C")

    def largest16(row: Any) -> Any:
        top = row[0]
        whole = row.size - row.size % 16
        if whole:
            lanes = row[:16].copy()
            for k in range(16, whole, 16):
                part = row[k : k + 16]
                for i in range(16):
                    lanes[i] = part[i] if part[i] > lanes[i] else lanes[i]
            for i in range(16):
                top = lanes[i] if lanes[i] > top else top
        for k in range(whole, row.size):
            top = row[k] if row[k] > top else top
        return top

    def total16(row: Any) -> Any:
        sum_ = row.dtype.type(0)
        whole = row.size - row.size % 16
        if whole:
            lanes = row[:16].copy()
            for k in range(16, whole, 16):
                part = row[k : k + 16]
                for i in range(16):
                    lanes[i] += part[i]
            for i in range(16):
                sum_ += lanes[i]
        for k in range(whole, row.size):
            sum_ += row[k]
        return sum_

    @overload(largest)
    def _largest(row: Any) -> Any:
        return largest32 if in_vectors(row) else largest16

    @overload(total)
    def _total(row: Any) -> Any:
        return total32 if in_vectors(row) else total16

    @overload(exp)
    def _exp(x: Any) -> Any:
        return exp32 if x == types.float32 else exp64

    @overload(exp_down)
    def _exp_down(x: Any) -> Any:
        return exp_down32 if x == types.float32 else exp64

    @overload(sigmoid)
    def _sigmoid(x: Any) -> Any:
        return sigmoid32 if x == types.float32 else sigmoid64

    @overload(tanh)
    def _tanh(x: Any) -> Any:
        return tanh32 if x == types.float32 else tanh64

    @overload(erf)
    def _erf(x: Any) -> Any:
        return erf32 if x == types.float32 else erf64
