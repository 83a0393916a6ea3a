"""Distributions, call by call against PyTorch, and their draws by their frequencies."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import distributions as D

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

CALLS = """
D.Normal(m,s).log_prob(T(.5,.1)) | D.Normal(0.,1.).log_prob(L.tensor(.5))
D.Normal(0,1).log_prob(L.tensor(.5)) | D.Normal(m,s).entropy() | D.Normal(m,s).mean | D.Normal(m,s).variance
D.Normal(m,s).stddev | D.Normal(m,s).mode | D.Normal(m,s).cdf(T(.5,.1)) | D.Normal(m,-s) | D.Normal(m,0)
shape(D.Normal(m,s).sample()) | shape(D.Normal(m,s).rsample((3,))) | shape(D.Normal(0.,1.).sample((2,3)))
D.Normal(m,s).batch_shape | D.Normal(m,s).event_shape | D.Normal(m,2.).log_prob(T(1.,2.,3.))
D.Normal(m,s).log_prob(.5) | D.Normal(m,1.).scale | D.Normal([0.],[1.])
D.Normal(m.reshape(2,1),s).log_prob(T(1.,2.)) | D.Normal(m,s).log_prob(T(1.,float('nan')))
D.Normal(m,s).has_rsample | shape(D.Normal(L.zeros(2,dtype=L.float64),1.).sample())
D.Uniform(0.,2.).log_prob(L.tensor(.5)) | D.Uniform(m-1,s+3).log_prob(T(0.,1.))
D.Uniform(0.,2.).log_prob(L.tensor(3.)) | D.Uniform(2.,1.) | D.Uniform(0.,2.).entropy()
D.Uniform(0.,2.).mean | D.Uniform(0.,2.).variance | D.Uniform(0.,2.).cdf(L.tensor(.5))
shape(D.Uniform(m-1,s+3).rsample((2,))) | D.Uniform(0.,2.).log_prob(L.tensor(2.))
D.Bernoulli(pr).log_prob(T(0.,1.,1.)) | D.Bernoulli(logits=lg).log_prob(T(0.,1.,1.))
D.Bernoulli(pr).entropy() | D.Bernoulli(logits=lg).entropy() | D.Bernoulli(pr).mean | D.Bernoulli(pr).variance
D.Bernoulli(pr).logits | D.Bernoulli(logits=lg).probs | D.Bernoulli(1.5) | D.Bernoulli() | D.Bernoulli(pr,lg)
shape(D.Bernoulli(pr).sample((4,))) | D.Bernoulli(pr).log_prob(T(.5,1.,0.))
D.Bernoulli(0.3).log_prob(L.tensor(1.)) | D.Bernoulli(pr).rsample() | D.Bernoulli(T(0.,1.)).entropy()
D.Bernoulli(T(0.,1.)).log_prob(T(0.,1.)) | shape(D.Bernoulli(logits=lg).sample())
D.Categorical(pr).log_prob(L.tensor(2)) | D.Categorical(P).log_prob(L.tensor([0,1]))
D.Categorical(logits=lg).log_prob(L.tensor([0,1,2])) | D.Categorical(pr).entropy()
D.Categorical(logits=lg).entropy() | D.Categorical(pr*3).probs | D.Categorical(pr).logits
D.Categorical(logits=lg).probs | D.Categorical(logits=lg).logits | shape(D.Categorical(pr).sample())
shape(D.Categorical(P).sample()) | shape(D.Categorical(P).sample((3,)))
shape(D.Categorical(P).sample((3,4))) | shape(D.Categorical(pr).sample((3,))) | D.Categorical(L.tensor(.5))
D.Categorical(pr).log_prob(L.tensor(3)) | D.Categorical(pr).log_prob(L.tensor(1.5))
D.Categorical(P).batch_shape | D.Categorical(P).mode | D.Categorical(P).enumerate_support()
D.Categorical(pr,lg) | D.Categorical() | D.Categorical(P).log_prob(L.tensor([[0],[1]]))
D.Categorical(P).log_prob(L.tensor([0,1,0])) | D.Categorical(L.zeros(3))
D.Categorical(pr).log_prob(L.tensor([0,1,2])) | D.Independent(D.Normal(m,s),1).log_prob(T(.5,.1))
D.Independent(D.Normal(m,s),1).entropy() | D.Independent(D.Normal(m,s),2)
D.Independent(D.Normal(m,s),0).log_prob(T(.5,.1)) | shape(D.Independent(D.Normal(m,s),1).rsample((3,)))
D.Independent(D.Normal(m,s),1).event_shape | D.kl_divergence(D.Normal(m,s),D.Normal(1.,2.))
D.kl_divergence(D.Uniform(0.,1.),D.Uniform(0.,2.)) | D.kl_divergence(D.Uniform(0.,3.),D.Uniform(0.,2.))
D.kl_divergence(D.Bernoulli(pr),D.Bernoulli(logits=lg))
D.kl_divergence(D.Categorical(pr),D.Categorical(logits=lg))
D.kl_divergence(D.Independent(D.Normal(m,s),1),D.Independent(D.Normal(m+1,s),1))
D.kl_divergence(D.Bernoulli(T(0.,1.)),D.Bernoulli(T(0.5,0.))) | D.kl_divergence(D.Normal(m,s),D.Bernoulli(pr))
"""


def told(x: Any, is_tensor: Any) -> Any:
    if isinstance(x, list | tuple):
        return [told(e, is_tensor) for e in x]
    if not is_tensor(x):
        return x
    return x.requires_grad, str(x.dtype).split(".")[1], tuple(x.shape), x.detach().tolist()


def outcome(lib: Any, call: str) -> Any:
    def T(*values: float, **options: Any) -> Any:
        return lib.tensor(list(values), **options)

    names = {
        "D": importlib.import_module(f"{lib.__name__}.distributions"),
        "L": lib,
        "T": T,
        "m": T(0.0, 1.0, requires_grad=True),
        "s": T(1.0, 2.0),
        "pr": T(0.2, 0.3, 0.5),
        "P": lib.tensor([[0.2, 0.8], [0.5, 0.5]]),
        "lg": T(0.1, -2.0, 3.0, requires_grad=True),
        "shape": lambda t: (tuple(t.shape), t.requires_grad, str(t.dtype).split(".")[1]),
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return told(eval(call, names), lib.is_tensor)
    except Exception as e:
        return type(e)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True))
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("call", [c.strip() for c in CALLS.replace("\n", "|").split("|") if c.strip()])
def test_calls_give_what_they_give_in_pytorch(call: str) -> None:
    ours, theirs = outcome(dt, call), outcome(torch, call)

    assert same(ours, theirs), f"{ours}, PyTorch {theirs}"


def test_draws_follow_the_probabilities() -> None:
    dt.manual_seed(1)
    n = 40_000
    counts = np.bincount(D.Categorical(dt.tensor([0.1, 0.3, 0.6])).sample((n,)).numpy())
    np.testing.assert_allclose(counts / n, [0.1, 0.3, 0.6], atol=0.01)
    rows = D.Categorical(logits=dt.tensor([[0.0, 0.0], [2.0, -2.0]])).sample((n,)).numpy()
    np.testing.assert_allclose(rows.mean(0), [0.5, 1 / (1 + np.exp(4))], atol=0.01)
    assert abs(D.Bernoulli(0.3).sample((n,)).mean().item() - 0.3) < 0.01
    z = D.Normal(2.0, 3.0).sample((n,)).numpy()
    np.testing.assert_allclose([z.mean(), z.std()], [2, 3], atol=0.06)
    u = D.Uniform(-1.0, 3.0).sample((n,)).numpy()
    np.testing.assert_allclose([u.mean(), u.min(), u.max()], [1, -1, 3], atol=0.03)


def test_gradients_pass_through_draws() -> None:
    loc, scale = dt.tensor([1.0], requires_grad=True), dt.tensor([2.0], requires_grad=True)
    x = D.Normal(loc, scale).rsample((100,))

    x.sum().backward()

    assert loc.grad.tolist() == [100.0]
    np.testing.assert_allclose(scale.grad.numpy(), ((x.detach() - 1) / 2).sum().numpy(), rtol=1e-4)


def test_the_gradient_of_the_policy() -> None:
    """What REINFORCE does: choose, score the choice, and follow the gradient of its logarithm."""

    def program(lib: Any) -> Any:
        distributions = importlib.import_module(f"{lib.__name__}.distributions")
        logits = lib.tensor([[0.1, -0.3, 0.7]], requires_grad=True)
        m = distributions.Categorical(lib.softmax(logits, dim=1))
        (-m.log_prob(lib.tensor([2])) * 1.7 - 0.1 * m.entropy()).sum().backward()
        return logits.grad.numpy()

    np.testing.assert_allclose(program(dt), program(torch), rtol=1e-5)


def test_checks_can_be_switched_off() -> None:
    assert D.Bernoulli(1.5, validate_args=False).probs.item() == 1.5
    D.Distribution.set_default_validate_args(False)
    try:
        assert D.Normal(0.0, -1.0).scale.item() == -1
    finally:
        D.Distribution.set_default_validate_args(True)
    with pytest.raises(ValueError, match=r"Normal: scale of shape .* has to be positive"):
        D.Normal(0.0, -1.0)


def test_a_divergence_can_be_registered() -> None:
    class Mine(D.Normal):
        pass

    @D.register_kl(Mine, D.Bernoulli)
    def _kl(p: Any, q: Any) -> Any:
        return p.loc * 0 + 7

    assert D.kl_divergence(Mine(0.0, 1.0), D.Bernoulli(0.5)).item() == 7
    with pytest.raises(NotImplementedError, match="from Bernoulli to Mine"):
        D.kl_divergence(D.Bernoulli(0.5), Mine(0.0, 1.0))
    with pytest.raises(TypeError, match="classes of distributions"):
        D.register_kl(int, Mine)
