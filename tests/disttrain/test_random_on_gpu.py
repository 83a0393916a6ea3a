"""Numbers drawn for tensors on a GPU are those of the CPU to the bit, and kernels there make them."""

import ml_dtypes
import numpy as np
import pytest

import disttrain as dt
from disttrain import nn, random
from disttrain.nn import functional as F
from disttrain.tensors import Tensor

HALVES = [dt.float16, dt.bfloat16]
MAKERS = {
    "rand": lambda d: dt.rand(5, 7, device=d),
    "rand of float64": lambda d: dt.rand(33, dtype=dt.float64, device=d),
    "rand of halves": lambda d: dt.rand(33, dtype=dt.bfloat16, device=d),
    "randn": lambda d: dt.randn(5, 7, device=d),
    "randn of float64": lambda d: dt.randn(33, dtype=dt.float64, device=d),
    "randn of halves": lambda d: dt.randn(33, dtype=dt.float16, device=d),
    "randn without elements": lambda d: dt.randn(0, 3, device=d),
    "rand_like": lambda d: dt.rand_like(empty(d, 4, 5)),
    "randn_like": lambda d: dt.randn_like(empty(d, 4, 5)),
    "randn_like of columns": lambda d: dt.randn_like(empty(d, 4, 5).T),
    "randint": lambda d: dt.randint(-3, 40, (50,), device=d),
    "randint_like": lambda d: dt.randint_like(empty(d, 6), 9),
    "randperm": lambda d: dt.randperm(300, device=d),
    "normal": lambda d: dt.normal(1.0, 2.0, (9,), device=d),
    "normal of tensors": lambda d: dt.normal(empty(d, 3, 1), empty(d, 4) + 1),
    "bernoulli": lambda d: dt.bernoulli(empty(d, 30) + 0.3),
    "multinomial": lambda d: dt.multinomial(empty(d, 2, 9) + 0.3, 4),
    "poisson": lambda d: dt.poisson(empty(d, 50) + 12),
    "binomial": lambda d: dt.binomial(empty(d, 50) + 40, empty(d, 50) + 0.4),
    "uniform_": lambda d: empty(d, 5, 7).uniform_(-1, 3),
    "uniform_ of halves": lambda d: empty(d, 50, dtype=dt.bfloat16).uniform_(-1, 3),
    "normal_": lambda d: empty(d, 5, 7).normal_(1, 3),
    "bernoulli_": lambda d: empty(d, 40).bernoulli_(0.4),
    "bernoulli_ of tensors": lambda d: empty(d, 40).bernoulli_(empty(d, 40) + 0.5),
    "random_": lambda d: empty(d, 40).random_(17),
    "exponential_": lambda d: empty(d, 40).exponential_(2.0),
    "geometric_": lambda d: empty(d, 40).geometric_(0.2),
    "log_normal_": lambda d: empty(d, 40).log_normal_(),
    "cauchy_": lambda d: empty(d, 40).cauchy_(),
    "trunc_normal_": lambda d: nn.init.trunc_normal_(empty(d, 40)),
    "orthogonal_": lambda d: nn.init.orthogonal_(empty(d, 4, 6)),
    "kaiming_uniform_": lambda d: nn.init.kaiming_uniform_(empty(d, 4, 6)),
    "dropout": lambda d: F.dropout(empty(d, 40, 3) + 1, 0.3),
    "dropout of halves": lambda d: F.dropout(empty(d, 40, dtype=dt.bfloat16) + 1, 0.3),
    "dropout of columns": lambda d: F.dropout((empty(d, 40, 3) + 1).T, 0.3),
    "dropout in place": lambda d: F.dropout(empty(d, 40) + 1, 0.3, inplace=True),
    "dropout2d": lambda d: F.dropout2d(empty(d, 4, 3, 2, 2) + 1, 0.5),
    "alpha_dropout": lambda d: F.alpha_dropout(empty(d, 40) + 1, 0.3, training=True),
    "rrelu": lambda d: F.rrelu(empty(d, 40) - 1, training=True),
    "attention": lambda d: F.scaled_dot_product_attention(*[empty(d, 2, 5, 8) + 0.1] * 3, dropout_p=0.4),
}  # fmt: skip
ON_THE_HOST = "multinomial", "poisson", "binomial", "trunc_normal_", "orthogonal_", "alpha_dropout", "rrelu"
"""Drawn on the CPU and brought to the GPU."""


def empty(device, *shape, dtype=dt.float32):
    """Return zeros on a device."""
    return dt.zeros(*shape, dtype=dtype).to(device)


def drawn(make, device):
    """Return what is made twice, and the state of the generator afterwards."""
    dt.manual_seed(5)
    return [make(device), make(device)], dt.get_rng_state().tolist()


@pytest.mark.parametrize("name", MAKERS)
def test_numbers_are_those_of_the_cpu(name, gpu):
    theirs, after = drawn(MAKERS[name], "cpu")
    gpu.clear()
    ours, after_ours = drawn(MAKERS[name], "cuda")

    kernels = {"words", "uniform", "normal", "dropout"} & set(gpu)
    assert bool(kernels) == (name not in ON_THE_HOST and theirs[0].numel() > 0)
    assert after_ours == after
    for a, b in zip(ours, theirs, strict=True):
        assert a.is_cuda
        assert not b.is_cuda
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        if name == "attention":  # whose sums are made in another order
            np.testing.assert_allclose(np.asarray(a._array), b._array, 1e-6)
        else:
            assert np.asarray(a._array).tobytes() == b._array.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_gradient_of_dropout_draws_the_mask_again(dtype, gpu):
    def gradient(device):
        dt.manual_seed(3)
        x = Tensor._of(np.linspace(-2, 2, 60).astype(dtype)).to(device).requires_grad_()
        F.dropout(x, 0.4).mul(3.0).sum().backward()
        return x.grad

    theirs = gradient("cpu")
    gpu.clear()
    ours = gradient("cuda")

    assert gpu.count("dropout") == 2
    assert "words" not in gpu
    assert np.asarray(ours._array).tobytes() == theirs._array.tobytes()


def test_dropout_has_a_gradient_of_its_gradient(gpu):
    def twice(device):
        dt.manual_seed(3)
        x = Tensor._of(np.linspace(-2, 2, 60)).to(device).requires_grad_()
        (g,) = dt.autograd.grad(F.dropout(x, 0.4).pow(3).sum(), x, create_graph=True)
        g.pow(2).sum().backward()
        return x.grad

    np.testing.assert_allclose(np.asarray(twice("cuda")._array), twice("cpu")._array, 1e-12)


def test_a_sample_that_is_read_draws_the_same_numbers_on_a_gpu(gpu):
    def numbers(device):
        source = random.SampleGenerator(7, 2)
        with source.reading():
            source.turn_to(11)
            return [dt.randn(9, device=device), F.dropout(empty(device, 9) + 1, 0.5)]

    for a, b in zip(numbers("cuda"), numbers("cpu"), strict=True):
        assert np.asarray(a._array).tobytes() == b._array.tobytes()


def test_a_generator_of_ones_own_draws_on_the_gpu_too(gpu):
    ours, theirs = (dt.Generator().manual_seed(-4) for _ in range(2))

    a, b = dt.randn(9, generator=ours, device="cuda"), dt.randn(9, generator=theirs)

    assert np.asarray(a._array).tobytes() == b._array.tobytes()
    assert ours.get_state().tolist() == theirs.get_state().tolist()
    with pytest.raises(TypeError, match="generator must be a Generator"):
        dt.randn(9, generator=4, device="cuda")
