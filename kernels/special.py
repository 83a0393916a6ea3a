"""Special functions of each element, float32 or float64, right to a few units in the last place.

Where the C library has the function a compiled loop calls it; the others are array operations in float64.
"""

import math

import numpy

from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.gelu import erf
from disttrain.kernels.jit import jit

_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
"""B2, B4, ... B16."""
_FAR = 10
"""From here on a series in 1/x with those numbers is right to double precision."""


def erfc(x: Array) -> Array:
    """Return ``1 - erf(x)`` of each element of a flat contiguous array, exact where it is tiny."""
    if get_array_module(x) is not numpy:
        return erfc_reference(x)
    out = buffers.empty_like(x)
    _erfc(x, out)
    return out


def erfc_reference(x: Array) -> Array:
    """What :func:`erfc` must equal up to rounding."""
    if get_array_module(x) is not numpy:
        from cupyx.scipy.special import erfc as cupy_erfc

        return cupy_erfc(x)
    return numpy.array([math.erfc(v) for v in x.tolist()], x.dtype)


@jit
def _erfc(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = math.erfc(x[i])


def lgamma(x: Array) -> Array:
    """Return ``log(|gamma(x)|)`` of each element of a flat contiguous array; infinite at 0, -1, -2, ..."""
    if get_array_module(x) is not numpy:
        return lgamma_reference(x)
    out = buffers.empty_like(x)
    _lgamma(x, out)
    return out


def lgamma_reference(x: Array) -> Array:
    """What :func:`lgamma` must equal up to rounding."""
    if get_array_module(x) is not numpy:
        from cupyx.scipy.special import gammaln

        return gammaln(x)
    poles = [v <= 0 and v == math.floor(v) for v in x.tolist() if math.isfinite(v)]
    finite = iter(poles)
    values = [
        math.inf if math.isinf(v) or (math.isfinite(v) and next(finite)) else math.lgamma(v)
        for v in x.tolist()
    ]
    return numpy.array(values, x.dtype)


@jit
def _lgamma(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        v = x[i]
        pole = v <= 0 and v == math.floor(v)
        out[i] = math.inf if pole or math.isinf(v) else math.lgamma(v)


def digamma(x: Array) -> Array:
    """Return the derivative of ``log(gamma(x))``: ``-inf`` at 0, ``inf`` at -0, nan at -1, -2, ..."""
    xp = get_array_module(x)
    wide = x.astype(numpy.float64)
    with numpy.errstate(all="ignore"):
        negative = wide < 0
        y = xp.where(negative, 1 - wide, wide)
        total = xp.zeros_like(y)
        for _ in range(_FAR):  # psi(y) = psi(y + 1) - 1 / y
            near = y < _FAR
            total = xp.where(near, total - 1 / y, total)
            y = xp.where(near, y + 1, y)
        tail = sum(b / (2 * k) * y ** (-2 * k) for k, b in enumerate(_BERNOULLI, 1))
        out = total + xp.log(y) - 0.5 / y - tail
        fraction = wide - xp.trunc(wide)  # the tangent of pi times a large number would lose all digits
        out = xp.where(negative, out - math.pi / xp.tan(math.pi * fraction), out)
        out = xp.where(negative & (fraction == 0), math.nan, out)
        out = xp.where(wide == 0, xp.copysign(math.inf, -wide), out)
        out = xp.where(xp.isneginf(wide), math.nan, out)
    return out.astype(x.dtype)


def polygamma(x: Array, n: int) -> Array:
    """Return the ``n``-th derivative of :func:`digamma`, ``n >= 1``: ``(-1)**(n+1) n! zeta(n + 1, x)``."""
    xp = get_array_module(x)
    wide = x.astype(numpy.float64)
    with numpy.errstate(all="ignore"):
        if n == 1:  # reflected: psi1(1 - x) + psi1(x) = (pi / sin(pi x)) ** 2
            low = wide < 0.5
            value = _zeta(2, xp.where(low, 1 - wide, wide))
            sine = xp.sin(math.pi * (wide - xp.trunc(wide)))
            value = xp.where(low, (math.pi / sine) ** 2 - value, value)
        else:
            value = _zeta(n + 1, wide)
        return ((1 if n % 2 else -1) * math.factorial(n) * value).astype(x.dtype)


def _zeta(s: int, q: Array) -> Array:
    """Return Hurwitz's zeta, the sum of ``(q + k) ** -s``, by Euler and Maclaurin; infinite at 0, -1, -2, ..."""
    xp = get_array_module(q)
    total, a = xp.zeros_like(q), q
    lowest = float(xp.min(xp.where(xp.isfinite(q), q, _FAR), initial=_FAR))
    for _ in range(math.ceil(_FAR - lowest)):
        near = a < _FAR
        total = xp.where(near, total + a**-s, total)
        a = xp.where(near, a + 1, a)
    total = total + a ** (1 - s) / (s - 1) + 0.5 * a**-s
    factor = float(s)
    for k, b in enumerate(_BERNOULLI, 1):
        total = total + b / math.factorial(2 * k) * factor * a ** (1 - s - 2 * k)
        factor *= (s + 2 * k - 1) * (s + 2 * k)
    total = xp.where((q <= 0) & (q == xp.floor(q)), math.inf, total)
    return xp.where(q == math.inf, 0.0, total)


def erfinv(x: Array) -> Array:
    """Return where ``erf`` is ``x``: infinite at -1 and 1, nan beyond.

    A closed form that is right to 2e-3 (Winitzki 2008), then Halley's iteration, which triples the digits.
    """
    xp = get_array_module(x)
    wide = xp.abs(x.astype(numpy.float64)).reshape(-1)
    with numpy.errstate(all="ignore"):
        tail = 1 - wide
        log = xp.log(tail * (1 + wide))
        half = 2 / (math.pi * 0.147) + log / 2
        y = xp.sqrt(xp.sqrt(half * half - log / 0.147) - half)
        for _ in range(3):  # near 1 by the complement, which keeps its digits there
            off = xp.where(wide < 0.5, erf(y) - wide, tail - erfc(y))
            step = off / (2 / math.sqrt(math.pi) * xp.exp(-y * y))
            y = y - step / (1 + y * step)
        y = xp.where(wide == 1, math.inf, y)
        return xp.copysign(y.reshape(x.shape), x.astype(numpy.float64)).astype(x.dtype)
