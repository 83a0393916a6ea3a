"""What all optimizers share: groups, states, hooks; compared with PyTorch's."""

import copy
import importlib
import warnings

import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="PyTorch is the reference")

SHAPES = [(3, 4), (4,), (40, 60), (), (2, 0)]
RECIPES = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "Adam": {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"lr": 0.01},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2},
    "RMSprop": {"lr": 0.01, "centered": True, "momentum": 0.5},
    "Adadelta": {"lr": 2.0, "weight_decay": 0.1},
    "Adamax": {"lr": 0.02, "betas": (0.4, 0.8)},
    "NAdam": {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "RAdam": {"lr": 0.02, "betas": (0.9, 0.9), "decoupled_weight_decay": True, "weight_decay": 0.1},
    "ASGD": {"lr": 0.05, "t0": 5, "lambd": 0.01},
    "Rprop": {"lr": 0.01},
}


def make(library, dtype="float64"):
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]
    return [library.tensor(a).requires_grad_() for a in arrays]


def give_grads(params, t, skip=()):
    for i, p in enumerate(params):
        library = dt if isinstance(p, dt.Tensor) else torch
        g = p.detach().numpy() * (1 + 0.1 * i) - 0.2 * t + np.cos(7 * p.detach().numpy())
        p.grad = None if i in skip else library.tensor(np.asarray(g, p.detach().numpy().dtype))


def check(ours, theirs, rtol=1e-12):
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-11), ("float32", 1e-5)])
def test_twenty_steps_with_groups_schedules_and_late_parameters(name, dtype, rtol):
    found = []
    for library in (dt, torch):
        params = make(library, dtype)
        kind, options = getattr(library.optim, name), RECIPES[name]
        groups = [{"params": params[:2], "lr": 0.03}, {"params": iter(params[2:4]), "maximize": True}]
        optimizer = kind(groups, **options)
        scheduler = library.optim.lr_scheduler.ExponentialLR(optimizer, 0.93)
        used = params[:4]
        for t in range(20):
            if t == 6:
                optimizer.add_param_group({"params": params[4:], "lr": 0.2})
                scheduler = library.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
                used = params
            if t == 12:  # continued by another
                state = copy.deepcopy(optimizer.state_dict())
                groups = [{"params": g["params"], "lr": 9.0} for g in optimizer.param_groups]
                optimizer = kind(groups, **options)
                optimizer.load_state_dict(state)
            give_grads(used, t, skip={t % 9})
            optimizer.step()
            if t < 12:
                scheduler.step()
        found.append((params, optimizer))

    (ours, a), (theirs, b) = found
    check(ours, theirs, rtol)
    assert repr(a) == repr(b)
    for p, q in zip(ours, theirs, strict=True):
        assert set(a.state[p]) == set(b.state[q])
        for key, value in b.state[q].items():
            close = 1e-7 if value.ndim == 0 else 1e-3 if dtype == "float32" else rtol
            np.testing.assert_allclose(a.state[p][key].numpy(), value.numpy(), close, close, err_msg=key)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_follows_a_step_in_float32(name, kind):
    wide = [dt.tensor([1.0, -2.0, 0.5], requires_grad=True)]
    half = [wide[0].detach().to(getattr(dt, kind)).requires_grad_()]
    for params in (wide, half):
        optimizer = getattr(dt.optim, name)(params, **RECIPES[name])
        params[0].grad = dt.tensor([0.5, 0.25, -1.0], dtype=params[0].dtype)
        optimizer.step()

    assert half[0].dtype is getattr(dt, kind)
    assert half[0].tolist() == wide[0].detach().to(half[0].dtype).tolist()


def test_parameters_with_names():
    texts = []
    for library in (dt, torch):
        model = library.nn.Linear(3, 2)
        optimizer = library.optim.Adam(model.named_parameters())
        assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
        assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
        texts.append(repr(optimizer))
        other = library.optim.Adam([("a", model.weight), ("b", model.bias)])
        unnamed = library.optim.Adam(model.parameters()).state_dict()
        other.load_state_dict(unnamed)
        assert other.param_groups[0]["param_names"] == ["a", "b"]
        other.load_state_dict(optimizer.state_dict())
        assert other.param_groups[0]["param_names"] == ["weight", "bias"]

    assert texts[0] == texts[1]


def test_hooks_are_called_in_pytorchs_order():
    logs = []
    for library in (dt, torch):
        log, other = [], {"state": {}, "param_groups": [{"params": [0]}]}
        p = library.ones(2).requires_grad_()
        optimizer = library.optim.SGD([p], lr=1.0)
        base = importlib.import_module(f"{library.__name__}.optim.optimizer")

        def note(word, result=None, log=log):
            return lambda *args: (log.append((word, len(args))), result)[1]

        handles = [
            base.register_optimizer_step_pre_hook(note("global pre")),
            base.register_optimizer_step_post_hook(note("global post")),
            optimizer.register_step_pre_hook(note("pre")),
            optimizer.register_step_post_hook(note("post")),
            optimizer.register_state_dict_pre_hook(note("state pre")),
            optimizer.register_state_dict_pre_hook(note("state first"), prepend=True),
            optimizer.register_state_dict_post_hook(note("state post", other)),
            optimizer.register_load_state_dict_pre_hook(note("load pre")),
            optimizer.register_load_state_dict_post_hook(note("load post")),
            optimizer.register_load_state_dict_post_hook(note("load first"), prepend=True),
        ]
        p.grad = library.ones(2)
        optimizer.step()
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        for handle in handles:
            handle.remove()
        optimizer.param_groups[0].update(lr=1.0, momentum=0, weight_decay=0, dampening=0, nesterov=False)
        optimizer.state_dict()
        log.append(sorted(state))
        logs.append(log)

    assert logs[0] == logs[1]


def test_a_hook_may_change_what_step_is_given():
    p = dt.ones(1, requires_grad=True)
    optimizer = dt.optim.SGD([p], lr=0.5)
    called = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((*args, lambda: called.append(1) or 7), kwargs))
    p.grad = dt.ones(1)

    assert optimizer.step() == 7
    assert called == [1]
    assert p.item() == 0.5
    optimizer.register_step_pre_hook(lambda *_: 3)
    with pytest.raises(RuntimeError, match="must return None or a pair"):
        optimizer.step()


def own_optimizer(library):
    required = importlib.import_module(f"{library.__name__}.optim.optimizer").required

    class Own(library.optim.Optimizer):
        """As people write them."""

        def __init__(self, params, lr=required, beta=0.9):
            super().__init__(params, {"lr": lr, "beta": beta})

        def step(self, closure=None):
            with library.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is None:
                            continue
                        state = self.state[p]
                        if len(state) == 0:
                            state["step"] = 0
                            state["mean"] = library.zeros_like(p)
                        state["step"] += 1
                        state["mean"].mul_(group["beta"]).add_(p.grad, alpha=1 - group["beta"])
                        p.add_(state["mean"], alpha=-group["lr"])

    return Own


def test_an_optimizer_that_somebody_wrote():
    ends = []
    for library in (dt, torch):
        params, kind = make(library), own_optimizer(library)
        with pytest.raises(ValueError, match="lr"):
            kind(params)
        optimizer = kind([{"params": params, "lr": 0.1}])
        calls = []
        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append(1))
        scheduler = library.optim.lr_scheduler.StepLR(optimizer, 2)
        for t in range(6):
            give_grads(params, t)
            optimizer.step()
            scheduler.step()
            if t == 3:
                other = kind(params, lr=5.0)
                other.load_state_dict(optimizer.state_dict())
                assert other.state[params[0]]["step"] == 4
        assert len(calls) == 6
        ends.append(params)

    check(*ends)
    with pytest.raises(NotImplementedError):
        dt.optim.Optimizer(ends[0], {}).step()


@pytest.mark.parametrize("name", ["SGD", "Adam", "ASGD"])
def test_a_copied_optimizer_has_its_own_parameters(name):
    params = make(dt)
    optimizer = getattr(dt.optim, name)(params, **RECIPES.get(name, {}))
    for t in range(3):
        give_grads(params, t)
        optimizer.step()
    twin = copy.deepcopy(optimizer)
    others = twin.param_groups[0]["params"]
    assert others[0] is not params[0]
    for ps, o in ((params, optimizer), (others, twin)):
        for t in range(3, 6):
            give_grads(ps, t)
            o.step()

    check(params, others, 1e-15)


def test_state_that_is_reset_or_replaced_counts():
    ends = []
    for library in (dt, torch):
        params = make(library)
        optimizer = library.optim.Adam(params, lr=0.1)
        for t in range(8):
            give_grads(params, t)
            if t == 3:
                optimizer.state[params[0]] = {}
            if t == 5:
                optimizer.state[params[1]]["exp_avg"] = library.ones_like(params[1])
                optimizer.state[params[2]]["exp_avg_sq"].mul_(2.0)
                optimizer.state[params[2]]["step"].fill_(1.0)
            if t == 6:
                optimizer.state.clear()
            optimizer.step()
        ends.append(params)

    check(*ends)


def test_groups_whose_parameters_are_replaced():
    ends = []
    for library in (dt, torch):
        params = make(library)
        optimizer = library.optim.Adam(params[:2], lr=0.1)
        for t in range(6):
            if t == 2:
                optimizer.param_groups[0]["params"] = params[1:4]
            if t == 4:
                del optimizer.param_groups[0]["params"][0]
            give_grads(params, t)
            optimizer.step()
        ends.append(params)

    check(*ends)


def test_a_leaf_that_is_not_contiguous_steps_where_it_is():
    ends = []
    for library in (dt, torch):
        base = library.arange(6.0).reshape(2, 3)
        p = base.t().requires_grad_() if library is torch else dt.Tensor._of(base._array.T).requires_grad_()
        optimizer = library.optim.Adam([p], lr=0.5)
        for _ in range(3):
            p.grad = library.ones(3, 2)
            optimizer.step()
        ends.append(base.tolist())

    np.testing.assert_allclose(*ends, rtol=1e-6)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    p = dt.ones(2, requires_grad=True)
    optimizer = dt.optim.SGD([p])
    (p * p).sum().backward(create_graph=True)
    optimizer.zero_grad(set_to_none=set_to_none)

    assert (p.grad is None) if set_to_none else (p.grad.tolist() == [0, 0] and not p.grad.requires_grad)


def test_options_that_choose_an_implementation():
    p = dt.ones(2, requires_grad=True)
    dt.optim.Adam([p], foreach=True, capturable=True)
    dt.optim.SGD([p], fused=True)
    with pytest.raises(RuntimeError, match="exclude each other"):
        dt.optim.Adam([p], fused=True, foreach=True)
    with pytest.raises(RuntimeError, match="exclude each other"):
        dt.optim.SGD([p], fused=True, differentiable=True)
    for name in RECIPES:
        with pytest.raises(NotImplementedError, match="differentiable=True is not in disttrain"):
            getattr(dt.optim, name)([p], differentiable=True)


def wrong(library):
    p, q = (library.ones(2).requires_grad_() for _ in range(2))
    o = library.optim
    return [
        (ValueError, lambda: o.SGD([])),
        (TypeError, lambda: o.SGD(p)),
        (TypeError, lambda: o.SGD([1.0])),
        (TypeError, lambda: o.SGD({"a": p})),
        (TypeError, lambda: o.SGD([{"params": {p, q}}])),
        (ValueError, lambda: o.SGD([p * 2])),
        (ValueError, lambda: o.SGD([{"params": [p]}, {"params": [q, p]}])),
        (ValueError, lambda: o.SGD([("a", p), q])),
        (ValueError, lambda: o.SGD([{"params": [("a", p)]}, {"params": [q]}])),
        (TypeError, lambda: o.SGD([p]).add_param_group([q])),
        (KeyError, lambda: o.SGD([{"lr": 1.0}])),
        (ValueError, lambda: o.SGD([p], lr=library.ones(2))),
        (ValueError, lambda: o.SGD([p], lr=library.tensor(-1.0))),
        (TypeError, lambda: o.SGD([p], lr="fast")),
        (TypeError, lambda: o.SGD([p], learning_rate=1.0)),
        (ValueError, lambda: o.Adam([p], betas=(0, 0.9))),
        (ValueError, lambda: o.Adam([p], eps=-1)),
        (ValueError, lambda: o.Adadelta([p], rho=-0.1)),
        (ValueError, lambda: o.Adagrad([p], initial_accumulator_value=-1)),
        (ValueError, lambda: o.RMSprop([p], alpha=-1)),
        (ValueError, lambda: o.NAdam([p], momentum_decay=-1)),
        (ValueError, lambda: o.Rprop([p], etas=(0.5, 0.9))),
        (ValueError, lambda: o.LBFGS([{"params": [p]}, {"params": [q]}])),
        (TypeError, lambda: o.LBFGS([p]).step()),
        (ValueError, lambda: o.SGD([p]).load_state_dict(o.SGD([p, q]).state_dict())),
        (ValueError, lambda: o.SGD([p]).load_state_dict(o.SGD([{"params": p}, {"params": q}]).state_dict())),
    ]


@pytest.mark.parametrize("i", range(26))
def test_what_pytorch_refuses_is_refused(i):
    for library in (torch, dt):
        cases = wrong(library)
        assert len(cases) == 26
        kind, call = cases[i]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(kind):
                call()


def test_lbfgs_without_gradients_and_with_an_unknown_search():
    p, q = dt.ones(2, requires_grad=True), dt.ones(1, requires_grad=True)
    optimizer = dt.optim.LBFGS([p, q], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = ((p - 3) ** 4).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(3):
        optimizer.step(closure)

    assert first.item() == 32
    np.testing.assert_allclose(p.tolist(), 3, atol=0.05)
    assert q.item() == 1
    with pytest.raises(RuntimeError, match="must be 'strong_wolfe' or None, got 'armijo'"):
        dt.optim.LBFGS([p], line_search_fn="armijo").step(closure)


def test_lbfgs_without_iterations_only_looks() -> None:
    p = dt.ones(2, requires_grad=True)
    optimizer = dt.optim.LBFGS([p], max_iter=0)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert [optimizer.step(closure).item() for _ in range(2)] == [2, 2]
    assert p.tolist() == [1, 1]


def test_a_parameter_given_twice_has_its_last_number() -> None:
    p, q = dt.ones(1, requires_grad=True), dt.ones(1, requires_grad=True)
    with pytest.warns(UserWarning, match="more than once"):
        optimizer = dt.optim.SGD([p, q, p], lr=0.1)

    assert optimizer.state_dict()["param_groups"][0]["params"] == [2, 1, 2]


@pytest.mark.parametrize("library", [dt, torch])
def test_a_wrapper_of_an_optimizer_need_not_call_init(library) -> None:
    class EveryOther(library.optim.Optimizer):
        def __init__(self, inner):
            self.inner, self.count = inner, 0
            self.param_groups, self.state, self.defaults = inner.param_groups, {}, inner.defaults

        def zero_grad(self, set_to_none=True):
            self.inner.zero_grad(set_to_none)

        def step(self, closure=None):
            self.count += 1
            return self.inner.step(closure) if self.count % 2 else None

    p = library.ones(1, requires_grad=True)
    optimizer = EveryOther(library.optim.SGD([p], lr=0.25))
    for _ in range(3):
        optimizer.zero_grad()
        p.sum().backward()
        optimizer.step()

    assert p.item() == 0.5


@pytest.mark.parametrize("name", RECIPES)
def test_the_state_is_in_the_order_of_the_parameters(name):
    def shapes(library):
        params = make(library)
        optimizer = getattr(library.optim, name)(params, **RECIPES[name])
        give_grads(params, 0, skip=(1,))
        optimizer.step()
        return [tuple(p.shape) for p in optimizer.state], [
            tuple(p.shape) for p in copy.deepcopy(optimizer).state
        ]

    assert shapes(dt) == shapes(torch)
