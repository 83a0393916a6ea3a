"""Learning rates and momenta follow PyTorch's to the last digits, also when continued."""

import copy
import math
import warnings

import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="PyTorch is the reference")


class Halving:
    """A callable object, whose attributes schedulers save."""

    def __init__(self):
        self.base = 0.5

    def __call__(self, epoch):
        return self.base**epoch


CASES = {
    "LambdaLR": [{"lr_lambda": lambda e: 0.9**e}, {"lr_lambda": [lambda e: 1 / (e + 1), Halving()]}],
    "MultiplicativeLR": [
        {"lr_lambda": lambda e: 0.95},
        {"lr_lambda": [lambda e: 0.9, lambda e: 1 / (e + 1)]},
    ],
    "StepLR": [{"step_size": 3}, {"step_size": 2, "gamma": 0.5}],
    "MultiStepLR": [{"milestones": [2, 5, 5, 9]}, {"milestones": (3, 1), "gamma": 0.3}],
    "ConstantLR": [{}, {"factor": 0.25, "total_iters": 3}],
    "LinearLR": [{}, {"start_factor": 0.1, "end_factor": 0.8, "total_iters": 7}],
    "ExponentialLR": [{"gamma": 0.9}],
    "PolynomialLR": [{}, {"total_iters": 9, "power": 2.0}],
    "CosineAnnealingLR": [{"T_max": 5}, {"T_max": 7, "eta_min": 0.01}],
    "CosineAnnealingWarmRestarts": [{"T_0": 4}, {"T_0": 2, "T_mult": 2, "eta_min": 0.03}],
    "CyclicLR": [
        {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 4},
        {"base_lr": [0.1, 0.2], "max_lr": 0.5, "step_size_up": 3, "step_size_down": 5, "mode": "triangular2"},
        {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 4, "mode": "exp_range", "gamma": 0.9},
        {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 4, "scale_fn": Halving(), "scale_mode": "iterations"},
        {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 4, "cycle_momentum": False},
    ],
    "OneCycleLR": [
        {"max_lr": 0.7, "total_steps": 30},
        {"max_lr": [0.7, 0.3], "epochs": 5, "steps_per_epoch": 6, "anneal_strategy": "linear"},
        {"max_lr": 0.7, "total_steps": 28, "three_phase": True, "pct_start": 0.2, "final_div_factor": 10},
        {"max_lr": 0.7, "total_steps": 30, "cycle_momentum": False, "div_factor": 3.0},
    ],
}
ALL = [(name, options) for name, cases in CASES.items() for options in cases]
STEPS = 26


def make_optimizer(library, kind="SGD", lr=0.4, options=None):
    params = [library.ones(2).requires_grad_() for _ in range(2)]
    if options is None:
        options = {"momentum": 0.9} if kind == "SGD" else {}
    groups = [{"params": [params[0]]}, {"params": [params[1]], "lr": 0.25}]
    return getattr(library.optim, kind)(groups, lr=lr, **options)


def make(library, name, options, optimizer):
    return getattr(library.optim.lr_scheduler, name)(optimizer, **copy.deepcopy(options))


def seen(optimizer):
    return [
        [float(g["lr"]), float(g.get("momentum", 0)), *map(float, g.get("betas", ()))]
        for g in optimizer.param_groups
    ]


def curve(optimizer, scheduler, steps=STEPS):
    """Return all rates and momenta."""
    found = [seen(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        assert [float(g["lr"]) for g in optimizer.param_groups] == list(map(float, scheduler.get_last_lr()))
        found.append(seen(optimizer))
    return found


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize(("name", "options"), ALL)
def test_the_curve_is_pytorchs(name, options, kind):
    curves, states = [], []
    for library in (dt, torch):
        optimizer = make_optimizer(library, kind)
        scheduler = make(library, name, options, optimizer)
        curves.append(curve(optimizer, scheduler))
        states.append(set(scheduler.state_dict()))

    np.testing.assert_allclose(*curves, rtol=1e-12, atol=1e-15)
    assert states[0] == states[1]


@pytest.mark.parametrize(("name", "options"), ALL)
def test_the_curve_continues_from_a_state_also_pytorchs(name, options):
    optimizer = make_optimizer(torch)
    scheduler = make(torch, name, options, optimizer)
    whole = curve(optimizer, scheduler)
    for library in (torch, dt):
        first = make_optimizer(library)
        begun = make(library, name, options, first)
        curve(first, begun, 11)
        states = copy.deepcopy((first.state_dict(), begun.state_dict()))

        second = make_optimizer(dt, lr=7.0)
        again = make(dt, name, options, second)
        again.load_state_dict(states[1])
        second.load_state_dict(states[0])
        rest = curve(second, again, STEPS - 11)

        np.testing.assert_allclose(rest, whole[11:], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("name", "options"), ALL)
@pytest.mark.parametrize("epoch", [1, 4, 11])
def test_step_to_an_epoch_is_pytorchs(name, options, epoch):
    found = []
    for library in (dt, torch):
        optimizer = make_optimizer(library)
        scheduler = make(library, name, options, optimizer)
        optimizer.step()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scheduler.step(epoch)
            there = seen(optimizer)
            scheduler.step()
        found.append((there, seen(optimizer), scheduler.last_epoch, len(caught)))

    np.testing.assert_allclose(*(f[:2] for f in found), rtol=1e-12, atol=1e-15)
    assert found[0][2:] == found[1][2:]


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_learning_rate_in_a_tensor_is_set_in_place(name, options):
    curves = []
    for library in (dt, torch):
        optimizer = library.optim.SGD(
            [library.ones(2).requires_grad_()], lr=library.tensor(0.4), momentum=0.9
        )
        rate = optimizer.param_groups[0]["lr"]
        options = {k: v[0] if isinstance(v, list) and "lr" in k else v for k, v in options.items()}
        scheduler = make(library, name, options, optimizer)
        curves.append(curve(optimizer, scheduler, 8))
        assert optimizer.param_groups[0]["lr"] is rate

    np.testing.assert_allclose(*curves, rtol=1e-6)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_new_scheduler_goes_on_from_the_last_epoch(name, options):
    curves = []
    for library in (dt, torch):
        optimizer = make_optimizer(library)
        curve(optimizer, make(library, name, options, optimizer), 6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = make(library, name, {**options, "last_epoch": 5}, optimizer)
            curves.append(curve(optimizer, scheduler, 8))

    np.testing.assert_allclose(*curves, rtol=1e-12)


@pytest.mark.parametrize("epochs", [np.arange(0, 9, 0.25), [3.5, 1, 0.25, 20, 7.75], [14.0, 6, 30.0]])
@pytest.mark.parametrize("options", CASES["CosineAnnealingWarmRestarts"])
def test_restarts_take_fractions_of_epochs(options, epochs):
    curves = []
    for library in (dt, torch):
        optimizer = make_optimizer(library)
        scheduler = make(library, "CosineAnnealingWarmRestarts", options, optimizer)
        found = []
        for epoch in epochs:
            scheduler.step(float(epoch))
            found.append([*seen(optimizer)[0], scheduler.last_epoch, scheduler.T_i, scheduler.T_cur])
        curves.append(found)

    np.testing.assert_allclose(*curves, rtol=1e-12)


PLATEAU = [
    {},
    {"patience": 2, "factor": 0.5},
    {"patience": 1, "mode": "max", "threshold": 0.1},
    {"patience": 1, "threshold_mode": "abs", "threshold": 0.05, "cooldown": 2},
    {"patience": 0, "mode": "max", "threshold_mode": "abs", "min_lr": [0.05, 0.1]},
    {"patience": 0, "min_lr": 0.01, "eps": 0.02},
]


@pytest.mark.parametrize("options", PLATEAU)
@pytest.mark.parametrize("resume", [False, True])
def test_reduction_on_a_plateau_is_pytorchs(options, resume):
    rng = np.random.default_rng(1)
    metrics = np.concatenate(
        [1 / np.arange(1, 12), rng.uniform(0, 0.3, 20), [math.nan, math.inf], np.full(9, 0.1)]
    )
    curves = []
    for library in (dt, torch):
        optimizer = make_optimizer(library)
        scheduler = make(library, "ReduceLROnPlateau", options, optimizer)
        found = []
        for t, metric in enumerate(metrics):
            scheduler.step(library.tensor(metric) if t % 2 else metric)
            if resume and library is dt and t == 17:
                state = copy.deepcopy(scheduler.state_dict())
                scheduler = make(dt, "ReduceLROnPlateau", {}, optimizer)
                scheduler.load_state_dict(state)
            found.append(
                [*scheduler.get_last_lr(), scheduler.num_bad_epochs, scheduler.best, scheduler.last_epoch]
            )
        curves.append(found)

    np.testing.assert_allclose(*curves, rtol=1e-12)


def sequence(library, optimizer):
    s = library.optim.lr_scheduler
    warm = s.LinearLR(optimizer, start_factor=0.1, total_iters=4)
    return s.SequentialLR(
        optimizer, [warm, s.CosineAnnealingLR(optimizer, 8), s.ExponentialLR(optimizer, 0.9)], [4, 12]
    )


def chain(library, optimizer):
    s = library.optim.lr_scheduler
    return s.ChainedScheduler([s.ConstantLR(optimizer, 0.1, 4), s.ExponentialLR(optimizer, 0.9)], optimizer)


def nested(library, optimizer):
    s = library.optim.lr_scheduler
    inner = s.ChainedScheduler([s.StepLR(optimizer, 2), s.ExponentialLR(optimizer, 0.8)])
    return s.ChainedScheduler([inner, s.MultiStepLR(optimizer, [5, 9], 0.7)])


def nested_sequence(library, optimizer):
    s = library.optim.lr_scheduler
    inner = s.SequentialLR(optimizer, [s.LinearLR(optimizer), s.StepLR(optimizer, 2)], [5])
    return s.SequentialLR(optimizer, [inner, s.ExponentialLR(optimizer, 0.9)], [9])


def restarts(library, optimizer):
    s = library.optim.lr_scheduler
    schedulers = [s.ConstantLR(optimizer, 0.1, 3), s.CosineAnnealingWarmRestarts(optimizer, 3)]
    return s.SequentialLR(optimizer, schedulers, [3])


COMBINED = [sequence, chain, nested, nested_sequence, restarts]


@pytest.mark.parametrize("build", COMBINED)
def test_schedulers_of_schedulers_are_pytorchs(build):
    curves = []
    for library in (dt, torch):
        optimizer = make_optimizer(library)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            curves.append(curve(optimizer, build(library, optimizer)))

    np.testing.assert_allclose(*curves, rtol=1e-12)


@pytest.mark.parametrize("build", COMBINED)
def test_schedulers_of_schedulers_continue(build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = make_optimizer(dt)
        whole = curve(first, build(dt, first))
        for library in (torch, dt):
            first = make_optimizer(library)
            scheduler = build(library, first)
            curve(first, scheduler, 7)
            states = copy.deepcopy((first.state_dict(), scheduler.state_dict()))
            second = make_optimizer(dt, lr=3.0)
            again = build(dt, second)
            again.load_state_dict(states[1])
            second.load_state_dict(states[0])

            np.testing.assert_allclose(curve(second, again, STEPS - 7), whole[7:], rtol=1e-12)


def test_stepping_before_the_optimizer_warns():
    optimizer = make_optimizer(dt)
    scheduler = dt.optim.lr_scheduler.StepLR(optimizer, 3)

    with pytest.warns(UserWarning, match="call optimizer.step\\(\\) first"):
        scheduler.step()

    scheduler.step()  # once is enough


def test_a_step_that_is_replaced_later_warns_and_one_before_does_not():
    optimizer = make_optimizer(dt)
    inner = optimizer.step
    optimizer.step = lambda: inner()
    scheduler = dt.optim.lr_scheduler.StepLR(optimizer, 3)
    optimizer.step()
    scheduler.step()
    other = dt.optim.lr_scheduler.StepLR(optimizer, 3)
    optimizer.step = lambda: inner()

    with pytest.warns(UserWarning, match="was replaced after"):
        other.step()


def test_get_lr_is_not_for_users():
    scheduler = dt.optim.lr_scheduler.ExponentialLR(make_optimizer(dt), 0.5)

    with pytest.warns(UserWarning, match="get_last_lr"):
        scheduler.get_lr()


def refused(library):
    """Return calls that are refused, with the exception."""
    s, sgd, plain = library.optim.lr_scheduler, make_optimizer(library), make_optimizer(library, "Adagrad")
    other = make_optimizer(library)
    plateau = s.ReduceLROnPlateau(sgd)
    done = s.OneCycleLR(make_optimizer(library), 0.1, total_steps=2)
    for _ in range(2):
        done._step_count = 5
        done.step()
    return [
        (TypeError, lambda: s.StepLR(None, 3)),
        (TypeError, lambda: s.OneCycleLR(None, 0.1, total_steps=3)),
        (TypeError, lambda: s.CyclicLR(None, 0.1, 0.2)),
        (TypeError, lambda: s.ReduceLROnPlateau(None)),
        (KeyError, lambda: s.StepLR(make_optimizer(library), 3, last_epoch=2)),
        (ValueError, lambda: s.LambdaLR(sgd, [lambda e: 1.0])),
        (ValueError, lambda: s.MultiplicativeLR(sgd, [lambda e: 1.0])),
        (TypeError, lambda: s.MultiplicativeLR(sgd, 0.5)),
        (ValueError, lambda: s.ConstantLR(sgd, 1.5)),
        (ValueError, lambda: s.ConstantLR(sgd, -0.5)),
        (ValueError, lambda: s.LinearLR(sgd, 0)),
        (ValueError, lambda: s.LinearLR(sgd, 0.5, 1.5)),
        (ValueError, lambda: s.CosineAnnealingWarmRestarts(sgd, 0)),
        (ValueError, lambda: s.CosineAnnealingWarmRestarts(sgd, 1.5)),
        (ValueError, lambda: s.CosineAnnealingWarmRestarts(sgd, 2, 0)),
        (ValueError, lambda: s.CosineAnnealingWarmRestarts(sgd, 2, eta_min="1")),
        (ValueError, lambda: s.CosineAnnealingWarmRestarts(sgd, 2).step(-1)),
        (ValueError, lambda: s.CyclicLR(sgd, [0.1], 0.2)),
        (ValueError, lambda: s.CyclicLR(sgd, 0.1, 0.2, mode="square")),
        (ValueError, lambda: s.CyclicLR(plain, 0.1, 0.2)),
        (ValueError, lambda: s.OneCycleLR(plain, 0.1, total_steps=3)),
        (ValueError, lambda: s.OneCycleLR(sgd, 0.1)),
        (ValueError, lambda: s.OneCycleLR(sgd, 0.1, epochs=3)),
        (ValueError, lambda: s.OneCycleLR(sgd, 0.1, total_steps=0)),
        (ValueError, lambda: s.OneCycleLR(sgd, 0.1, total_steps=2.5)),
        (ValueError, lambda: s.OneCycleLR(sgd, 0.1, epochs=-1, steps_per_epoch=2)),
        (ValueError, lambda: s.OneCycleLR(sgd, 0.1, epochs=1, steps_per_epoch=-2)),
        (ValueError, lambda: s.OneCycleLR(sgd, 0.1, total_steps=9, pct_start=1.1)),
        (ValueError, lambda: s.OneCycleLR(sgd, 0.1, total_steps=9, pct_start=1)),
        (ValueError, lambda: s.OneCycleLR(sgd, 0.1, total_steps=9, anneal_strategy="up")),
        (ValueError, lambda: s.OneCycleLR(sgd, [0.1], total_steps=9)),
        (ValueError, lambda: done.step()),
        (ValueError, lambda: s.ReduceLROnPlateau(sgd, factor=1.0)),
        (ValueError, lambda: s.ReduceLROnPlateau(sgd, mode="best")),
        (ValueError, lambda: s.ReduceLROnPlateau(sgd, threshold_mode="none")),
        (ValueError, lambda: s.ReduceLROnPlateau(sgd, min_lr=[0.1])),
        (ValueError, lambda: s.SequentialLR(sgd, [], [])),
        (ValueError, lambda: s.SequentialLR(sgd, [s.StepLR(sgd, 2), s.StepLR(sgd, 2)], [1, 2])),
        (ValueError, lambda: s.SequentialLR(sgd, [s.StepLR(sgd, 2), s.StepLR(other, 2)], [1])),
        (ValueError, lambda: s.SequentialLR(sgd, [s.StepLR(sgd, 2), plateau], [1])),
        (TypeError, lambda: s.SequentialLR(sgd, [s.StepLR(sgd, 2), 3], [1])),
        (ValueError, lambda: s.ChainedScheduler([])),
        (ValueError, lambda: s.ChainedScheduler([s.StepLR(sgd, 2), s.StepLR(other, 2)])),
        (ValueError, lambda: s.ChainedScheduler([plateau])),
        (TypeError, lambda: s.ChainedScheduler([s.StepLR(sgd, 2), 3])),
    ]


@pytest.mark.parametrize("i", range(45))
def test_what_pytorch_refuses_is_refused(i):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [refused(library) for library in (torch, dt)]
    assert len(cases[0]) == 45

    for kind, call in (case[i] for case in cases):
        with pytest.raises(kind, match=r".{12}"):
            call()


def test_groups_that_are_added_later_keep_their_plateau():
    optimizer = make_optimizer(dt)
    one, many = (
        dt.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, min_lr=m) for m in (0.1, [0.1, 0.2])
    )
    optimizer.add_param_group({"params": [dt.ones(1, requires_grad=True)], "lr": 0.8})
    one.step(1.0)
    one.step(1.0)

    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.1])
    many.step(1.0)
    with pytest.raises(RuntimeError, match=r"given for 2 groups .* now has 3"):
        many.step(1.0)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_state_can_be_saved(name, options, tmp_path):
    optimizer = make_optimizer(dt)
    scheduler = make(dt, name, options, optimizer)
    curve(optimizer, scheduler, 5)
    dt.save([optimizer.state_dict(), scheduler.state_dict()], tmp_path / "states")
    loaded = dt.load(tmp_path / "states")
    second = make_optimizer(dt, lr=7.0)
    again = make(dt, name, options, second)
    again.load_state_dict(loaded[1])
    second.load_state_dict(loaded[0])

    assert curve(second, again, 9) == curve(optimizer, scheduler, 9)
