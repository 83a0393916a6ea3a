"""The two folds over flat buffers that gradient clipping needs."""

from __future__ import annotations

import dataclasses

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.optim import common
from disttrain.kernels.optim.common import Extras, check_flat, upload_scalars

CHUNK = 4096
"""Elements in one partial sum of :func:`sum_of_squares`. Another number gives other last bits."""
_NOWHERE = numpy.empty(0)


def sum_of_squares(x: Array) -> float:
    """Return the sum of the squares of a flat float32 or float64 array, in float64.

    Always added up in the same order (eight interleaved sums per chunk of 4096 elements, chunk after chunk),
    so that the result has the same bits whatever the number of threads or processes.
    """
    xp = get_array_module(x)
    if xp is not numpy:
        return float(_sum_of_squares_cuda(x)[0])
    check_flat(x)
    return float(_sum_of_squares(x, CHUNK, _NOWHERE))


def sum_of_squares_reference(x: Array) -> Array:
    """What :func:`sum_of_squares` must equal up to rounding."""
    xp = get_array_module(x)
    return xp.square(x, dtype=xp.float64).sum()


def sums_of_squares(x: Array) -> Array:
    """Return the partial sums of :func:`sum_of_squares`, whose sum, one after the other, that is; in float64."""
    if get_array_module(x) is not numpy:
        return _sums_of_squares_cuda(x)
    check_flat(x)
    out = numpy.empty(-(-x.size // CHUNK))
    _sum_of_squares(x, CHUNK, out)
    return out


def sums_of_squares_reference(x: Array) -> Array:
    """What :func:`sums_of_squares` must equal up to rounding."""
    edges = range(0, x.size, CHUNK)
    return numpy.array([numpy.square(x[i : i + CHUNK], dtype=numpy.float64).sum() for i in edges])


@jit
def _sum_of_squares(x, chunk, sums):  # type: ignore[no-untyped-def]
    total = 0.0
    for start in range(0, x.size, chunk):
        stop = min(start + chunk, x.size)
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
        whole = stop - (stop - start) % 8
        for i in range(start, whole, 8):
            a0 += numpy.float64(x[i]) * numpy.float64(x[i])
            a1 += numpy.float64(x[i + 1]) * numpy.float64(x[i + 1])
            a2 += numpy.float64(x[i + 2]) * numpy.float64(x[i + 2])
            a3 += numpy.float64(x[i + 3]) * numpy.float64(x[i + 3])
            a4 += numpy.float64(x[i + 4]) * numpy.float64(x[i + 4])
            a5 += numpy.float64(x[i + 5]) * numpy.float64(x[i + 5])
            a6 += numpy.float64(x[i + 6]) * numpy.float64(x[i + 6])
            a7 += numpy.float64(x[i + 7]) * numpy.float64(x[i + 7])
        for i in range(whole, stop):
            a0 += numpy.float64(x[i]) * numpy.float64(x[i])
        part = ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))
        total += part
        if sums.size:
            sums[start // chunk] = part
    return total


def all_finite(x: Array) -> bool:
    """Return whether a flat float32 or float64 array (or half, on a GPU) holds no infinity and no NaN."""
    if get_array_module(x) is not numpy:
        return not int(find_bad(x)[0])
    if x.size < common.SMALL:
        return bool(all_finite_reference(x))
    check_flat(x)
    return bool(_all_finite(x, CHUNK))


def all_finite_reference(x: Array) -> Array:
    """What :func:`all_finite` must equal."""
    return get_array_module(x).isfinite(x).all()


@jit
def _all_finite(x, chunk):  # type: ignore[no-untyped-def]
    for start in range(0, x.size, chunk):
        bad = 0
        for i in range(start, min(start + chunk, x.size)):
            bad += x[i] - x[i] != 0
        if bad:
            return False
    return True


# ---------------------------------------------------------------------------- where the results stay beside the array


def clip_scale(square: Array, max_norm: float) -> tuple[Array, Array]:
    """Return what a step needs to clip as ``torch.nn.utils.clip_grad_norm_`` does, without waiting for a GPU.

    Args:
        square: the sum of the squares of all gradients, a float64 number in an array (1,).
        max_norm: the largest norm that remains.

    Returns:
        For ``Extras``: the factor of the gradients (1,) float32, at most 1; and (1,) int32, which is 1 if their norm is
        not finite, else 0.
    """
    if get_array_module(square) is not numpy:
        return _clip_scale_cuda(square, max_norm)
    return clip_scale_reference(square, max_norm)


def clip_scale_reference(square: Array, max_norm: float) -> tuple[Array, Array]:
    """What :func:`clip_scale` must equal."""
    norm = numpy.sqrt(square)
    factor = max_norm / (norm + 1e-6)
    return numpy.where(factor < 1, factor, 1.0).astype(numpy.float32), (~numpy.isfinite(norm)).astype(
        numpy.int32
    )


def find_bad(x: Array, bad: Array | None = None) -> Array:
    """Return (1,) int32, where ``x`` is: 1 if an element is infinite or NaN, else 0; or ``bad``, set to 1 if so."""
    if get_array_module(x) is not numpy:
        return _find_bad_cuda(x, bad)
    found = find_bad_reference(x)
    if bad is None:
        return found
    bad |= found
    return bad


def find_bad_reference(x: Array) -> Array:
    """What :func:`find_bad` must equal."""
    return numpy.array([not numpy.isfinite(x).all()], numpy.int32)


def scale_(x: Array, factor: Array) -> None:
    """Multiply a flat array in place by a float32 number in an array (1,)."""
    if get_array_module(x) is not numpy:
        return _scale_cuda(x, factor)
    return scale__reference(x, factor)


def scale__reference(x: Array, factor: Array) -> None:
    """What :func:`scale_` must equal."""
    x[...] = (x.astype(cuda.wide(x.dtype)) * factor.astype(cuda.wide(x.dtype))).astype(x.dtype)


def unscale_(x: Array, factor: Array, bad: Array) -> None:
    """Multiply a flat array in place by a float32 number in an array (1,), and set ``bad`` as :func:`find_bad`."""
    if get_array_module(x) is not numpy:
        grid = (cuda.blocks(x.size, CHUNK),)
        return _program.launch("unscale", grid, (256,), x, factor, bad, x.size, T=cuda.c_type(x.dtype))
    return unscale__reference(x, factor, bad)


def unscale__reference(x: Array, factor: Array, bad: Array) -> None:
    """What :func:`unscale_` must equal."""
    with numpy.errstate(all="ignore"):
        scale__reference(x, factor)
    bad |= find_bad_reference(x)


def update_scale(
    scale: Array, tracker: Array, bad: Array, *, growth: float, backoff: float, interval: int
) -> None:
    """Change the scale of a loss after a step, as ``torch.amp.GradScaler.update``, without waiting for a GPU.

    Args:
        scale: (1,) float32: times ``backoff`` after a step that was skipped, times ``growth`` after enough others.
        tracker: (1,) int32: how many steps in a row were not skipped.
        bad: (1,) int32: not 0 if the step was skipped.
        growth: see above; a scale that would be infinite stays.
        backoff: see above.
        interval: how many steps are enough.
    """
    if get_array_module(scale) is not numpy:
        numbers = float(growth), float(backoff), int(interval)
        return _program.launch("update_scale", (1,), (32,), scale, tracker, bad, *numbers, T="float")
    return update_scale_reference(scale, tracker, bad, growth=growth, backoff=backoff, interval=interval)


def update_scale_reference(
    scale: Array, tracker: Array, bad: Array, *, growth: float, backoff: float, interval: int
) -> None:
    """What :func:`update_scale` must equal."""
    if bad[0]:
        scale[0], tracker[0] = float(scale[0]) * backoff, 0
        return
    tracker[0] += 1
    if tracker[0] == interval:
        with numpy.errstate(over="ignore"):
            grown = numpy.float32(float(scale[0]) * growth)
        if numpy.isfinite(grown):
            scale[0] = grown
        tracker[0] = 0


def count_step(
    numbers: Array,
    skipped: Array,
    skip: Array,
    *,
    at: int,
    adam: bool,
    tried: int,
    lr: float,
    beta1: float,
    beta2: float,
) -> None:
    """Write the numbers of Adam or LAMB that depend on which step this is, where only the GPU knows it.

    Args:
        numbers: those of ``adam_scalars``, or of LAMB, float64: two of them, from ``at`` on, are written.
        skipped: (1,) int32: how many steps were skipped before; one more, if this is.
        skip: (1,) int32: not 0 if this step is skipped.
        at: see there.
        adam: write the size of the step and the root of the second correction, else both corrections.
        tried: number of this step, counted from 1 with those that were skipped.
        lr: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
    """
    if get_array_module(numbers) is numpy:
        return count_step_reference(
            numbers, skipped, skip, at=at, adam=adam, tried=tried, lr=lr, beta1=beta1, beta2=beta2
        )
    given = at, int(adam), tried, float(lr), float(beta1), float(beta2)
    return _program.launch("count_step", (1,), (32,), numbers, skipped, skip, *given, T="float")


def count_step_reference(
    numbers: Array,
    skipped: Array,
    skip: Array,
    *,
    at: int,
    adam: bool,
    tried: int,
    lr: float,
    beta1: float,
    beta2: float,
) -> None:
    """What :func:`count_step` must equal up to rounding."""
    step = tried - int(skipped[0])
    first, second = 1 - beta1**step, 1 - beta2**step
    numbers[at : at + 2] = (lr / first, second**0.5) if adam else (first, second)
    skipped += skip != 0


def numbers_on_gpu(
    scalars: tuple[float, ...],
    extras: Extras | None,
    *,
    at: int,
    adam: bool,
    tried: int,
    lr: float,
    beta1: float,
    beta2: float,
) -> Extras | None:
    """Return ``extras`` with the numbers of this step if only the GPU knows which it is; see :func:`count_step`."""
    if extras is None or extras.skipped is None:
        return extras
    assert extras.skip is not None
    numbers = upload_scalars(scalars)
    count_step(
        numbers, extras.skipped, extras.skip, at=at, adam=adam, tried=tried, lr=lr, beta1=beta1, beta2=beta2
    )
    return dataclasses.replace(extras, scalars=numbers)


_program = cuda.Program(__file__, T=cuda.FLOATS)


def _sums_of_squares_cuda(x: Array) -> Array:
    out = cuda.empty(-(-x.size // CHUNK), numpy.float64)
    grid = (cuda.blocks(out.size, 32),)
    _program.launch("sums_of_squares", grid, (256,), x, out, x.size, T=cuda.c_type(x.dtype))
    return out


def _sum_of_squares_cuda(x: Array) -> Array:
    sums, out = _sums_of_squares_cuda(x), cuda.empty(1, numpy.float64)
    _program.launch("total", (1,), (256,), sums, out, sums.size, T=cuda.c_type(x.dtype))
    return out


def _clip_scale_cuda(square: Array, max_norm: float) -> tuple[Array, Array]:
    factor, skip = cuda.empty(1, numpy.float32), cuda.empty(1, numpy.int32)
    _program.launch("clip", (1,), (32,), square, factor, skip, float(max_norm), T="float")
    return factor, skip


def _find_bad_cuda(x: Array, bad: Array | None) -> Array:
    if bad is None:
        bad = cuda.empty(1, numpy.int32)
        bad.fill(0)
    _program.launch("find_bad", (cuda.blocks(x.size, CHUNK),), (256,), x, bad, x.size, T=cuda.c_type(x.dtype))
    return bad


def _scale_cuda(x: Array, factor: Array) -> None:
    _program.launch("scale", (cuda.blocks(x.size, 256),), (256,), x, factor, x.size, T=cuda.c_type(x.dtype))
