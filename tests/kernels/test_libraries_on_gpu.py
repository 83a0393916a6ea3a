"""On a GPU: what cuBLASLt and cuDNN calculate is what NumPy does; the scaler follows that of the CPU."""

import cuda_shim
import numpy as np
import pytest
from cuda_cases import DTYPES, exact, kind, near

import disttrain as dt
from disttrain.kernels import cublaslt, cudnn, gemm, nvrtc
from disttrain.kernels.conv import Window
from disttrain.kernels.cublaslt import Epilogue
from disttrain.ops import attention, norm
from disttrain.ops import conv as ops
from disttrain.ops.perceptron import perceptron

pytestmark = pytest.mark.gpu
rng = np.random.default_rng(0)
ROOM = {"float32": 4, "float64": 4, "float16": 8, "bfloat16": 8}


@pytest.fixture
def cupy():
    if reason := cuda_shim.no_gpu():
        pytest.skip(reason)
    import cupy

    return cupy


@pytest.fixture
def lt(cupy):
    """cuBLASLt, which must be there: the extras of disttrain bring it."""
    return cublaslt.handle(0)


@pytest.fixture
def library(cupy):
    if not cudnn.is_there():
        pytest.skip("needs nvidia-cudnn-frontend and cuDNN")


def placed(cupy, *shape, dtype):
    return cupy.asarray((rng.standard_normal(shape) / 2).astype(kind(dtype)))


def down(*arrays):
    """Return float64 copies on the CPU."""
    return exact(*(a.get() for a in arrays))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [((65, 70), (70, 33)), ((4, 64, 32), (4, 32, 64)), ((3, 5, 7), (7, 9))])
def test_products(shapes, dtype, cupy, lt):
    a, b = (placed(cupy, *s, dtype=dtype) for s in shapes)
    out = cupy.empty(np.matmul(np.empty(shapes[0]), np.empty(shapes[1])).shape, a.dtype)

    for left, right in ((a, b), (cupy.asfortranarray(a), b), (a, cupy.asfortranarray(b))):
        cublaslt.multiply(left, right, out)
        near(out.get(), np.matmul(*down(a, b)), dtype, ROOM[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_epilogues(activation, dtype, cupy, lt):
    from lt_on_cpu import gelu, gelu_slope

    M, N, K = 64, 136, 40
    a, b, bias, g, w = (placed(cupy, *s, dtype=dtype) for s in ((M, K), (K, N), (N,), (M, 24), (24, N)))
    out, total, ours = (cupy.empty(s, a.dtype) for s in ((M, N), (N,), (M, N)))
    name = activation.upper()
    aux = cublaslt.relu_bits((M, N)) if activation == "relu" else cupy.empty((M, N), a.dtype)
    u = np.matmul(*down(a, b)) + down(bias)[0]

    cublaslt.multiply(a, b, out, epilogue=Epilogue[f"{name}_AUX_BIAS"], bias=bias, aux=aux)
    cublaslt.multiply(g, w, ours, epilogue=Epilogue[f"D{name}_BGRAD"], bias=total, aux=aux)

    near(out.get(), np.maximum(u, 0) if activation == "relu" else gelu(u), dtype, 8)
    slope = (u > 0) if activation == "relu" else gelu_slope(down(aux)[0])
    expected = np.matmul(*down(g, w)) * slope
    near((ours.get(), total.get()), (expected, expected.sum(0)), dtype, 32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_linear_layers_with_activations_between(activation, dtype, cupy, lt, caplog):
    shapes = (4, 16, 64), (256, 64), (256,), (128, 256), (128,), (32, 128), (32,)
    args = [placed(cupy, *s, dtype=dtype) for s in shapes]
    out, saved, vjp = perceptron(*args, activation=activation)
    g = placed(cupy, *out.shape, dtype=dtype)
    expected, kept, their_vjp = perceptron(*down(*args), activation=activation)

    near(out.get(), expected, dtype, 32)
    needs = (True,) * len(args)
    for a, b in zip(vjp(g, needs, *saved), their_vjp(*down(g), needs, *kept), strict=True):
        near(a.get(), b, dtype, 256)
    assert "apart from the product" not in caplog.text


def test_what_is_not_a_number_passes_through_the_activations_of_products(cupy, lt):
    for activation in ("relu", "gelu"):
        x, *params = (placed(cupy, *s, dtype="float16") for s in ((8, 16), (32, 16), (32,), (8, 32), (8,)))
        x[3, 2] = np.nan

        out, _, _ = perceptron(x, *params, activation=activation)

        assert np.isnan(out.get()).any(1).tolist() == [row == 3 for row in range(8)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_bias_and_its_gradient(dtype, cupy, lt):
    x, w, bias, g = (placed(cupy, *s, dtype=dtype) for s in ((64, 40), (40, 24), (24,), (64, 24)))
    out = gemm.matmul(x, w, bias=bias)
    gw, gb = gemm.weight_grad(g, x)

    near(out.get(), np.matmul(*down(x, w)) + down(bias)[0], dtype, 8)
    near((gw.get(), gb.get()), (np.matmul(*down(g.T, x)), down(g)[0].sum(0)), dtype, 32)


def test_products_in_a_graph(cupy, lt):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        a, b = (placed(cupy, 64, 64, dtype="float16") for _ in range(2))
        out = cupy.empty((64, 64), a.dtype)
        gemm.matmul(a, b, out)  # plans, and has its workspace
        stream.begin_capture()
        gemm.matmul(a, b, out)
        graph = stream.end_capture()
        a *= 2
        graph.launch(stream)
        stream.synchronize()

    near(out.get(), np.matmul(*down(a, b)), "float16", 8)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups, dtype, cupy, library, monkeypatch):
    monkeypatch.setattr(cudnn.settings, "tf32", False)
    window = Window((3, 3), (2, 1), (1, 1), (1, 1))
    args = [placed(cupy, *s, dtype=dtype) for s in ((4, 16, 15, 14), (32, 16 // groups, 3, 3), (32,))]
    out, saved, vjp = ops.convolution(*args, window=window, groups=groups)
    g = placed(cupy, *out.shape, dtype=dtype)
    expected, theirs, their_vjp = ops.convolution(*down(*args), window=window, groups=groups)

    near(out.get(), expected, dtype, 16)
    for ours, other in zip(
        vjp(g, (True,) * 3, *saved), their_vjp(*down(g), (True,) * 3, *theirs), strict=True
    ):
        near(ours.get(), other, dtype, 64)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("form", ["plain", "causal", "mask"])
def test_attention_and_the_sums_that_it_keeps(form, dtype, cupy, library):
    q, k, v = (placed(cupy, 2, 3, 128, 64, dtype=dtype) for _ in range(3))
    mask = (
        cupy.asarray(np.arange(128) < np.array([100, 128])[:, None, None, None]) if form == "mask" else None
    )
    out, saved, vjp = attention.attention(q, k, v, mask, scale=0.125, causal=form == "causal")
    g = placed(cupy, *out.shape, dtype=dtype)
    host = None if mask is None else mask.get()
    expected, theirs, their_vjp = attention.attention(
        *down(q, k, v), host, scale=0.125, causal=form == "causal"
    )
    needs = (True, True, True, False)

    assert saved[6].shape == (*q.shape[:2], 128)
    np.testing.assert_allclose(saved[6].get(), theirs[6].reshape(2, 3, 128), rtol=2e-2, atol=2e-2)
    near(out.get(), expected, dtype, 16)
    for ours, other in zip(vjp(g, needs, *saved)[:3], their_vjp(*down(g), needs, *theirs)[:3], strict=True):
        near(ours.get(), other, dtype, 64)


NORMS = {
    "layer_norm": (norm.layer_norm, (96, 256), 2, {"normalized_shape": (256,), "eps": 1e-5}),
    "rms_norm": (norm.rms_norm, (96, 256), 1, {"normalized_shape": (256,), "eps": 1e-5}),
    "batch_norm": (norm.batch_norm, (8, 64, 7, 6), 2, {"training": True, "momentum": 0.3, "eps": 1e-5}),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", NORMS)
def test_norms_and_the_values_that_run(name, dtype, cupy, library):
    op, shape, factors, options = NORMS[name]
    size = 64 if name == "batch_norm" else 256
    args = [placed(cupy, *shape, dtype=dtype), *(placed(cupy, size, dtype="float32") for _ in range(factors))]
    ours, theirs = {}, {}
    if name == "batch_norm":
        ours = {f"running_{v}": placed(cupy, size, dtype="float32") ** 2 for v in ("mean", "var")}
        theirs = {key: v.get().astype(np.float64) for key, v in ours.items()}
    out, saved, vjp = op(*args, **ours, **options)
    g, needs = placed(cupy, *shape, dtype=dtype), (True,) * len(args)
    expected, kept, their_vjp = op(*down(*args), **theirs, **options)

    near(out.get(), expected, dtype, 16)
    for key, a in ours.items():
        near(a.get(), theirs[key], "float32", 4)
    for a, b in zip(vjp(g, needs, *saved), their_vjp(*down(g), needs, *kept), strict=True):
        near(a.get(), b, dtype, 64)


DRAWS = {
    "rand": lambda place: dt.rand(1000, **place),
    "randn": lambda place: dt.randn(1000, dtype=dt.bfloat16, **place),
    "randint": lambda place: dt.randint(-5, 70, (1000,), **place),
    "randperm": lambda place: dt.randperm(1000, **place),
    "uniform_": lambda place: dt.zeros(1000, **place).uniform_(-1, 3),
    "exponential_": lambda place: dt.zeros(1000, **place).exponential_(2.0),
    "log_normal_": lambda place: dt.zeros(1000, dtype=dt.float64, **place).log_normal_(),
    "poisson": lambda place: dt.poisson(dt.ones(1000, **place) * 12),
    "dropout": lambda place: dt.nn.functional.dropout(dt.ones(50, 20, **place), 0.3),
    "dropout of columns": lambda place: dt.nn.functional.dropout(dt.ones(50, 20, **place).T, 0.3),
    "dropout2d": lambda place: dt.nn.functional.dropout2d(dt.ones(5, 20, 3, 3, **place), 0.3),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_are_those_of_the_cpu(name, cupy):
    nvrtc.load_library()

    def drawn(device):
        dt.manual_seed(7)
        return DRAWS[name]({"device": device})

    ours, theirs = drawn("cuda"), drawn("cpu")

    assert ours.is_cuda
    assert ours.cpu()._array.tobytes() == theirs._array.tobytes()


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_parameters_are_rounded_at_random_as_on_the_cpu(name, cupy):
    nvrtc.load_library()

    def train(device):
        dt.manual_seed(0)
        params = [dt.randn(n, dtype=dt.bfloat16).to(device).requires_grad_() for n in (70, 5000)]
        optimizer = getattr(dt.optim, name)(params, lr=0.01)
        optimizer.round_randomly(3)
        for step in range(3):
            for p in params:
                p.grad = dt.full(p.shape, 0.1 * (step + 1), dtype=dt.bfloat16, device=device)
            optimizer.step()
        return [p.detach().cpu().float()._array for p in params]

    for a, b in zip(train("cuda"), train("cpu"), strict=True):
        assert (a != b).mean() < (0.05 if name == "RMSprop" else 1e-9)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_scaler_follows_that_of_the_cpu(name, cupy):
    nvrtc.load_library()

    def train(device):
        dt.manual_seed(0)
        model = dt.nn.Linear(8, 4).to(device)
        optimizer = getattr(dt.optim, name)(model.parameters(), lr=0.1)
        scaler = dt.amp.GradScaler(device, init_scale=2.0**10, growth_interval=2)
        for number in range(6):
            x = dt.full((16, 8), float("inf") if number == 3 else 0.1 * number, device=device)
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        steps = {float(s["step"]) for s in optimizer.state_dict()["state"].values() if "step" in s}
        return [p.detach().cpu().numpy() for p in model.parameters()], scaler.state_dict(), steps

    (ours, *state), (theirs, *other) = train("cuda"), train("cpu")

    assert state == other
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-5)
