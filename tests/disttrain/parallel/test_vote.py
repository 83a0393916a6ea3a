"""What happens to a step that not all ranks can make: skipped calls, errors, gradients that are not finite."""

import logging
import re

import numpy as np
import pytest

import disttrain as dt
from disttrain.collectives import CollectiveMismatch, PeerFailed
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.ledger import place
from disttrain.collectives.local import run_ranks
from disttrain.errors import AnomalyError
from disttrain.nn.parallel import DistributedDataParallel


def world(size, body):
    """Return what ``body(rank)`` returns on each of ``size`` ranks."""
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


def make(size=3, **options):
    dt.manual_seed(0)
    model = dt.nn.Sequential(dt.nn.Linear(4, size), dt.nn.Tanh(), dt.nn.Linear(size, 1))
    return DistributedDataParallel(model, bucket_cap_mb=2e-5, **options)  # several buckets


def raised(call):
    """Return the error that ``call`` raises."""
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "what", ["skips a backward", "skips a batch", "makes a backward twice", "steps twice"]
)
def test_a_rank_that_is_one_call_off_is_found_at_the_next(what):
    """Every other call has the same shape, so that step n would be summed with step n + 1."""

    def body(rank):
        model = make()
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        loader = dt.data.DataLoader(dt.data.TensorDataset(dt.ones(24, 4)), batch_size=2)
        before = None
        for i, (x,) in enumerate(loader):
            odd = rank == 1 and i == 2
            if odd and what == "skips a batch":
                continue
            before = [p.detach().numpy().copy() for p in model.parameters()]
            optimizer.zero_grad()
            loss = model(x).sum()
            if odd and what == "makes a backward twice":
                loss.backward(retain_graph=True)
                error = raised(loss.backward)
                break
            try:
                if not (odd and what == "skips a backward"):
                    loss.backward()
            except CollectiveMismatch as e:
                error = e
                break
            optimizer.step()
            if odd and what != "skips a batch":
                for p in model.parameters():  # a step needs a gradient, and this one was of the step before
                    p.grad = dt.zeros_like(p)
                optimizer.step()
        after = [p.detach().numpy() for p in model.parameters()]
        return i, str(error), all((a == b).all() for a, b in zip(before, after, strict=True))

    results = world(3, body)

    assert len({text for _, text, _ in results}) == 1
    assert {i for i, _, _ in results} <= {2, 3}
    text = results[0][1]
    assert "rank 1: all_reduce" in text
    assert "ranks 0, 2: all_reduce" in text
    assert "bucket 0 of model 0 after" in text
    assert "of epoch 0" in text
    assert __file__.rpartition("/")[2] in text
    assert all(unchanged for _, _, unchanged in results)


def test_a_rank_may_evaluate_in_the_middle_of_an_epoch():
    def body(rank):
        model = make()
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        data = dt.data.TensorDataset(dt.ones(10, 4))
        for (x,) in dt.data.DataLoader(data, batch_size=2):
            loss = model(x).sum()
            if rank == 0:
                with dt.no_grad():
                    for (x,) in dt.data.DataLoader(data, batch_size=1):
                        model.module(x)
            loss.backward()
            optimizer.step()
        return model.module[0].weight.tolist()

    first, second = world(2, body)

    assert first == second


@pytest.mark.parametrize("where", ["forward", "backward", "backward, late"])
@pytest.mark.parametrize("odd", [0, 1])
def test_an_error_on_one_rank_takes_the_step_from_all(where, odd):
    def body(rank):
        model = make()
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        layers = model.module
        errors = []

        def fail(*_):
            if rank == odd and len(errors) == 0:
                raise ZeroDivisionError("boom")

        if where == "forward":
            layers[1].register_forward_pre_hook(fail)
        else:
            layers[0 if "late" in where else 2].weight.register_hook(fail)
        for i in range(4):
            x = dt.ones(2, 4) * (rank + i)
            try:
                optimizer.zero_grad()
                model(x).sum().backward()
            except Exception as error:
                errors.append(error)
                gone = all(p.grad is None for p in model.parameters())
                continue
            optimizer.step()
        return [p.tolist() for p in model.parameters()], errors, gone

    def undisturbed(rank):
        model = make()
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for i in range(1, 4):
            step(model, optimizer, dt.ones(2, 4) * (rank + i))
        return [p.tolist() for p in model.parameters()]

    results = world(3, body)
    wanted = world(3, undisturbed)

    for rank, (params, errors, gone) in enumerate(results):
        assert params == wanted[rank]  # all ranks went on, as if the step had not been
        assert len(errors) == 1
        assert isinstance(errors[0], ZeroDivisionError if rank == odd else PeerFailed)
        if rank != odd:
            assert gone
            assert f"rank {odd}: ZeroDivisionError: boom at {place(__file__, 1)[:-1]}" in str(errors[0])


def test_an_error_in_a_layer_of_ours_is_told_with_the_line_that_called_it():
    def body(rank):
        model = make()
        with pytest.raises(PeerFailed if rank else RuntimeError) as caught:
            model(dt.ones(2, 4 if rank else 3)).sum().backward()
        return str(caught.value)

    first, *others = world(2, body)

    for text in others:
        assert re.search(
            rf"rank 0: RuntimeError: {re.escape(first)} at {re.escape(place(__file__, 1)[:-1])}\d+$", text
        )


def test_an_error_on_all_ranks_is_each_ones_own():
    def body(rank):
        model = make()
        model.module[1].register_forward_pre_hook(lambda *_: 1 / 0)
        return type(raised(lambda: model(dt.ones(2, 4))))

    assert world(3, body) == [ZeroDivisionError] * 3


def test_an_error_where_nothing_is_averaged_stays_on_its_rank():
    def body(rank):
        model = make()
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        bad = dt.ones(2, 5)
        if rank == 1:
            with model.no_sync():
                raised(lambda: model(bad))
            with dt.no_grad():
                raised(lambda: model(bad))
            raised(lambda: model.eval()(bad))
            model.train()
        step(model, optimizer, dt.ones(2, 4))
        return model.module[0].weight.tolist()

    first, second = world(2, body)

    assert first == second


def poison(rank, model, value):
    """Let the gradient of the first layer's weight have a value that is not finite, on one rank."""
    if rank == 2:
        model.module[0].weight.register_hook(lambda g: g * value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_kept_and_said_once(caplog, value):
    def body(rank):
        model = make()
        poison(rank, model, value)
        finite = []
        for (x,) in dt.data.DataLoader(dt.data.TensorDataset(dt.ones(12, 4)), batch_size=2):
            model.zero_grad()
            model(x).sum().backward()
            finite.append([bool(p.grad.isfinite().all()) for p in model.parameters()])
        return finite

    with caplog.at_level(logging.WARNING, "disttrain"):
        results = world(3, body)

    assert results == [[[False, True, True, True]] * 2] * 3
    (line,) = [r.getMessage() for r in caplog.records]
    what = "12 nan" if np.isnan(value) else "0 nan and 12 inf"
    assert "averaged as it is (said once)" in line
    assert f"rank 2: {what} in the gradient of '0.weight'" in line
    assert "batch 0 of epoch 0 (samples 4, 5)" in line


def test_a_step_with_a_gradient_that_is_not_finite_can_be_skipped(caplog):
    def body(rank):
        model = make(nonfinite="skip")
        optimizer = dt.optim.Adam(model.parameters(), lr=0.1)
        loader = dt.data.DataLoader(dt.data.TensorDataset(dt.ones(18, 4)), batch_size=2)
        seen = []
        for i, (x,) in enumerate(loader):
            optimizer.zero_grad()
            if rank == 2 and i == 1:
                x[0, 0] = float("nan")
            model(x).sum().backward()
            optimizer.step()
            seen.append([p.tolist() for p in model.parameters()])
        return seen, next(iter(optimizer.state.values()))["step"].item()

    with caplog.at_level(logging.WARNING, "disttrain"):
        (first, steps), *others = world(3, body)

    assert all(seen == first for seen, _ in others)
    assert first[0] == first[1] != first[2]
    assert np.isfinite(first[2][0]).all()
    assert steps == 2
    (line,) = [r.getMessage() for r in caplog.records]
    assert "the step is skipped on all ranks" in line
    assert (
        "rank 2: 1 nan in the gradient of '2.bias'" in line or "rank 2: 3 nan in the gradient of '2" in line
    )
    assert "batch 1 of epoch 0 (samples 10, 11)" in line


def test_a_gradient_that_is_not_finite_can_be_an_error():
    def body(rank):
        model = make(nonfinite="raise")
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        poison(rank, model, float("inf"))
        error = raised(model(dt.ones(2, 4)).sum().backward)
        optimizer.step()
        return type(error), str(error), [p.grad for p in model.parameters()]

    results = world(3, body)

    assert results == [results[0]] * 3
    kind, text, grads = results[0]
    assert kind is AnomalyError
    assert text == "a gradient is not finite: rank 2: 0 nan and 12 inf in the gradient of '0.weight'"
    assert grads == [None] * 4


def test_large_gradients_are_finite():
    def body(rank):
        model = make(nonfinite="raise")
        (model(dt.ones(2, 4)) * 1e30).sum().backward()  # whose squares are not
        return bool(model.module[2].bias.grad.item() > 1e29)

    assert world(2, body) == [True, True]


def test_nan_on_a_rank_without_samples_counts_for_nothing():
    def body(rank):
        model = make(nonfinite="raise")
        x = dt.ones(2, 4)
        (model(x[:0]).mean() if rank else model(x).mean()).backward(weight=2 * (1 - rank))
        return model.module[2].bias.grad.item()

    assert world(2, body) == [1, 1]


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="nonfinite must be 'keep', 'skip' or 'raise', got 'ignore'"):
        make(nonfinite="ignore")
