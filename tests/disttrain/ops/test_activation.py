import numpy as np
import pytest

from disttrain.functions.activation import SELU_ALPHA, SELU_SCALE
from disttrain.ops import activation as ops

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
F = torch.nn.functional
rng = np.random.default_rng(0)
X = rng.standard_normal((3, 4, 5)) * 3
STRIDED = np.ascontiguousarray(X.transpose(2, 0, 1)).transpose(1, 2, 0)

CASES = [
    (ops.relu, F.relu, {}),
    (ops.leaky_relu, lambda x: F.leaky_relu(x, 0.1), {"negative_slope": 0.1}),
    (ops.elu, lambda x: F.elu(x, 0.7), {"alpha": 0.7}),
    (ops.sigmoid, torch.sigmoid, {}),
    (ops.tanh, torch.tanh, {}),
    (ops.silu, F.silu, {}),
    (ops.softplus, lambda x: F.softplus(x, 2, 8), {"beta": 2.0, "threshold": 8.0}),
    (ops.erf, torch.erf, {}),
    (
        ops.elu,
        lambda x: F.selu(x),
        {"alpha": SELU_ALPHA, "scale": SELU_SCALE},
    ),
    (ops.elu, lambda x: F.celu(x, 0.5), {"alpha": 0.5, "input_scale": 2.0}),
    (ops.mish, F.mish, {}),
    (ops.softsign, F.softsign, {}),
    (ops.logsigmoid, F.logsigmoid, {}),
    (ops.gelu, F.gelu, {}),
    (ops.gelu, lambda x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"}),
    (ops.softmax, lambda x: F.softmax(x, 1), {"dim": 1}),
    (ops.softmax, lambda x: F.softmax(x, -1), {"dim": -1}),
    (ops.log_softmax, lambda x: F.log_softmax(x, 0), {"dim": 0}),
    (ops.log_softmax, lambda x: F.log_softmax(x, -1), {"dim": -1}),
]
IDS = [f"{op.__name__}{options or ''}" for op, _, options in CASES]


@pytest.mark.parametrize("x", [X, STRIDED], ids=["contiguous", "strided"])
@pytest.mark.parametrize(("op", "reference", "options"), CASES, ids=IDS)
def test_is_that_of_torch(compare, op, reference, options, x):
    compare(op, reference, x, **options)


@pytest.mark.parametrize(("op", "reference", "options"), CASES, ids=IDS)
def test_gradient_is_that_of_differences(check, op, reference, options):
    check(op, X, **options)


@pytest.mark.parametrize(("op", "reference", "options"), CASES, ids=IDS)
def test_takes_arrays_without_elements(op, reference, options):
    x = np.zeros((0, 4, 5), np.float32)

    out, saved, vjp = op(x, **options)

    assert out.shape == x.shape
    assert vjp(out, (True,), *saved)[0].shape == x.shape


@pytest.mark.parametrize(("op", "reference", "options"), CASES, ids=IDS)
def test_extreme_values_are_those_of_torch_and_warn_about_nothing(op, reference, options):
    x = np.array(
        [[[1e30, -1e30, 100, -100, 0]], [[1e38, 1, 2, 3, 4]], [[np.nan, 1, 0, -1, -np.inf]]], np.float32
    )

    with np.errstate(all="ignore"):
        out = op(x, **options)[0]

    np.testing.assert_allclose(out, reference(torch.tensor(x)).numpy(), 1e-5, 1e-6)


def test_relu_of_many_elements_keeps_their_order_in_memory(compare):
    x = rng.standard_normal((8, 10, 10, 6)).transpose(0, 3, 1, 2)

    compare(ops.relu, F.relu, x, second=False)
    y, saved, vjp = ops.relu(x)
    assert y.strides == vjp(y, (True,), *saved)[0].strides == x.strides
    assert np.isnan(ops.relu(np.full(5000, np.nan))[0]).all()
    assert ops.relu(np.arange(-5000, 5000))[0].dtype == np.int64


def test_relu_drops_gradients_that_are_not_finite():
    _, saved, vjp = ops.relu(np.array([-1.0, 2.0, np.nan]))

    (g,) = vjp(np.array([np.inf, 3.0, 4.0]), (True,), *saved)

    np.testing.assert_array_equal(g, [0, 3, 4])


@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax])
def test_softmax_of_an_array_without_dimensions(compare, op):
    compare(
        op, lambda x: getattr(F, op.__name__)(x, 0), np.array(2.0), dim=0, dtypes=("float64",), second=False
    )


def test_softmax_names_a_dim_out_of_range():
    with pytest.raises(IndexError, match=r"dim must be in \[-3, 3\) for shape \(3, 4, 5\), got 3"):
        ops.softmax(X, dim=3)


def test_gelu_names_an_unknown_approximation():
    with pytest.raises(ValueError, match='approximate must be "none" or "tanh", got \'fast\''):
        ops.gelu(X, approximate="fast")


@pytest.mark.parametrize("x", [X[..., :4], STRIDED[..., :4]], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dim", [1, 2])
def test_glu_is_that_of_torch(compare, check, x, dim):
    x = x.repeat(2, 1) if dim == 1 else x

    compare(ops.glu, lambda x: F.glu(x, dim), x, dim=dim)
    check(ops.glu, x, dim=dim)
