import numpy as np
import pytest

import disttrain as dt
from disttrain.ops.norm import add_layer_norm, add_rms_norm, batch_norm, layer_norm, rms_norm

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
F = torch.nn.functional
rng = np.random.default_rng(0)
SHAPES = [(6, 3), (4, 3, 5), (4, 3, 5, 2), (2, 3, 2, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_in_training_is_that_of_torch(compare, shape):
    arrays = rng.standard_normal(shape) * 2 + 1, rng.standard_normal(3), rng.standard_normal(3)

    compare(batch_norm, lambda x, w, b: F.batch_norm(x, None, None, w, b, True), *arrays, training=True)
    compare(batch_norm, lambda x: F.batch_norm(x, None, None, None, None, True), arrays[0], training=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_adds_and_rectifies(compare, shape, training):
    x, residual = rng.standard_normal(shape) * 2 + 1, rng.standard_normal(shape)
    w, b, mean, var = *rng.standard_normal((3, 3)), rng.random(3) + 0.5
    options = {"training": training, **({} if training else {"running_mean": mean, "running_var": var})}
    # Rounding could flip a ReLU: nothing lies near its kink.
    for relu in (True, False):

        def reference(x, w, b, *residual, relu=relu):
            running = () if training else (torch.tensor(mean).to(x), torch.tensor(var).to(x))
            out = F.batch_norm(x, *(running or (None, None)), w, b, training)
            out = sum(residual, out)
            return F.relu(out) if relu else out

        dtypes = ("float64", "float32")
        compare(batch_norm, reference, x, w, b, residual, dtypes=dtypes, relu=relu, **options)
    compare(
        batch_norm, lambda *args: reference(*args, relu=True), x, w, b, dtypes=dtypes, relu=True, **options
    )


@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 4, 4)])
def test_batch_norm_in_evaluation_is_that_of_torch(compare, shape):
    arrays = rng.standard_normal(shape), rng.standard_normal(3), rng.standard_normal(3)
    mean, var = rng.standard_normal(3), rng.random(3) + 0.5

    def reference(x, w, b):
        return F.batch_norm(x, torch.tensor(mean).to(x), torch.tensor(var).to(x), w, b, False)

    compare(batch_norm, reference, *arrays, training=False, running_mean=mean, running_var=var)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_norm_updates_the_running_values_as_torch_does(dtype):
    x = rng.standard_normal((4, 3, 5, 2)).astype(dtype)
    mean, var = np.ones(3, dtype), np.full(3, 2, dtype)
    mean_torch, var_torch = torch.tensor(mean), torch.tensor(var)

    batch_norm(x, running_mean=mean, running_var=var, training=True, momentum=0.3)
    F.batch_norm(torch.tensor(x), mean_torch, var_torch, training=True, momentum=0.3)

    np.testing.assert_allclose(mean, mean_torch.numpy(), 1e-6)
    np.testing.assert_allclose(var, var_torch.numpy(), 1e-6)


def test_batch_norm_of_an_empty_batch_changes_nothing():
    mean, var = np.ones(3, np.float32), np.full(3, 2, np.float32)
    x = np.zeros((0, 3, 4, 4), np.float32)
    w = np.ones(3, np.float32)

    out, saved, vjp = batch_norm(x, w, w, running_mean=mean, running_var=var, training=True)
    gx, gw, gb = vjp(out, (True, True, True), *saved)

    assert out.shape == gx.shape == x.shape
    np.testing.assert_array_equal([*mean, *var], [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal([*gw, *gb], np.zeros(6))


def test_batch_norm_keeps_precision_far_from_zero():
    x = (rng.standard_normal((64, 3)) + 1000).astype(np.float32)

    out = batch_norm(x, training=True)[0]

    np.testing.assert_allclose(out, batch_norm(x.astype(np.float64), training=True)[0], atol=2e-4)


def test_batch_norm_keeps_channels_last_memory():
    x = np.zeros((2, 5, 4, 3), np.float32).transpose(0, 3, 1, 2)

    out = batch_norm(x, training=True)[0]

    assert out.strides == x.strides


def test_gradients_are_those_of_differences(check):
    x, w, b = rng.standard_normal((4, 3, 5)), rng.standard_normal(3), rng.standard_normal(3)

    check(batch_norm, x, w, b, training=True)
    check(batch_norm, x, w, b, training=False, running_mean=b, running_var=w * w)
    check(layer_norm, x, rng.standard_normal((3, 5)), rng.standard_normal((3, 5)), normalized_shape=(3, 5))
    check(rms_norm, x, rng.standard_normal((3, 5)), normalized_shape=(3, 5))


@pytest.mark.parametrize("normalized", [(5,), (3, 5), (4, 3, 5)])
@pytest.mark.parametrize("n", [4, 0])
def test_layer_norm_is_that_of_torch(compare, normalized, n):
    if n == 0 and len(normalized) == 3:
        pytest.skip("nothing to normalise over")
    x = rng.standard_normal((n, 3, 5)) * 2 + 1
    w, b = rng.standard_normal(normalized), rng.standard_normal(normalized)

    compare(
        layer_norm, lambda x, w, b: F.layer_norm(x, normalized, w, b), x, w, b, normalized_shape=normalized
    )
    compare(layer_norm, lambda x: F.layer_norm(x, normalized), x, normalized_shape=normalized)


@pytest.mark.parametrize("eps", [None, 1e-2])
@pytest.mark.parametrize("normalized", [(5,), (3, 5)])
@pytest.mark.parametrize("n", [4, 0])
def test_rms_norm_is_that_of_torch(compare, normalized, n, eps):
    x, w = rng.standard_normal((n, 3, 5)) * 2 + 1, rng.standard_normal(normalized)

    compare(
        rms_norm, lambda x, w: F.rms_norm(x, normalized, w, eps), x, w, normalized_shape=normalized, eps=eps
    )
    compare(rms_norm, lambda x: F.rms_norm(x, normalized, None, eps), x, normalized_shape=normalized, eps=eps)


def one_of(op, index):
    """Return an operation with only one of the results of ``op``; it does not know that it keeps the other."""

    def picked(*args, **options):
        out, saved, vjp = op(*args, **options)

        def picked_vjp(g, needs, *saved):
            return vjp((g, None) if index == 0 else (None, g), needs, *saved)

        return out[index], saved, picked_vjp

    return picked


@pytest.mark.parametrize("normalized", [(5,), (3, 5)])
def test_norms_of_a_sum_are_those_of_torch(compare, normalized):
    x, residual = rng.standard_normal((2, 4, 3, 5)) * 2 + 1
    w, b = rng.standard_normal((2, *normalized))
    options = {"normalized_shape": normalized, "eps": 1e-2}

    for op, factors, reference in (
        (add_layer_norm, (w, b), lambda x, r, *f: F.layer_norm(x + r, normalized, *f, eps=1e-2)),
        (add_rms_norm, (w,), lambda x, r, *f: F.rms_norm(x + r, normalized, *f, eps=1e-2)),
        (add_layer_norm, (), lambda x, r: F.layer_norm(x + r, normalized, eps=1e-2)),
        (add_rms_norm, (), lambda x, r: F.rms_norm(x + r, normalized, eps=1e-2)),
    ):
        compare(one_of(op, 1), reference, x, residual, *factors, second=False, **options)
    for op in (add_layer_norm, add_rms_norm):
        compare(one_of(op, 0), lambda x, r: x + r, x, residual, second=False, **options)


@pytest.mark.parametrize(("op", "factors"), [(add_layer_norm, 2), (add_rms_norm, 1)])
def test_norms_of_a_sum_have_the_gradients_of_both_results(op, factors):
    shapes = [(4, 3), (4, 3), *[(3,)] * factors]
    args = [dt.tensor(rng.standard_normal(s)).requires_grad_() for s in shapes]

    def run(*args):
        return dt.engine.apply(op, *args, normalized_shape=(3,), eps=1e-2)

    assert dt.autograd.gradcheck(run, args)
    assert dt.autograd.gradgradcheck(run, args)
    for alone in range(len(args)):  # nobody asks for the others
        few = [a if i == alone else a.detach() for i, a in enumerate(args)]
        (total, out), (g, h) = run(*few), (dt.ones(4, 3, dtype=dt.float64), dt.randn(4, 3, dtype=dt.float64))
        outs, gs = ([total, out], [g, h]) if total.requires_grad else ([out], [h])
        (grad,) = dt.autograd.grad(outs, [few[alone]], gs)
        (expected,) = dt.autograd.grad(run(*args), [args[alone]], [g, h])
        np.testing.assert_allclose(grad.numpy(), expected.numpy(), 1e-12)


def test_terms_of_a_sum_that_differ_are_named():
    for op in (add_layer_norm, add_rms_norm):
        with pytest.raises(
            RuntimeError, match=r"must agree in shape and type, got \(2, 3\) of float64 and \(3,\)"
        ):
            op(np.zeros((2, 3)), np.zeros(3), normalized_shape=(3,))


def test_layer_norm_takes_any_layout(compare):
    x = np.ascontiguousarray(rng.standard_normal((5, 4, 3))).transpose(2, 1, 0)

    compare(layer_norm, lambda x: F.layer_norm(x, (5,)), x, normalized_shape=(5,))


@pytest.mark.parametrize(
    ("x", "arguments", "options", "message"),
    [
        ((1, 3), (), {"training": True}, r"more than one value per channel, got shape \(1, 3\)"),
        ((4, 3), (), {"training": False}, "needs running_mean and running_var"),
        (
            (4, 3),
            (None, None, np.ones(3)),
            {"training": True},
            r"residual must have the shape of x, \(4, 3\), got",
        ),
        ((4, 3), (np.ones(2),), {"training": True}, r"weight must have shape \(3,\) .* got \(2,\)"),
        ((4,), (), {"training": True}, r"expected \(N, C, ...\), got shape \(4,\)"),
    ],
)
def test_batch_norm_names_what_is_wrong(x, arguments, options, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        batch_norm(np.zeros(x), *arguments, **options)


def test_layer_norm_names_shapes_that_do_not_fit():
    with pytest.raises(RuntimeError, match=r"x must end with normalized_shape \(4,\), got \(2, 3\)"):
        layer_norm(np.zeros((2, 3)), normalized_shape=(4,))
    with pytest.raises(RuntimeError, match=r"weight must have shape \(3,\), got \(2,\)"):
        layer_norm(np.zeros((2, 3)), np.ones(2), normalized_shape=(3,))
