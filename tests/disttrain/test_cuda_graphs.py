"""Captured steps on a stand-in for a GPU whose streams can be captured: nothing runs before a graph is launched."""

import contextlib
import types

import cuda_shim
import numpy as np
import pytest

import disttrain as dt
from disttrain import engine, nn
from disttrain.errors import CaptureError
from disttrain.kernels import cuda
from disttrain.modes import replayed
from disttrain.ops.types import no_vjp


class Streams:
    """Takes down what is done to arrays while a stream is captured, and does it when the graph is launched."""

    def __init__(self):
        self.capturing = None
        self.graphs = []
        self.launches = 0

    def do(self, task):
        if self.capturing is None:
            task()
        else:
            self.capturing.append(task)

    def made(self, result, given, again):
        """Return the result of a function, which is garbage until the graph is launched."""
        if self.capturing is None or not isinstance(result, np.ndarray):
            return result
        if any(isinstance(a, np.ndarray) and np.may_share_memory(result, a) for a in given):
            return result
        bare = plain(result)
        bare[...] = np.nan if bare.dtype.kind == "f" else -1 if bare.dtype.kind == "i" else 1
        self.capturing.append(lambda: np.copyto(bare, again()))
        return result

    def module(self):
        streams = self

        class Stream:
            def __init__(self, non_blocking=False):
                assert non_blocking

            def __enter__(self):
                pass

            def __exit__(self, *_):
                pass

            def begin_capture(self):
                assert streams.capturing is None
                streams.capturing = []

            def end_capture(self):
                graph, streams.capturing = Graph(streams.capturing), None
                streams.graphs.append(graph)
                return graph

        class Graph:
            def __init__(self, tasks):
                self.tasks = tasks

            def launch(self):
                streams.launches += 1
                for task in self.tasks:
                    task()

        pool = type("MemoryPool", (), {"malloc": None})
        return types.SimpleNamespace(
            Device=cuda_shim.GpuDevice,
            Stream=Stream,
            MemoryPool=pool,
            get_allocator=lambda: "of a user",
            using_allocator=lambda _: contextlib.nullcontext(),
        )


def plain(x):
    if isinstance(x, np.ndarray):
        return x.view(np.ndarray)
    if isinstance(x, tuple | list):
        return type(x)(map(plain, x))
    return x


@pytest.fixture
def gpu(monkeypatch):
    """Arrays of kind ``gpu.array``; yields what is captured and launched."""
    if reason := cuda_shim.missing():
        pytest.skip(reason)
    streams = Streams()

    class Captured(cuda_shim.OfGpu, np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
            call = getattr(ufunc, method)
            given = [plain(x) for x in inputs]
            if out is not None:
                streams.do(lambda: call(*given, out=tuple(map(plain, out)), **options))
                return out[0]
            result = np.asarray(call(*given, **options)).view(Captured)
            return streams.made(result, (), lambda: call(*given, **options))

        def __array_function__(self, function, _, args, options):
            given = [plain(a) for a in args]
            if function is np.copyto:
                return streams.do(lambda: function(*given, **options))
            result = function(*given, **{k: plain(v) for k, v in options.items()})
            if not isinstance(result, np.ndarray | np.generic):
                return result
            made = np.asarray(result).view(Captured)  # CuPy makes no scalars
            return streams.made(made, given, lambda: function(*given, **options))

        def copy(self, order="C"):
            mine = plain(self)
            return streams.made(mine.copy(order).view(Captured), (), lambda: mine.copy(order))

        def astype(self, dtype, copy=True):
            mine = plain(self)
            if not copy and mine.dtype == dtype:
                return self
            return streams.made(mine.astype(dtype).view(Captured), (), lambda: mine.astype(dtype))

        def sum(self, *args, **options):
            mine = plain(self)
            result = np.asarray(mine.sum(*args, **options)).view(Captured)
            return streams.made(result, (), lambda: mine.sum(*args, **options))

        def __setitem__(self, key, value):
            mine, value = plain(self), plain(value)
            streams.do(lambda: mine.__setitem__(key, value))

        def item(self, *args):
            if streams.capturing is not None:
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().item(*args)

        __bool__ = __int__ = __float__ = item

    monkeypatch.setattr(cuda_shim, "GpuArray", Captured)
    with cuda_shim.stand_in("round-robin", monkeypatch):
        import cupy

        cupy.cuda = streams.module()
        cupy.get_default_memory_pool = lambda: types.SimpleNamespace(used_bytes=lambda: 0, malloc=None)
        load = cuda.load

        def captured(program, variant, kernel):
            run = load(program, variant, kernel)
            return lambda *args: streams.do(lambda: run(*args))

        monkeypatch.setattr(cuda, "load", captured)
        streams.array = lambda x: cuda_shim.aligned(x).view(Captured)
        yield streams
        monkeypatch.undo()


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def simple(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = ((model(x) - y) ** 2).mean()
    loss.backward()
    optimizer.step()
    return loss


def two_steps_in_one(model, optimizer, x, y):
    simple(model, optimizer, x, y)
    with dt.no_grad():
        x = x * 2
    nn.utils.clip_grad_value_(model.parameters(), 0.1)
    return simple(model, optimizer, x, y)


def accumulating(model, optimizer, x, y):
    optimizer.zero_grad()
    for part in (slice(0, 5), slice(5, 8)):
        loss = ((model(x[part]) - y[part]) ** 2).sum()
        loss.backward()
    optimizer.step()
    return loss


def train(gpu, captures, step_of, steps=7):
    """Return the losses and the parameters after some steps."""
    dt.manual_seed(0)
    model = mlp()
    for p in model.parameters():
        p._array = gpu.array(p._array)
    optimizer = dt.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = dt.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    step = captures(lambda x, y: step_of(model, optimizer, x, y))
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(steps):
        x, y = (dt.Tensor._of(gpu.array(rng.standard_normal((8, n)).astype(np.float32))) for n in (6, 3))
        losses.append(plain(step(x, y).detach()._array).copy())
        schedule.step()
    return losses, [plain(p._array).copy() for p in model.parameters()]


@pytest.mark.parametrize(("step", "graphs"), [(simple, 1), (accumulating, 1), (two_steps_in_one, 3)])
def test_what_lies_between_calls_of_python_is_one_graph(gpu, step, graphs):
    ours = train(gpu, dt.graph, step)
    assert len(gpu.graphs) == graphs
    assert gpu.launches == 4 * graphs  # of seven steps: one runs, two are written down
    assert all(graph.tasks for graph in gpu.graphs)
    theirs = train(gpu, lambda step: step, step)

    for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        np.testing.assert_array_equal(a, b)


def peek(x):
    """An operation that looks at what it computes."""
    return (x * 2 if (x > 0).any() else x), (), no_vjp


def test_what_waits_for_the_gpu_is_refused_with_its_line(gpu):
    step = dt.graph(lambda x: engine.apply(peek, x))
    x = dt.Tensor._of(gpu.array(np.arange(5, dtype=np.float32)))
    for _ in range(3):
        step(x)

    with pytest.raises(
        CaptureError, match=r"(?s)peek\(\) cannot be a part of a CUDA graph: .*step = dt\.graph"
    ):
        step(x)


def test_the_scale_of_a_loss_is_that_of_the_replay(gpu):
    scaler = dt.GradScaler("cpu", init_scale=2.0)
    step = dt.graph(lambda x: scaler.scale(x + 1) * 3)
    x = dt.Tensor._of(gpu.array(np.ones(5, np.float32)))
    seen = []
    for scale in (2.0, 4.0, 8.0, 16.0, 32.0):
        scaler.update(scale)
        seen.append(float(plain(step(x)._array)[0]))

    assert seen == [12.0, 24.0, 48.0, 96.0, 192.0]


def test_numbers_that_python_holds_are_refused(gpu):
    rate = replayed(lambda: 0.5)
    step = dt.graph(lambda x: x * rate())
    x = dt.Tensor._of(gpu.array(np.ones(5, np.float32)))
    for _ in range(3):
        step(x)

    with pytest.raises(CaptureError, match=r"(?s)mul\(\) cannot be .*a number that Python holds.*x \* rate"):
        step(x)


def test_draws_come_before_the_graph_that_needs_them(gpu):
    net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3), nn.Dropout(0.2))
    for p in net.parameters():
        p._array = gpu.array(p._array)

    def run(captures):
        dt.manual_seed(1)
        rng = np.random.default_rng(0)
        step = captures(lambda x: (net(x) + dt.rand_like(x[:, :3])).sum())
        xs = [dt.Tensor._of(gpu.array(rng.standard_normal((8, 6)).astype(np.float32))) for _ in range(6)]
        return [float(plain(step(x)._array)) for x in xs]

    ours = run(dt.graph)

    assert len(gpu.graphs) == 2  # rand_like() is a call of Python
    assert ours == run(lambda step: step)
    assert len(set(ours)) == len(ours)
