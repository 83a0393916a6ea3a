"""Each compiled kernel equals the plain array operations beside it, in every type it accepts."""

import copy
import subprocess
import sys

import numpy as np
import pytest

from disttrain.kernels import (
    attention,
    axes,
    conv,
    conv3d,
    direct,
    embedding,
    gelu,
    norm,
    pool,
    relu,
    rnn,
    sigmoid,
    softmax,
    special,
    winograd,
)

rng = np.random.default_rng(0)
FLOATS = ["float32", "float64"]
WINDOWS = [
    conv.Window((3, 3), (1, 1), (0, 0), (1, 1)),
    conv.Window((3, 2), (2, 1), (1, 1), (1, 2)),
    conv.Window((1, 1), (1, 1), (0, 0), (1, 1)),
]


def some(*shape):
    return rng.standard_normal(shape)


def near(ours, theirs, dtype):
    limit = {"float32": 2e-5, "float64": 1e-11}[dtype]
    for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (ours, theirs)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, limit, limit)


@pytest.fixture
def equal_to_reference(movers):
    """``equal_to_reference(module, name, dtype, *args, **options)``: on the CPU, and with CuPy's arrays on a GPU."""
    upload, download = movers

    def compare(module, name, dtype, *args, **options):
        def typed(a):
            return a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a

        def there(a):
            return upload(a) if isinstance(a, np.ndarray) else a

        args, options = [typed(a) for a in args], {k: typed(a) for k, a in options.items()}
        ours = getattr(module, name)(*map(there, args), **{k: there(a) for k, a in options.items()})
        theirs = getattr(module, f"{name}_reference")(*args, **options)

        near(tuple(map(download, ours)) if isinstance(ours, tuple) else download(ours), theirs, dtype)

    return compare


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", WINDOWS)
def test_convolution(window, groups, dtype, equal_to_reference):
    x, w = some(3, 4, 9, 8), some(8, 4 // groups, *window.kernel)
    g = some(3, 8, *window.out_size(9, 8))

    equal_to_reference(conv, "conv2d", dtype, x, w, None, window, groups)
    equal_to_reference(conv, "conv2d", dtype, x, w, some(8), window, groups)
    equal_to_reference(conv, "conv2d_input_grad", dtype, g, w, window, groups, (9, 8))
    equal_to_reference(conv, "conv2d_weight_grad", dtype, g, x, window, groups)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 32, 5, 7), (3, 16, 4, 8), (0, 16, 4, 4), (2, 1, 3, 3)])
@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
def test_layout_of_images(shape, dtype):
    x = (some(*shape) * 100).astype(dtype)

    last = conv.to_channels_last(x)

    assert last.flags.c_contiguous
    np.testing.assert_array_equal(last, x.transpose(0, 2, 3, 1))
    assert np.shares_memory(conv.to_channels_last(last.transpose(0, 3, 1, 2)), last) == (x.size > 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "window",
    [
        conv.Window((3, 2, 3), (1, 1, 1), (0, 0, 0), (1, 1, 1)),
        conv.Window((2, 3, 1), (2, 1, 2), (1, 1, 0), (2, 1, 1)),
        conv.Window((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1)),
    ],
)
def test_convolution_of_volumes(window, groups, dtype, equal_to_reference):
    size = (5, 6, 7)
    x, w = some(2, 4, *size), some(6, 4 // groups, *window.kernel)
    g = some(2, 6, *window.out_size(*size))

    equal_to_reference(conv3d, "conv3d", dtype, x, w, some(6), window, groups)
    equal_to_reference(conv3d, "conv3d_input_grad", dtype, g, w, window, groups, size)
    equal_to_reference(conv3d, "conv3d_weight_grad", dtype, g, x, window, groups)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_maps_and_maxima_along_axes(axis, dtype, equal_to_reference):
    x = some(6, 6, 6)
    x[1, 2:4, 3] = np.nan
    spans = axes.Spans(np.array([0, 1, 4, 5]), np.array([6, 4, 4, 6]), 2)
    m = axes.spans([0, 2, 2], [3, 6, 2], [0.5, 0.25, 1.0], 6)

    equal_to_reference(axes, "map_axes", dtype, some(6, 6, 6), ((axis, m), ((axis + 1) % 3, m)))
    equal_to_reference(axes, "map_axes", dtype, some(3, 3, 3), ((axis, m.transposed),))
    equal_to_reference(axes, "map_axes", dtype, x, ((axis, axes.selection([5, 0, 0], 6)),))
    equal_to_reference(axes, "max_axis", dtype, x, axis, spans)


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 1), (0, 3)])
@pytest.mark.parametrize(("c", "o"), [(16, 32), (144, 16)])
def test_convolution_by_winograd(c, o, padding, monkeypatch, equal_to_reference):
    monkeypatch.setattr(winograd, "_BLOCK_BYTES", 1)  # several blocks, which end inside an image
    window = conv.Window((3, 3), (1, 1), padding, (1, 1))
    x, w = some(4, c, 9, 8), some(o, c, 3, 3) / np.sqrt(9 * c)
    g = some(4, o, *window.out_size(9, 8)) / 16

    equal_to_reference(conv, "conv2d", "float32", x, w, None, window, 1)
    equal_to_reference(conv, "conv2d", "float32", x, w, some(o), window, 1)
    equal_to_reference(conv, "conv2d_input_grad", "float32", g, w, window, 1, (9, 8))
    equal_to_reference(conv, "conv2d_weight_grad", "float32", g, x, window, 1)


def test_convolution_by_winograd_is_as_exact_as_direct_summation(monkeypatch):
    window = conv.Window((3, 3), (1, 1), (1, 1), (1, 1))
    x, w, g = (v.astype(np.float32) for v in (some(4, 64, 16, 16), some(64, 64, 3, 3), some(4, 64, 16, 16)))

    def errors():
        for name, args in (
            ("conv2d", (x, w, None, window, 1)),
            ("conv2d_input_grad", (g, w, window, 1, (16, 16))),
            ("conv2d_weight_grad", (g, x, window, 1)),
        ):
            exact = getattr(conv, f"{name}_reference")(
                *(a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args)
            )
            yield np.sqrt(np.mean((getattr(conv, name)(*args) - exact) ** 2))

    ours = list(errors())
    monkeypatch.setattr(conv, "_MIN_TILES", 1 << 60)
    direct = list(errors())

    assert max(a / b for a, b in zip(ours, direct, strict=True)) < 2.5


def test_convolution_of_an_image_does_not_depend_on_the_others_of_its_batch():
    window = conv.Window((3, 3), (1, 1), (1, 1), (1, 1))
    x, w = (v.astype(np.float32) for v in (some(64, 16, 8, 8), some(16, 16, 3, 3)))

    whole = conv.conv2d(x, w, None, window, 1)

    np.testing.assert_array_equal(whole[24:40], conv.conv2d(x[24:40], w, None, window, 1))


@pytest.mark.parametrize(("c", "o", "groups"), [(2, 3, 1), (5, 20, 1), (32, 33, 1), (8, 8, 4), (12, 40, 2)])
@pytest.mark.parametrize(
    "window",
    [
        conv.Window((3, 2), (2, 1), (1, 1), (1, 2)),
        conv.Window((5, 5), (1, 1), (2, 0), (1, 1)),
        conv.Window((1, 1), (2, 2), (0, 1), (1, 1)),
        conv.Window((2, 9), (3, 2), (0, 4), (2, 1)),
    ],
)
def test_convolution_in_one_call(window, c, o, groups, monkeypatch, equal_to_reference):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(direct, "_MIN_PIXELS", 16)  # several blocks, which end inside an image
    monkeypatch.setattr(direct, "_BLOCK_BYTES", 1)
    size = window.out_size(11, 10)
    scale = np.sqrt(c // groups * window.kernel[0] * window.kernel[1])
    x, w, g = some(3, c, 11, 10), some(o, c // groups, *window.kernel) / scale, some(3, o, *size) / 8

    equal_to_reference(conv, "conv2d", "float32", x, w, some(o), window, groups)
    equal_to_reference(conv, "conv2d_input_grad", "float32", g, w, window, groups, (11, 10))
    equal_to_reference(conv, "conv2d_weight_grad", "float32", g, x, window, groups)


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("window", [*WINDOWS, conv.Window((3, 3), (1, 1), (1, 2), (1, 1))])
def test_convolution_in_blocks_that_end_inside_an_image(window, c, monkeypatch, equal_to_reference):
    monkeypatch.setattr(conv, "_BLOCK_PIXELS", 30)
    monkeypatch.setattr(conv, "_BLOCK_BYTES", 1)
    x, w = some(3, c, 9, 8), some(2, c, *window.kernel)
    g = some(3, 2, *window.out_size(9, 8))

    equal_to_reference(conv, "conv2d", "float64", x, w, some(2), window, 1)
    equal_to_reference(conv, "conv2d_input_grad", "float64", g, w, window, 1, (9, 8))
    equal_to_reference(conv, "conv2d_weight_grad", "float64", g, x, window, 1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("c", [9, 32])
@pytest.mark.parametrize(
    "window",
    [*WINDOWS, *(conv.Window((3, 2), (1, 3), p, d) for p, d in (((2, 1), (3, 1)), ((9, 9), (2, 4))))],
)
def test_depthwise_convolution(window, c, dtype, equal_to_reference):
    x, w = some(3, c, 9, 8), some(c, 1, *window.kernel)
    g = some(3, c, *window.out_size(9, 8))

    equal_to_reference(conv, "conv2d", dtype, x, w, some(c), window, c)
    equal_to_reference(conv, "conv2d_input_grad", dtype, g, w, window, c, (9, 8))
    equal_to_reference(conv, "conv2d_weight_grad", dtype, g, x, window, c)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "window",
    [*WINDOWS, *(conv.Window((3, 3), (1, 1), p, d) for p, d in (((1, 2), (1, 1)), ((9, 9), (2, 4))))],
)
def test_convolution_of_one_channel(window, dtype, equal_to_reference):
    x, w = some(3, 1, 9, 8), some(2, 1, *window.kernel)
    g = some(3, 2, *window.out_size(9, 8))

    equal_to_reference(conv, "conv2d", dtype, x, w, some(2), window, 1)
    equal_to_reference(conv, "conv2d_weight_grad", dtype, g, x, window, 1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("window", [*WINDOWS, conv.Window((2, 2), (2, 2), (1, 1), (1, 1))])
def test_max_pooling(window, dtype, equal_to_reference):
    x = rng.integers(0, 5, (2, 3, 9, 8)).astype(dtype)
    x[0, 0, 4, 4] = np.nan
    x[1, 1, 2:6, 2:6] = -np.inf
    size = window.out_size(9, 8)

    equal_to_reference(pool, "max_pool2d", dtype, x, window, size)
    where = pool.max_pool2d(x, window, size)[1]
    equal_to_reference(pool, "max_pool2d_input_grad", dtype, some(2, 3, *size), where, (9, 8))
    whole = tuple(axes.Spans(np.zeros(n, np.int64), np.full(n, m)) for n, m in zip(size, (9, 8), strict=True))
    equal_to_reference(pool, "max_spans_input_grad", dtype, some(2, 3, *size), where, (9, 8), whole)


@pytest.mark.parametrize("dtype", FLOATS)
def test_normalisation(dtype, equal_to_reference):
    x, g, c = some(50, 7), some(50, 7), [some(7) for _ in range(4)]

    equal_to_reference(norm, "channel_moments", dtype, x)
    equal_to_reference(norm, "channel_affine", dtype, x, *c[:3])
    equal_to_reference(norm, "channel_grad_sums", dtype, g, x, c[0])
    equal_to_reference(norm, "channel_grad", dtype, g, x, *c)
    y = np.maximum(some(50, 7), 0)
    equal_to_reference(norm, "channel_affine", dtype, x, *c[:3], residual=g, relu=True)
    equal_to_reference(norm, "channel_grad_sums", dtype, g, x, c[0], y=y)
    equal_to_reference(norm, "channel_grad", dtype, g, x, *c, y=y)
    equal_to_reference(norm, "channel_relu_grad", dtype, g, x, y, *c)
    equal_to_reference(norm, "add_layer_norm", dtype, x, g, c[0], c[1], 1e-5)
    equal_to_reference(norm, "add_rms_norm", dtype, x, g, c[0], 1e-5)
    equal_to_reference(norm, "layer_norm", dtype, x, c[0], c[1], 1e-5)
    equal_to_reference(norm, "rms_norm", dtype, x, c[0], 1e-5)
    equal_to_reference(norm, "rms_norm_grad", dtype, g, x, c[0], some(50))
    equal_to_reference(norm, "layer_norm_grad", dtype, g, x, c[0], some(50), some(50))
    equal_to_reference(norm, "rms_norm_grad", dtype, g, x, c[0], some(50), also=some(50, 7))
    equal_to_reference(norm, "layer_norm_grad", dtype, g, x, c[0], some(50), some(50), also=some(50, 7))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_softmax_and_cross_entropy(classes, dtype, equal_to_reference):
    x, g, weight = some(6, classes) * 5, some(6, classes), rng.random(classes)
    target = rng.integers(0, classes, 6)
    target[3] = -100
    y = softmax.softmax_reference(x)

    equal_to_reference(softmax, "softmax", dtype, x)
    equal_to_reference(softmax, "softmax_grad", dtype, g, y)
    equal_to_reference(softmax, "log_softmax", dtype, x)
    equal_to_reference(softmax, "log_softmax_grad", dtype, g, np.log(y))
    equal_to_reference(softmax, "row_stats", dtype, x)
    for smoothing in (0.0, 0.3):
        equal_to_reference(softmax, "cross_entropy", dtype, x, target, weight, smoothing, -100)
        stats = softmax.row_stats_reference(x)
        equal_to_reference(
            softmax, "cross_entropy_grad", dtype, g[:, 0].copy(), x, target, weight, smoothing, -100, stats
        )


@pytest.mark.parametrize("dtype", FLOATS)
def test_relu(dtype, equal_to_reference):
    x = some(1000)
    x[5:8] = np.nan, np.inf, -np.inf

    equal_to_reference(relu, "relu", dtype, x)
    equal_to_reference(relu, "relu_grad", dtype, some(1000), relu.relu_reference(x))


@pytest.mark.parametrize("dtype", FLOATS)
def test_gelu(dtype, equal_to_reference):
    x = np.concatenate([np.linspace(-8, 8, 1001), [0.0, -100.0, 100.0]])

    equal_to_reference(gelu, "erf", dtype, x)
    equal_to_reference(gelu, "gelu", dtype, x)
    equal_to_reference(gelu, "gelu_grad", dtype, some(x.size), x)
    equal_to_reference(gelu, "gelu_tanh", dtype, x)
    equal_to_reference(gelu, "gelu_tanh_grad", dtype, some(x.size), x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_sigmoid_and_what_is_made_of_it(dtype, equal_to_reference):
    x = np.concatenate([np.linspace(-8, 8, 1001), [0.0, -200.0, 200.0]])
    g, y = some(x.size), np.tanh(x)

    equal_to_reference(sigmoid, "sigmoid", dtype, x)
    equal_to_reference(sigmoid, "sigmoid_grad", dtype, g, abs(y))
    equal_to_reference(sigmoid, "silu", dtype, x)
    equal_to_reference(sigmoid, "silu_grad", dtype, g, x)
    equal_to_reference(sigmoid, "tanh_grad", dtype, g, y)


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_functions(dtype, equal_to_reference):
    x = np.concatenate([np.linspace(-8.3, 8, 1001), [0.0, -0.0, 1.0, -3.0, 170.0, -np.inf, np.inf, np.nan]])

    equal_to_reference(special, "erfc", dtype, x)
    equal_to_reference(special, "lgamma", dtype, x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("skip", [-1, 3])
def test_embedding_gradient(skip, dtype, equal_to_reference):
    equal_to_reference(embedding, "add_rows", dtype, some(40, 5), rng.integers(0, 7, 40), 7, skip)


@pytest.mark.parametrize("dtype", FLOATS)
def test_recurrent_steps(dtype):
    def same(name, written, *arrays):
        """Compare what a step writes into its arrays."""
        arrays = [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in arrays]
        ours, theirs = copy.deepcopy(arrays), copy.deepcopy(arrays)
        getattr(rnn, name)(*ours)
        getattr(rnn, f"{name}_reference")(*theirs)
        near(tuple(ours[i] for i in written), tuple(theirs[i] for i in written), dtype)

    B, H = 5, 37
    one, y, d = some(B, H), rng.random((B, H)), np.zeros((B, H))
    for relu_ in (False, True):
        same("rnn_step", (0, 3), some(B, H) * 3, some(B, H), relu_, d)
        same("rnn_step_grad", (3,), np.maximum(some(B, H), 0), one, relu_, d)
    same("lstm_step", (0, 2, 3), some(B, 4 * H) * 3, some(B, 4 * H), one, d)
    same("lstm_step_grad", (3, 4), rng.random((B, 4 * H)), one, some(B, H), some(B, H), np.zeros((B, 4 * H)))
    same("gru_step", (0, 3), some(B, 3 * H) * 3, some(B, 3 * H), one, d)
    same(
        "gru_step_grad",
        (3, 4, 5),
        *(rng.random((B, 3 * H)), y, one, some(B, H), np.zeros((B, 3 * H)), np.zeros((B, 3 * H))),
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("causal", "first", "rows"), [(False, 0, 6), (True, 0, 6), (True, 4, 3), (True, 0, 1)]
)
def test_attention_softmax(causal, first, rows, dtype):
    x = (some(6, 20) * 5).astype(dtype)
    x[1, 2:] = -np.inf
    x[2] = -np.inf
    runs = []
    for end in ("", "_reference"):
        e, lse, share = x.copy(), np.empty(6, dtype), np.empty(6, dtype)
        getattr(attention, f"softmax{end}")(e, 0.3, causal, first, rows, lse, share)
        p = x.copy()
        getattr(attention, f"softmax_again{end}")(p, 0.3, causal, first, rows, lse)
        g = np.ones_like(x)
        getattr(attention, f"softmax_grad{end}")(g, p, share)
        runs.append((e * share[:, None], np.nan_to_num(lse, neginf=-1e3), share, p, g))

    near(*runs, dtype)
    near(runs[0][0], runs[0][3], dtype)


def test_the_hyperbolic_tangent_in_float32_is_right_to_the_last_places():
    x = np.concatenate(
        [np.linspace(-12, 12, 100_001), np.geomspace(1e-30, 1, 1000), [np.inf, -np.inf, np.nan]]
    )
    x = x.astype(np.float32)[None]
    y, out = x.copy(), np.empty_like(x)

    rnn.rnn_step(y, np.zeros_like(x), False, out)

    np.testing.assert_allclose(out, np.tanh(x.astype(np.float64)), 2e-7)


def test_importing_kernels_and_operations_loads_no_numba():
    modules = "conv, pool, norm, activation, loss, embedding, dropout, rnn, attention"
    code = f"import sys; from disttrain.kernels import optim; from disttrain.ops import {modules};"

    loaded = subprocess.run(
        [sys.executable, "-c", code + "print('numba' in sys.modules, 'cupy' in sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert loaded.stdout.split() == ["False", "False"]


def test_without_a_cache_folder_kernels_work_and_say_so():
    code = (
        "import numba.core.caching as c, numpy as np; c.CacheImpl._locator_classes = [];"
        "from disttrain.kernels import relu; print(relu.relu_grad(np.ones(2), np.array([0.0, 1.0])))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "[0. 1.]\n"
    assert "compiled kernels are not kept for the next run" in done.stderr
