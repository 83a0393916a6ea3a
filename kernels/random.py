"""From random bits to numbers of a distribution, in arithmetic that any device repeats to the last bit.

Every function maps the words of a draw to numbers one by one, with nothing but what IEEE 754 rounds correctly:
conversion from integers, ``+ - * /``, ``sqrt``, comparison, and bits of a float read as an integer. No library's
``log``, ``exp`` or ``cos`` takes part, since no two libraries agree on their last bit, and no product is contracted
with a sum (a CUDA kernel is compiled with ``-fmad=false``). Polynomials go by Horner's scheme from the highest
coefficient, in the order that the code below shows.

* ``uniform``: the upper 24 bits of a 32-bit word times ``2**-24`` (float32; float16 takes 11 and bfloat16 8 bits, so
  that 1 is never reached), the upper 53 bits of a 64-bit word times ``2**-53`` (float64).
* ``normal``: the inverse of the distribution function by algorithm AS 241 (Wichura, Applied Statistics 37, 1988): PPND7
  in float32 from one 32-bit word, PPND16 in float64 from one 64-bit word. The lowest bit is the sign; the word with
  that bit set, times ``2**-33`` (``2**-65``), is the probability of what lies beyond.
* ``log``: exponent and fraction ``f`` in ``[sqrt(1/2), sqrt(2))`` from the bits, then the series of ``2 atanh(s)`` with
  ``s = (f - 1) / (f + 1)``.
* ``exp``: a power of two times Taylor's polynomial of a remainder below ``log(2) / 2``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module

__all__ = [
    "draw_normal",
    "draw_uniform",
    "exp",
    "log",
    "log_gamma",
    "normal",
    "open_uniform",
    "round_randomly",
    "uniform",
    "words",
]

_BLOCK = 1 << 16  # numbers at a time: they and the intermediate values fit the cache
_BITS = {np.dtype(np.float16): 11, np.dtype(ml_dtypes.bfloat16): 8, np.dtype(np.float32): 24}


def uniform(words: Array, dtype: Any) -> Array:
    """Return numbers of ``dtype`` evenly distributed in [0, 1).

    Args:
        words: uint64 for float64, else uint32.
        dtype: a floating point type.
    """
    kind = np.dtype(dtype)
    if kind == np.float64:
        return (words >> np.uint64(11)) * 2.0**-53
    bits = _BITS[kind]
    exact = (words >> np.uint32(32 - bits)).astype(np.float32) * np.float32(2.0**-bits)
    return exact.astype(kind, copy=False)


def open_uniform(words: Array) -> Array:
    """Return float64 numbers evenly distributed in (0, 1): odd multiples of ``2**-53``, from uint64 words."""
    return ((words >> np.uint64(11)) | np.uint64(1)) * 2.0**-53


def normal(words: Array) -> Array:
    """Return numbers of the standard normal distribution: float32 from uint32 words, float64 from uint64 words."""
    xp = get_array_module(words)
    out = xp.empty(words.shape, np.float32 if words.dtype == np.uint32 else np.float64)
    for begin in range(0, len(words), _BLOCK):
        _normal(words[begin : begin + _BLOCK], out[begin : begin + _BLOCK])
    return out


# Coefficients of AS 241, from the constant term on: numerators and denominators near the middle, in the tail, far out.
_MIDDLE, _TAIL, _FAR = 0, 1, 2
_PPND7 = (
    (
        (3.3871327179, 50.434271938, 159.29113202, 59.109374720),
        (1.0, 17.895169469, 78.757757664, 67.187563600),
    ),
    ((1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103), (1.0, 0.73700164250, 0.12021132975)),
)
_PPND16 = (
    (
        (
            3.3871328727963666080,
            1.3314166789178437745e2,
            1.9715909503065514427e3,
            1.3731693765509461125e4,
            4.5921953931549871457e4,
            6.7265770927008700853e4,
            3.3430575583588128105e4,
            2.5090809287301226727e3,
        ),
        (
            1.0,
            4.2313330701600911252e1,
            6.8718700749205790830e2,
            5.3941960214247511077e3,
            2.1213794301586595867e4,
            3.9307895800092710610e4,
            2.8729085735721942674e4,
            5.2264952788528545610e3,
        ),
    ),
    (
        (
            1.42343711074968357734,
            4.63033784615654529590,
            5.76949722146069140550,
            3.64784832476320460504,
            1.27045825245236838258,
            2.41780725177450611770e-1,
            2.27238449892691845833e-2,
            7.74545014278341407640e-4,
        ),
        (
            1.0,
            2.05319162663775882187,
            1.67638483018380384940,
            6.89767334985100004550e-1,
            1.48103976427480074590e-1,
            1.51986665636164571966e-2,
            5.47593808499534494600e-4,
            1.05075007164441684324e-9,
        ),
    ),
    (
        (
            6.65790464350110377720,
            5.46378491116411436990,
            1.78482653991729133580,
            2.96560571828504891230e-1,
            2.65321895265761230930e-2,
            1.24266094738807843860e-3,
            2.71155556874348757815e-5,
            2.01033439929228813265e-7,
        ),
        (
            1.0,
            5.99832206555887937690e-1,
            1.36929880922735805310e-1,
            1.48753612908506148525e-2,
            7.86869131145613259100e-4,
            1.84631831751005468180e-5,
            1.42151175831644588870e-7,
            2.04426310338993978564e-15,
        ),
    ),
)


def _normal(words: Array, out: Array) -> None:
    xp = get_array_module(words)
    kind, word = out.dtype.type, words.dtype.type
    single = kind is np.float32
    table: Any = _PPND7 if single else _PPND16
    scale = kind(2.0**-33 if single else 2.0**-65)
    odd = words | word(1)
    q = (word(0) - odd).astype(kind)  # one half minus the probability beyond, exact but for one rounding
    q *= scale
    r = q * q
    xp.subtract(kind(0.180625), r, out=r)
    above, below = table[_MIDDLE]
    _polynomial(r, above, out)
    out *= q
    out /= _polynomial(r, below)
    (tail,) = xp.nonzero(q > kind(0.425))
    if tail.size:
        r = odd[tail].astype(kind)
        r *= scale
        r = xp.sqrt(-log(r))
        out[tail] = _ratio(table[_TAIL], r - kind(1.6))
        if not single:  # whose smallest probability, 2**-33, does not go so far
            far = r > 5
            if far.any():
                out[tail[far]] = _ratio(table[_FAR], r[far] - kind(5))
    bits = out.view(word)
    bits ^= words << word(8 * out.itemsize - 1)


def _ratio(pair: tuple[Sequence[float], Sequence[float]], x: Array) -> Array:
    return _polynomial(x, pair[0]) / _polynomial(x, pair[1])


def _polynomial(x: Array, coefficients: Sequence[float], out: Array | None = None) -> Array:
    """Return the polynomial at ``x`` by Horner's scheme, the constant term first in ``coefficients``."""
    kind = x.dtype.type
    *rest, second, highest = coefficients
    y = get_array_module(x).multiply(x, kind(highest), out=out)
    y += kind(second)
    for c in reversed(rest):
        y *= x
        y += kind(c)
    return y


# Terms of atanh(s)/s in s*s for s up to tan(pi/8)**2: the last is below half a unit of the last place.
_ATANH = {np.float32: [1 / (2 * k + 1) for k in range(6)], np.float64: [1 / (2 * k + 1) for k in range(12)]}
_LN2 = {
    np.float32: (0.693359375, -2.12194440e-4),
    np.float64: (6.93147180369123816490e-01, 1.90821492927058770002e-10),
}
"""The logarithm of 2 in two parts; the first has few bits, so that its product with an exponent is exact."""
_LAYOUT = {np.float32: (np.int32, 23), np.float64: (np.int64, 52)}


def log(x: Array) -> Array:
    """Return the natural logarithm of positive normal numbers, float32 or float64, to three units in the last place."""
    xp = get_array_module(x)
    kind = x.dtype.type
    word, digits = _LAYOUT[kind]
    bits = xp.ascontiguousarray(x).view(word)
    exponent = (
        bits - np.asarray(math.sqrt(0.5), kind).view(word)[()]
    )  # counted from where the fraction begins
    exponent >>= word(digits)
    f = (bits - (exponent << word(digits))).view(kind)
    s = (f - kind(1)) / (f + kind(1))
    y = _polynomial(s * s, _ATANH[kind])
    y *= s
    y += y
    e = exponent.astype(kind)
    high, low = _LN2[kind]
    return e * kind(high) + (e * kind(low) + y)


_TAYLOR = [1 / math.factorial(k) for k in range(14)]


def exp(x: Array) -> Array:
    """Return ``e ** x`` of float64 numbers, to about one unit of the last place."""
    xp = get_array_module(x)
    high, low = _LN2[np.float64]
    k = xp.rint(x * (1 / math.log(2)))
    y = _polynomial((x - k * high) - k * low, _TAYLOR)
    k = xp.clip(k, -2100, 2100).astype(np.int64)
    half = k >> 1  # in two steps, so that each power of two is a normal number
    with np.errstate(over="ignore", under="ignore"):
        return y * _power_of_two(half) * _power_of_two(k - half)


def _power_of_two(k: Array) -> Array:
    return (get_array_module(k).clip(k + 1023, 0, 2047) << 52).view(np.float64)


_STIRLING = [1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360]


def log_gamma(x: Array) -> Array:
    """Return the logarithm of the gamma function of float64 numbers from 1 on: Stirling's series, eight steps up."""
    y = x + 8.0
    product = x.copy()
    for i in range(1, 8):
        product *= x + i
    inverse = 1 / y
    series = _polynomial(inverse * inverse, _STIRLING) * inverse
    return (y - 0.5) * log(y) - y + 0.5 * math.log(2 * math.pi) + series - log(product)


def words(key: Array, count: int) -> Array:
    """Return the first words of a draw: ``count`` uint64 of Philox4x64-10, where ``key`` is.

    Args:
        key: seed, stream (the rank), draw and purpose, 4 uint64; blocks of the counter count from 1.
        count: how many.
    """
    if get_array_module(key) is not np:
        return _words_cuda(key, count)
    seed, stream, draw, purpose = (np.uint64(k) for k in key)
    bits = np.random.Philox(key=np.array([seed, stream]), counter=np.array([0, draw, 0, purpose], np.uint64))
    return bits.random_raw(count)


def draw_uniform(key: Array, count: int, dtype: Any) -> Array:
    """Return ``count`` numbers of a draw (:func:`words`) evenly distributed in [0, 1), where ``key`` is."""
    if get_array_module(key) is not np:
        return _draw_cuda("uniform", key, count, dtype)
    return uniform(_words_for(key, count, dtype), dtype)


def draw_normal(key: Array, count: int, dtype: Any) -> Array:
    """Return ``count`` numbers of a draw (:func:`words`) of the standard normal distribution, where ``key`` is.

    float64 from words of 64 bits; float32 from words of 32 bits, and halves rounded from those.
    """
    if get_array_module(key) is not np:
        return _draw_cuda("normal", key, count, dtype)
    return normal(_words_for(key, count, dtype)).astype(dtype, copy=False)


def round_randomly(x: Array, dtype: Any, key: Array) -> Array:
    """Return flat float32 ``x`` in half precision, each rounded up or down with a probability by the distance.

    Element ``i`` takes 16 bits of :func:`words`: of word ``i // 1024 % 4`` of block ``i // 4096 * 256 + i // 4 % 256``,
    the lowest ``i % 4`` times 16 left out; so a thread that has 16 elements in four groups needs one block. What is not
    finite is rounded as usual.
    """
    tiles = -(-x.size // 4096)
    in_groups = words(key, tiles * 1024).reshape(tiles, 256, 4).transpose(0, 2, 1)
    noise = np.ascontiguousarray(in_groups).view(np.uint16).reshape(-1)[: x.size].astype(np.uint32)
    bits = x.view(np.uint32)
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = x.astype(dtype)
        if np.dtype(dtype) == np.float16:
            large = ((bits + (noise & 0x1FFF)) & ~np.uint32(0x1FFF)).view(np.float32).astype(dtype)
            steps = np.floor(np.abs(x) * np.float32(2**24) + noise.astype(np.float32) * np.float32(2**-16))
            small = np.copysign(np.minimum(steps, 1 << 20) * np.float32(2**-24), x).astype(dtype)
            rounded = np.where(np.abs(x) >= np.float32(2**-14), large, small)
        else:
            rounded = ((bits + noise) >> np.uint32(16)).astype(np.uint16).view(dtype)
    return np.where(np.isfinite(x), rounded, nearest)


def _words_for(key: Array, count: int, dtype: Any) -> Array:
    if np.dtype(dtype) == np.float64:
        return words(key, count)
    return words(key, -(-count // 2)).view(np.uint32)[:count]


def _tables() -> str:
    """Return the coefficients above in C++, each type's own."""

    def numbers(name: str, values: Sequence[float]) -> str:
        return f"constexpr Wide<T>::type {name}[] = {{{', '.join(map(repr, values))}}};"

    def pairs(table: Any) -> list[str]:
        return [
            numbers(f"{part}_{side}", values)
            for part, pair in zip(("MIDDLE", "TAIL", "FAR"), table, strict=False)
            for side, values in zip(("ABOVE", "BELOW"), pair, strict=True)
        ]

    def constants(kind: Any) -> list[str]:
        values = ("ROOT_HALF", math.sqrt(0.5)), ("LN2_HIGH", _LN2[kind][0]), ("LN2_LOW", _LN2[kind][1])
        return [
            numbers("ATANH", _ATANH[kind]),
            *(f"constexpr Wide<T>::type {name} = {v!r};" for name, v in values),
        ]

    return "\n".join(
        [
            *("#if DIGITS == 53", "#define FAR_TAIL", *pairs(_PPND16), *constants(np.float64)),
            *("#else", *pairs(_PPND7), *constants(np.float32), "#endif"),
        ]
    )


_programs = {
    kind: cuda.Program(__file__, _tables(), T=(cuda.c_type(kind),), DIGITS=(digits,))
    for kind, digits in {np.dtype(np.float64): 53, **_BITS}.items()
}


def _words_cuda(key: Array, count: int) -> Array:
    out = cuda.empty(count, np.uint64)
    grid = (cuda.blocks(count, 4 * 256),)
    _programs[np.dtype(np.float64)].launch("words", grid, (256,), key, out, count, T="double", DIGITS=53)
    return out


def _draw_cuda(kernel: str, key: Array, count: int, dtype: Any) -> Array:
    kind = np.dtype(dtype)
    out, each = cuda.empty(count, kind), 4 if kind == np.float64 else 8
    T, digits = cuda.c_type(kind), _BITS.get(kind, 53)
    grid = (cuda.blocks(count, each * 256),)
    _programs[kind].launch(kernel, grid, (256,), key, out, count, T=T, DIGITS=digits)
    return out
