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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, optim.CHUNK, 3 * optim.CHUNK + 5])
def test_sums_of_squares_add_up_to_the_sum(size, dtype):
    x = np.random.default_rng(0).standard_normal(size).astype(dtype)

    sums = optim.sums_of_squares(x)

    np.testing.assert_allclose(sums, optim.sums_of_squares_reference(x), 1e-12)
    total = 0.0
    for one in sums.tolist():
        total += one
    assert total == optim.sum_of_squares(x)


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


def steps_of_all(param, buffers, grads):
    """Make three steps of every element-wise optimizer; return all that they changed."""
    betas, all_of_it = {"beta1": 0.9, "beta2": 0.99}, []

    def run(kernel, count, *more, **options):
        p, *state = (a.copy() for a in (param, *buffers[:count]))
        for t, g in enumerate(grads, 1):
            kept = g.copy()
            given = {k: v(t) if callable(v) else v for k, v in options.items()}
            kernel(p, g, *state, *more, **given)
            np.testing.assert_array_equal(g, kept)
        all_of_it.extend([p, *state])

    for extra in ({}, {"weight_decay": 0.1, "maximize": True}):
        run(optim.asgd_step, 1, eta=0.05, mu=lambda t: 1 / t, lambd=0.1, **extra)
        run(optim.adagrad_step, 1, lr=0.05, eps=1e-8, **extra)
        run(optim.rmsprop_step, 1, None, None, lr=0.05, alpha=0.9, eps=1e-8, **extra)
        run(optim.rmsprop_step, 3, lr=0.05, alpha=0.3, eps=1e-8, momentum=0.5, **extra)
        run(optim.adadelta_step, 2, lr=0.5, rho=0.9, eps=1e-6, **extra)
        run(optim.adamax_step, 2, lr=0.05, eps=1e-8, step=lambda t: t, **betas, **extra)
        run(
            optim.nadam_step,
            2,
            eps=1e-8,
            step=lambda t: t,
            grad_factor=0.1,
            avg_factor=0.2,
            decay=0.9,
            **betas,
            **extra,
        )
        run(optim.radam_step, 2, lr=0.05, eps=1e-8, step=lambda t: t + 4, decay=0.9, **betas, **extra)
        run(optim.lion_step, 1, lr=0.05, **betas, **extra)
    run(optim.rprop_step, 2, etas=(0.5, 1.2), step_sizes=(1e-6, 50.0))
    return all_of_it


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_and_large_steps_of_all_others_have_the_same_bits(dtype, monkeypatch):
    param, *grads = flat(3000, dtype, 4)
    grads[1][:700] = 0
    buffers = [np.abs(b) for b in flat(3000, dtype, 3)]
    buffers[0] += 3  # a variance that stays positive
    buffers[1] *= 0.01
    results = []
    for limit in (10**9, 0):
        monkeypatch.setattr(optim.common, "SMALL", limit)
        results.append(steps_of_all(param, buffers, grads))

    for small, large in zip(*results, strict=True):
        np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 2e-6), ("float64", 1e-14)])
def test_layerwise_steps_equal_their_references(dtype, limit):
    ends = [1, 40, 40, 5000]
    T = np.dtype(dtype).type
    param, grad, m, v = flat(5000, dtype, 4)
    v = np.abs(v)
    param[:1] = 0
    for sign in (1.0, -1.0):
        ours, theirs = [[a.copy() for a in (param, grad, m, v)] for _ in range(2)]
        optim.lars_step(
            *ours[:3], ends, lr=0.5, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02, maximize=sign < 0
        )
        optim.lars_step_reference(*theirs[:3], ends, 0.5, 0.9, 0.1, 0.02, sign)
        optim.lamb_step(
            *ours, ends, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-6, weight_decay=0.1, step=3, maximize=sign < 0
        )
        scalars = (0.9, 1 - 0.9, 0.99, 1 - 0.99, 1e-6, 0.1, 1 - 0.9**3, 1 - 0.99**3, sign)
        optim.lamb_step_reference(*theirs, ends, *map(T, scalars), 0.1)

        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, limit * 10, limit * 10)
