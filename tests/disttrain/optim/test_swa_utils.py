import copy
import warnings

import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="PyTorch is the reference")

AVERAGES = [
    lambda u: {},
    lambda u: {"use_buffers": True},
    lambda u: {"avg_fn": u.get_ema_avg_fn(0.9)},
    lambda u: {"avg_fn": u.get_swa_avg_fn()},
    lambda u: {"multi_avg_fn": u.get_ema_multi_avg_fn(0.8)},
    lambda u: {
        "multi_avg_fn": u.get_swa_multi_avg_fn()
    },  # PyTorch cannot do this with counts among the buffers
    lambda u: {"multi_avg_fn": u.get_ema_multi_avg_fn(0.8), "use_buffers": True},
    lambda u: {"avg_fn": lambda averaged, current, number: averaged * number * 0.1 + current},
]


def make_model(library, seed=0):
    """Return a model with parameters and buffers that are the same in both libraries."""
    rng = np.random.default_rng(seed)
    model = library.nn.Sequential(
        library.nn.Linear(3, 4), library.nn.BatchNorm1d(4), library.nn.ReLU(), library.nn.Linear(4, 2)
    ).double()
    state = {
        k: library.tensor(rng.standard_normal(v.shape))
        for k, v in model.state_dict().items()
        if v.is_floating_point()
    }
    model.load_state_dict(state, strict=False)
    return model


def move(model, seed):
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data.copy_((dt if isinstance(p, dt.Tensor) else torch).tensor(rng.standard_normal(p.shape)))
    x = rng.standard_normal((6, 3))
    model((dt if isinstance(p, dt.Tensor) else torch).tensor(x))


def state_of(model):
    return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("options", AVERAGES)
def test_averages_are_pytorchs(options):
    states = []
    for library in (dt, torch):
        model = make_model(library)
        averaged = library.optim.swa_utils.AveragedModel(model, **options(library.optim.swa_utils))
        for seed in range(5):
            move(model, seed)
            averaged.update_parameters(model)
        states.append(state_of(averaged))

    assert list(states[0]) == list(states[1])
    rtol = 1e-6 if "multi_avg_fn" in options(dt.optim.swa_utils) else 1e-12  # PyTorch's weight is a float32
    for name, value in states[1].items():
        np.testing.assert_allclose(states[0][name], value, rtol=rtol, err_msg=name)


def test_the_averaged_model_is_a_model_of_its_own():
    model = make_model(dt)
    averaged = dt.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    before = state_of(averaged)
    move(model, 3)

    assert all(np.array_equal(before[k], v) for k, v in state_of(averaged).items())
    assert averaged(dt.ones(2, 3, dtype=dt.float64)).shape == (2, 2)
    again = dt.optim.swa_utils.AveragedModel(make_model(dt, 9))
    again.load_state_dict(averaged.state_dict())
    assert again.n_averaged.item() == 1


def test_a_wrapped_model_can_be_averaged():
    model = make_model(dt)
    wrapped = dt.nn.parallel.DistributedDataParallel(model)
    averaged = dt.optim.swa_utils.AveragedModel(wrapped)
    move(model, 1)
    averaged.update_parameters(wrapped)

    for k, v in state_of(model).items():
        np.testing.assert_array_equal(state_of(averaged)["module." + k], v)


def test_statistics_are_computed_anew():
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((n, 3)) for n in (4, 6, 5)]
    states = []
    for library in (dt, torch):
        model = make_model(library).eval()
        loader = [(library.tensor(b), 0) for b in batches[:2]] + [library.tensor(batches[2])]
        library.optim.swa_utils.update_bn(loader, model)
        assert not model.training
        assert model[1].momentum == 0.1
        states.append(state_of(model))

    for name, value in states[1].items():
        np.testing.assert_allclose(states[0][name], value, rtol=1e-12, err_msg=name)


def test_without_batch_norm_the_data_is_not_touched():
    dt.optim.swa_utils.update_bn(None, dt.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"swa_lr": 0.05},
        {"swa_lr": [0.05, 0.5], "anneal_epochs": 4, "anneal_strategy": "linear"},
        {"swa_lr": 0.3, "anneal_epochs": 0},
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_rates_go_where_pytorchs_go(options, after):
    curves = []
    for library in (dt, torch):
        params = [library.ones(1).requires_grad_() for _ in range(2)]
        optimizer = library.optim.SGD([{"params": [params[0]], "lr": 0.2}, {"params": [params[1]]}], lr=0.4)
        other = library.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        scheduler = library.optim.swa_utils.SWALR(optimizer, **options)
        found = []
        for t in range(14):
            optimizer.step()
            if after and t < 3:
                other.step()
            else:
                scheduler.step()
            if library is dt and t == 6:
                states = copy.deepcopy((scheduler.state_dict(), optimizer.state_dict()))
                scheduler = library.optim.swa_utils.SWALR(optimizer, 7.0)
                scheduler.load_state_dict(states[0])
                optimizer.load_state_dict(states[1])
            found.append([g["lr"] for g in optimizer.param_groups])
        curves.append(found)

    np.testing.assert_allclose(*curves, rtol=1e-12)


def test_what_pytorch_refuses_is_refused():
    for library in (torch, dt):
        u, model = library.optim.swa_utils, make_model(library)
        optimizer = library.optim.SGD(model.parameters(), lr=0.1)
        for kind, call in (
            (ValueError, lambda u=u: u.get_ema_avg_fn(1.5)),
            (ValueError, lambda u=u: u.get_ema_multi_avg_fn(-0.1)),
            (
                AssertionError,
                lambda u=u, model=model: u.AveragedModel(
                    model, avg_fn=u.get_swa_avg_fn(), multi_avg_fn=u.get_swa_multi_avg_fn()
                ),
            ),
            (ValueError, lambda u=u, o=optimizer: u.SWALR(o, 0.1, anneal_strategy="up")),
            (ValueError, lambda u=u, o=optimizer: u.SWALR(o, 0.1, anneal_epochs=-1)),
            (ValueError, lambda u=u, o=optimizer: u.SWALR(o, 0.1, anneal_epochs=1.5)),
            (ValueError, lambda u=u, o=optimizer: u.SWALR(o, [0.1, 0.2])),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(kind):
                    call()
