"""SyncBatchNorm on ranks that are threads, against BatchNorm of the whole batch."""

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks

rng = np.random.default_rng(2)
X = rng.standard_normal((7, 3, 4, 2)) * 2 + 1
G = rng.standard_normal(X.shape)
WEIGHT, BIAS = rng.standard_normal(3), rng.standard_normal(3)


def world(body, size):
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


def trained(layer, x, g):
    """Return what three steps of ``layer`` give: output, gradients, running values, second derivatives."""
    layer = layer.double()
    with dt.no_grad():
        layer.weight.copy_(dt.tensor(WEIGHT))
        layer.bias.copy_(dt.tensor(BIAS))
    for _ in range(2):
        layer(dt.tensor(x))
    t = dt.tensor(x).requires_grad_()
    out = layer(t)
    gx, gw, gb = dt.autograd.grad(out, [t, layer.weight, layer.bias], dt.tensor(g), create_graph=True)
    (second,) = dt.autograd.grad((gx * gx).sum(), [t])
    arrays = [v.detach().numpy() for v in (out, gx, gw, gb, second)]
    return arrays, [v.numpy() for v in layer.buffers()]


@pytest.mark.parametrize(
    "cuts", [[4], [1, 3], [0, 5]], ids=["two ranks", "three ranks", "one without samples"]
)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_is_batch_norm_of_the_whole_batch(cuts, momentum):
    parts = list(zip(np.split(X, cuts), np.split(G, cuts), strict=True))

    def body(rank):
        return trained(nn.SyncBatchNorm(3, momentum=momentum), *parts[rank])

    results = world(body, len(parts))
    whole, running = trained(nn.BatchNorm2d(3, momentum=momentum), X, G)

    for i in (0, 1, 4):  # of the samples: what the ranks hold one after the other
        np.testing.assert_allclose(np.concatenate([r[0][i] for r in results]), whole[i], 1e-9, 1e-9)
    for i in (2, 3):  # of the parameters: what a wrapper sums up
        np.testing.assert_allclose(sum(r[0][i] for r in results), whole[i], 1e-9, 1e-9)
    for _, mine in results:
        for a, b in zip(mine, running, strict=True):
            np.testing.assert_allclose(a, b, 1e-12)


def test_in_evaluation_ranks_do_not_wait_for_each_other():
    def body(rank):
        layer = nn.SyncBatchNorm(3).eval()
        return layer(dt.ones(2, 3)).detach().numpy() if rank == 0 else None

    np.testing.assert_allclose(world(body, 2)[0], np.full((2, 3), (1 + 1e-5) ** -0.5), 1e-6)


def test_a_group_normalises_by_itself():
    def body(rank):
        group = dt.distributed.new_group([0, 1]) if rank < 3 else None
        layer = nn.SyncBatchNorm(3, process_group=group)
        return layer(dt.tensor(np.split(X, [3, 6])[rank]).float()).detach().numpy() if rank < 2 else None

    outs = world(body, 3)[:2]

    whole = nn.BatchNorm2d(3)(dt.tensor(X[:6]).float()).detach().numpy()
    np.testing.assert_allclose(np.concatenate(outs), whole, 1e-4, 1e-5)


def test_one_value_per_channel_on_each_rank_is_enough():
    def body(rank):
        return nn.SyncBatchNorm(3)(dt.full((1, 3), float(rank))).detach().numpy()

    np.testing.assert_allclose(np.concatenate(world(body, 2)), [[-1] * 3, [1] * 3], 1e-4)


def test_losses_count_as_their_ranks_do_in_the_average():
    def trained_on(part, weight):
        dt.manual_seed(1)
        layers = nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
        model = nn.parallel.DistributedDataParallel(layers)
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(dt.tensor(part)).square().mean().backward(weight=weight)
            optimizer.step()
        return [p.detach().numpy() for p in layers.parameters()]

    samples = X.transpose(0, 2, 3, 1).reshape(-1, 3)
    parts = np.split(samples, [5, 25])

    together = world(lambda rank: trained_on(parts[rank], len(parts[rank])), 3)
    alone = trained_on(samples, 1)

    for params in together:
        for a, b in zip(params, alone, strict=True):
            np.testing.assert_allclose(a, b, 1e-9, 1e-12)
