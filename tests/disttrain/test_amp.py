"""Mixed precision against PyTorch: autocast as a block and a decorator, training with it, the scaler of gradients."""

import threading
import warnings

import numpy as np
import pytest

import disttrain as dt
from disttrain import precision
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.nn.parallel import DistributedDataParallel

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def test_autocast_that_is_off_changes_nothing():
    for autocast in (dt.autocast, dt.amp.autocast):
        with autocast("cpu", enabled=False), autocast("cuda", dtype=dt.float16, enabled=False):
            assert (dt.ones(2, 2) @ dt.ones(2, 2)).dtype is dt.float32

        @autocast("cpu", enabled=False)
        def product(x):
            """Of x."""
            return x @ x

        assert product(dt.ones(2, 2)).dtype is dt.float32
        assert product.__doc__ == "Of x."
    assert dt.is_autocast_enabled() is dt.is_autocast_enabled("cpu") is False
    with dt.cuda.amp.autocast(enabled=False) as entered:
        assert entered is not None


def test_autocast_without_a_gpu_warns_as_in_pytorch():
    if torch.cuda.is_available() or dt.cuda.is_available():
        pytest.skip("there is a GPU")
    for lib in (torch, dt):
        with pytest.warns(UserWarning, match="not available"), lib.autocast("cuda", dtype=lib.float16):
            assert (lib.ones(2, 2) @ lib.ones(2, 2)).dtype is lib.float32
        with pytest.warns(UserWarning, match="lower precision|bfloat16"):
            lib.autocast("cpu", dtype=lib.float32)
        with pytest.raises(RuntimeError):
            lib.autocast("abacus")
        with pytest.raises(ValueError, match="device_type"):
            lib.autocast(lib.device("cpu"))


def settings(lib):
    return [
        (
            lib.is_autocast_enabled(device),
            str(lib.get_autocast_dtype(device)).partition(".")[2],
            lib.is_autocast_cache_enabled(),
            lib.amp.is_autocast_available(device),
        )
        for device in ("cpu", "cuda")
    ]


def test_blocks_nest_and_restore_what_was_outside():
    seen = []
    for lib in (torch, dt):
        seen.append([settings(lib)])
        with lib.autocast("cpu"):
            seen[-1].append(settings(lib))
            with lib.amp.autocast("cpu", dtype=lib.float16, cache_enabled=False):
                seen[-1].append(settings(lib))
                with lib.autocast("cpu", enabled=False):
                    seen[-1].append(settings(lib))
                    seen[-1].append((lib.ones(2, 2) @ lib.ones(2, 2)).dtype is lib.float32)
                with pytest.raises(KeyError), lib.autocast("cpu"):  # left by an error
                    raise KeyError
                seen[-1].append(settings(lib))
            seen[-1].append(settings(lib))
        seen[-1].append(settings(lib))

    assert seen[0] == seen[1]
    assert dt.amp.is_autocast_available("meta") is torch.amp.is_autocast_available("meta") is False


def test_a_block_may_be_used_again_inside_itself():
    block = dt.autocast("cpu")
    with dt.autocast("cpu", dtype=dt.float16), block:
        with block:
            pass
        assert dt.get_autocast_dtype("cpu") is dt.bfloat16
    assert precision.state() == precision.State()


def test_the_state_can_be_set_without_a_block():
    seen = []
    for lib in (torch, dt):
        lib.set_autocast_enabled("cpu", True)
        lib.set_autocast_dtype("cpu", lib.float16)
        lib.set_autocast_cache_enabled(False)
        seen.append([settings(lib), str((lib.ones(2, 2) @ lib.ones(2, 2)).dtype).partition(".")[2]])
        lib.set_autocast_enabled("cpu", False)
        lib.set_autocast_dtype("cpu", lib.bfloat16)
        lib.set_autocast_cache_enabled(True)
        lib.clear_autocast_cache()
        seen[-1].append(settings(lib))

    assert seen[0] == seen[1]
    for module in (dt, torch):
        with pytest.raises(RuntimeError):
            module.set_autocast_enabled("abacus", True)


def test_the_older_names_for_one_kind_of_device():
    dt.set_autocast_cpu_enabled(True)
    dt.set_autocast_cpu_dtype(dt.float16)
    dt.set_autocast_enabled(True)
    dt.set_autocast_gpu_dtype(dt.bfloat16)
    assert dt.is_autocast_cpu_enabled()
    assert dt.is_autocast_enabled()
    assert (dt.get_autocast_cpu_dtype(), dt.get_autocast_gpu_dtype()) == (dt.float16, dt.bfloat16)
    assert (dt.ones(2, 2) @ dt.ones(2, 2)).dtype is dt.float16  # a GPU's autocast is not that of the CPU
    dt.set_autocast_cpu_enabled(False)
    assert (dt.ones(2, 2) @ dt.ones(2, 2)).dtype is dt.float32
    dt.set_autocast_enabled(False)
    dt.set_autocast_cpu_dtype(dt.bfloat16)
    dt.set_autocast_gpu_dtype(dt.float16)
    assert not dt.is_autocast_cpu_enabled()
    assert not dt.is_autocast_enabled()


def test_a_decorated_function_runs_in_a_block_of_its_own():
    @dt.autocast("cpu", dtype=dt.float16)
    def product(x, times):
        """Of x."""
        return product(x, times - 1) if times else x @ x

    assert product(dt.ones(2, 2), 2).dtype is dt.float16
    assert (product.__doc__, product.__name__) == ("Of x.", "product")
    assert not dt.is_autocast_enabled("cpu")
    with pytest.raises(TypeError, match="decorates a function, got Tensor"):
        dt.autocast("cpu")(dt.ones(2))


def test_the_state_is_that_of_the_thread():
    shared = dt.autocast("cpu")
    inside, done = threading.Event(), threading.Event()
    seen = {}

    def other():
        seen["before"] = dt.is_autocast_enabled("cpu")
        with shared:
            inside.set()
            done.wait(30)
            seen["within"] = dt.is_autocast_enabled("cpu")
        seen["after"] = dt.is_autocast_enabled("cpu")

    thread = threading.Thread(target=other)
    with dt.autocast("cpu", dtype=dt.float16):
        thread.start()
        assert inside.wait(30)
        with shared:  # the same object in two threads at a time
            assert dt.get_autocast_dtype("cpu") is dt.bfloat16
        assert dt.get_autocast_dtype("cpu") is dt.float16
        done.set()
        thread.join(30)

    assert seen == {"before": False, "within": True, "after": False}


def casts_of(loss):
    """Return how many casts the history of ``loss`` holds, each once."""
    nodes, found = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            nodes += [n for n, _ in node.next_functions]
    return sum("ToCopy" in node.name() or "stype" in node.name() for node in found)


@pytest.mark.parametrize("cached", [True, False])
def test_a_parameter_is_cast_once_per_outermost_block(cached):
    counts = []
    for lib in (torch, dt):
        weight = lib.nn.Parameter(lib.ones(2, 2))
        with lib.autocast("cpu", cache_enabled=cached):
            x = weight.mm(weight)
            with lib.autocast("cpu", dtype=lib.bfloat16):
                x = x.mm(weight)
            x = x.mm(weight)
        counts.append(casts_of(x.sum()))

    assert counts == [1, 1] if cached else [4, 4]


def test_the_cache_ends_with_the_outermost_block_and_follows_the_parameter():
    weight = dt.nn.Parameter(dt.ones(2, 2))
    one = dt.ones(2, 2)
    with dt.autocast("cpu"):
        with dt.no_grad():
            assert not (weight @ one).requires_grad
        (weight @ one).sum().backward()  # what was cast without history serves no product that has one
        (weight @ one).sum().backward()  # two graphs share a cast
        assert weight.grad.tolist() == [[4.0, 4.0]] * 2
        with dt.no_grad():
            weight.mul_(2)
        assert (weight @ one).tolist() == [[4.0, 4.0]] * 2
        weight.data = dt.zeros(2, 2)
        assert (weight @ one).tolist() == [[0.0, 0.0]] * 2
        assert len(precision.state().cache) == 1
        cache = precision.state().cache
        dt.clear_autocast_cache()
        assert not cache
        weight @ one
        assert cache

    assert not cache
    assert precision.state() == precision.State()


def test_backward_computes_in_the_types_of_forward():
    x = dt.ones(2, 2, requires_grad=True)
    y = (x * x) @ dt.ones(2, 2)
    with dt.autocast("cpu"):
        (g,) = dt.autograd.grad(y.sum(), x, create_graph=True)
        assert dt.is_autocast_enabled("cpu")
    assert g.dtype is dt.float32
    g.sum().backward()
    assert x.grad.tolist() == [[4.0, 4.0]] * 2


def test_a_checkpointed_function_runs_again_as_the_first_time():
    layer = dt.nn.Linear(3, 3)
    x = dt.ones(2, 3, requires_grad=True)
    grads = []
    for run in (lambda f, a: f(a), lambda f, a: dt.utils.checkpoint.checkpoint(f, a, use_reentrant=False)):
        layer.zero_grad()
        with dt.autocast("cpu"):
            loss = run(lambda a: layer(layer(a)).tanh(), x).sum()
        loss.backward()
        grads.append(layer.weight.grad.tolist())

    assert grads[0] == grads[1]


def test_functions_with_a_backward_of_their_own():
    seen = []
    for lib in (torch, dt):

        class Product(lib.autograd.Function):
            @staticmethod
            @lib.amp.custom_fwd(device_type="cpu")
            def forward(ctx, a, b):
                ctx.save_for_backward(a, b)
                return a @ b

            @staticmethod
            @lib.amp.custom_bwd(device_type="cpu")
            def backward(ctx, g):
                a, b = ctx.saved_tensors
                seen[-1].append(str((g @ b.t()).dtype).partition(".")[2])
                return (g @ b.t()).to(a.dtype), (a.t() @ g).to(b.dtype)

        class Exact(lib.autograd.Function):
            @staticmethod
            @lib.amp.custom_fwd(device_type="cpu", cast_inputs=lib.float32)
            def forward(ctx, a, options):
                seen[-1] += [str(t.dtype).partition(".")[2] for t in (a, options["b"], a @ a)]
                return a * 2

            @staticmethod
            @lib.amp.custom_bwd(device_type="cpu")
            def backward(ctx, g):
                seen[-1].append(str((g @ g).dtype).partition(".")[2])
                return g * 2, None

        seen.append([])
        a = lib.ones(2, 2, requires_grad=True)
        with lib.autocast("cpu"):
            Product.apply(a, a).sum().backward()
            half = lib.ones(2, 2, dtype=lib.bfloat16)
            Exact.apply(a, {"b": half}).sum().backward()
        Exact.apply(a, {"b": half})
        for decorate in (lib.amp.custom_fwd, lib.amp.custom_bwd):
            with pytest.raises(ValueError, match="device_type"):
                decorate(device_type=lib.device("cpu"))

    assert seen[0] == seen[1]


class Block:
    """Programs that train the same small models in both libraries."""

    @staticmethod
    def gpt(lib):
        nn, F = lib.nn, lib.nn.functional

        class GPT(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.place = nn.Embedding(11, 16), nn.Embedding(6, 16)
                self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
                self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
                self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

            def forward(self, tokens):
                x = self.embed(tokens) + self.place(lib.arange(tokens.shape[1]))
                q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = x + self.out(y.transpose(1, 2).flatten(2))
                x = x + self.down(F.gelu(self.up(self.norm2(x))))
                return F.linear(self.norm3(x), self.embed.weight).transpose(1, 2)

        tokens = lib.tensor((np.arange(42).reshape(6, 7) ** 2 // 5) % 11)
        return GPT(), tokens[:, :-1], tokens[:, 1:]

    @staticmethod
    def cnn(lib):
        nn = lib.nn
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 3),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
        images = np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)
        return model, lib.tensor(images), lib.tensor([0, 1, 2, 0, 1, 2])


def losses_of(lib, name, weights, dtype=None):
    """Return the losses of 12 steps from ``weights``, by a scaler for float16, and the model."""
    model, x, y = getattr(Block, name)(lib)
    model.load_state_dict({key: lib.tensor(w) for key, w in weights.items()})
    optimizer = lib.optim.AdamW(model.parameters(), lr=0.01)
    scaler = lib.amp.GradScaler("cpu", init_scale=2.0**18, enabled=dtype == "float16")
    losses = []
    for _ in range(12):
        with lib.autocast("cpu", dtype=getattr(lib, dtype or "bfloat16"), enabled=dtype is not None):
            loss = lib.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        lib.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(p.dtype is p.grad.dtype is lib.float32 for p in model.parameters())
    return losses, scaler.get_scale()


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy's words for what the scaler is there for
@pytest.mark.parametrize("name", ["gpt", "cnn"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_train_as_in_pytorch(name, dtype):
    torch.manual_seed(0)
    weights = {key: w.numpy().copy() for key, w in getattr(Block, name)(torch)[0].state_dict().items()}

    theirs, their_scale = losses_of(torch, name, weights, dtype)
    mine, my_scale = losses_of(dt, name, weights, dtype)
    exact, _ = losses_of(dt, name, weights)

    np.testing.assert_allclose(mine, theirs, atol=3e-2)
    skipped = int(np.log2(2.0**18 / my_scale)) if dtype == "float16" else 0
    np.testing.assert_allclose(mine[skipped:], exact[: 12 - skipped], atol=3e-2)
    assert mine[skipped:] != exact[: 12 - skipped]
    assert mine[-1] < 0.8 * mine[0]
    assert my_scale == their_scale


def parallel_weights():
    """Return by rank the weights after 3 steps of DistributedDataParallel on 4 ranks."""

    def body(rank):
        dt.manual_seed(0)
        model = DistributedDataParallel(
            dt.nn.Sequential(dt.nn.Linear(5, 8), dt.nn.GELU(), dt.nn.Linear(8, 3))
        )
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        x = dt.tensor(np.random.default_rng(rank).standard_normal((2, 5)).astype(np.float32))
        for _ in range(3):
            with dt.autocast("cpu"):
                out = model(x)
                assert out.dtype is dt.bfloat16
                loss = dt.nn.functional.mse_loss(out, dt.ones(2, 3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert not dt.is_autocast_enabled("cpu")
        return [p.detach().numpy().copy() for p in model.parameters()]

    return run_ranks(WorkerEnv(world_size=4, hosted=4, local_world_size=4, fixed_order=True), body)


def test_ranks_that_are_threads_train_in_parallel():
    first, second = parallel_weights(), parallel_weights()

    for weights in (*first, *second):
        for mine, zeros in zip(weights, first[0], strict=True):
            assert mine.dtype == np.float32
            np.testing.assert_array_equal(mine, zeros)


def train(lib, steps, bad_step=None, **options):
    """Return the weights after each step, the scale after each, and the state of the scaler."""
    layer = lib.nn.Linear(2, 1, bias=False, dtype=lib.float64)
    with lib.no_grad():
        layer.weight.copy_(lib.tensor([[0.5, -0.25]]))
    optimizer = lib.optim.SGD(layer.parameters(), lr=0.1)
    scaler = lib.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2, **options)
    seen = []
    for step in range(steps):
        x = lib.tensor([[1.0, 2.0]], dtype=lib.float64) * (float("inf") if step == bad_step else 1.0)
        optimizer.zero_grad()
        scaler.scale(layer(x).sum()).backward()
        if step % 2:
            scaler.unscale_(optimizer)
            lib.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        seen.append((layer.weight.tolist(), scaler.get_scale()))
    return seen, scaler.state_dict()


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy says it of the products with inf
@pytest.mark.parametrize("bad_step", [None, 0, 3])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_scaler_follows_that_of_pytorch(bad_step, enabled):
    bad_step = bad_step if enabled else None

    theirs, their_state = train(torch, 6, bad_step, enabled=enabled)
    mine, my_state = train(dt, 6, bad_step, enabled=enabled)

    assert [scale for _, scale in mine] == [scale for _, scale in theirs]
    for (a, _), (b, _) in zip(mine, theirs, strict=True):
        assert a[0] == pytest.approx(b[0])
    assert my_state == their_state


def test_wrong_uses_of_the_scaler():
    for lib in (torch, dt):
        layer = lib.nn.Linear(1, 1)
        optimizer = lib.optim.SGD(layer.parameters(), lr=0.1)
        scaler = lib.amp.GradScaler("cpu")
        scaler.scale(layer(lib.ones(1, 1)).sum()).backward()
        scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match=r"already been called|unscaled already"):
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        with pytest.raises(RuntimeError, match=r"already been called|has had its step"):
            scaler.step(optimizer)
        with pytest.raises(RuntimeError, match=r"after step|unscale before it"):
            scaler.unscale_(optimizer)
        scaler.update()
        with pytest.raises((RuntimeError, AssertionError)):
            scaler.update()
        with pytest.raises(RuntimeError):
            scaler.load_state_dict({})
        with pytest.raises((ValueError, AssertionError)):
            lib.amp.GradScaler("cpu", growth_factor=1.0)
        with pytest.raises((ValueError, AssertionError)):
            lib.amp.GradScaler("cpu", backoff_factor=1.0)
        scaler.update(8.0)
        assert scaler.get_scale() == 8.0
        assert [t.item() for t in scaler.scale([lib.ones(1), lib.ones(1)])] == [8.0, 8.0]


def test_the_scaler_keeps_and_takes_its_state():
    scaler = dt.amp.GradScaler("cpu", init_scale=8.0)
    scaler.set_growth_factor(3.0)
    scaler.set_backoff_factor(0.25)
    scaler.set_growth_interval(5)
    other = dt.GradScaler("cpu")

    other.load_state_dict(scaler.state_dict())

    assert other.state_dict() == scaler.state_dict()
    assert (other.get_growth_factor(), other.get_backoff_factor(), other.get_growth_interval()) == (
        3.0,
        0.25,
        5,
    )


def test_a_scaler_for_gpus_is_disabled_without_one():
    if dt.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.warns(UserWarning, match="no GPU"):
        scaler = dt.cuda.amp.GradScaler()
    assert scaler.is_enabled() is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dt.cuda.amp.GradScaler(enabled=False).get_scale() == 1.0
