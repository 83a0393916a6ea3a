"""Chains become one kernel each, which gives on the CPU what the function gives on arrays."""

import math

import numpy as np
import pytest
from cuda_cases import DTYPES, cast, exact, near

from disttrain.kernels import elementwise, gelu, relu
from disttrain.kernels.elementwise import fuse, where

rng = np.random.default_rng(0)
CHAINS = [v for v in vars(elementwise).values() if isinstance(v, elementwise.Chain)]
GELUS = [v for v in vars(gelu).values() if isinstance(v, elementwise.Chain)]


def inputs(chain, shape, dtype):
    return [cast(rng.standard_normal(shape), dtype) if kind == "a" else 0.37 for kind in chain._arguments]


def widened(args):
    return [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chain", [*CHAINS, *GELUS], ids=lambda c: c.__name__)
def test_chains(chain, dtype, shim):
    for shape in ((6, 64),) if dtype.endswith("16") else ((3, 5), (6, 64)):
        args = inputs(chain, shape, dtype)

        near(chain.launch(*args), chain(*widened(args)), dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_and_relu_are_what_is_beside_them(dtype, shim):
    g, x = (cast(rng.standard_normal(300), dtype) for _ in range(2))
    x[3] = np.nan

    near(gelu._gelu_chain.launch(x), gelu.gelu_reference(*exact(x)), dtype)
    near(gelu._gelu_grad_chain.launch(g, x), gelu.gelu_grad_reference(*exact(g, x)), dtype)
    near(relu._relu_chain.launch(x), relu.relu_reference(*exact(x)), dtype)
    near(relu._relu_grad_chain.launch(g, x), relu.relu_grad_reference(*exact(g, x)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shapes", [((6, 64), (64,)), ((6, 5), (5,)), ((2, 3, 16), (3, 16)), ((4, 8), (4, 1)), ((8, 8), (1,))]
)
def test_broadcast(shapes, dtype, shim):
    x, y = (cast(rng.standard_normal(s), dtype) for s in shapes)

    near(elementwise.add.launch(x, y), x.astype(np.float64) + y.astype(np.float64), dtype)
    near(elementwise.add.launch(y, x), x.astype(np.float64) + y.astype(np.float64), dtype)


def test_layouts_that_are_not_contiguous(shim):
    x, y = cast(rng.standard_normal((4, 6)), "float32"), cast(rng.standard_normal((6, 4)), "float32")

    np.testing.assert_array_equal(elementwise.add.launch(x, y.T), x + y.T)
    np.testing.assert_array_equal(elementwise.add.launch(x[:, ::2], y[:3].T), x[:, ::2] + y[:3].T)


@fuse(arguments="aan")
def everything(x, y, s):
    m = elementwise.maximum(x, y) - elementwise.minimum(x, 0.25) * s
    n = where((x > y) * (x != 0.5), abs(m) ** 2, -m) / (3 + elementwise.exp(y) + elementwise.sqrt(abs(x)))
    last = where(x >= 0, elementwise.log1p(abs(y)) ** 1.5, elementwise.expm1(x)) + where(
        y == y, 1.0, math.inf
    )
    return n, last - elementwise.floor(y), where(x < y, 1.0, 0.0) * (x <= y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operation_is_that_of_arrays(dtype, shim):
    x, y = (cast(rng.standard_normal(400), dtype) for _ in range(2))
    x[:2], y[2:4] = (np.nan, np.inf), (np.nan, -np.inf)

    with np.errstate(all="ignore"):
        near(everything.launch(x, y, 0.7), everything(*exact(x, y), 0.7), dtype, 4)


def test_what_a_chain_cannot_do_is_refused(shim):
    x = np.ones(4, np.float32)

    with pytest.raises(TypeError, match=r"use where\(condition, a, b\)"):
        fuse(lambda x: 1.0 if x > 0 else 2.0).launch(x)
    with pytest.raises(TypeError, match="arrays and numbers, got str: 'no'"):
        fuse(lambda x: x + "no").launch(x)
    with pytest.raises(TypeError, match="arrays of one type, got float32, float64"):
        elementwise.add.launch(x, x.astype(np.float64))
    with pytest.raises(
        ValueError, match="at most 4 numbers and 3 results, <lambda> has 1, 0 and 4; split it"
    ):
        fuse(lambda x: (x, x, x, x)).launch(x)
