"""Activation functions against PyTorch: value, gradients and second derivatives."""

from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.nn import functional as F

rng = np.random.default_rng(4)
X = rng.standard_normal((4, 6)) * 3
EDGES = np.array([-6.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0, 20.5, -700.0])
"""Where pieces meet."""

Case = tuple[tuple[Any, ...], dict[str, Any]]


def both(*args: Any, **options: Any) -> list[Case]:
    return [((x, *args), options) for x in (X, EDGES)]


CASES: dict[str, list[Case]] = {
    "celu": [*both(), *both(0.5), *both(alpha=-2.0)],  # PyTorch takes 1 / alpha in float32
    "glu": [((X,), {}), ((X, 0), {}), ((rng.standard_normal((2, 4, 3)), -2), {})],
    "hardshrink": [*both(), *both(1.0)],
    "hardsigmoid": [],  # in test_in_place_...: PyTorch's slope is 1/6 in float32
    "hardswish": both(),
    "hardtanh": [*both(), *both(-0.5, 3.0)],
    "logsigmoid": both(),
    "mish": both(),
    "prelu": [
        ((X, rng.standard_normal(6)), {}),
        ((EDGES[EDGES != 0], np.array([0.3])), {}),
        ((X, np.array(0.3)), {}),
    ],
    "relu6": both(),
    "rrelu": [*both(), *both(0.1, 0.2)],
    "selu": both(),
    "softmin": [((X, 1), {}), ((X,), {"dim": 0})],
    "softshrink": [*both(), *both(1.0)],
    "softsign": [*both(), ((np.arange(-2, 3),), {})],
    "tanhshrink": [*both(), ((np.arange(-2, 3),), {})],
    "threshold": both(0.5, 20.0),
    # Compared below: random, or in place.
    "gumbel_softmax": [],
    "celu_": [],
    "elu_": [],
    "hardtanh_": [],
    "leaky_relu_": [],
    "relu_": [],
    "rrelu_": [],
    "selu_": [],
    "threshold_": [],
}
ALL = [pytest.param(n, *case, id=f"{n}-{i}") for n, cases in CASES.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize(("name", "args", "options"), ALL)
def test_function_is_that_of_torch(name, args, options, like_torch):
    like_torch(name, args, options)


IN_PLACE = {
    "celu": (0.5,),
    "elu": (0.7,),
    "hardsigmoid": (),
    "hardswish": (),
    "hardtanh": (-0.5, 0.5),
    "leaky_relu": (0.2,),
    "mish": (),
    "relu": (),
    "relu6": (),
    "rrelu": (0.1, 0.3, False),
    "selu": (),
    "silu": (),
    "threshold": (0.1, 20.0),
}


@pytest.mark.parametrize("name", [n for n in CASES if n.endswith("_")] + list(IN_PLACE))
def test_in_place_writes_what_torch_writes(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    args = IN_PLACE[name.removesuffix("_")]
    options = {} if name.endswith("_") else {"inplace": True}
    found = []
    for lib in (torch, dt):
        x = lib.tensor(X, requires_grad=True)
        y = x * 1

        out = getattr(lib.nn.functional, name)(y, *args, **options)

        assert out is y
        out.sum().backward()
        found.append((y.detach().numpy(), x.grad.numpy()))

    np.testing.assert_allclose(found[1][0], found[0][0], 1e-10)
    np.testing.assert_allclose(found[1][1], found[0][1], 1e-7 if name == "hardsigmoid" else 1e-10)


@pytest.mark.parametrize("inplace", [False, True])
def test_rrelu_in_training_draws_a_slope_for_each_element(inplace):
    dt.manual_seed(3)
    x = dt.full((1000,), -2.0, requires_grad=True)

    y = F.rrelu(x * 1, 0.1, 0.4, training=True, inplace=inplace)

    slopes = y.detach().numpy() / -2
    assert slopes.min() >= 0.1
    assert slopes.max() < 0.4
    assert abs(slopes.mean() - 0.25) < 0.02
    assert len(set(slopes.tolist())) > 900
    (g,) = dt.autograd.grad(y.sum(), x)
    np.testing.assert_allclose(g.numpy(), slopes, 1e-6)


def test_gumbel_softmax_draws_classes_by_their_probabilities():
    dt.manual_seed(1)
    p = np.array([0.2, 0.5, 0.3], np.float32)
    logits = dt.tensor(np.log(np.tile(p, (4000, 1))), requires_grad=True)

    hard = F.gumbel_softmax(logits, tau=0.5, hard=True)

    assert set(np.round(hard.detach().numpy(), 6).ravel().tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(hard.detach().numpy().mean(0), p, atol=0.03)
    soft = F.gumbel_softmax(logits, tau=0.5)
    np.testing.assert_allclose(soft.detach().numpy().sum(1), 1, 1e-5)
    assert (dt.autograd.grad((hard * hard.detach()).sum(), logits)[0] != 0).any()
    with pytest.warns(UserWarning, match="gumbel_softmax: eps has no effect"):
        F.gumbel_softmax(logits, eps=1e-3)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 2)])
def test_softmax_without_a_dim_takes_the_one_that_torch_takes(name, shape):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x = np.asarray(rng.standard_normal(shape))
    with pytest.warns(UserWarning, match=f"^{name}: a dim that is left"):
        out = getattr(F, name)(dt.tensor(x))
    with pytest.warns(UserWarning, match=f"Implicit dimension.*{name}"):
        theirs = getattr(torch.nn.functional, name)(torch.tensor(x))

    np.testing.assert_allclose(out.numpy(), theirs.numpy(), 1e-12)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
def test_softmax_converts_first(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x = rng.standard_normal((2, 3)).astype(np.float32)

    out = getattr(F, name)(dt.tensor(x), 1, dtype=dt.float64)

    assert out.dtype is dt.float64
    np.testing.assert_allclose(
        out.numpy(),
        getattr(torch.nn.functional, name)(torch.tensor(x), 1, dtype=torch.float64).numpy(),
        1e-12,
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: F.hardtanh(x, 1.0, 0.0), ValueError, "min_val 1.0 lies above max_val 0.0"),
        (lambda x: F.hardtanh(x > 0), RuntimeError, "not defined for disttrain.bool"),
        (lambda x: F.relu(x > 0), RuntimeError, "not defined for booleans"),
        (lambda x: F.celu(x, 0), RuntimeError, "alpha divides"),
        (lambda x: F.softshrink(x, -1), RuntimeError, "must not be negative, got -1"),
        (lambda x: F.rrelu(x, 0.5, 0.1), RuntimeError, "in order, got 0.5 and 0.1"),
        (lambda x: F.glu(x[:, :3]), RuntimeError, "dimension 1 has size 3, which cannot be halved"),
        (lambda x: F.glu(x.sum()), RuntimeError, "without dimensions"),
        (lambda x: F.glu(x, 3), IndexError, "out of range"),
        (lambda x: F.prelu(x, x[0, :3]), RuntimeError, "6 channels, got 3"),
        (lambda x: F.prelu(x, x), RuntimeError, "0 or 1 dimensions"),
        (lambda x: F.prelu(x, x[0].float()), RuntimeError, "expected one dtype"),
        (lambda x: F.mish(x.long()), NotImplementedError, r"mish\(\) needs a floating point tensor"),
        (lambda x: F.mish(1.0), TypeError, r"mish\(\) needs a Tensor, got float"),
        (lambda x: F.threshold(x > 0, 1, 1), NotImplementedError, "not defined for disttrain.bool"),
    ],
)
def test_what_torch_refuses_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(dt.tensor(X))
