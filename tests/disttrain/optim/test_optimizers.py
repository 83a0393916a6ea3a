import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch")

RECIPES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.4, 0.9), "eps": 1e-6, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.2, "amsgrad": True}),
]
SHAPES = [(3, 4), (4,), (50, 60), (), (0, 2)]


def make(framework, dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(dtype) for s in SHAPES]
    make_one = dt.tensor if framework is dt else torch.tensor
    return [make_one(a, requires_grad=True) for a in arrays]


def loss_of(params, t):
    return sum(((p * (i + 1) - 0.1 * t) ** 2).sum() for i, p in enumerate(params))


@pytest.mark.parametrize(("name", "options"), RECIPES)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-6), ("float32", 2e-4)])
def test_the_trajectory_is_pytorchs(name, options, dtype, rtol):
    ours, theirs = make(dt, dtype), make(torch, dtype)
    a, b = getattr(dt.optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)

    for t in range(20):
        for params, optimizer in ((ours, a), (theirs, b)):
            used = params[1:] if t % 7 == 3 else params  # now and then one has no gradient
            optimizer.zero_grad()
            loss_of(used, t).backward()
            optimizer.step()

    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=rtol, atol=rtol)


def test_groups_have_options_of_their_own():
    ours, theirs = make(dt, "float64"), make(torch, "float64")
    results = []
    for optim, params in ((dt.optim, ours), (torch.optim, theirs)):
        optimizer = optim.SGD(
            [{"params": params[:2], "lr": 0.3}, {"params": params[2:], "momentum": 0.5}], lr=0.1
        )
        for t in range(5):
            optimizer.zero_grad()
            loss_of(params, t).backward()
            optimizer.step()
        results.append([p.detach().numpy() for p in params])

    for p, q in zip(*results, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_loaded_state_continues_the_same_run(name):
    def run(steps, resume_at=None):
        params = make(dt, "float32")
        optimizer = getattr(dt.optim, name)(params, lr=0.05, **({"momentum": 0.9} if name == "SGD" else {}))
        for t in range(steps):
            if t == resume_at:
                state = optimizer.state_dict()
                params = [dt.tensor(p.detach().numpy(), requires_grad=True) for p in params]
                optimizer = getattr(dt.optim, name)(
                    params, lr=9.9, **({"momentum": 0.1} if name == "SGD" else {})
                )
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            loss_of(params, t).backward()
            optimizer.step()
        return [p.detach().numpy() for p in params]

    for p, q in zip(run(6), run(6, resume_at=3), strict=True):
        np.testing.assert_array_equal(p, q)


def test_a_state_that_does_not_fit_changes_nothing():
    a = dt.optim.Adam([dt.zeros(3, requires_grad=True), dt.zeros(2, requires_grad=True)])
    b = dt.optim.Adam([dt.zeros(4, requires_grad=True), dt.zeros(5, requires_grad=True)], lr=0.5)
    for optimizer in (a, b):
        sum((p * 2).sum() for p in optimizer.param_groups[0]["params"]).backward()
        optimizer.step()

    with pytest.raises(
        ValueError, match=r"parameter 0 has shape \[3\], expected \[4\].*parameter 1 has shape \[2\]"
    ):
        b.load_state_dict(a.state_dict())

    assert b.param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters, this optimizer of \[1\]"):
        dt.optim.Adam([dt.zeros(3, requires_grad=True)]).load_state_dict(a.state_dict())


def test_what_somebody_else_moved_is_taken_back():
    p = dt.ones(3, requires_grad=True)
    optimizer = dt.optim.SGD([p], lr=1.0)
    p.data = dt.tensor([5.0, 6.0, 7.0])
    p.grad = dt.tensor([1.0, 1.0, 1.0])

    optimizer.step()

    assert p.tolist() == [4, 5, 6]


def test_a_parameter_that_changed_its_shape_is_an_error():
    p = dt.ones(3, requires_grad=True)
    optimizer = dt.optim.SGD([p], lr=1.0)
    p.data = dt.ones(4)
    p.grad = dt.ones(4)

    with pytest.raises(RuntimeError, match=r"was of shape \[3\] .* is now of shape \[4\]"):
        optimizer.step()


def test_a_step_is_seen_by_the_version_check():
    w = dt.ones(3, requires_grad=True)
    optimizer = dt.optim.SGD([w], lr=1.0)
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    optimizer.step()

    with pytest.raises(dt.errors.GradientError, match="inplace operation"):
        loss.backward()


def test_a_kept_gradient_stays_what_it_was():
    w = dt.ones(3, requires_grad=True)
    optimizer = dt.optim.SGD([w], lr=1.0)
    w.sum().backward()
    kept = w.grad
    optimizer.zero_grad()
    (w * 5).sum().backward()

    assert kept.tolist() == [1, 1, 1]
    assert w.grad.tolist() == [5, 5, 5]


@pytest.mark.parametrize("keep", [lambda g: g.numpy(), lambda g: g.detach(), lambda g: g.data])
def test_the_memory_of_a_kept_gradient_stays_what_it_was(keep):
    w = dt.ones(3, requires_grad=True)
    optimizer = dt.optim.SGD([w, dt.ones(2, requires_grad=True)], lr=1.0)
    w.sum().backward()
    kept = keep(w.grad)
    optimizer.zero_grad()
    (w * 5).sum().backward()
    optimizer.step()

    assert kept.tolist() == [1, 1, 1]
    assert w.grad.tolist() == [5, 5, 5]
    assert w.tolist() == [-4, -4, -4]


@pytest.mark.parametrize("optimizer", [dt.optim.SGD, dt.optim.Adam])
def test_gradients_are_made_in_the_same_memory_step_after_step(optimizer):
    model = dt.nn.Sequential(dt.nn.Linear(3, 4), dt.nn.Linear(4, 2))
    optimizer = optimizer(model.parameters(), lr=0.1)
    places = set()
    for _ in range(4):
        optimizer.zero_grad()
        model(dt.ones(2, 3)).sum().backward()
        places.add(tuple(p.grad.data_ptr() for p in model.parameters()))
        optimizer.step()

    assert len(places) == 1


def test_closure_is_called_with_gradients_on():
    w = dt.ones(1, requires_grad=True)
    optimizer = dt.optim.SGD([w], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    with dt.no_grad():
        loss = optimizer.step(closure)

    assert loss.item() == 1
    assert w.item() == pytest.approx(0.8)


def test_half_precision_steps_in_float32():
    w = dt.ones(3, dtype=dt.bfloat16, requires_grad=True)
    optimizer = dt.optim.Adam([w], lr=0.5)
    w.sum().backward()
    optimizer.step()

    assert w.dtype is dt.bfloat16
    assert w.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_parameter_that_is_given_twice_steps_twice(name):
    ends = []
    for framework in (dt, torch):
        p, q = (framework.ones(2, dtype=framework.float64).requires_grad_() for _ in range(2))
        with pytest.warns(UserWarning, match="more than once|duplicate"):
            optimizer = getattr(framework.optim, name)([p, q, p], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (p * p + 2 * q * q).sum().backward()
            optimizer.step()
        ends.append([*p.tolist(), *q.tolist()])

    np.testing.assert_allclose(*ends, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p: dt.optim.SGD([p], lr=-1), "lr must not be negative, got -1"),
        (lambda p: dt.optim.SGD([p], nesterov=True), "nesterov needs a momentum"),
        (lambda p: dt.optim.Adam([p], betas=(1.0, 0.9)), r"betas\[0\] must be in \[0, 1\), got 1.0"),
        (lambda p: dt.optim.SGD([]), "no parameters to optimize"),
        (lambda p: dt.optim.SGD([{"params": [p]}, {"params": [p]}]), "more than one group"),
        (lambda p: dt.optim.SGD([p * 2]), "only leaves can be optimized"),
    ],
)
def test_wrong_options_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(dt.ones(2, requires_grad=True))


def steps_of(params, update):
    """Return what ``SGD.step()`` does after the loss ``update``, as the calls of ``update`` that it makes."""
    optimizer = dt.optim.SGD(params, lr=0.1)
    calls = []
    step = optimizer.update
    optimizer.update = lambda *args: (calls.append(1), step(*args))[1]
    update().backward()
    optimizer.step()
    return len(calls)


def test_fresh_parameters_step_together():
    model = dt.nn.Sequential(dt.nn.Linear(2, 3), dt.nn.LayerNorm(3), dt.nn.Linear(3, 1))

    assert steps_of(model.parameters(), lambda: model(dt.ones(1, 2)).sum()) == 1
    assert steps_of(model.parameters(), lambda: model(dt.ones(1, 2)).sum()) == 1  # a second optimizer


def test_a_state_dict_taken_before_the_optimizer_was_made_follows_the_parameters():
    model = dt.nn.Linear(2, 1)
    state, array = model.state_dict(), model.bias.detach().numpy()
    optimizer = dt.optim.Adam(model.parameters(), lr=0.1)

    model(dt.ones(1, 2)).sum().backward()
    optimizer.step()

    np.testing.assert_array_equal(state["weight"].numpy(), model.weight.detach().numpy())
    np.testing.assert_array_equal(array, model.bias.detach().numpy())


def test_parameters_that_share_memory_through_data_go_on_sharing_it():
    a = dt.nn.Parameter(dt.ones(3))
    b = dt.nn.Parameter(a.data)
    optimizer = dt.optim.SGD([a, b], lr=0.1)

    (a.sum() + 2 * b.sum()).backward()
    optimizer.step()

    for p in (a, b):
        np.testing.assert_allclose(p.detach().numpy(), [0.7] * 3, rtol=1e-6)


def test_a_gradient_that_was_replaced_stays_what_it_was():
    p, q = dt.nn.Parameter(dt.ones(2)), dt.nn.Parameter(dt.ones(2, 2))
    optimizer = dt.optim.SGD([p, q], lr=1.0)
    (p.sum() + q.sum()).backward()
    kept = p.grad

    p.grad = kept * 5
    q.grad = (dt.arange(4.0).reshape(2, 2)).t()
    optimizer.step()

    assert kept.tolist() == [1, 1]
    assert p.tolist() == [-4, -4]
    assert q.tolist() == [[1, -1], [0, -2]]
