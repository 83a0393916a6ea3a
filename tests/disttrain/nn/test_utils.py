"""Clipping of gradients, and parameters as one vector."""

import math

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.nn import utils

TESTED = {
    *("clip_grad_norm", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"),
    *("parameters_to_vector", "vector_to_parameters"),
}
ELSEWHERE = {
    *("parametrizations", "parametrize", "rnn", "stateless", "l1_penalty", "l2_penalty"),
    *(
        "fuse_conv_bn_eval",
        "fuse_conv_bn_weights",
        "fuse_linear_bn_eval",
        "fuse_linear_bn_weights",
        "skip_init",
    ),
    *("remove_spectral_norm", "remove_weight_norm", "spectral_norm", "weight_norm"),
}


def test_every_function_has_a_test():
    assert set(utils.__all__) == TESTED | ELSEWHERE


def leaves(lib, dtype="float32"):
    rng = np.random.default_rng(0)
    made = []
    for shape in ((70, 130), (3,), (), (4, 5)):
        p = lib.tensor(np.zeros(shape, dtype)).requires_grad_()
        p.grad = lib.tensor(np.asarray(rng.standard_normal(shape), dtype))
        made.append(p)
    made.append(lib.tensor(np.zeros(2, dtype)).requires_grad_())  # without gradient
    return made


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_grad_norm_is_that_of_torch(max_norm, norm_type, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    ours, theirs = leaves(dt, dtype), leaves(torch, dtype)
    if dtype == "float16":  # which holds no norm of so many
        ours, theirs = ours[1:], theirs[1:]

    norm = utils.clip_grad_norm_(iter(ours), max_norm, norm_type)
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)

    limit = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3}[dtype]
    np.testing.assert_allclose(norm.item(), want.item(), limit)
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), limit, limit)
    assert ours[-1].grad is None


def test_one_tensor_and_no_gradient():
    p = dt.ones(3, requires_grad=True)

    assert utils.clip_grad_norm_(p, 1.0).item() == 0.0
    p.grad = dt.full((3,), 2.0)
    assert utils.clip_grad_norm_(p, 1.0).item() == pytest.approx(math.sqrt(12))
    assert utils.get_total_norm([p.grad]).item() == pytest.approx(1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_a_norm_that_is_not_finite(norm_type, value):
    ps = leaves(dt)
    ps[1].grad[0] = value
    before = [p.grad.clone() for p in ps[:-1]]

    with pytest.raises(RuntimeError, match=f"total norm of order {norm_type} of the gradients is {value}"):
        utils.clip_grad_norm_(ps, 1.0, norm_type, error_if_nonfinite=True)
    assert all((p.grad[...] == b).all() for p, b in zip(ps[2:-1], before[2:], strict=True))
    assert not math.isfinite(utils.clip_grad_norm_(ps, 1.0, norm_type).item())


def test_the_norm_does_not_depend_on_how_memory_lies():
    base = np.random.default_rng(0).standard_normal((64, 9, 7)).astype(np.float32)
    p, q = dt.zeros(64, 9, 7), dt.zeros(64, 9, 7)
    p.grad = dt.from_numpy(base)
    q.grad = dt.from_numpy(np.asfortranarray(base))

    assert utils.clip_grad_norm_([p], 1.0).item() == utils.clip_grad_norm_([q], 1.0).item()
    np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


def test_clip_grad_value_limits_each_element():
    ps = leaves(dt)

    utils.clip_grad_value_(ps, 0.25)

    for p in ps[:-1]:
        assert float(p.grad.abs().max()) <= 0.25
    assert ps[-1].grad is None


def test_parameters_go_to_a_vector_and_back():
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)

    vector = utils.parameters_to_vector(net.parameters())
    utils.vector_to_parameters(vector, other.parameters())

    assert vector.shape == (8,)
    assert vector.requires_grad
    assert (other.weight == net.weight).all()
    assert (other.bias == net.bias).all()
    with pytest.raises(ValueError, match=r"the parameters have 8 elements, got a tensor of shape \(7,\)"):
        utils.vector_to_parameters(vector[:7], other.parameters())
    with pytest.raises(TypeError, match="expected a Tensor, got list"):
        utils.vector_to_parameters([1.0], other.parameters())


def test_the_name_in_the_facade():
    assert dt.nn.utils.clip_grad_norm_ is utils.clip_grad_norm_


def test_clip_grads_with_a_norm_that_is_known():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    ours, theirs = leaves(dt), leaves(torch)

    for lib, params in ((dt, ours), (torch, theirs)):
        total = lib.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None], 2.0, False, None)
        assert lib.nn.utils.clip_grads_with_norm_(params, 0.5, total, foreach=False) is None

    for a, b in zip(ours, theirs, strict=True):
        if b.grad is not None:
            np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), 1e-5)


@pytest.mark.parametrize("name", ["torch", "disttrain"])
def test_the_deprecated_name_and_home_of_clipping(name):
    lib = pytest.importorskip(name, reason="PyTorch is the reference")
    p = lib.zeros(4, requires_grad=True)
    p.grad = lib.ones(4)

    with pytest.warns(FutureWarning, match="clip_grad_norm"):
        assert lib.nn.utils.clip_grad_norm(p, 1.0).item() == 2.0
    assert p.grad.sum().item() == pytest.approx(2.0, abs=1e-4)
    assert lib.nn.utils.clip_grad_norm_([p, lib.zeros(2)], 5.0, norm_type=0).item() == 1.0
    assert lib.nn.utils.clip_grad.clip_grad_norm_ is lib.nn.utils.clip_grad_norm_
