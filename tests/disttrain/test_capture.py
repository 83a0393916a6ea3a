"""Captured steps: replays are the same bits as the step itself, and what cannot be repeated is refused."""

import gc
import random
import re
import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.errors import CaptureError
from disttrain.models.gpt2 import GPT2Config, GPT2LMHeadModel
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.optim import lr_scheduler

STEPS = 8


def batch(i, *shape):
    """Return numbers and labels; other ones for each ``i``."""
    rng = np.random.default_rng(i)
    return dt.tensor(rng.standard_normal(shape).astype(np.float32)), dt.tensor(rng.integers(0, 10, shape[:1]))


def text(i, *shape):
    """Return tokens and those that follow."""
    tokens = np.random.default_rng(i).integers(0, 20, (shape[0], shape[1] + 1))
    return dt.tensor(tokens[:, :-1].copy()), dt.tensor(tokens[:, 1:].reshape(-1).copy())


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))


def lenet():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


class Recurrent(nn.Module):
    def __init__(self, features=6, width=5, kind=nn.LSTM, dropout=0.2):
        super().__init__()
        self.rnn = kind(features, width, num_layers=2, batch_first=True, dropout=dropout)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class GPT(nn.Module):
    def __init__(self, length=12, width=16, heads=2, dropout=0.1):
        super().__init__()
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        self.model = GPT2LMHeadModel(
            GPT2Config(vocab_size=20, n_positions=length, n_embd=width, n_layer=2, n_head=heads, **dropouts)
        )

    def forward(self, x):
        return self.model(x).flatten(0, 1)


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        first = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.first(x)
        return self.head(nn.functional.relu(x + self.inner(x)).mean((2, 3)))


class Formulas(nn.Module):
    """Layers that users write down in operations."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 64)
        self.register_buffer("later", dt.ones(256, 256).triu(1) > 0)

    def forward(self, x):
        x = self.first(x)
        x = (x * 0.5 + x.exp().clamp(max=2.0) / (1 + x * x).sqrt()) * dt.sigmoid(x) - x.abs().log1p()
        scores = (x @ x.T / 8).masked_fill(self.later[: len(x), : len(x)], -dt.inf)
        return self.second(dt.maximum(scores.softmax(1) @ x, -x).tanh())


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(20, 64)
        layer = nn.TransformerEncoderLayer(64, 2, 256, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, 64)

    def forward(self, x):
        return self.head(self.encoder(self.tokens(x))).flatten(0, 1)


def sgd(params):
    return dt.optim.SGD(params, lr=0.1, momentum=0.9)


def adam(params):
    return dt.optim.Adam(params, lr=0.01)


MODELS = {
    "mlp, sgd": (mlp, batch, (8, 12), sgd),
    "mlp, adam": (mlp, batch, (8, 12), adam),
    "lenet": (lenet, batch, (4, 1, 32, 32), sgd),
    "lstm with dropout": (Recurrent, batch, (4, 7, 6), adam),
    "gpt with dropout": (GPT, text, (3, 9), adam),
    "residual with batch norm": (Residual, batch, (4, 3, 8, 8), sgd),
    "formulas": (Formulas, batch, (8, 64), adam),
}


def make(build, optimizer=sgd):
    dt.manual_seed(0)
    model = build()
    return model, optimizer(model.parameters())


def trainer(model, optimizer):
    def step(x, y):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def bits(module):
    return {name: t.numpy().copy() for name, t in module.state_dict().items()}


def both(body):
    """Return what ``body(captures)`` returns where ``captures`` captures a step, and where it leaves it as it is."""
    return body(dt.graph), body(lambda step: step)


def assert_same(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(ours, theirs, strict=True)


# ---------------------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("name", MODELS)
def test_replays_are_the_step_to_the_last_bit(name):
    build, data, shape, optimizer_of = MODELS[name]

    def body(captures):
        model, optimizer = make(build, optimizer_of)
        scheduler = lr_scheduler.StepLR(optimizer, 2, 0.5)
        step = captures(trainer(model, optimizer))
        losses = []
        for i in range(STEPS):
            losses.append(step(*data(i, *shape)).detach().numpy().copy())
            scheduler.step()
        assert captures is not dt.graph or step.is_captured
        return losses, bits(model), [[t.numpy() for t in s.values()] for s in optimizer.state.values()]

    ours, theirs = both(body)

    assert_same(ours, theirs)
    assert len(set(map(float, theirs[0]))) == STEPS


LARGE = {  # so that any array of a batch has 64 KiB and more
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(300, 256), nn.ReLU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64)
        ),
        *(batch, (256, 300), adam),
    ),
    "lenet": (lenet, batch, (64, 1, 32, 32), sgd),
    "lstm": (lambda: Recurrent(64, 64, dropout=0.0), batch, (64, 16, 64), adam),
    "gru": (lambda: Recurrent(64, 64, nn.GRU, 0.0), batch, (64, 16, 64), sgd),
    "gpt": (lambda: GPT(64, 64, 4, 0.0), text, (16, 64), adam),
    "formulas": (Formulas, batch, (256, 64), sgd),
    "transformer": (Transformer, text, (16, 64), adam),
    "residual with batch norm": (lambda: Residual(32), batch, (16, 3, 24, 24), sgd),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_replay_allocates_no_array(name):
    build, data, shape, optimizer_of = LARGE[name]
    model, optimizer = make(build, optimizer_of)
    step = dt.graph(trainer(model, optimizer))
    batches = [data(i, *shape) for i in range(8)]
    for x, y in batches[:6]:
        step(x, y)

    tracemalloc.start()
    try:
        peak, _ = traced(lambda: [step(x, y) for x, y in batches[6:]])
    finally:
        tracemalloc.stop()

    # NumPy's loops over arrays that lie otherwise than their results have a buffer of 32 KiB of their own.
    assert peak < 64 << 10


def traced(body):
    """Return by how many bytes the arrays grew while ``body`` ran: at the most, and in the end."""
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    body()
    now, peak = tracemalloc.get_traced_memory()
    return peak - before, now - before


@pytest.mark.parametrize("name", ["lenet", "lstm", "transformer", "residual with batch norm"])
def test_fixed_memory_is_no_more_than_the_step_takes(name):
    build, data, shape, optimizer_of = LARGE[name]
    model, optimizer = make(build, optimizer_of)
    step, (x, y) = dt.graph(trainer(model, optimizer)), data(0, *shape)
    for _ in range(2):
        step.__wrapped__(x, y)

    tracemalloc.start()
    try:
        eager, _ = traced(lambda: step.__wrapped__(x, y))
        _, fixed = traced(lambda: [step(x, y) for _ in range(5)])
    finally:
        tracemalloc.stop()

    assert step.is_captured
    assert fixed < 1.1 * eager


def test_a_replay_makes_no_graph_and_calls_no_module():
    model, optimizer = make(mlp)
    step = dt.graph(trainer(model, optimizer))
    for i in range(3):
        step(*batch(i, 8, 12))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))

    loss = step(*batch(3, 8, 12))

    assert not calls
    assert loss.grad_fn is None
    assert not loss.requires_grad


def test_the_first_calls_run_the_step_and_later_ones_do_not():
    calls = []

    @dt.graph
    def double(x):
        """Twice."""
        calls.append(1)
        return {"twice": [x * 2, 7], "again": (x + x,)}

    results = [double(dt.tensor([float(i)])) for i in range(6)]

    assert len(calls) == 3  # one runs, two are written down
    assert double.is_captured
    assert double.__doc__ == "Twice."
    assert [float(r["twice"][0]) for r in results] == [0, 2, 4, 6, 8, 10]
    assert [float(r["again"][0]) for r in results] == [0, 2, 4, 6, 8, 10]
    assert results[-1]["twice"][1] == 7


def test_results_are_not_overwritten_by_the_next_replay():
    step = dt.graph(lambda x: (x * 2, x), warmup=0)
    kept = [step(dt.tensor([float(i), 1.0])) for i in range(5)]

    assert [out.tolist() for out, _ in kept] == [[2.0 * i, 2.0] for i in range(5)]
    assert [x.tolist() for _, x in kept] == [[float(i), 1.0] for i in range(5)]


def test_numbers_are_drawn_anew():
    def body(captures):
        dt.manual_seed(3)

        def draw(x):
            y = nn.functional.dropout(x, 0.5) + dt.rand(4) + dt.randn_like(x) + dt.bernoulli(x * 0 + 0.5)
            y = nn.functional.alpha_dropout(y, 0.3, True) + nn.functional.gumbel_softmax(x, dim=0)
            return nn.functional.rrelu(y, training=True) + dt.zeros(4).uniform_() + dt.randperm(4)

        step = captures(draw)
        return [step(dt.ones(4)).numpy() for _ in range(STEPS)], dt.get_rng_state().tolist()

    ours, theirs = both(body)

    assert_same(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert len({tuple(draw) for draw in ours[0]}) == STEPS


def test_activation_checkpointing_draws_the_same_numbers_again():
    def body(captures):
        model, optimizer = make(lambda: nn.Sequential(nn.Linear(12, 10), nn.Dropout(0.5), nn.Linear(10, 10)))

        def step(x, y):
            optimizer.zero_grad()
            out = dt.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
            loss = nn.functional.cross_entropy(out, y)
            loss.backward()
            optimizer.step()
            return loss

        step = captures(step)
        return [step(*batch(i, 8, 12)).detach().numpy() for i in range(STEPS)], bits(model)

    assert_same(*both(body))


def test_constants_that_are_changed_in_place_begin_anew():
    def body(captures):
        def step(x):
            total = dt.zeros(3)
            total += x
            total[1] = 5
            total[x > 2] = -1
            return total, total.clone().mul_(x)

        step = captures(step)
        return [[t.numpy() for t in step(dt.tensor([float(i), 1.0, 2.0]))] for i in range(STEPS)]

    assert_same(*both(body))


def test_a_step_may_update_parameters_itself_and_accumulate_gradients():
    def body(captures):
        model, _ = make(mlp)
        for p in model.parameters():
            p._slot = None  # as without an optimizer

        def step(x, y):
            for part in range(2):
                loss = nn.functional.cross_entropy(model(x[part::2]), y[part::2])
                loss.backward()
            with dt.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
            return loss

        step = captures(step)
        return [step(*batch(i, 8, 12)).detach().numpy() for i in range(STEPS)], bits(model)

    assert_same(*both(body))


def test_gradients_of_gradients_hooks_and_functions_of_ones_own():
    class Cube(dt.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * 3 * x**2

    def body(captures):
        model, optimizer = make(mlp)
        model[0].weight.register_hook(lambda g: g * 2)

        def step(x, y):
            optimizer.zero_grad()
            out = Cube.apply(model(x))
            (slope,) = dt.autograd.grad(out.sum(), [model[2].bias], create_graph=True)
            loss = nn.functional.cross_entropy(out, y) + (slope**2).mean()
            loss.backward()
            optimizer.step()
            return loss

        step = captures(step)
        return [step(*batch(i, 8, 12)).detach().numpy() for i in range(STEPS)], bits(model)

    assert_same(*both(body))


def test_clipping_scaling_and_schedules_inside_the_step():
    def body(captures):
        model, optimizer = make(mlp, adam)
        scaler = dt.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, 5)
        average = dt.optim.swa_utils.AveragedModel(model)

        def step(x, y):
            optimizer.zero_grad()
            with dt.autocast("cpu", dt.bfloat16):
                loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            average.update_parameters(model)
            return loss, norm

        step = captures(step)
        seen = [[t.detach().numpy() for t in step(*batch(i, 8, 12))] for i in range(STEPS)]
        return seen, bits(model), bits(average), np.float64(scaler.get_scale()), schedule.get_last_lr()

    ours, theirs = both(body)

    assert_same(ours[:3], theirs[:3])
    assert ours[3] == theirs[3] > 2.0**10
    assert ours[4] == theirs[4]


def test_a_scaled_step_that_overflows_is_skipped_where_it_is_replayed():
    model, optimizer = make(mlp)
    scaler = dt.GradScaler("cpu", init_scale=4.0)

    @dt.graph
    def step(x, y):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()

    for i in range(4):
        step(*batch(i, 8, 12))
    x, y = batch(4, 8, 12)
    before = bits(model)

    step(x * np.inf, y)

    assert_same(bits(model), before)
    assert scaler.get_scale() == 2.0


def test_a_gradient_that_is_kept_stays_as_it_was():
    model, optimizer = make(mlp)
    step = dt.graph(trainer(model, optimizer))
    for i in range(4):
        step(*batch(i, 8, 12))
    kept = model[0].weight.grad.detach()
    values = kept.numpy().copy()

    step(*batch(9, 8, 12))

    np.testing.assert_array_equal(kept.numpy(), values)
    assert (model[0].weight.grad.numpy() != values).any()


@pytest.mark.parametrize("size", [1, 2])
def test_data_parallel_steps(size):
    def body(captures):
        def run(rank):
            model, _ = make(
                lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 10))
            )
            model = DistributedDataParallel(model, bucket_cap_mb=1e-4)
            optimizer = adam(model.parameters())

            def step(x, y):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward(weight=1 + rank)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                mean = loss.detach()
                dt.distributed.all_reduce(mean)
                return loss, mean

            step = captures(step)
            seen = [
                [t.detach().numpy().copy() for t in step(*batch(10 * rank + i, 4, 5))] for i in range(STEPS)
            ]
            return seen, bits(model)

        env = WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True)
        return run_ranks(env, run)

    assert_same(*both(body))


# ---------------------------------------------------------------------------------------------- what is refused


def refuses(step, match, *, calls=4, shape=(4, 3)):
    """Assert that the calls of a captured step end with an error that names the line marked with ``HERE``."""
    step = dt.graph(step)

    def train():
        for i in range(calls):
            step(batch(i, *shape)[0])

    with pytest.raises(CaptureError, match=match) as caught:
        train()
    assert "HERE" in str(caught.value)


READS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: bool((x > 0).all()),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "tolist": lambda x: x.tolist(),
    "print": lambda x: str(x),
    "format": lambda x: f"{x.sum():.3f}",
    "allclose": lambda x: dt.allclose(x, x),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: dt.masked_select(x, x > 0),
    "nonzero": lambda x: dt.nonzero(x),
    "unique": lambda x: dt.unique(x),
    "log": lambda x: dt.log(loss=x.sum()),
}


@pytest.mark.parametrize("name", READS)
def test_values_are_not_handed_to_python(name):
    step = dt.graph(READS[name], warmup=0)

    with pytest.raises(
        CaptureError, match=rf'(?s)a step cannot be captured.*test_capture\.py.*"{name}": lambda x'
    ):
        step(batch(1, 4, 3)[0])


def test_an_error_names_the_line():
    def step(x):
        total = x.sum()
        if total > 0:  # HERE
            return total
        return x.mean()

    refuses(step, r"(?s)truth of a tensor.*test_capture\.py")


def test_host_numbers_that_change_are_refused():
    rates = iter([0.1, 0.2, 0.3, 0.4])

    def step(x):
        return x * next(rates)  # HERE

    refuses(step, r"a number differs .*mul\(\) got 0\.2, then 0\.3")


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_of_others_are_refused(draw):
    def step(x):
        if draw() < 2:  # the same both times
            x = x + 1  # HERE
        return x

    refuses(step, r"draws random numbers with Python's or NumPy's generator")


def test_arrays_that_python_makes_of_what_changes_are_refused():
    given = iter(np.arange(12.0, dtype=np.float32).reshape(4, 3))

    def step(x):
        return x + dt.from_numpy(next(given))  # HERE

    refuses(step, r"an array of shape \[3\] that no tensor operation made differs")


def test_a_step_that_does_other_things_is_refused():
    count = iter(range(9))

    def step(x):
        if next(count) == 2:
            return x * 2  # HERE
        return x + 1

    refuses(step, r"two calls of it did different things.*add\(\)")


def test_a_closure_and_calls_that_are_waited_for_later_are_refused():
    model, optimizer = make(mlp)

    def step(x):
        optimizer.step(lambda: model(x).sum())  # HERE
        return x

    refuses(step, "closure", shape=(4, 12))


REFUSED_ON_RANKS = {
    "spread over the ranks": None,  # by the optimizer
    "async_op=True is waited for later": lambda net: dt.distributed.all_reduce(
        net.weight.data, async_op=True
    ),
    r"isend\(\) is waited for later": lambda net: dt.distributed.isend(net.weight.data, 0),
    "of SyncBatchNorm exchange sums": lambda net: nn.SyncBatchNorm(3)(dt.ones(4, 3)),
}


@pytest.mark.parametrize("match", REFUSED_ON_RANKS)
def test_what_ranks_do_that_cannot_be_captured_is_refused(match):
    def run(rank):
        net = nn.Linear(3, 3)
        model = DistributedDataParallel(net)
        if "spread" in match:
            dt.distributed.optim.ZeroRedundancyOptimizer(model.parameters(), dt.optim.Adam, stage=2)

        def step(x):
            if "spread" not in match:
                REFUSED_ON_RANKS[match](net)
            return model(x)

        with pytest.raises(CaptureError, match=match):
            dt.graph(step, warmup=0)(dt.ones(2, 3))

    run_ranks(WorkerEnv(world_size=2, hosted=2, local_world_size=2), run)


def test_tensors_of_other_shapes_and_other_arguments_are_refused():
    step = dt.graph(lambda x, scale: x * scale)
    for _ in range(3):
        step(dt.ones(4), 2)

    assert step(dt.ones(4), 2).tolist() == [2.0] * 4
    with pytest.raises(CaptureError, match=r"\[5\] of float32.*was captured with.*\[4\] of float32"):
        step(dt.ones(5), 2)
    with pytest.raises(CaptureError, match="shapes, types"):
        step(dt.ones(4, dtype=dt.float64), 2)
    with pytest.raises(CaptureError, match="shapes, types"):
        step(dt.ones(4), 3)
    assert step.__wrapped__(dt.ones(5), 3).tolist() == [3.0] * 5
    step.reset()
    assert step(dt.ones(5), 3).tolist() == [3.0] * 5


def test_arguments_that_lie_otherwise_in_memory_are_laid_out():
    step = dt.graph(lambda x: x.reshape(-1) * 2)
    for _ in range(3):
        step(dt.ones(2, 3))

    assert step(dt.arange(6.0).reshape(3, 2).T).tolist() == [0, 4, 8, 2, 6, 10]


def test_arguments_have_no_history():
    step = dt.graph(lambda x: x * 2)

    with pytest.raises(CaptureError, match="do not require grad, got one of shape"):
        step(dt.ones(3, requires_grad=True))
    with pytest.raises(CaptureError, match="an array of shape"):
        step(np.ones(3))


def test_parameters_that_have_moved_are_noticed():
    model, optimizer = make(mlp)
    step = dt.graph(trainer(model, optimizer))
    for i in range(4):
        step(*batch(i, 8, 12))
    model[0].weight.data = dt.zeros(16, 12)

    with pytest.raises(CaptureError, match=r"a parameter of shape \[16, 12\] has other memory"):
        step(*batch(4, 8, 12))


def test_modules_that_evaluate_and_parameters_that_are_frozen_are_noticed():
    model, optimizer = make(lambda: nn.Sequential(nn.Linear(12, 10), nn.Dropout(0.5)))
    step = dt.graph(trainer(model, optimizer))
    for i in range(4):
        step(*batch(i, 8, 12))

    model.eval()
    with pytest.raises(CaptureError, match="Sequential was training when the step was captured"):
        step(*batch(4, 8, 12))
    model.train()
    model[0].bias.requires_grad_(False)
    with pytest.raises(CaptureError, match="another parameter requires grad"):
        step(*batch(4, 8, 12))
    model[0].bias.requires_grad_()
    step(*batch(4, 8, 12))


def test_a_tensor_that_is_gone_is_noticed():
    kept = {"scale": dt.ones(3)}
    step = dt.graph(lambda x: x * kept["scale"])
    for _ in range(3):
        step(dt.ones(3))
    kept["scale"] = dt.zeros(3)

    with pytest.raises(CaptureError, match=r"a tensor of shape \[3\] .* is gone"):
        step(dt.ones(3))


@pytest.mark.parametrize("mode", [dt.no_grad, lambda: dt.autocast("cpu", dt.bfloat16)])
def test_another_mode_is_noticed(mode):
    step = dt.graph(lambda x: x * 2)
    for _ in range(3):
        step(dt.ones(3))

    with mode(), pytest.raises(CaptureError, match="in another mode"):
        step(dt.ones(3))
    with nullcontext():
        step(dt.ones(3))


def test_checks_of_values_still_raise_and_name_the_line():
    table = dt.nn.Embedding(5, 2)

    def step(i):
        return table(i)  # HERE

    step = dt.graph(step)
    for _ in range(3):
        step(dt.tensor([1, 2]))

    with pytest.raises(IndexError) as caught:
        step(dt.tensor([1, 7]))
    assert re.search(r"(?s)in a replay of a captured step.*HERE", "".join(caught.value.__notes__))
    assert step(dt.tensor([1, 2])).shape == (2, 2)


def test_arguments_of_graph():
    with pytest.raises(TypeError, match="captures a function, got int"):
        dt.graph(3)
    with pytest.raises(ValueError, match="warmup must not be negative, got -1"):
        dt.graph(lambda: None, warmup=-1)


def test_methods_capture_for_each_object():
    class Trainer:
        def __init__(self, by):
            self.by = by

        @dt.graph
        def step(self, x):
            return x * self.by

    two, three = Trainer(2), Trainer(3)

    assert [(float(two.step(dt.ones(1))), float(three.step(dt.ones(1)))) for _ in range(5)] == [(2, 3)] * 5
    assert two.step.is_captured


def test_the_source_shows_calls_and_lines():
    step = dt.graph(lambda x: dt.relu(x))
    assert step.source == ""
    for _ in range(3):
        step(dt.ones(3))

    assert re.fullmatch(
        r"def step\(v0\):\n    # test_capture\.py:\d+\n    v1 = relu\(v0\)\[0\]\n    del v0\n    return \(v1, \)\n",
        step.source,
    )
