import numpy as np
import pytest

from disttrain.ops import piecewise as ops

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
F = torch.nn.functional
rng = np.random.default_rng(0)
X = rng.standard_normal((3, 4, 5)) * 4
STRIDED = np.ascontiguousarray(X.transpose(2, 0, 1)).transpose(1, 2, 0)


def hardsigmoid(x):
    return F.relu6(x + 3) / 6  # F.hardsigmoid has the slope 1/6 in float32


CASES = [
    (ops.hardtanh, lambda x: F.hardtanh(x, -0.5, 2.0), {"low": -0.5, "high": 2.0}),
    (ops.hardsigmoid, hardsigmoid, {}),
    (ops.hardswish, F.hardswish, {}),
    (ops.hardshrink, lambda x: F.hardshrink(x, 1.0), {"lambd": 1.0}),
    (ops.softshrink, lambda x: F.softshrink(x, 1.0), {"lambd": 1.0}),
    (ops.threshold, lambda x: F.threshold(x, 0.5, -2.0), {"limit": 0.5, "value": -2.0}),
]
IDS = [op.__name__ for op, _, _ in CASES]


@pytest.mark.parametrize("x", [X, STRIDED], ids=["contiguous", "strided"])
@pytest.mark.parametrize(("op", "reference", "options"), CASES, ids=IDS)
def test_is_that_of_torch(compare, op, reference, options, x):
    compare(op, reference, x, **options)


@pytest.mark.parametrize(("op", "reference", "options"), CASES, ids=IDS)
def test_gradient_is_that_of_differences(check, op, reference, options):
    check(op, X, **options)


@pytest.mark.parametrize(("op", "reference", "options"), CASES, ids=IDS)
def test_nan_and_infinities_are_those_of_torch(op, reference, options):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0])
    t = torch.tensor(x, requires_grad=True)

    with np.errstate(invalid="ignore"):
        out, saved, vjp = op(x, **options)
        g = vjp(np.array([1.0, np.inf, np.inf, np.inf, 1.0]), (True,), *saved)[0]

    expected = F.hardsigmoid(t) if op is ops.hardsigmoid else reference(t)
    expected.backward(torch.tensor([1.0, np.inf, np.inf, np.inf, 1.0], dtype=torch.float64))
    np.testing.assert_array_equal(out, expected.detach().numpy())
    np.testing.assert_allclose(g, t.grad.numpy(), 1e-7)


@pytest.mark.parametrize("weight", [(4, 1), (1, 1, 1)])
def test_prelu_is_that_of_torch(compare, check, weight):
    w = rng.standard_normal(weight)

    def reference(x, w):
        return torch.where(x > 0, x, x * w)

    compare(ops.prelu, reference, X, w, dtypes=("float64",), fixed=(1,))
    check(ops.prelu, X, w)
