"""A line search for the strong Wolfe conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from disttrain.kernels.arrays import Array, get_array_module

_DECREASE = 1e-4
_CURVATURE = 0.9
_SMALLEST_CHANGE = 1e-9


@dataclass
class _Point:
    """A point that was tried: how far along the direction, and what was found there."""

    t: float
    loss: float
    grad: Array
    slope: float


def strong_wolfe(
    evaluate: Callable[[float], tuple[float, Array]],
    t: float,
    direction: Array,
    loss: float,
    grad: Array,
    slope: float,
    max_calls: int = 25,
) -> tuple[float, Array, float, int]:
    """Return a point along ``direction`` where the loss is lower and its slope smaller.

    Nocedal and Wright, "Numerical optimization", algorithms 3.5 and 3.6, with cubic interpolation.

    Args:
        evaluate: returns loss and gradient at a distance.
        t: distance to try first.
        direction: where to go.
        loss: at distance 0.
        grad: at distance 0.
        slope: of the loss at distance 0, along the direction.
        max_calls: how often distances may be tried, after the first.

    Returns:
        Loss, gradient and distance of the point, and how often ``evaluate`` was called.
    """

    def point(t: float) -> _Point:
        loss, grad = evaluate(t)
        return _Point(t, loss, grad, float(grad @ direction))

    def too_high(p: _Point) -> bool:
        return p.loss > loss + _DECREASE * p.t * slope

    def flat(p: _Point) -> bool:
        return abs(p.slope) <= -_CURVATURE * slope

    start = previous = _Point(0.0, loss, grad, slope)
    new = point(t)
    tries = 0
    while tries < max_calls:
        if too_high(new) or (tries > 1 and new.loss >= previous.loss):
            break
        if flat(new):
            return new.loss, new.grad, new.t, tries + 1
        if new.slope >= 0:
            break
        t = _minimum(previous, new, (new.t + 0.01 * (new.t - previous.t), new.t * 10))
        previous, new = new, point(t)
        tries += 1
    else:  # nothing encloses a minimum
        previous = start
    low, high = (previous, new) if previous.loss <= new.loss else (new, previous)
    longest = float(get_array_module(direction).abs(direction).max())
    stuck = False
    while tries < max_calls:
        if abs(high.t - low.t) * longest < _SMALLEST_CHANGE:
            break
        left, right = min(low.t, high.t), max(low.t, high.t)
        t = _minimum(low, high, (left, right))
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:  # near an end: the second time, or on it, move away
            if stuck or t >= right or t <= left:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                stuck = False
            else:
                stuck = True
        else:
            stuck = False
        new = point(t)
        tries += 1
        if too_high(new) or new.loss >= low.loss:
            high = new
            if high.loss < low.loss:
                low, high = high, low
        else:
            if flat(new):
                low = new
                break
            if new.slope * (high.t - low.t) >= 0:
                high = low
            low = new
    return low.loss, low.grad, low.t, tries + 1


def _minimum(a: _Point, b: _Point, bounds: tuple[float, float]) -> float:
    """Return the minimum, within ``bounds``, of the cubic through two points; the middle if it has none."""
    left, right = (a, b) if a.t <= b.t else (b, a)
    d1 = left.slope + right.slope - 3 * (left.loss - right.loss) / (left.t - right.t)
    square = d1**2 - left.slope * right.slope
    t = math.nan
    if square >= 0:
        d2 = math.sqrt(square)
        rise, run = right.slope + d2 - d1, right.slope - left.slope + 2 * d2
        if run:
            t = right.t - (right.t - left.t) * (rise / run)
        elif rise:  # a straight line falls for ever
            t = -math.copysign(math.inf, rise)
    return (bounds[0] + bounds[1]) / 2 if math.isnan(t) else min(max(t, bounds[0]), bounds[1])
