"""How often to save: what a save costs against what a failure does."""

from __future__ import annotations

import math


def interval(cost: float, mtbf: float) -> float:
    """Return the seconds from one save to the next that lose the least time.

    Too few saves lose work when something fails, too many cost more than they keep. To first order the best interval is
    ``sqrt(2 * cost * mtbf)`` (Young, "A first order approximation to the optimum checkpoint interval", 1974); this is
    the higher order estimate of Daly ("A higher order estimate of the optimum checkpoint interval for restart dumps",
    2006), which holds also where failures are frequent.

    Args:
        cost: seconds for which a save holds the training up.
        mtbf: seconds between two failures, on average.

    Raises:
        ValueError: one of them is not positive.
    """
    if not cost > 0 or not mtbf > 0:
        raise ValueError(f"cost and mtbf must be positive, got {cost} and {mtbf}")
    if cost >= 2 * mtbf:
        return mtbf
    x = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(x) / 3 + x / 9) - cost
