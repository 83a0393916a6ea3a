"""First values: the same distributions as PyTorch's, and the same refusals."""

import math

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.nn import init

SHAPE = (60, 40, 3, 3)
CASES = {
    "uniform_": ((-1.0, 3.0), {}),
    "normal_": ((2.0, 0.5), {}),
    "trunc_normal_": ((0.0, 1.0, -0.5, 1.0), {}),
    "constant_": ((0.25,), {}),
    "zeros_": ((), {}),
    "ones_": ((), {}),
    "xavier_uniform_": ((), {"gain": 2.0}),
    "xavier_normal_": ((), {"gain": 2.0}),
    "kaiming_uniform_": ((), {"a": 0.3, "mode": "fan_out"}),
    "kaiming_normal_": ((), {"nonlinearity": "relu"}),
    "orthogonal_": ((), {"gain": 1.5}),
    "eye_": ((), {}),
}


def test_every_function_has_a_case():
    assert set(init.__all__) == {*CASES, "calculate_gain"}


def assert_same_distribution(ours, theirs):
    ours, theirs = np.sort(ours.reshape(-1)), np.sort(theirs.reshape(-1))
    spread = max(float(theirs.std()), 1e-6)
    cuts = np.linspace(0, 1, 21)[1:-1]
    np.testing.assert_allclose(
        np.quantile(ours, cuts), np.quantile(theirs, cuts), atol=0.06 * spread, rtol=1e-6
    )
    np.testing.assert_allclose([ours.mean(), ours.std()], [theirs.mean(), theirs.std()], atol=0.06 * spread)
    np.testing.assert_allclose([ours[0], ours[-1]], [theirs[0], theirs[-1]], atol=spread, rtol=0.2)


@pytest.mark.parametrize("name", CASES)
def test_distribution_is_that_of_torch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    dt.manual_seed(0), torch.manual_seed(0)
    args, options = CASES[name]
    shape = SHAPE[:2] if name == "eye_" else SHAPE
    ours, theirs = nn.Parameter(dt.empty(shape)), torch.nn.Parameter(torch.empty(shape))

    result = getattr(init, name)(ours, *args, **options)
    getattr(torch.nn.init, name)(theirs, *args, **options)

    assert result is ours
    assert ours.requires_grad
    assert ours.grad_fn is None
    assert_same_distribution(ours.detach().numpy(), theirs.detach().numpy())


def test_orthogonal_and_identity():
    for shape in ((6, 4), (4, 6), (4, 2, 3)):
        flat = init.orthogonal_(dt.empty(shape), gain=2.0).reshape(shape[0], -1).numpy().astype(np.float64)
        product = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
        np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-5)
    np.testing.assert_array_equal(init.eye_(dt.empty(2, 3)).numpy(), np.eye(2, 3))


def test_trunc_normal_stays_inside():
    values = init.trunc_normal_(dt.empty(5000), std=2.0, a=-1.0, b=0.5).numpy()

    assert values.min() >= -1
    assert values.max() <= 0.5
    with pytest.raises(ValueError, match=r"\[9.0, 10.0\] is too far from mean 0.0"):
        init.trunc_normal_(dt.empty(3), a=9.0, b=10.0)


@pytest.mark.parametrize("name", ["linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gain_is_that_of_torch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    assert init.calculate_gain(name) == torch.nn.init.calculate_gain(name)
    assert init.calculate_gain("leaky_relu", 0.3) == torch.nn.init.calculate_gain("leaky_relu", 0.3)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("Linear", (50, 400)),
        ("Conv2d", (8, 64, 3)),
        ("Embedding", (200, 50)),
        ("Bilinear", (10, 11, 60)),
        ("BatchNorm2d", (30,)),
        ("LayerNorm", (30,)),
    ],
)
def test_layers_start_as_those_of_torch(name, args):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    dt.manual_seed(0), torch.manual_seed(0)
    ours, theirs = getattr(nn, name)(*args), getattr(torch.nn, name)(*args)

    for (key, p), (other, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert key == other
        many = q.numel() > 5000
        p, q = p.detach().numpy(), q.detach().numpy()
        if many:
            assert_same_distribution(p, q)
        else:  # too few for quantiles
            np.testing.assert_allclose([p.min(), p.max()], [q.min(), q.max()], rtol=0.2, atol=1e-9)


def test_numbers_come_from_the_given_generator():
    first = init.uniform_(dt.empty(5), generator=dt.Generator().manual_seed(3))
    dt.manual_seed(9)

    again = init.uniform_(dt.empty(5), generator=dt.Generator().manual_seed(3))

    assert (first == again).all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"2 or more dimensions, got shape \(3,\)"):
        init.kaiming_uniform_(dt.empty(3))
    with pytest.raises(ValueError, match='mode must be "fan_in" or "fan_out", got \'fan\''):
        init.kaiming_normal_(dt.empty(3, 3), mode="fan")
    with pytest.raises(ValueError, match="unsupported nonlinearity 'swish'"):
        init.calculate_gain("swish")
    with pytest.raises(ValueError, match="negative_slope 'a' not a valid number"):
        init.calculate_gain("leaky_relu", "a")
    with pytest.raises(ValueError, match=r"2 dimensions are supported, got shape \(3,\)"):
        init.eye_(dt.empty(3))
    with pytest.raises(ValueError, match=r"orthogonal_: needs 2 or more dimensions, got shape \(3,\)"):
        init.orthogonal_(dt.empty(3))
    assert init.calculate_gain("relu") == math.sqrt(2)
