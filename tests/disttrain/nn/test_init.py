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
    elsewhere = {"calculate_gain", "dirac_", "sparse_", "dirac", "sparse"}
    deprecated = {name for name in init.__all__ if name + "_" in init.__all__}
    assert set(init.__all__) == {*CASES, *elsewhere, *deprecated}
    assert deprecated == set(DEPRECATED)


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
    with pytest.raises(ValueError, match="negative_slope must be a number, got 'a'"):
        init.calculate_gain("leaky_relu", "a")
    with pytest.raises(ValueError, match=r"needs a matrix, got shape \(3,\)"):
        init.eye_(dt.empty(3))
    with pytest.raises(ValueError, match=r"orthogonal_: needs 2 or more dimensions, got shape \(3,\)"):
        init.orthogonal_(dt.empty(3))
    assert init.calculate_gain("relu") == math.sqrt(2)


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 2, 3), 1), ((4, 2, 3), 2), ((2, 5, 3, 4), 1), ((3, 3, 1, 2, 3), 3)]
)
def test_dirac_is_that_of_torch(shape, groups):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    ours = init.dirac_(dt.empty(*shape), groups)

    np.testing.assert_array_equal(ours.numpy(), torch.nn.init.dirac_(torch.empty(shape), groups).numpy())


def test_dirac_and_sparse_refuse_what_torch_refuses():
    with pytest.raises(ValueError, match=r"the 3 to 5 dimensions"):
        init.dirac_(dt.empty(2, 2))
    with pytest.raises(ValueError, match="groups=3 must divide"):
        init.dirac_(dt.empty(4, 2, 2), 3)
    with pytest.raises(ValueError, match="sparse_: needs a matrix"):
        init.sparse_(dt.empty(2), 0.1)


def test_sparse_leaves_a_part_of_each_column_zero():
    dt.manual_seed(0)

    w = init.sparse_(dt.empty(50, 40), 0.25, std=2.0).numpy()

    assert ((w == 0).sum(0) == 13).all()
    assert abs(w[w != 0].std() - 2) < 0.1
    assert len({tuple(np.flatnonzero(c == 0)) for c in w.T}) > 35


DEPRECATED = {
    "constant": (3.0,),
    "dirac": (),
    "eye": (),
    "kaiming_normal": (),
    "kaiming_uniform": (),
    "normal": (),
    "orthogonal": (),
    "sparse": (0.5,),
    "uniform": (),
    "xavier_normal": (),
    "xavier_uniform": (),
}


@pytest.mark.parametrize(("name", "args"), DEPRECATED.items())
def test_names_without_underscore_still_work_with_a_warning(name, args):
    t = dt.empty(3, 3, 3) if name == "dirac" else dt.empty(3, 3)
    dt.manual_seed(0)
    with pytest.warns(FutureWarning, match=rf"nn.init.{name}\(\) is the old name of nn.init.{name}_\(\)"):
        assert getattr(init, name)(t, *args) is t
    dt.manual_seed(0)
    assert (getattr(init, name + "_")(t.clone(), *args) == t).all()
