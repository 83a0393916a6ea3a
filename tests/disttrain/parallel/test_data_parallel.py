"""Data parallelism on ranks that are threads; on processes see tests/integration."""

import copy
import dataclasses

import numpy as np
import pytest

import disttrain as dt
from disttrain.collectives import CollectiveMismatch, RankFailed
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.nn.parallel import DistributedDataParallel

X = np.random.default_rng(0).standard_normal((12, 5))
Y = np.random.default_rng(1).standard_normal((12, 3))


def world(size, body):
    """Return what ``body(rank)`` returns on each of ``size`` ranks."""
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


def make_model(seed=0):
    dt.manual_seed(seed)
    return dt.nn.Sequential(dt.nn.Linear(5, 4), dt.nn.Tanh(), dt.nn.Linear(4, 3)).double()


def grads_of(model):
    return [None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()]


def mean_loss(model, rows):
    return ((model(dt.tensor(X[rows])) - dt.tensor(Y[rows])) ** 2).mean()


def buckets_sent():
    """Return how many buckets of gradients the calling rank has summed with the others."""
    return sum("bucket" in entry.what for entry in dt.collectives.connect().recent_calls())


def alone(rows=slice(None), seed=0):
    """Return the gradients of one process that sees all rows, with the parameters that rank 0 makes."""
    model = world(1, lambda rank: make_model(seed))[0]
    mean_loss(model, rows).backward()
    return grads_of(model)


def assert_all_equal(per_rank, expected):
    for grads in per_rank:
        for g, e, first in zip(grads, expected, per_rank[0], strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-14)
            np.testing.assert_array_equal(g, first)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("bucket_cap_mb", [None, 1e-4])
def test_gradients_are_those_of_the_whole_batch(size, bucket_cap_mb):
    def body(rank):
        model = DistributedDataParallel(make_model(), bucket_cap_mb=bucket_cap_mb)
        mean_loss(model, slice(rank * 12 // size, (rank + 1) * 12 // size)).backward()
        return grads_of(model)

    assert_all_equal(world(size, body), alone())


def test_ranks_count_in_proportion_to_their_samples():
    cuts = [0, 7, 7, 9, 12]  # 7, 0, 2 and 3 samples

    def body(rank):
        model = DistributedDataParallel(make_model())
        rows = slice(cuts[rank], cuts[rank + 1])
        mean_loss(model, rows).backward(weight=rows.stop - rows.start)  # a mean over nothing is nan
        return grads_of(model)

    assert_all_equal(world(4, body), alone())


def test_the_loaders_count_is_the_default_weight():
    def body(rank):
        model = DistributedDataParallel(make_model())
        loader = dt.data.DataLoader(dt.data.TensorDataset(dt.tensor(X[:9]), dt.tensor(Y[:9])), batch_size=5)
        for x, y in loader:
            if len(x) < 5:  # 5 and 4 samples
                rest = len(x)
            ((model(x) - y) ** 2).mean().backward()
        return grads_of(model), rest if rank else None

    results = world(2, body)

    assert results[1][1] == 4
    assert_all_equal([grads for grads, _ in results], alone(slice(0, 9)))


def test_no_samples_anywhere_give_zero_gradients():
    def body(rank):
        model = DistributedDataParallel(make_model())
        mean_loss(model, slice(0, 0)).backward(weight=0)
        return grads_of(model)

    for grads in world(2, body):
        assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("size", [2, 4])
def test_accumulated_gradients_are_averaged_once(size):
    torch = pytest.importorskip("torch")

    def body(rank):
        model = DistributedDataParallel(make_model())
        mine = np.array_split(np.arange(12), size)[rank]
        first, second, third = np.array_split(mine, 3)
        with model.no_sync():
            mean_loss(model, first).backward()
            mean_loss(model, second).backward()
        mean_loss(model, third).backward()
        assert buckets_sent() == 1
        return grads_of(model), {k: v.numpy().copy() for k, v in model.module.state_dict().items()}

    results = world(size, body)

    # What PyTorch does: the mean over the ranks of the sum over their backwards.
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    model.load_state_dict({k: torch.tensor(v) for k, v in results[0][1].items()})
    for mine in np.array_split(np.arange(12), size):
        for part in np.array_split(mine, 3):
            loss = ((model(torch.tensor(X[part])) - torch.tensor(Y[part])) ** 2).mean() / size
            loss.backward()
    assert_all_equal([grads for grads, _ in results], [p.grad.numpy() for p in model.parameters()])


def test_accumulated_gradients_of_unequal_batches_are_weighted():
    parts = [[slice(0, 4), slice(4, 5)], [slice(5, 6), slice(6, 12)]]

    def body(rank):
        model = DistributedDataParallel(make_model())
        with model.no_sync():
            mean_loss(model, parts[rank][0]).backward(weight=[4, 1][rank])
        mean_loss(model, parts[rank][1]).backward(weight=[1, 6][rank])
        return grads_of(model)

    # The mean over all samples, times the two backwards that were accumulated.
    assert_all_equal(world(2, body), [2 * g for g in alone()])


def test_backward_after_backward_adds_the_averages():
    def body(rank):
        model = DistributedDataParallel(make_model())
        rows = slice(6 * rank, 6 * rank + 6)
        mean_loss(model, rows).backward(weight=6)
        mean_loss(model, rows).backward(weight=6)
        return grads_of(model)

    assert_all_equal(world(2, body), [2 * g for g in alone()])


class Branches(dt.nn.Module):
    def __init__(self):
        super().__init__()
        self.left = dt.nn.Linear(5, 3)
        self.right = dt.nn.Linear(5, 3)
        self.never = dt.nn.Linear(5, 3)

    def forward(self, x, left):
        return self.left(x) if left else self.right(x)


def test_parameters_that_some_or_all_ranks_did_not_use():
    def body(rank):
        dt.manual_seed(0)
        model = DistributedDataParallel(Branches(), bucket_cap_mb=1e-5)
        for _ in range(2):
            model.zero_grad()
            model(dt.ones(1, 5), left=rank == 0).sum().backward()
        return grads_of(model)

    for left_w, left_b, right_w, _, never_w, never_b in world(2, body):
        np.testing.assert_array_equal(left_w, np.full((3, 5), 0.5))
        np.testing.assert_array_equal(left_b, np.full(3, 0.5))
        np.testing.assert_array_equal(right_w, np.full((3, 5), 0.5))
        assert never_w is None
        assert never_b is None


def test_shared_parameters_are_averaged_once():
    def body(rank):
        dt.manual_seed(0)
        layer = dt.nn.Linear(3, 3, bias=False)
        model = DistributedDataParallel(dt.nn.Sequential(layer, layer))
        model(dt.ones(1, 3) * (rank + 1)).sum().backward()
        return [layer.weight.grad.numpy().copy(), layer.weight.detach().numpy().copy()]

    (g0, w), (g1, _) = world(2, body)

    np.testing.assert_array_equal(g0, g1)
    x = 1.5 * np.ones(3)  # the mean of both ranks' inputs
    expected = np.outer(np.ones(3), w @ x) + np.outer(w.T @ np.ones(3), x)
    np.testing.assert_allclose(g0, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [dt.float16, dt.bfloat16])
def test_half_precision_gradients(kind):
    def body(rank):
        layer = dt.nn.Linear(2, 2).to(kind)
        model = DistributedDataParallel(layer)
        model(dt.ones(1, 2, dtype=kind) * (rank + 1)).sum().backward(weight=1000 * (1 + 2 * rank))
        return layer.weight.grad.float().numpy()

    for grad in world(2, body):
        np.testing.assert_array_equal(grad, np.full((2, 2), 1.75))


def test_all_ranks_begin_with_the_parameters_and_buffers_of_rank_0():
    def body(rank):
        dt.manual_seed(rank)
        module = dt.nn.Sequential(dt.nn.Linear(3, 3), dt.nn.BatchNorm1d(3))
        module[1].running_mean.fill_(rank)
        DistributedDataParallel(module)
        return [v.numpy().copy() for v in module.state_dict().values()]

    first, *others = world(4, body)

    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_modules_that_differ_are_refused():
    def body(rank):
        DistributedDataParallel(dt.nn.Linear(3, 3 + rank))

    with pytest.raises(RankFailed) as failed:
        world(2, body)

    assert isinstance(failed.value.exception, CollectiveMismatch)
    assert "12" in str(failed.value.exception)
    assert "16" in str(failed.value.exception)


def test_a_module_without_parameters_is_refused():
    with pytest.raises(ValueError, match="a parameter that requires grad; got none"):
        DistributedDataParallel(dt.nn.ReLU())


def test_reduction_starts_while_backward_still_runs():
    def body(rank):
        module = dt.nn.Sequential(dt.nn.Linear(4, 4), dt.nn.Linear(4, 4))
        model = DistributedDataParallel(module, bucket_cap_mb=1e-5)
        began = []
        start = model._send_next
        model._send_next = lambda: (began.append(module[0].weight.grad is None), start())[1]
        model(dt.ones(1, 4)).sum().backward()
        return began

    for began in world(2, body):
        assert began[0]  # the first bucket left before the first layer had its gradient


def test_an_unwrapped_model_cannot_step():
    def body(rank):
        layer = dt.nn.Linear(2, 2)
        optimizer = dt.optim.SGD(layer.parameters(), lr=0.1)
        layer(dt.ones(1, 2)).sum().backward()
        with pytest.raises(dt.errors.UnwrappedModel, match="DistributedDataParallel"):
            optimizer.step()
        for p in layer.parameters():
            dt.distributed.all_reduce(p.grad, op=dt.distributed.ReduceOp.AVG)
        optimizer.step()

    world(2, body)


@pytest.mark.parametrize(
    "grad_of", [lambda p: p.grad.data, lambda p: p.grad.detach(), lambda p: p.grad.data.view(-1)]
)
def test_gradients_may_be_averaged_through_another_tensor_of_their_memory(grad_of):
    def body(rank):
        layer = dt.nn.Linear(2, 2)
        optimizer = dt.optim.SGD(layer.parameters(), lr=0.1)
        layer(dt.full((1, 2), rank + 1.0)).sum().backward()
        with pytest.raises(dt.errors.UnwrappedModel):
            optimizer.step()
        for p in layer.parameters():
            dt.distributed.all_reduce(grad_of(p))
            p.grad.data /= 2
        optimizer.step()
        return layer.weight.grad.tolist()

    assert world(2, body) == [[[1.5, 1.5], [1.5, 1.5]]] * 2


def test_ranks_with_seeds_of_their_own_still_share_the_order_of_the_data():
    def body(rank):
        dt.manual_seed(100 + rank)
        DistributedDataParallel(dt.nn.Linear(1, 1))
        loader = dt.data.DataLoader(dt.data.TensorDataset(dt.arange(40)), batch_size=5, shuffle=True)
        return [i for (batch,) in loader for i in batch.tolist()]

    orders = world(4, body)

    assert sorted(sum(orders, [])) == list(range(40))  # noqa: RUF017
    assert orders[0] != sorted(orders[0])


def test_a_loader_that_has_ended_gives_no_weight():
    def body(rank):
        model = DistributedDataParallel(make_model())
        for _ in dt.data.DataLoader(dt.data.TensorDataset(dt.arange(3)), batch_size=2):
            pass  # 2 samples on rank 0, 1 on rank 1
        mean_loss(model, slice(6 * rank, 6 * rank + 6)).backward()
        return grads_of(model)

    assert_all_equal(world(2, body), alone())


def layer_of_one(kind=None):
    layer = dt.nn.Linear(1, 1, bias=False)
    return layer if kind is None else layer.to(kind)


def grad_of_one(body):
    """Return the gradient of the one weight, which both ranks must agree on."""
    first, second = world(2, body)
    assert first == second
    return first


def test_two_models_alike_are_not_mixed_up():
    def body(rank):
        a, b = DistributedDataParallel(layer_of_one()), DistributedDataParallel(layer_of_one())
        x = dt.ones(1, 1)
        outs = [a(x), b(10 * x)] if rank == 0 else [b(10 * x), a(x)]  # and so backward in another order
        (outs[0] + outs[1]).sum().backward()

    with pytest.raises(RankFailed) as failed:
        world(2, body)

    assert isinstance(failed.value.exception, CollectiveMismatch)
    assert "test_data_parallel.py" in str(failed.value.exception)
    assert "numpy" not in str(failed.value.exception)


def test_gradients_that_were_thrown_away_do_not_count():
    def body(rank):
        layer = layer_of_one()
        model = DistributedDataParallel(layer)
        with model.no_sync():
            model(dt.ones(1, 1)).sum().backward(weight=4)
        model.zero_grad()
        model(dt.ones(1, 1) * (rank + 1)).sum().backward(weight=[1, 3][rank])
        return layer.weight.grad.item()

    assert grad_of_one(body) == (1 * 1 + 3 * 2) / 4


@pytest.mark.parametrize("again", ["backward", "forward and backward"])
def test_backward_after_one_that_raised(again):
    def body(rank):
        layer, other = layer_of_one(), layer_of_one()
        model = DistributedDataParallel(dt.nn.ModuleList([layer, other]), bucket_cap_mb=1e-6)
        model.module.forward = lambda x: layer(x) + 0 * other(x)
        fails = [True]

        def fail_once(g):
            if fails:
                fails.clear()
                raise ZeroDivisionError

        layer.weight.register_hook(fail_once)
        out = model(dt.ones(1, 1) * (rank + 1))
        with pytest.raises(ZeroDivisionError):
            out.sum().backward(retain_graph=True, weight=8)
        model.zero_grad()
        if again != "backward":
            out = model(dt.ones(1, 1) * (rank + 1))
        out.sum().backward(weight=[1, 3][rank])
        return layer.weight.grad.item()

    assert grad_of_one(body) == (1 * 1 + 3 * 2) / 4


def test_a_graph_made_outside_of_no_sync_averages():
    def body(rank):
        layer = layer_of_one()
        model = DistributedDataParallel(layer)
        x = dt.ones(1, 1) * (rank + 1)
        out = model(x)
        with model.no_sync():
            inside = model(x)
        inside.sum().backward()
        out.sum().backward()
        return layer.weight.grad.item()

    assert grad_of_one(body) == 3


def test_autograd_grad_is_no_backward_of_the_step():
    def body(rank):
        layer = layer_of_one()
        model = DistributedDataParallel(layer)
        x = dt.ones(1, 1) * (rank + 1)
        with model.no_sync():
            model(x).sum().backward(weight=2)
        dt.autograd.grad(model(x).sum(), [layer.weight])
        assert buckets_sent() == 0
        model(x).sum().backward(weight=2)
        assert buckets_sent() == 1
        return layer.weight.grad.item()

    assert grad_of_one(body) == 3


def test_a_gradient_penalty_is_averaged():
    def body(rank):
        layer = layer_of_one()
        model = DistributedDataParallel(layer)
        x = (dt.ones(1, 1) * (rank + 1)).requires_grad_()
        (slope,) = dt.autograd.grad((model(x) ** 2).sum(), [x], create_graph=True)  # 2 w^2 x
        slope.sum().backward()  # 4 w x
        return layer.weight.grad.item() / layer.weight.item()

    np.testing.assert_allclose(grad_of_one(body), 4 * 1.5, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [False, True])
def test_weights_do_not_overflow_half_precision(accumulate):
    def body(rank):
        layer = layer_of_one(dt.float16)
        model = DistributedDataParallel(layer)
        x = dt.ones(1, 1, dtype=dt.float16)
        if accumulate:
            with model.no_sync():
                (model(x) * 1000).sum().backward(weight=512)
        (model(x) * 1000).sum().backward(weight=512)
        return layer.weight.grad.item()

    assert grad_of_one(body) == 1000 * (1 + accumulate)


def test_a_gradient_that_was_kept_stays_what_it_was():
    def body(rank):
        model = DistributedDataParallel(Branches())
        left = model.module.left.bias
        model(dt.ones(1, 5), left=True).sum().backward()
        kept = left.grad
        model.zero_grad()
        model(dt.ones(1, 5), left=rank == 1).sum().backward()
        return kept.tolist()

    assert world(2, body) == [[1, 1, 1]] * 2


def test_a_module_converted_after_it_was_wrapped_is_refused():
    def body(rank):
        model = DistributedDataParallel(layer_of_one())
        model.double()
        model(dt.ones(1, 1, dtype=dt.float64))

    with pytest.raises(RankFailed, match="convert the module first, then wrap it"):
        world(2, body)


def test_a_module_moved_to_memory_of_its_own_is_averaged():
    def body(rank):
        layer = layer_of_one()
        model = DistributedDataParallel(layer)
        model.double().float()
        optimizer = dt.optim.SGD(model.parameters(), lr=0.0)
        model(dt.ones(1, 1) * (rank + 1)).sum().backward()
        optimizer.step()
        return layer.weight.grad.item()

    assert grad_of_one(body) == 1.5


def test_a_module_may_be_wrapped_again():
    def body(rank):
        layer = layer_of_one()
        old = DistributedDataParallel(layer)
        model = DistributedDataParallel(layer)
        model(dt.ones(1, 1) * (rank + 1)).sum().backward()
        assert buckets_sent() == 1
        with pytest.raises(RuntimeError, match="made later has the parameters of this one"):
            old(dt.ones(1, 1))
        return layer.weight.grad.item()

    assert grad_of_one(body) == 1.5


def test_a_parameter_of_two_wrappers_is_refused():
    def body(rank):
        shared = layer_of_one()
        DistributedDataParallel(dt.nn.Sequential(shared, layer_of_one()))
        DistributedDataParallel(dt.nn.Sequential(shared, layer_of_one()))

    with pytest.raises(RankFailed, match="1 parameters of the module belong to another DistributedDataPar"):
        world(2, body)


def test_an_adversarial_pair_of_models():
    torch = pytest.importorskip("torch")

    def step(lib, g, d, z, real, optimizers):
        for p in d.parameters():
            p.grad = None
        (d(g(z).detach()).mean() - d(real).mean()).backward()
        optimizers[0].step()
        for p in g.parameters():
            p.grad = None
        (-d(g(z)).mean()).backward()
        optimizers[1].step()

    def body(rank):
        g, d = make_model(0), dt.nn.Sequential(dt.nn.Linear(3, 4), dt.nn.Tanh(), dt.nn.Linear(4, 1)).double()
        start = [{k: v.numpy().copy() for k, v in m.state_dict().items()} for m in (g, d)]
        wrapped = DistributedDataParallel(g), DistributedDataParallel(d)
        optimizers = [dt.optim.SGD(d.parameters(), lr=0.1), dt.optim.SGD(g.parameters(), lr=0.1)]
        rows = slice(6 * rank, 6 * rank + 6)
        for _ in range(3):
            step(dt, *wrapped, dt.tensor(X[rows]), dt.tensor(Y[rows]), optimizers)
        return start, [p.detach().numpy().copy() for m in (g, d) for p in m.parameters()]

    (start, ours), (_, others) = world(2, body)

    g = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    d = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    for m, state in zip((g, d), start, strict=True):
        m.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    optimizers = [torch.optim.SGD(d.parameters(), lr=0.1), torch.optim.SGD(g.parameters(), lr=0.1)]
    for _ in range(3):
        step(torch, g, d, torch.tensor(X), torch.tensor(Y), optimizers)
    theirs = [p.detach().numpy() for m in (g, d) for p in m.parameters()]
    assert_all_equal([ours, others], theirs)


@dataclasses.dataclass
class Output:
    loss: dt.Tensor


def test_outputs_may_be_in_a_dataclass():
    def body(rank):
        layer, unused = layer_of_one(), layer_of_one()
        model = DistributedDataParallel(dt.nn.ModuleList([layer, unused]))
        model.module.forward = lambda x: Output((layer if rank == 0 else (lambda x: x))(x).sum())
        model(dt.ones(1, 1).requires_grad_()).loss.backward()  # rank 1 reaches no parameter
        return layer.weight.grad.item()

    assert grad_of_one(body) == 0.5


def test_backward_to_chosen_inputs_is_refused():
    def body(rank):
        model = DistributedDataParallel(layer_of_one())
        model(dt.ones(1, 1)).sum().backward(inputs=list(model.parameters()))

    with pytest.raises(RankFailed, match=r"call backward\(\) without inputs"):
        world(2, body)


def test_a_wrapper_cannot_be_copied_but_its_module_can():
    def body(rank):
        model = DistributedDataParallel(layer_of_one())
        with pytest.raises(TypeError, match=r"copy its \.module"):
            copy.deepcopy(model)
        copied = copy.deepcopy(model.module)
        model(dt.ones(1, 1) * (rank + 1)).sum().backward()
        copied(dt.ones(1, 1) * (rank + 1)).sum().backward()
        with pytest.raises(dt.errors.UnwrappedModel):
            dt.optim.SGD(copied.parameters(), lr=0.1).step()
        return model.module.weight.grad.item()

    assert grad_of_one(body) == 1.5


@pytest.mark.parametrize("change", ["append", "unfreeze", "assign"])
def test_a_parameter_that_came_after_the_wrapper_cannot_step(change):
    def body(rank):
        first, second = layer_of_one(), layer_of_one()
        second.requires_grad_(change != "unfreeze")
        module = dt.nn.Sequential(first, *([] if change == "append" else [second]))
        model = DistributedDataParallel(module)
        if change == "append":
            module.append(second)
        second.requires_grad_()
        if change == "assign":
            model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        model(dt.ones(1, 1)).sum().backward()
        with pytest.raises(dt.errors.UnwrappedModel, match="after the last change"):
            optimizer.step()

    world(2, body)


@pytest.mark.parametrize("weight", [1, 3])
def test_the_memory_of_a_kept_gradient_stays_what_it_was(weight):
    def body(rank):
        layer = dt.nn.Linear(2, 1)
        model = DistributedDataParallel(layer)
        optimizer = dt.optim.SGD(model.parameters(), lr=1.0)
        model(dt.ones(1, 2)).sum().backward(weight=weight)
        kept = layer.weight.grad.numpy(), layer.bias.grad.detach()
        optimizer.zero_grad()
        model(dt.full((1, 2), rank + 4.0)).sum().backward(weight=weight)
        before = layer.weight.detach().numpy().copy()
        optimizer.step()
        return (
            kept[0].tolist(),
            kept[1].tolist(),
            layer.weight.grad.tolist(),
            before - layer.weight.detach().numpy(),
        )

    for weight_grad, bias_grad, new, step in world(2, body):
        assert (weight_grad, bias_grad, new) == ([[1, 1]], [1], [[4.5, 4.5]])
        np.testing.assert_allclose(step, [[4.5, 4.5]], rtol=1e-6)


def test_gradients_are_made_in_the_same_memory_step_after_step():
    def body(rank):
        model = DistributedDataParallel(make_model())
        optimizer = dt.optim.Adam(model.parameters(), lr=0.1)
        places = set()
        for _ in range(4):
            optimizer.zero_grad()
            mean_loss(model, slice(rank, None, 2)).backward()
            places.add(tuple(p.grad.data_ptr() for p in model.parameters()))
            optimizer.step()
        return len(places)

    assert world(2, body) == [1, 1]


@pytest.mark.parametrize(
    ("size", "where"),
    [
        (4, "on rank 2 it is not what it is on the others"),
        (3, "on rank 2 it is not what it is on the others"),
        (2, "alike only on rank 0 and on rank 1"),  # nobody knows which one is wrong
    ],
)
def test_fingerprints_name_the_parameter_and_the_rank_that_differ(size, where):
    def body(rank):
        model = DistributedDataParallel(make_model(), fingerprint_every=2)
        said = ""
        for step in range(4):
            try:
                mean_loss(model, slice(3 * rank, 3 * rank + 3)).backward()
            except dt.errors.ReplicasDiffer as error:
                return step, str(error)
            if rank == min(2, size - 1) and step == 0:  # is seen before the third forward
                model.module[2].weight.data[0, 0] += 1e-12
        return said

    found = set(world(size, body))

    assert len(found) == 1  # on all ranks alike
    step, text = found.pop()
    assert step == 2
    assert text.startswith(
        f"before forward 3, 1 of 4 parameters differ between the ranks; the first is '2.weight', {where}. "
    )


def test_equal_replicas_have_equal_fingerprints():
    def body(rank):
        model = DistributedDataParallel(make_model(), fingerprint_every=1)
        optimizer = dt.optim.Adam(model.parameters())
        for _ in range(3):
            mean_loss(model, slice(3 * rank, 3 * rank + 3)).backward()
            optimizer.step()

    world(2, body)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        DistributedDataParallel(make_model(), fingerprint_every=-1)


def test_unused_parameters_are_reported_once(caplog):
    def body(rank):
        model = DistributedDataParallel(dt.nn.ModuleDict({n: dt.nn.Linear(5, 3) for n in ("a", "b", "c")}))
        for _ in range(2):
            model.forward = lambda x: model.module["a"](x) + (model.module["b"](x) if rank == 0 else 0)
            model(dt.ones(2, 5)).sum().backward()
        return [p.grad is None for p in model.parameters()]

    with caplog.at_level("INFO", "disttrain"):
        missing = world(2, body)

    assert missing == [[False] * 4 + [True] * 2] * 2
    (said,) = (m for m in caplog.messages if "used parameters" in m)
    assert said.endswith(": c.weight, c.bias on none of 2 ranks; b.weight, b.bias on 1 of 2 ranks")
