import numpy as np
import pytest

from disttrain.kernels import optim

SIZES = [5, 5000]  # plain arrays, and compiled
rng = np.random.default_rng(0)


def flat(size, dtype, n):
    return [rng.standard_normal(size).astype(dtype) for _ in range(n)]


SGD = [
    {},
    {"weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "maximize": True},
]
ADAM = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled": True},
    {"amsgrad": True, "maximize": True},
    {"beta1": 0.3, "beta2": 0.4},
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("options", SGD)
def test_sgd_goes_where_torch_goes(options, dtype, tolerance, size):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    param, buf = flat(size, dtype, 2)
    theirs = torch.nn.Parameter(torch.tensor(param))
    optimizer = torch.optim.SGD([theirs], lr=0.05, **options)

    for step in range(5):
        (grad,) = flat(size, dtype, 1)
        kept = grad.copy()
        momentum_buf = buf if options.get("momentum") else None
        optim.sgd_step(param, grad, momentum_buf, lr=0.05, first_step=step == 0, **options)
        theirs.grad = torch.tensor(kept)
        optimizer.step()
        np.testing.assert_array_equal(grad, kept)

    np.testing.assert_allclose(param, theirs.detach().numpy(), tolerance, tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("options", ADAM)
def test_adam_goes_where_torch_goes(options, dtype, tolerance, size):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    options = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0} | options
    (param,) = flat(size, dtype, 1)
    m, v, largest = (np.zeros_like(param) for _ in range(3))
    theirs = torch.nn.Parameter(torch.tensor(param))
    rest = {k: v for k, v in options.items() if k in ("amsgrad", "maximize", "weight_decay")}
    betas = options["beta1"], options["beta2"]
    kind = torch.optim.AdamW if options.get("decoupled") else torch.optim.Adam
    optimizer = kind([theirs], lr=0.05, betas=betas, eps=1e-6, **rest)
    amsgrad = options.pop("amsgrad", False)

    for step in range(1, 6):
        (grad,) = flat(size, dtype, 1)
        optim.adam_step(
            param, grad, m, v, largest if amsgrad else None, lr=0.05, eps=1e-6, step=step, **options
        )
        theirs.grad = torch.tensor(grad)
        optimizer.step()

    np.testing.assert_allclose(param, theirs.detach().numpy(), tolerance, tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", SGD)
def test_small_and_large_sgd_steps_have_the_same_bits(options, dtype, monkeypatch):
    arrays = flat(3000, dtype, 3)
    small, large = [[a.copy() for a in arrays] for _ in range(2)]

    for (param, grad, buf), limit in ((small, 10**9), (large, 0)):
        monkeypatch.setattr(optim.common, "SMALL", limit)
        for step in range(3):
            momentum_buf = buf if options.get("momentum") else None
            optim.sgd_step(param, grad, momentum_buf, lr=0.05, first_step=step == 0, **options)

    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", ADAM)
def test_small_and_large_adam_steps_have_the_same_bits(options, dtype, monkeypatch):
    options = {"beta1": 0.9, "beta2": 0.99} | options
    amsgrad = options.pop("amsgrad", False)
    arrays = [*flat(3000, dtype, 3), *np.abs(flat(3000, dtype, 2))]
    small, large = [[a.copy() for a in arrays] for _ in range(2)]

    for (param, grad, m, v, largest), limit in ((small, 10**9), (large, 0)):
        monkeypatch.setattr(optim.common, "SMALL", limit)
        for step in range(1, 4):
            optim.adam_step(
                param, grad, m, v, largest if amsgrad else None, lr=0.05, eps=1e-6, step=step, **options
            )

    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 7, 4096, 10_001])
def test_sum_of_squares_is_exact_enough(size, dtype):
    (x,) = flat(size, dtype, 1)

    np.testing.assert_allclose(optim.sum_of_squares(x), optim.sum_of_squares_reference(x), 1e-12)


def test_sum_of_squares_does_not_overflow():
    assert optim.sum_of_squares(np.full(4, 1e30, np.float32)) == pytest.approx(4e60)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [10, 10_000])
def test_all_finite_finds_one_bad_value_anywhere(size, bad, dtype):
    (x,) = flat(size, dtype, 1)
    assert optim.all_finite(x)

    for place in (0, size // 2, size - 1):
        y = x.copy()
        y[place] = bad
        assert not optim.all_finite(y)


def test_names_buffers_that_do_not_fit():
    x = np.zeros(4)
    with pytest.raises(TypeError, match="must all be float32 or all float64, got float64 and float32"):
        optim.sgd_step(x, x.astype(np.float32), None, lr=1)
    with pytest.raises(ValueError, match=r"of one size, got shapes \(4,\), \(3,\)"):
        optim.sgd_step(x, x[:3], None, lr=1)
    with pytest.raises(ValueError, match=r"exactly if momentum is not 0, got momentum=0\.9"):
        optim.sgd_step(x, x, None, lr=1, momentum=0.9)
    with pytest.raises(ValueError, match="step counts from 1, got 0"):
        optim.adam_step(x, x, x, x, None, lr=1, beta1=0.9, beta2=0.9, eps=1, step=0)
