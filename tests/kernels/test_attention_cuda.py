"""The CUDA kernels of attention's softmax, run on the CPU, equal the plain array operations."""

import numpy as np
import pytest
from cuda_cases import DTYPES, cast, near, wide

from disttrain.kernels import attention

rng = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("S", [1, 20, 64, 1040])
@pytest.mark.parametrize(
    ("causal", "first", "rows"), [(False, 0, 6), (True, 0, 6), (True, 4, 3), (True, 0, 1)]
)
def test_softmax_of_attention(causal, first, rows, S, dtype, shim):
    x, A = cast(rng.standard_normal((6, S)) * 5, dtype), wide(dtype)
    x[1, 2:] = -np.inf
    x[2] = -np.inf
    exact = x.astype(np.float64)
    lse, share = np.empty(6, A), np.empty(6, A)
    lse64, share64 = np.empty(6), np.empty(6)
    p, g = x.copy(), cast(rng.standard_normal((6, S)), dtype)

    attention._launch("softmax", x, lse, share, 0.3, int(causal), first, rows)
    attention._launch("softmax_again", p, lse, 0.3, int(causal), first, rows)
    expected = exact.copy()
    attention.softmax_reference(expected, 0.3, causal, first, rows, lse64, share64)
    again = exact.copy()
    attention.softmax_again_reference(again, 0.3, causal, first, rows, lse64)
    dot = cast(rng.standard_normal(6), str(A))
    grad = g.astype(np.float64)
    attention.softmax_grad_reference(grad, p.astype(np.float64), dot.astype(np.float64))
    attention._launch("softmax_grad", g, p, dot, also=p)

    near(x, expected, dtype)
    near((np.nan_to_num(lse, neginf=-1e3), share), (np.nan_to_num(lse64, neginf=-1e3), share64), str(A))
    near(p, again, dtype)
    near(g, grad, dtype)
