"""Optimizers that PyTorch does not have do what their papers' formulas say."""

import numpy as np
import pytest

import disttrain as dt

SHAPES = [(3, 4), (4,), (60, 50), ()]


def lamb(x, g, memory, t, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01):
    """You et al., 2020, algorithm 2."""
    m = memory["m"] = betas[0] * memory.get("m", 0) + (1 - betas[0]) * g
    v = memory["v"] = betas[1] * memory.get("v", 0) + (1 - betas[1]) * g**2
    r = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    update = r + weight_decay * x
    return x - lr * np.linalg.norm(x.ravel()) / np.linalg.norm(update.ravel()) * update


def lars(w, g, memory, t, lr, momentum=0.9, weight_decay=5e-4, trust_coefficient=1e-3):
    """You, Gitman and Ginsburg, 2017, algorithm 1."""
    norm_w, norm_g = np.linalg.norm(w.ravel()), np.linalg.norm(g.ravel())
    local = trust_coefficient * norm_w / (norm_g + weight_decay * norm_w)
    v = memory["v"] = momentum * memory.get("v", 0) + lr * local * (g + weight_decay * w)
    return w - v


def lion(x, g, memory, t, lr, betas=(0.9, 0.99), weight_decay=0.0):
    """Chen et al., 2023, algorithm 2."""
    m = memory.get("m", np.zeros_like(g))
    c = betas[0] * m + (1 - betas[0]) * g
    memory["m"] = betas[1] * m + (1 - betas[1]) * g
    return x - lr * (np.sign(c) + weight_decay * x)


CASES = [
    ("LAMB", lamb, {"lr": 0.02}),
    ("LAMB", lamb, {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.2}),
    ("LARS", lars, {"lr": 0.5}),
    ("LARS", lars, {"lr": 2.0, "momentum": 0.0, "weight_decay": 0.1, "trust_coefficient": 0.02}),
    ("Lion", lion, {"lr": 0.01}),
    ("Lion", lion, {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3}),
]


def run(name, options, dtype, sign=1.0):
    rng = np.random.default_rng(0)
    params = [dt.tensor(rng.standard_normal(s), dtype=getattr(dt, dtype), requires_grad=True) for s in SHAPES]
    optimizer = getattr(dt.optim, name)(params, **options)
    for t in range(1, 21):
        for i, p in enumerate(params):
            g = p.detach().numpy().astype("float64") * (i + 1) - 0.1 * t
            p.grad = None if (t + i) % 6 == 0 else dt.tensor(sign * g, dtype=p.dtype)
        optimizer.step()
    return [p.detach().numpy() for p in params]


@pytest.mark.parametrize(("name", "formula", "options"), CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-11), ("float32", 2e-4)])
def test_the_trajectory_is_the_papers(name, formula, options, dtype, rtol):
    rng = np.random.default_rng(0)
    expected = [np.asarray(rng.standard_normal(s)) for s in SHAPES]
    memory, steps = [{} for _ in SHAPES], [0] * len(SHAPES)
    for t in range(1, 21):
        for i, x in enumerate(expected):
            if (t + i) % 6:
                steps[i] += 1
                expected[i] = formula(x, x * (i + 1) - 0.1 * t, memory[i], steps[i], **options)

    for p, q in zip(run(name, options, dtype), expected, strict=True):
        np.testing.assert_allclose(p, q, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("name", "formula", "options"), CASES)
def test_maximize_turns_the_gradient_round(name, formula, options):
    up = run(name, {**options, "maximize": True}, "float64", sign=-1.0)

    for p, q in zip(up, run(name, options, "float64"), strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_a_parameter_of_zeros_leaves_zero(name):
    p = dt.zeros(3, requires_grad=True)
    p.grad = dt.ones(3)
    getattr(dt.optim, name)([p], lr=0.1).step()

    assert (p.detach().numpy() < 0).all()


@pytest.mark.parametrize("name", ["LAMB", "LARS", "Lion"])
def test_half_precision_and_states(name):
    p = dt.ones(4, dtype=dt.bfloat16, requires_grad=True)
    optimizer = getattr(dt.optim, name)([p], lr=100.0 if name == "LARS" else 0.25)
    p.grad = dt.ones(4, dtype=dt.bfloat16)
    optimizer.step()
    other = getattr(dt.optim, name)([dt.ones(4, dtype=dt.bfloat16, requires_grad=True)])
    other.load_state_dict(optimizer.state_dict())

    assert p.dtype is dt.bfloat16
    assert (p.detach().float().numpy() < 1).all()
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for key, value in optimizer.state[p].items():
        np.testing.assert_array_equal(other.state_dict()["state"][0][key].numpy(), value.numpy())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LAMB", {"lr": -1}),
        ("LAMB", {"betas": (0.9, 1.0)}),
        ("LARS", {"trust_coefficient": -1}),
        ("Lion", {"weight_decay": -1}),
    ],
)
def test_wrong_options_are_refused(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        getattr(dt.optim, name)([dt.ones(1, requires_grad=True)], **options)
