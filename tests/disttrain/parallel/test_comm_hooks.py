"""Communication hooks: compression and other ways to average a bucket."""

import numpy as np
import pytest

import disttrain as dt
from disttrain import distributed as dist
from disttrain.collectives import RankFailed
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel import comm_hooks

X = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)


def world(size, body):
    """Return what ``body(rank)`` returns on each of ``size`` ranks."""
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


def make(hook=None, kind=dt.float32):
    dt.manual_seed(0)
    model = dt.nn.Sequential(dt.nn.Linear(5, 4), dt.nn.Tanh(), dt.nn.Linear(4, 3)).to(kind)
    model = DistributedDataParallel(model, bucket_cap_mb=5e-5)
    if hook is not None:
        model.register_comm_hook(None, hook)
    return model


def gradients(size, hook, weights=(1, 1, 1, 1), kind=dt.float32):
    """Return each rank's gradients of a backward with these weights, as one vector."""

    def body(rank):
        model = make(hook, kind)
        rows = slice(3 * rank, 3 * rank + 3)
        with model.no_sync():
            (model(dt.tensor(X[rows]).to(kind)) ** 2).mean().backward(weight=weights[rank])
        (model(dt.tensor(X[rows] + 1).to(kind)) ** 2).mean().backward(weight=weights[rank])
        return np.concatenate([p.grad.float().numpy().reshape(-1) for p in model.parameters()])

    results = world(size, body)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    return results[0]


def own_all_reduce(state, bucket):
    """What PyTorch's documentation shows."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda f: f.value()[0] / dist.get_world_size())


def own_mean_of_all(state, bucket):
    """A hook that returns another tensor, from other calls."""
    parts = [dt.empty_like(bucket.buffer()) for _ in range(dist.get_world_size())]
    return (
        dist.all_gather(parts, bucket.buffer(), async_op=True)
        .get_future()
        .then(lambda f: sum(f.value()) / len(parts))
    )


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (3, 0, 1, 2), (0, 0, 0, 0)])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(
    ("hook", "rtol"),
    [
        (comm_hooks.allreduce_hook, 1e-5),
        (own_all_reduce, 1e-5),
        (own_mean_of_all, 1e-5),
        (comm_hooks.fp16_compress_hook, 2e-3),
        (comm_hooks.bf16_compress_hook, 2e-2),
        (comm_hooks.fp16_compress_wrapper(own_all_reduce), 2e-3),
        (comm_hooks.bf16_compress_wrapper(comm_hooks.allreduce_hook), 2e-2),
    ],
)
def test_a_hook_averages_as_no_hook_does(hook, rtol, size, weights):
    plain = gradients(size, None, weights)
    np.testing.assert_allclose(gradients(size, hook, weights), plain, rtol=rtol, atol=rtol * 0.1)


@pytest.mark.parametrize("kind", [dt.float16, dt.bfloat16])
def test_gradients_in_half_precision_go_through_a_hook_in_float32(kind):
    seen = []

    def hook(state, bucket):
        seen.append(bucket.buffer().dtype)
        return comm_hooks.allreduce_hook(state, bucket)

    np.testing.assert_allclose(
        gradients(2, hook, kind=kind), gradients(2, None, kind=kind), rtol=1e-2, atol=1e-3
    )
    assert set(seen) == {dt.float32}


def test_compression_halves_what_is_sent():
    sent = []

    def body(rank):
        model = make(comm_hooks.fp16_compress_hook)
        start = model._comm.start_all_reduce
        model._comm.start_all_reduce = lambda x, out, **k: (
            sent.append((x.dtype.name, x.size)),
            start(x, out, **k),
        )[1]
        model(dt.tensor(X[:3])).sum().backward()
        return sum(p.numel() for p in model.parameters())

    (count,) = set(world(1 + 1, body))
    assert sum(size for kind, size in sent if kind == "float16") == 2 * count  # on both ranks
    assert max(size for kind, size in sent if kind != "float16") < count / 2


def test_what_a_bucket_shows():
    def body(rank):
        seen = []

        def hook(state, bucket):
            state.append(bucket.index())
            shapes = [list(p.shape) for p in bucket.parameters()]
            grads = bucket.gradients()
            assert [list(g.shape) for g in grads] == shapes
            assert sum(g.numel() for g in grads) == bucket.buffer().numel()
            seen.append((bucket.index(), bucket.is_last(), shapes))
            grads[0].fill_(7)  # a view of the buffer
            return comm_hooks.allreduce_hook(None, bucket)

        dt.manual_seed(0)
        model = DistributedDataParallel(
            dt.nn.Sequential(dt.nn.Linear(5, 4), dt.nn.Linear(4, 3)), bucket_cap_mb=5e-5
        )
        state = []
        model.register_comm_hook(state, hook)
        model(dt.tensor(X[:3])).sum().backward()
        return seen, state, model.module[1].bias.grad.tolist()

    first, second = world(2, body)
    assert first == second
    assert first == (
        [(0, False, [[3]]), (1, False, [[3, 4]]), (2, False, [[4]]), (3, True, [[4, 5]])],
        [0, 1, 2, 3],
        [7, 7, 7],
    )


def test_an_error_on_one_rank_takes_the_step_from_all_with_a_hook_too():
    def body(rank):
        model = make(comm_hooks.fp16_compress_hook)
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        for i in range(3):
            optimizer.zero_grad()
            try:
                model(dt.tensor(X[:3, : 4 if rank == i == 1 else 5])).sum().backward()
            except RuntimeError as error:
                said = type(error).__name__
                continue
            optimizer.step()
        return said, model.module[0].weight.tolist()

    (one, a), (two, b) = world(2, body)
    assert (one, two) == ("PeerFailed", "RuntimeError")
    assert a == b


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (lambda bucket: bucket.buffer(), "'Tensor' object has no attribute 'wait'|must return a Future"),
        (
            lambda bucket: own_all_reduce(None, bucket).then(lambda f: f.value()[:1]),
            "a Future of a Tensor of",
        ),
    ],
)
def test_a_hook_that_returns_something_else_is_an_error(returned, error):
    def body(rank):
        model = make(lambda state, bucket: returned(bucket))
        model(dt.tensor(X[:3])).sum().backward()

    with pytest.raises(RankFailed) as failed:
        world(2, body)
    assert failed.match(error)


def test_a_model_has_one_hook():
    model = make(comm_hooks.allreduce_hook)
    with pytest.raises(RuntimeError, match="there is a communication hook already"):
        model.register_comm_hook(None, comm_hooks.allreduce_hook)
    with pytest.raises(TypeError, match="must be callable, got str"):
        make().register_comm_hook(None, "fp16")
