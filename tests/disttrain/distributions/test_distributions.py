"""Distributions, call by call against PyTorch, and their draws by their frequencies."""

from __future__ import annotations

import copy
import importlib
import pickle
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
D.Normal(m,s).icdf(T(.5,.1)) | D.Normal(m,s).log_prob(T(1.,float("inf"))) | D.Gamma(m+1,s).log_prob(.5)
D.Gamma(-1.,1.) | D.Beta(0.,1.) | D.Poisson(-1.) | D.Geometric(0.) | D.Binomial(2.5,.5) | D.Dirichlet(L.tensor(1.))
D.Dirichlet(T(1.,-1.)) | D.Dirichlet(pr).log_prob(T(.2,.3,.6)) | D.Binomial(3,.5).log_prob(L.tensor(4.))
D.Poisson(s).log_prob(L.tensor(.5)) | D.Exponential(s).log_prob(L.tensor(-1.)) | D.Multinomial(s,pr)
D.OneHotCategorical(pr).log_prob(T(1.,1.,0.)) | D.MultivariateNormal(m) | D.MultivariateNormal(m,C,scale_tril=C)
D.MultivariateNormal(m,-C) | D.MultivariateNormal(m,scale_tril=C) | D.MultivariateNormal(m,C).log_prob(pr)
D.MultivariateNormal(m,precision_matrix=C).covariance_matrix | D.MultivariateNormal(m,C).precision_matrix
D.MultivariateNormal(m,C).scale_tril | D.MixtureSameFamily(D.Categorical(pr),D.Normal(m,s))
D.MixtureSameFamily(D.Normal(m,s),D.Normal(m,s)) | D.TransformedDistribution(D.Normal(m,s),3)
D.TransformedDistribution(D.Normal(0.,1.),D.StickBreakingTransform()) | D.Normal(m,s).expand((3,))
D.Categorical(logits=T(0.,float("-inf"))).log_prob(L.tensor(1)) | repr(D.Normal(0.,1.)) | repr(D.Gamma(2.,1.))
repr(D.Bernoulli(.5)) | D.NegativeBinomial(T(0.,0.),.5).sample((3,)) | D.Gamma(100.,1.).cdf(T(50.,300.,1099.))
D.Gamma(T(1.,float("inf")),1.).sample()[1] | D.RelaxedBernoulli(L.tensor(.5),pr).expand((2,3)).probs
D.RelaxedOneHotCategorical(L.tensor(.5),pr).expand((2,)).probs | D.LogNormal(m,s).expand((3,2)).loc
D.kl_divergence(D.MultivariateNormal(L.zeros(2,3,2),C),D.MultivariateNormal(L.ones(3,2),2*C))
D.kl_divergence(D.MultivariateNormal(L.zeros(1,3,2),C),D.MultivariateNormal(L.ones(4,1,2),2*C))
D.ComposeTransform([D.ExpTransform()])==D.ComposeTransform([D.ExpTransform()])
D.ComposeTransform([D.ExpTransform()])==D.ComposeTransform([D.TanhTransform()])
D.PowerTransform(T(1.,2.))==D.PowerTransform(T(1.,2.)) | D.PowerTransform(T(1.,2.))==D.PowerTransform(T(1.,3.))
D.AffineTransform(0.,2.).inv==D.AffineTransform(0.,2.).inv | D.AffineTransform(0.,2.).inv==D.AffineTransform(0.,3.).inv
D.constraints.interval(0.,2.).lower_bound | isinstance(D.constraints.interval(0.,2.),D.constraints.interval)
D.constraints.is_dependent(D.constraints.dependent(is_discrete=False,event_dim=1))
D.constraints.dependent(is_discrete=True,event_dim=1).event_dim | D.constraints.dependent.check(m)
D.Independent(D.Normal(m,s),1).support.base_constraint is D.constraints.real
D.Normal(m,s).sample_n(3).shape | D.Independent(D.Normal(P,1.),1).expand((3,2)).batch_shape
"""
PAIRS = """
Exponential(s) || Exponential(s+1)
Gamma(s,s) || Gamma(s+1,2.)
Exponential(s) || Gamma(s,2.)
Gamma(s,2.) || Exponential(s)
Beta(s,s) || Beta(2.,s)
Dirichlet(pr) || Dirichlet(pr*2)
Laplace(m,s) || Laplace(0.,s+1)
Cauchy(m,s) || Cauchy(0.,s+1)
HalfCauchy(s) || HalfCauchy(s+1)
Gumbel(m,s) || Gumbel(0.,s+1)
HalfNormal(s) || HalfNormal(s+1)
LogNormal(m,s) || LogNormal(0.,s+1)
Poisson(s) || Poisson(s+1)
Geometric(pr) || Geometric(logits=lg)
Binomial(3,pr) || Binomial(3,logits=lg)
Binomial(4,.5) || Binomial(3,.5)
Binomial(3,.5) || Binomial(4,.5)
OneHotCategorical(pr) || OneHotCategorical(logits=lg)
MultivariateNormal(m,C) || MultivariateNormal(m+1,C*2)
MultivariateNormal(P,C) || MultivariateNormal(m+1,C*2)
MultivariateNormal(m,C) || MultivariateNormal(P,C*2)
Uniform(m-1,s+1) || Normal(m,s)
Gamma(s,s) || Normal(m,s)
Beta(s,s) || Normal(m,s)
Exponential(s) || Normal(m,s)
Laplace(m,s) || Normal(m,s)
Gumbel(m,s) || Normal(m,s)
Normal(m,s) || Laplace(0.,1.)
Normal(m,s) || Gumbel(0.,1.)
InverseGamma(s,s) || InverseGamma(2.,s)
Pareto(s,s) || Pareto(s/2,1.)
Pareto(s,s) || Pareto(s*2,1.)
Chi2(s) || Gamma(s,1.)
TransformedDistribution(D.Normal(m,s),D.TanhTransform()) || TransformedDistribution(D.Normal(0.,1.),D.TanhTransform())
TransformedDistribution(D.Normal(m,s),D.TanhTransform()) || TransformedDistribution(D.Normal(0.,1.),D.ExpTransform())
"""
CALLS += "\n".join(
    "D.kl_divergence(D.{}, D.{})".format(*pair.split(" || ")) for pair in PAIRS.strip().split("\n")
)


def told(x: Any, is_tensor: Any) -> Any:
    if isinstance(x, list | tuple):
        return [told(e, is_tensor) for e in x]
    if not is_tensor(x):
        return x
    return x.requires_grad, str(x.dtype).split(".")[1], tuple(x.shape), x.detach().tolist()


def names_of(lib: Any) -> dict[str, Any]:
    def T(*values: float, **options: Any) -> Any:
        return lib.tensor(list(values), **options)

    return {
        "D": importlib.import_module(f"{lib.__name__}.distributions"),
        "L": lib,
        "T": T,
        "m": T(0.0, 1.0, requires_grad=True),
        "s": T(1.0, 2.0),
        "pr": T(0.2, 0.3, 0.5),
        "P": lib.tensor([[0.2, 0.8], [0.5, 0.5]]),
        "C": lib.tensor([[2.0, 0.5], [0.5, 1.0]]),
        "lg": T(0.1, -2.0, 3.0, requires_grad=True),
        "shape": lambda t: (tuple(t.shape), t.requires_grad, str(t.dtype).split(".")[1]),
    }


def outcome(lib: Any, call: str) -> Any:
    names = names_of(lib)
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


KINDS = {
    "Normal(m,s)": (0.3, -1.7), "LogNormal(m,s)": (0.3, 1.7), "HalfNormal(s)": (0.0, 1.7),
    "Uniform(m-2,s+1)": (0.3, 1.0), "Laplace(m,s)": (0.3, -1.7), "Cauchy(m,s)": (0.3, -1.7),
    "HalfCauchy(s)": (0.3, 1.7), "Gumbel(m,s)": (0.3, -1.7), "Exponential(s)": (0.0, 1.7),
    "Gamma(s,m+1)": (0.3, 5.0), "Gamma(2.,T(.5,30.))": (0.3, 50.0), "InverseGamma(s+2,m+1)": (0.3, 5.0),
    "Chi2(s)": (0.3, 5.0), "Beta(s,m+.5)": (0.3, 0.7), "StudentT(s+2,m,2.)": (0.3, -1.7), "StudentT(1.5)": (0.3,),
    "FisherSnedecor(s,s+4)": (0.3, 5.0), "Weibull(s,m+.5)": (0.3, 1.7), "Pareto(s/10,m+2.5)": (0.3, 1.7),
    "Bernoulli(pr)": (0.0, 1.0), "Bernoulli(logits=lg)": (1.0,), "Geometric(pr)": (0.0, 3.0),
    "Geometric(logits=lg)": (3.0,), "Binomial(5,pr)": (0.0, 5.0), "Binomial(T(5.,3.,4.),logits=lg)": (2.0,),
    "NegativeBinomial(5,pr)": (0.0, 3.0), "NegativeBinomial(T(.5,3.,4.),logits=lg)": (2.0,), "Poisson(s)": (0.0, 3.0),
    "RelaxedBernoulli(L.tensor(.5),pr)": (0.3,), "RelaxedBernoulli(L.tensor(2.),logits=lg)": (0.3,),
    "MixtureSameFamily(D.Categorical(T(.3,.7)),D.Normal(m,s))": (0.3,),
    "TransformedDistribution(D.Normal(m,s),[D.TanhTransform()])": (0.3,),
    "TransformedDistribution(D.Uniform(0.,1.),[D.SigmoidTransform().inv,D.AffineTransform(m,-s)])": (0.3,),
}  # fmt: skip
VECTORS = {
    "Dirichlet(T(1.,2.,.5))": "T(.2,.3,.5)", "Dirichlet(P)": "T(.4,.6)", "Dirichlet(T(.5,.2,.3))": "T(.2,.3,.5)",
    "OneHotCategorical(pr)": "T(0.,1.,0.)", "OneHotCategorical(logits=lg)": "T(0.,1.,0.)",
    "OneHotCategoricalStraightThrough(P)": "T(0.,1.)", "Multinomial(4,pr)": "T(1.,1.,2.)",
    "Multinomial(4,T(0.,.5,.5))": "T(0.,1.,3.)", "MultivariateNormal(m,L.eye(2)*2)": "T(.3,.4)",
    "MultivariateNormal(m,C)": "T(.3,.4)", "MultivariateNormal(m,precision_matrix=C)": "T(.3,.4)",
    "MultivariateNormal(m,scale_tril=C.tril())": "T(.3,.4)", "MultivariateNormal(L.zeros(3,2),C)": "T(.3,.4)",
    "Independent(D.Gamma(s,s),1)": "T(.3,.4)", "Independent(D.Normal(P,1.),1)": "T(.3,.4)",
    "RelaxedOneHotCategorical(L.tensor(.5),pr)": "T(.2,.3,.5)",
    "MixtureSameFamily(D.Categorical(T(.3,.7)),D.MultivariateNormal(P,C))": "T(.2,.3)",
    "MixtureSameFamily(D.Categorical(P),D.Independent(D.Normal(L.zeros(2,2,3),1.),1))": "T(.2,.3,.5)",
    "TransformedDistribution(D.Normal(L.zeros(2),1.),D.StickBreakingTransform())": "T(.2,.3,.5)",
    "TransformedDistribution(D.Independent(D.Normal(m,s),1),D.AffineTransform(1.,2.))": "T(.2,.3)",
    "TransformedDistribution(D.Normal(L.zeros(2,6),1.),D.ReshapeTransform((6,),(2,3)))": "L.zeros(2,2,3)",
}  # fmt: skip


def questions(kind: str, values: list[str]) -> list[str]:
    d = f"D.{kind}"
    told = "mean mode variance stddev batch_shape event_shape has_rsample entropy() perplexity()"
    calls = [f"{d}.{name}" for name in told.split()]
    for v in values:
        calls += [f"{d}.log_prob({v})", f"{d}.cdf({v})", f"{d}.expand((2,*{d}.batch_shape)).log_prob({v})"]
    calls += [
        f"shape({d}.{how}({shape}))" for how in ("sample", "rsample") for shape in ("", "(3,)", "(2,1)")
    ]
    return [*calls, f"shape({d}.expand((4,*{d}.batch_shape)).sample((3,)))", f"{d}.enumerate_support()"]


@pytest.mark.parametrize("kind", [*KINDS, *VECTORS])
def test_each_kind_answers_as_in_pytorch(kind: str) -> None:
    values = [VECTORS[kind]] if kind in VECTORS else [f"L.tensor({v})" for v in KINDS[kind]]
    calls = questions(kind, values)
    if kind in KINDS:
        calls += [f"D.{kind}.icdf(L.tensor({q}))" for q in (0.1, 0.5, 0.9)]

    wrong = {c: (outcome(dt, c), outcome(torch, c)) for c in calls}
    wrong = {c: pair for c, pair in wrong.items() if not same(*pair)}

    assert not wrong


@pytest.mark.parametrize("kind", [*KINDS, *VECTORS])
def test_draws_have_the_mean_and_the_variance(kind: str) -> None:
    n = 20_000
    dt.manual_seed(3)
    with dt.no_grad():
        d = eval(f"D.{kind}", names_of(dt))
        x = d.sample((n,))
        try:
            mean, variance = d.mean, d.variance
        except NotImplementedError:
            return
        sure = (mean.abs() < 1e30).logical_and(variance < 1e30)
        far = (x.mean(0) - mean).abs() > 6 * (variance / n).sqrt() + 1e-4
    assert not bool(far.logical_and(sure).any())


def test_the_slope_of_a_gamma_draw_is_pytorchs() -> None:
    from disttrain.distributions.gamma import _slope

    a = np.repeat([0.05, 0.5, 1.0, 3.0, 40.0, 900.0], 5)
    spread = np.tile([0.05, 0.5, 1.0, 1.5, 2.5], 6)
    x = a * np.where(a > 30, 1 + (spread - 1) / np.sqrt(a), spread)

    theirs = torch._standard_gamma_grad(torch.from_numpy(a), torch.from_numpy(x))

    np.testing.assert_allclose(_slope(a, x), theirs.numpy(), rtol=2e-3)
    ours = [_slope(a, x * (1 + h)) for h in (-1e-4, 1e-4)]  # smooth
    np.testing.assert_allclose(sum(ours) / 2, _slope(a, x), rtol=1e-5)


@pytest.mark.parametrize(
    "kind", ["Gamma(a,b)", "Beta(a,b)", "StudentT(a+3,a,b)", "FisherSnedecor(2*a+2,9+b)"]
)
def test_the_mean_of_gradients_is_the_gradient_of_the_mean(kind: str) -> None:
    dt.manual_seed(5)
    leaves = [dt.tensor(v, dtype=dt.float64, requires_grad=True) for v in (1.5, 2.0)]
    d = eval(f"D.{kind}", {"D": D, "a": leaves[0], "b": leaves[1]})

    drawn = dt.autograd.grad(d.rsample((100_000,)).mean(), leaves)
    known = dt.autograd.grad(d.mean.sum(), leaves, allow_unused=True, materialize_grads=True)

    np.testing.assert_allclose([g.item() for g in drawn], [g.item() for g in known], atol=0.02)


def test_the_distribution_function_of_gamma_has_gradients() -> None:
    def f(a: Any, x: Any) -> Any:
        return D.Gamma(a, 1.0, validate_args=False).cdf(x)

    points = [(0.3, 0.2), (2.0, 5.0), (30.0, 25.0)]
    a, x = (dt.tensor(list(v), dtype=dt.float64, requires_grad=True) for v in zip(*points, strict=True))
    assert dt.autograd.gradcheck(f, (a, x))
    assert D.Gamma(2.0, 1.0).cdf(dt.tensor([0.0, 1e4])).tolist() == [0, 1]


TRANSFORMS = {
    "ExpTransform()": "T(.3,-1.)", "SigmoidTransform()": "T(.3,-1.)", "TanhTransform()": "T(.3,-1.)",
    "SoftplusTransform()": "T(.3,-1.)", "PowerTransform(2.)": "T(.3,1.)", "AffineTransform(1.,m-2)": "T(.3,1.)",
    "AffineTransform(T(1.,2.),3.,event_dim=1)": "T(.3,1.)", "StickBreakingTransform()": "T(.3,1.)",
    "SoftmaxTransform()": "T(.3,1.)", "AbsTransform()": "T(.3,-1.)", "ReshapeTransform((2,),(1,2))": "T(.3,1.)",
    "ComposeTransform([D.AffineTransform(1.,2.),D.ExpTransform()])": "T(.3,1.)",
    "ComposeTransform([D.AffineTransform(1.,2.),D.StickBreakingTransform()])": "T(.3,1.)",
    "IndependentTransform(D.ExpTransform(),1)": "T(.3,1.)", "identity_transform": "T(.3,1.)",
    "ExpTransform().inv": "T(.3,1.)", "TanhTransform(cache_size=1)": "T(.3,1.)",
}  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_answer_as_in_pytorch(transform: str) -> None:
    x = TRANSFORMS[transform]
    calls = [
        "t(x)",
        "t.inv(t(x))",
        "t.log_abs_det_jacobian(x,t(x))",
        "t.bijective",
        "t.sign",
        "t.domain.event_dim",
    ]
    calls += ["t.codomain.event_dim", "tuple(t.forward_shape((4,2)))", "t.inv.inv is t", "t.inv.bijective"]
    calls += ["t.inv.log_abs_det_jacobian(t(x),x)"]

    for call in calls:
        told_by = [outcome(lib, f"(t:=D.{transform},x:={x},{call})[2]") for lib in (dt, torch)]
        assert same(*told_by), (call, told_by)


REGIONS = """
positive|T(-1.,0.,1.) ; nonnegative|T(-1.,0.,1.) ; unit_interval|T(-1.,0.,2.) ; simplex|P ; simplex|T(.2,.9)
interval(0,2)|T(-1.,0.,3.) ; half_open_interval(0.,1.)|T(0.,1.) ; greater_than(1.)|T(1.,2.) ; less_than(1.)|T(0.,1.)
greater_than_eq(1.)|T(0.,1.) ; integer_interval(0,3)|T(1.,2.5,4.) ; boolean|T(1.,.5) ; one_hot|T(1.,0.)
real|T(1.,float("nan")) ; real_vector|T(1.,float("nan")) ; nonnegative_integer|T(1.,-1.,.5) ; positive_definite|C
positive_integer|T(0.,1.) ; lower_cholesky|C.tril() ; lower_cholesky|-C.tril() ; lower_triangular|C
multinomial(3)|T(1.,2.) ; positive_definite|L.ones(3,2,2) ; independent(D.constraints.positive,1)|T(1.,-1.)
""".replace("\n", " ; ")


@pytest.mark.parametrize("case", [c.strip() for c in REGIONS.split(" ; ") if c.strip()])
def test_constraints_judge_as_in_pytorch(case: str) -> None:
    region, value = case.split("|")
    for call in (f"D.constraints.{region}.check({value})", f"D.constraints.{region}.event_dim"):
        told_by = [outcome(lib, call) for lib in (dt, torch)]
        assert same(*told_by), (call, told_by)


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


def test_shares_of_small_concentrations_are_near_the_corners() -> None:
    dt.manual_seed(1)
    shares = D.Dirichlet(dt.full((3,), 0.01)).sample((5000,))
    parts = D.Beta(0.01, dt.tensor(0.01)).sample((5000,))

    assert (shares.max(-1).values > 0.9).float().mean() > 0.95
    assert ((parts > 0.1) & (parts < 0.9)).float().mean() < 0.05
    assert bool(((parts > 0) & (parts < 1)).all())


def test_draws_of_half_precision_are_finite_and_in_their_region() -> None:
    dt.manual_seed(2)
    one = dt.ones(20_000, dtype=dt.bfloat16)

    for d in (D.Gumbel(0 * one, one), D.Exponential(one), D.Weibull(one, one), D.Laplace(0 * one, one)):
        x = d.sample()
        assert x.dtype is dt.bfloat16
        assert bool(dt.isfinite(x).all())
        assert isinstance(d, D.Gumbel | D.Laplace) or bool((x > 0).all())


def test_the_least_even_number_makes_a_finite_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    from disttrain.distributions import continuous

    monkeypatch.setattr(continuous, "rand", lambda shape, **options: dt.zeros(shape, **options))
    kinds = (
        D.Laplace(0.0, 1.0),
        D.Gumbel(0.0, 1.0),
        D.Cauchy(0.0, 1.0),
        D.Exponential(1.0),
        D.Pareto(1.0, 1.0),
    )

    assert all(bool(dt.isfinite(d.sample())) for d in kinds)


def test_a_copied_transform_has_an_inverse_of_its_own() -> None:
    t = D.AffineTransform(0.0, dt.tensor(2.0))
    inverse = t.inv
    other = copy.deepcopy(t)
    other.scale.fill_(4.0)

    assert other.inv is not inverse
    assert other.inv(dt.tensor(8.0)) == 2
    assert inverse.inv is t


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_transforms_and_regions_are_copied(again: Any) -> None:
    d = again(D.TransformedDistribution(D.Normal(0.0, 1.0), [D.AffineTransform(0.0, 2.0), D.ExpTransform()]))
    interval = again(D.constraints.interval(0.0, dt.tensor(1.0)))

    assert d.transforms == [D.AffineTransform(0.0, 2.0), D.ExpTransform()]
    assert again(D.TanhTransform().inv) == D.TanhTransform().inv
    assert again(D.constraints.positive) is D.constraints.positive
    assert interval.check(dt.tensor([0.5, 2.0])).tolist() == [True, False]
    assert again(D.constraints.independent(D.constraints.real, 1)).event_dim == 1


def test_gradients_pass_through_draws() -> None:
    loc, scale = dt.tensor([1.0], requires_grad=True), dt.tensor([2.0], requires_grad=True)
    x = D.Normal(loc, scale).rsample((100,))

    x.sum().backward()

    assert loc.grad.tolist() == [100.0]
    np.testing.assert_allclose(scale.grad.numpy(), ((x.detach() - 1) / 2).sum().numpy(), rtol=1e-4)


def test_a_squashed_policy_of_ones_own() -> None:
    """A transform, a constraint and a distribution that a program defines, as soft actor-critic programs do."""

    def program(lib: Any) -> Any:
        D = importlib.import_module(f"{lib.__name__}.distributions")
        utils = importlib.import_module(f"{lib.__name__}.distributions.utils")

        class Squash(D.transforms.Transform):
            domain = D.constraints.real
            codomain = D.constraints.interval(-1.0, 1.0)
            bijective = True
            sign = +1

            def _call(self, x: Any) -> Any:
                return x.tanh()

            def _inverse(self, y: Any) -> Any:
                return 0.5 * (y.log1p() - (-y).log1p())

            def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
                return (1 - y * y).log()

        class Squashed(D.TransformedDistribution):
            def __init__(self, loc: Any, scale: Any) -> None:
                self.loc, self.scale = utils.broadcast_all(loc, scale)
                super().__init__(D.Normal(self.loc, self.scale), [Squash(cache_size=1)])

            @property
            def mean(self) -> Any:
                for transform in self.transforms:
                    loc = transform(self.loc)
                return loc

        class Even(D.constraints.Constraint):
            is_discrete = True

            def check(self, value: Any) -> Any:
                return value % 2 == 0

        class Twice(D.Distribution):
            arg_constraints = {"rate": D.constraints.positive}  # noqa: RUF012

            @D.constraints.dependent_property(is_discrete=True, event_dim=0)
            def support(self) -> Any:
                return Even()

            def __init__(self, rate: Any, validate_args: Any = None) -> None:
                (self.rate,) = utils.broadcast_all(rate)
                super().__init__(self.rate.shape, validate_args=validate_args)

            @utils.lazy_property
            def half(self) -> Any:
                return self.rate / 2

            def log_prob(self, value: Any) -> Any:
                if self._validate_args:
                    self._validate_sample(value)
                return D.Poisson(self.half).log_prob(value / 2)

        loc = lib.tensor([0.3, -0.2], requires_grad=True)
        d = Squashed(loc, 0.5)
        d.log_prob(lib.tensor([0.5, -0.1])).sum().backward()
        a = d.rsample()
        again = d.log_prob(a)
        p = Twice(lib.tensor([1.0, 2.0]))
        refused = []
        for wrong in (lambda: p.log_prob(lib.tensor(3.0)), lambda: Twice(-1.0), lambda: d.log_prob(loc * 9)):
            try:
                wrong()
            except ValueError:
                refused.append(True)
        probs = (
            utils.logits_to_probs(lib.tensor([0.2, 0.4]), True),
            utils.probs_to_logits(lib.tensor([0.0, 1.0])),
        )
        told = [loc.grad, d.mean, p.log_prob(lib.tensor([2.0, 4.0])), *probs]
        return [t.tolist() for t in told], again.shape == (2,), refused, p.half.tolist()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(program(dt), program(torch))


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
