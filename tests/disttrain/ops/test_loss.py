import numpy as np
import pytest

from disttrain.ops import loss as ops

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
F = torch.nn.functional
rng = np.random.default_rng(0)
W = rng.random(5) + 0.5
SHAPES = [(5,), (7, 5), (3, 5, 2), (2, 5, 3, 2)]
REDUCTIONS = ["none", "mean", "sum"]


def classes(shape, dtype=np.int64):
    axis = 0 if len(shape) == 1 else 1
    target = rng.integers(0, 5, shape[:axis] + shape[axis + 1 :], dtype)
    if target.size > 2:
        target.reshape(-1)[1] = 3
        target.reshape(-1)[2] = -100
    return target


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, W], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_of_classes_is_that_of_torch(compare, shape, reduction, weight, smoothing):
    options = {"reduction": reduction, "label_smoothing": smoothing}
    x = rng.standard_normal(shape) * 3

    def reference(x, t, w=None):
        return F.cross_entropy(x, t, None if w is None else w.detach(), **options)

    arrays = (x, classes(shape)) if weight is None else (x, classes(shape), weight)
    compare(ops.cross_entropy, reference, *arrays, fixed=(2,), **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, W], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_of_probabilities_is_that_of_torch(compare, shape, reduction, weight, smoothing):
    options = {"reduction": reduction, "label_smoothing": smoothing}
    x, target = rng.standard_normal(shape), rng.random(shape)

    def reference(x, t, w=None):
        return F.cross_entropy(x, t, None if w is None else w.detach(), **options)

    arrays = (x, target) if weight is None else (x, target, weight)
    compare(ops.cross_entropy, reference, *arrays, fixed=(2,), **options)


@pytest.mark.parametrize("weight", [None, W], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_nll_loss_is_that_of_torch(compare, shape, reduction, weight):
    def reference(x, t, w=None):
        return F.nll_loss(x, t, None if w is None else w.detach(), reduction=reduction)

    x = rng.standard_normal(shape)
    arrays = (x, classes(shape)) if weight is None else (x, classes(shape), weight)
    compare(ops.nll_loss, reference, *arrays, fixed=(2,), reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (4, 3)])
def test_mse_loss_is_that_of_torch(compare, shape, reduction):
    x, t = np.array(rng.standard_normal(shape)), np.array(rng.standard_normal(shape))

    compare(ops.mse_loss, lambda x, t: F.mse_loss(x, t, reduction=reduction), x, t, reduction=reduction)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_smooth_l1_is_that_of_torch(compare, beta):
    x = rng.standard_normal((4, 3))

    def reference(x):
        return F.smooth_l1_loss(x, torch.zeros_like(x), beta=beta, reduction="none")

    compare(ops.smooth_l1, reference, x, beta=beta)


@pytest.mark.parametrize("weights", [(None, None), ((4, 3), None), (None, (3,)), ((3,), (3,))])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_cross_entropy_with_logits_is_that_of_torch(compare, reduction, weights):
    x, t = rng.standard_normal((4, 3)) * 5, rng.random((4, 3))
    weight, pos_weight = (None if s is None else rng.random(s) + 0.5 for s in weights)

    def reference(x, t, w, p):
        w, p = (None if v is None else v.detach() for v in (w, p))
        return F.binary_cross_entropy_with_logits(x, t, w, pos_weight=p, reduction=reduction)

    compare(
        ops.binary_cross_entropy_with_logits,
        reference,
        x,
        t,
        weight,
        pos_weight,
        fixed=(2, 3),
        reduction=reduction,
    )


@pytest.mark.parametrize("weight", [None, (4, 3), (3,)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_cross_entropy_is_that_of_torch(compare, reduction, weight):
    x, t = rng.random((4, 3)) * 0.8 + 0.1, rng.random((4, 3))

    def reference(x, t, w):
        w = None if w is None else w.detach()
        return F.binary_cross_entropy(x, t, w, reduction=reduction)

    w = None if weight is None else rng.random(weight) + 0.5
    compare(
        ops.binary_cross_entropy,
        reference,
        x,
        t,
        w,
        fixed=(2,),
        reduction=reduction,
        dtypes=("float64", "float32"),
    )


def test_binary_cross_entropy_of_certain_mistakes_is_that_of_torch():
    x, t = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    theirs, wanted = torch.tensor(x, requires_grad=True), torch.tensor(t)

    out, saved, vjp = ops.binary_cross_entropy(x, t, reduction="none")

    expected = F.binary_cross_entropy(theirs, wanted, reduction="none")
    np.testing.assert_array_equal(out, expected.detach().numpy())
    expected.sum().backward()
    np.testing.assert_allclose(vjp(np.ones(4), (True, False), *saved)[0], theirs.grad.numpy())
    with pytest.raises(RuntimeError, match=r"x must be in \[0, 1\], got -1.0 to 1.5"):
        ops.binary_cross_entropy(np.array([-1.0, 1.5]), np.zeros(2))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_those_of_differences(check, reduction):
    x, t = rng.standard_normal((7, 5)), classes((7, 5))

    check(ops.cross_entropy, x, t, reduction=reduction, label_smoothing=0.1)
    check(ops.cross_entropy, x, rng.random((7, 5)), reduction=reduction, label_smoothing=0.1)
    check(ops.nll_loss, x, t, reduction=reduction)
    check(ops.mse_loss, x, rng.standard_normal((7, 5)), reduction=reduction)
    check(ops.smooth_l1, x, beta=0.7)
    check(ops.binary_cross_entropy_with_logits, x, rng.random((7, 5)), reduction=reduction)
    check(ops.binary_cross_entropy, rng.random((7, 5)) * 0.8 + 0.1, rng.random((7, 5)), reduction=reduction)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_classes_may_be_any_integers(dtype):
    x = rng.standard_normal((4, 5))

    loss = ops.cross_entropy(x, np.array([0, 4, 2, 2], dtype))[0]

    np.testing.assert_allclose(loss, F.cross_entropy(torch.tensor(x), torch.tensor([0, 4, 2, 2])).item())


def test_large_scores_neither_overflow_nor_lose_the_loss():
    x = np.array([[1e4, 1e4 - 3, -1e4], [3e38, -3e38, 0]], np.float32)
    t = np.array([1, 0])

    out, saved, vjp = ops.cross_entropy(x, t, reduction="none")

    np.testing.assert_allclose(out, [np.log(1 + np.exp(3)), 0], 1e-6)
    assert np.isfinite(vjp(np.ones(2, np.float32), (True, False), *saved)[0]).all()


def test_the_mean_over_nothing_is_nan_with_a_zero_gradient():
    x = rng.standard_normal((2, 5)).astype(np.float32)

    for op in (ops.cross_entropy, ops.nll_loss):
        out, saved, vjp = op(x, np.array([-100, -100]))
        assert np.isnan(out)
        np.testing.assert_array_equal(
            vjp(np.ones((), np.float32), (True, False), *saved)[0], np.zeros((2, 5))
        )
        assert np.isnan(op(x[:0], np.zeros(0, np.int64))[0])
        assert op(x[:0], np.zeros(0, np.int64), reduction="sum")[0] == 0
    assert np.isnan(ops.mse_loss(x[:0], x[:0])[0])
    assert np.isnan(ops.binary_cross_entropy_with_logits(x[:0], x[:0])[0])


@pytest.mark.parametrize("op", [ops.cross_entropy, ops.nll_loss])
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            [0, 5],
            IndexError,
            r"class 5 at position \[1\] is out of range: must be in \[0, 5\) or -100 \(ignored\)",
        ),
        ([-1, 0], IndexError, r"class -1 at position \[0\]"),
        ([0, 1, 2], ValueError, r"x of shape \(2, 5\) needs a target of shape \(2,\), got \(3,\)"),
    ],
)
def test_names_a_target_that_is_wrong(op, target, error, message):
    with pytest.raises(error, match=message):
        op(np.zeros((2, 5)), np.array(target))


def test_names_arguments_that_are_wrong():
    x = np.zeros((2, 5))
    with pytest.raises(ValueError, match=r'reduction must be "none", "mean" or "sum", got \'avg\''):
        ops.mse_loss(x, x, reduction="avg")
    with pytest.raises(ValueError, match=r"target must have the shape of x, \(2, 5\), got \(2, 1\)"):
        ops.mse_loss(x, x[:, :1])
    with pytest.raises(RuntimeError, match=r"weight must have shape \(5,\), one for each class, got \(4,\)"):
        ops.cross_entropy(x, np.zeros(2, np.int64), np.ones(4))
    with pytest.raises(RuntimeError, match=r"probabilities must have the shape of x, \(2, 5\), got \(2,\)"):
        ops.cross_entropy(x, np.zeros(2))
    with pytest.raises(RuntimeError, match=r"label_smoothing must be in \[0, 1\], got 2"):
        ops.cross_entropy(x, np.zeros(2, np.int64), label_smoothing=2)
    with pytest.raises(RuntimeError, match=r"pos_weight of shape \(4,\) cannot be broadcast"):
        ops.binary_cross_entropy_with_logits(x, x, None, np.ones(4))
    with pytest.raises(RuntimeError, match="classes must be integers, got bool"):
        ops.cross_entropy(x, np.zeros(2, np.bool_))
