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
from disttrain.distributed.fsdp import FullyShardedDataParallel, fully_shard
from disttrain.distributed.fsdp.wrap import always_wrap_policy
from disttrain.errors import AnomalyError
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel.zero import ZeroOptimizer


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
    """On one rank let the gradient of the first layer's weight be what is not finite; return a handle, there."""
    if rank != 2:
        return None
    weight = next(p for name, p in model.named_parameters() if name.endswith("0.weight"))
    return weight.register_hook(lambda g: g * value)


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


def plain(model, **options):
    return DistributedDataParallel(model, bucket_cap_mb=2e-5, **options)


def sharded(model, **options):
    return FullyShardedDataParallel(model, **options)


def sharded_by_layer(model, **options):
    return FullyShardedDataParallel(model, auto_wrap_policy=always_wrap_policy, **options)


def sharded_in_place(model, **options):
    fully_shard(model[0], nonfinite="raise")  # that of the outermost counts
    return fully_shard(model, **options)


WAYS = [(plain, 0), (plain, 1), (plain, 2), (sharded, 0), (sharded_by_layer, 0), (sharded_in_place, 0)]
"""How a model is wrapped, and with which stage of ZeRO it is stepped."""


def make_in(wrap, stage, **options):
    dt.manual_seed(0)
    model = wrap(dt.nn.Sequential(dt.nn.Linear(4, 3), dt.nn.Tanh(), dt.nn.Linear(3, 1)).double(), **options)
    if stage:
        return model, ZeroOptimizer(model.parameters(), dt.optim.Adam, stage=stage, lr=0.1)
    return model, dt.optim.Adam(model.parameters(), lr=0.1)


def values_of(model):
    return {name.removeprefix("module."): t.tolist() for name, t in model.state_dict().items()}


def batches():
    """Return a loader of three steps for three ranks; sample 10 and 11 go to rank 2 in the second."""
    return dt.data.DataLoader(dt.data.TensorDataset(dt.ones(18, 4).double()), batch_size=2)


@pytest.mark.parametrize(("wrap", "stage"), WAYS)
def test_a_step_with_a_gradient_that_is_not_finite_can_be_skipped(caplog, wrap, stage):
    def body(rank):
        model, optimizer = make_in(wrap, stage, nonfinite="skip")
        seen = []
        for i, (x,) in enumerate(batches()):
            optimizer.zero_grad()
            if rank == 2 and i == 1:
                x[0, 0] = float("nan")
            model(x).sum().backward()
            dt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seen.append(values_of(model))
        return seen

    def undisturbed(rank):
        model, optimizer = make_in(plain, 0, nonfinite="skip")
        for i, (x,) in enumerate(batches()):
            if i != 1:
                optimizer.zero_grad()
                model(x).sum().backward()
                dt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        return values_of(model)

    with caplog.at_level(logging.WARNING, "disttrain"):
        first, *others = world(3, body)

    assert all(seen == first for seen in others)
    assert first[0] == first[1] != first[2]
    assert (
        first[2] == world(3, undisturbed)[0]
    )  # the moments and the number of steps are as if it had not been
    (line,) = [r.getMessage() for r in caplog.records]
    assert "the step is skipped on all ranks" in line
    assert re.search(r"rank 2: 3 nan in the gradient of '(2.weight|0.bias)' and 2 more", line)
    assert "batch 1 of epoch 0 (samples 10, 11)" in line


@pytest.mark.parametrize("wrap", [plain, sharded, sharded_by_layer, sharded_in_place])
def test_one_rank_alone_leaves_out_steps_too(caplog, wrap):
    model, optimizer = make_in(wrap, 0, nonfinite="skip")
    expected, expected_optimizer = make_in(plain, 0)
    x = dt.ones(2, 4).double()
    for bad in (False, True, False):
        if not bad:
            step(expected, expected_optimizer, x)
        step(model, optimizer, x * float("nan") if bad else x)

    assert values_of(model) == values_of(expected)
    assert "the step is skipped on all ranks: rank 0: " in caplog.text


@pytest.mark.parametrize(("wrap", "stage"), WAYS)
def test_a_gradient_that_is_not_finite_can_be_an_error(wrap, stage):
    def body(rank):
        model, optimizer = make_in(wrap, stage, nonfinite="raise")
        before = values_of(model)
        poison(rank, model, float("inf"))
        error = raised(model(dt.ones(2, 4).double()).sum().backward)
        gone = [p.grad is None for p in model.parameters()]
        optimizer.step()
        return type(error), str(error), gone, values_of(model) == before

    results = world(3, body)

    assert results == [results[0]] * 3
    kind, text, gone, unchanged = results[0]
    assert kind is AnomalyError
    assert text == "a gradient is not finite: rank 2: 0 nan and 12 inf in the gradient of '0.weight'"
    assert gone == [True] * 4
    assert unchanged


@pytest.mark.parametrize(("wrap", "stage"), WAYS)
def test_a_gradient_that_is_not_finite_is_averaged_as_it_is_by_default(caplog, wrap, stage):
    def body(rank):
        model, optimizer = make_in(wrap, stage)
        poison(rank, model, float("nan"))
        for (x,) in batches():
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
        return values_of(model)

    with caplog.at_level(logging.WARNING, "disttrain"):
        results = world(3, body)

    for values in results:
        assert np.isnan(values["0.weight"]).all()
        assert np.isnan(values["2.weight"]).all()  # the second forward saw the first step
    (line,) = [r.getMessage() for r in caplog.records]
    assert "averaged as it is (said once): rank 2: 12 nan in the gradient of '0.weight'" in line
    assert "batch 0 of epoch 0 (samples 4, 5)" in line


SHARDED = [sharded, sharded_by_layer, sharded_in_place]


class Boom:
    """Raises where it is called, as a hook of a module or of a parameter, while it is armed."""

    armed = False

    def __call__(self, *_):
        if self.armed:
            raise ZeroDivisionError("boom")

    def put(self, model, where):
        """Raise in a layer's forward (before or after it has run), or as a parameter's gradient is made."""
        layers = getattr(model, "module", model)
        name, _, place = where.partition(" ")
        layer = getattr(layers[int(name)], "module", layers[int(name)])
        if place == "forward":
            layer.register_forward_pre_hook(self)
        elif place == "result":
            layer.register_forward_hook(self)
        else:
            layer.weight.register_hook(self)


@pytest.mark.parametrize("wrap", SHARDED)
@pytest.mark.parametrize(
    "where",
    [
        {0: "0 forward"},
        {0: "1 forward"},
        {1: "2 result"},
        {1: "2 backward"},
        {2: "0 backward"},
        {0: "0 forward", 2: "2 backward"},  # two ranks, each in its own place
    ],
    ids=str,
)
def test_an_error_on_one_rank_takes_the_step_of_a_sharded_model_from_all(wrap, where):
    def body(rank):
        model, optimizer = make_in(wrap, 0)
        boom = Boom()
        if rank in where:
            boom.put(model, where[rank])
        errors = []
        for i, (x,) in enumerate(batches()):
            boom.armed = i == 1
            optimizer.zero_grad()
            try:
                model(x * (1 + rank + i)).sum().backward()
            except (ZeroDivisionError, PeerFailed) as error:
                errors.append(error)
                assert all(p.grad is None for p in model.parameters())
                continue
            optimizer.step()
        return values_of(model), errors

    def undisturbed(rank):
        model, optimizer = make_in(plain, 0)
        for i, (x,) in enumerate(batches()):
            if i != 1:
                step(model, optimizer, x * (1 + rank + i))
        return values_of(model)

    results = world(3, body)
    wanted = world(3, undisturbed)

    for rank, (values, (error,)) in enumerate(results):
        assert values == wanted[rank]
        assert isinstance(error, ZeroDivisionError if rank in where else PeerFailed)
        if rank not in where:
            for odd in where:
                assert f"rank{'s' * (len(where) > 1)} " in str(error)
                assert str(odd) in str(error)
            assert f"ZeroDivisionError: boom at {place(__file__, 1)[:-1]}" in str(error)


@pytest.mark.parametrize("wrap", SHARDED)
def test_an_error_of_a_sharded_model_where_nothing_is_averaged_stays_on_its_rank(wrap):
    def body(rank):
        model, optimizer = make_in(wrap, 0)
        step(model, optimizer, dt.ones(2, 4).double())
        boom = Boom()
        if rank == 1:
            boom.put(model, "0 forward")
        boom.armed = True
        seen = []
        with dt.no_grad():
            try:
                seen.append(model.eval()(dt.ones(2, 4).double()).tolist())
            except ZeroDivisionError:
                seen.append("boom")
        boom.armed = False
        step(model.train(), optimizer, dt.ones(2, 4).double())
        return seen, values_of(model)

    results = world(3, body)

    assert [values for _, values in results] == [results[0][1]] * 3
    assert [seen == ["boom"] for seen, _ in results] == [False, True, False]
    assert results[0][0] == results[2][0]


@pytest.mark.parametrize("wrap", [plain, sharded, sharded_by_layer])
def test_accumulated_gradients_are_left_out_together(caplog, wrap):
    def body(rank):
        model, optimizer = make_in(wrap, 0, nonfinite="skip")
        before = values_of(model)
        (first,), (second,), (third,) = batches()
        with model.no_sync():
            handle = poison(rank, model, float("nan"))
            model(first).sum().backward()
        if handle is not None:
            handle.remove()
        model(second).sum().backward()
        optimizer.step()
        skipped = values_of(model) == before
        optimizer.zero_grad()
        model(third).sum().backward()
        optimizer.step()
        return skipped, values_of(model)

    with caplog.at_level(logging.WARNING, "disttrain"):
        results = world(3, body)

    assert results == [results[0]] * 3
    skipped, after = results[0]
    assert skipped
    assert np.isfinite(after["0.weight"]).all()
    assert "rank 2: 12 nan in the gradient of '0.weight'" in caplog.text


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
