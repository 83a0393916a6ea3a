"""LARS and LAMB over flat buffers: steps whose length is set by the norms of each parameter.

Norms are added up in float64, in an order that depends on the machine's vectors only, so that all ranks (of one kind
of device) step alike.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.optim.common import Extras, check_flat, narrow_first, upload_scalars
from disttrain.kernels.optim.folds import numbers_on_gpu

_SUMS = {"reassoc", "contract", "nsz"}


def lars_step(
    param: Array,
    grad: Array,
    velocity: Array,
    ends: list[int],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    maximize: bool = False,
    extras: Extras | None = None,
) -> None:
    """Update ``param`` and ``velocity`` in place as LARS does (You, Gitman and Ginsburg, 2017, algorithm 1).

    Args:
        param: flat float32 or float64 array, contiguous; so are ``grad`` (not changed) and ``velocity``.
        grad: the gradient.
        velocity: the steps before, fading.
        ends: where each parameter ends in ``param``.
        lr: global learning rate.
        momentum: factor of the velocity.
        weight_decay: factor of the L2 penalty.
        trust_coefficient: how far a parameter moves at most, as a part of its norm.
        maximize: go up instead of down.
        extras: what mixed precision needs.
    """
    scalars = (lr, momentum, weight_decay, trust_coefficient, -1.0 if maximize else 1.0)
    if get_array_module(param) is not numpy:
        return _lars_cuda(param, grad, velocity, ends, scalars, extras)

    def step(p: Array, g: Array) -> None:
        check_flat(p, g, velocity)
        _lars(p, g, velocity, numpy.array(ends), *scalars)

    return step(param, grad) if extras is None else extras.step(param, grad, step)


def lars_step_reference(
    param: Array,
    grad: Array,
    velocity: Array,
    ends: list[int],
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    sign: float,
) -> None:
    """What the compiled LARS step must equal up to rounding."""
    T = param.dtype.type
    for begin, end in zip([0, *ends], ends, strict=False):
        w, v = param[begin:end], velocity[begin:end]
        g = grad[begin:end] * T(sign)
        local = _lars_rate(_norm(w), _norm(g), weight_decay, trust_coefficient)
        v *= T(momentum)
        v += T(lr * local) * (g + T(weight_decay) * w)
        w -= v


def _lars_rate(w: float, g: float, weight_decay: float, trust_coefficient: float) -> float:
    """Return a parameter's own learning rate from its norm and that of its gradient; 1 if one of them is 0."""
    return trust_coefficient * w / (g + weight_decay * w) if w > 0 and g > 0 else 1.0


@jit(fastmath=_SUMS)
def _lars(  # type: ignore[no-untyped-def]
    param, grad, velocity, ends, lr, momentum, weight_decay, trust_coefficient, sign
):
    begin = 0
    for end in ends:
        x, d, old = param[begin:end], grad[begin:end], velocity[begin:end]
        ww = 0.0
        gg = 0.0
        for i in range(x.size):
            w, g = numpy.float64(x[i]), numpy.float64(d[i])
            ww += w * w
            gg += g * g
        local = 1.0
        if ww > 0 and gg > 0:
            local = trust_coefficient * math.sqrt(ww) / (math.sqrt(gg) + weight_decay * math.sqrt(ww))
        kind = param.dtype.type
        rate, keep, l2, s = kind(lr * local), kind(momentum), kind(weight_decay), kind(sign)
        for i in range(x.size):
            p = x[i]
            v = old[i] * keep + rate * (d[i] * s + l2 * p)
            old[i] = v
            x[i] = p - v
        begin = end


def lamb_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    ends: list[int],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    maximize: bool = False,
    extras: Extras | None = None,
) -> None:
    """Update ``param`` and the moments in place as LAMB does (You et al., 2020, algorithm 2).

    Args:
        param: flat float32 or float64 array, contiguous; so are all the others. ``grad`` is not changed.
        grad: the gradient.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        ends: where each parameter ends in ``param``.
        lr: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: part of the parameter that is added to its direction.
        step: number of this step, counted from 1.
        maximize: go up instead of down.
        extras: what mixed precision needs.
    """
    scalars = (
        *(beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay),
        *(1 - beta1**step, 1 - beta2**step, -1.0 if maximize else 1.0, lr),
    )
    if get_array_module(param) is not numpy:
        extras = numbers_on_gpu(
            scalars, extras, at=6, adam=False, tried=step, lr=lr, beta1=beta1, beta2=beta2
        )
        return _lamb_cuda(param, grad, exp_avg, exp_avg_sq, ends, scalars, extras)

    def single(p: Array, g: Array) -> None:
        check_flat(p, g, exp_avg, exp_avg_sq)
        rounded = (p.dtype.type(v) for v in scalars[:-1])
        _lamb(p, g, exp_avg, exp_avg_sq, numpy.array(ends), *rounded, lr)

    return single(param, grad) if extras is None else extras.step(param, grad, single)


def lamb_step_reference(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    ends: list[int],
    beta1: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
    eps: float,
    weight_decay: float,
    correction1: float,
    correction2: float,
    sign: float,
    lr: float,
) -> None:
    """What the compiled LAMB step must equal up to rounding."""
    g = grad * sign
    exp_avg[...] = beta1 * exp_avg + one_minus_beta1 * g
    exp_avg_sq[...] = beta2 * exp_avg_sq + one_minus_beta2 * g * g
    root = get_array_module(param).sqrt(exp_avg_sq / correction2) + eps
    update = exp_avg / correction1 / root + weight_decay * param
    for begin, end in zip([0, *ends], ends, strict=False):
        w, u = param[begin:end], update[begin:end]
        norm_w, norm_u = _norm(w), _norm(u)
        trust = norm_w / norm_u if norm_w > 0 and norm_u > 0 else 1.0
        w -= param.dtype.type(lr * trust) * u


@jit(fastmath=_SUMS)
def _lamb(  # type: ignore[no-untyped-def]
    param, grad, exp_avg, exp_avg_sq, ends, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay,
    correction1, correction2, sign, lr,
):  # fmt: skip
    begin = 0
    for end in ends:
        x, d, first, second = param[begin:end], grad[begin:end], exp_avg[begin:end], exp_avg_sq[begin:end]
        ww = 0.0
        uu = 0.0
        for i in range(x.size):
            g = d[i] * sign
            m = beta1 * first[i] + one_minus_beta1 * g
            v = beta2 * second[i] + one_minus_beta2 * g * g
            first[i] = m
            second[i] = v
            p = x[i]
            u = m / correction1 / (math.sqrt(v / correction2) + eps) + weight_decay * p
            w64, u64 = numpy.float64(p), numpy.float64(u)
            ww += w64 * w64
            uu += u64 * u64
        trust = 1.0
        if ww > 0 and uu > 0:
            trust = math.sqrt(ww) / math.sqrt(uu)
        rate = param.dtype.type(lr * trust)
        for i in range(x.size):  # the direction again: quicker than to keep it
            root = math.sqrt(second[i] / correction2) + eps
            x[i] -= rate * (first[i] / correction1 / root + weight_decay * x[i])
        begin = end


def _norm(x: Array) -> float:
    xp = get_array_module(x)
    return math.sqrt(float(xp.square(x, dtype=xp.float64).sum()))


_program = cuda.Program(__file__, include="flat.cuh", T=cuda.FLOATS, WIDE_GRAD=(0, 1), VECTOR=(0, 1))
_TILE = 4096  # elements of a block, as in the kernels


class _Tiles(NamedTuple):
    """Which part of which parameter each block has."""

    edges: Array
    owner: Array
    first: Array
    aligned: bool


@functools.lru_cache(maxsize=32)
def _tiles(ends: tuple[int, ...], device: object) -> _Tiles:
    """Return the tiles of parameters that end there, on the current GPU, which ``device`` tells from others."""
    begins = numpy.array([0, *ends[:-1]])
    sizes = numpy.array(ends) - begins
    counts = -(-sizes // _TILE)
    first = numpy.concatenate([[0], numpy.cumsum(counts)])
    owner = numpy.repeat(numpy.arange(len(ends)), counts)
    start = begins[owner] + _TILE * (numpy.arange(len(owner)) - first[owner])
    stop = numpy.minimum(start + _TILE, numpy.array(ends)[owner])
    edges = numpy.ascontiguousarray(numpy.stack([start, stop], 1), numpy.int64)
    return _Tiles(
        cuda.upload(edges),
        cuda.upload(owner.astype(numpy.int32)),
        cuda.upload(first.astype(numpy.int64)),
        bool((begins % 8 == 0).all()),
    )


class _Step:
    """The launches of one step: what its kernels have in common."""

    def __init__(
        self,
        param: Array,
        grad: Array,
        states: tuple[Array, ...],
        ends: list[int],
        scalars: tuple[float, ...],
        extras: Extras | None,
    ) -> None:
        extras = extras or Extras()
        self.to, self.master, wide_grad = narrow_first(param, grad, states, extras)
        self.tiles = _tiles(tuple(ends), cuda.device())
        self.scalars = upload_scalars(scalars) if extras.scalars is None else extras.scalars
        self.scale, self.skip, self.key = extras.grad_scale, extras.skip, extras.key
        self.count = len(self.tiles.owner)
        self.sums = cuda.empty((self.count, 2), numpy.float64)
        self.rate = cuda.empty(len(ends), cuda.wide(param.dtype))
        self._variant: dict[str, cuda.Constant] = {
            "T": cuda.c_type(self.to.dtype),
            "WIDE_GRAD": wide_grad,
            "VECTOR": int(self.tiles.aligned and cuda.aligned(self.to, self.master, grad, *states)),
        }

    def over_tiles(self, kernel: str, *args: cuda.Argument) -> None:
        _program.launch(kernel, (self.count,), (256,), self.to, self.master, *args, **self._variant)

    def find_rates(self, lars: bool) -> None:
        args = self.sums, self.tiles.first, self.scalars, self.skip, self.rate, int(lars)
        _program.launch("rates", (len(self.rate),), (32,), *args, **self._variant)


def _lamb_cuda(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    ends: list[int],
    scalars: tuple[float, ...],
    extras: Extras | None,
) -> None:
    s = _Step(param, grad, (exp_avg, exp_avg_sq), ends, scalars, extras)
    s.over_tiles(
        *("lamb_moments", grad, exp_avg, exp_avg_sq, s.scalars, s.scale, s.skip, s.tiles.edges, s.sums)
    )
    s.find_rates(lars=False)
    s.over_tiles(
        *("lamb_apply", exp_avg, exp_avg_sq, s.scalars, s.skip, s.key, s.tiles.edges, s.tiles.owner, s.rate)
    )


def _lars_cuda(
    param: Array,
    grad: Array,
    velocity: Array,
    ends: list[int],
    scalars: tuple[float, ...],
    extras: Extras | None,
) -> None:
    s = _Step(param, grad, (velocity,), ends, scalars, extras)
    s.over_tiles("lars_norms", grad, s.scale, s.skip, s.tiles.edges, s.sums)
    s.find_rates(lars=True)
    s.over_tiles(
        *("lars_apply", grad, velocity, s.scalars, s.scale, s.skip, s.key),
        *(s.tiles.edges, s.tiles.owner, s.rate),
    )
