"""What the modules of kernels offer launches CUDA kernels for arrays on a GPU, with the results of the references."""

import copy

import cuda_shim
import ml_dtypes
import numpy as np
import pytest
from cuda_cases import near

from disttrain.kernels import (
    attention,
    axes,
    buckets,
    casts,
    columns,
    conv,
    dropout,
    elementwise,
    embedding,
    gelu,
    layout,
    norm,
    optim,
    pool,
    random,
    relu,
    rnn,
    rows,
    softmax,
)  # fmt: skip

rng = np.random.default_rng(0)
WINDOW = conv.Window((3, 2), (2, 1), (1, 1), (1, 2))
HALVES = axes.Spans(np.array([0, 2]), np.array([4, 5]))
KEY = np.array([5, 1, 9, 0], np.uint64)


def some(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def where(*shape):
    return pool.max_pool2d_reference(some(*shape), WINDOW, WINDOW.out_size(*shape[2:]))[1]


x, g, c = some(6, 40), some(6, 40), some(40)
row, target = some(6), np.array([3, 0, -100, 39, 7, 7])
stats = softmax.row_stats_reference(x)
image, back = some(2, 4, 9, 8), some(2, 8, *WINDOW.out_size(9, 8))
spans = axes.spans([0, 2], [3, 6], [0.5, 0.25], 6)
CASES = [
    (softmax, "softmax", x),
    (softmax, "softmax_grad", g, x),
    (softmax, "log_softmax", x),
    (softmax, "log_softmax_grad", g, x),
    (softmax, "row_stats", x),
    (softmax, "cross_entropy", x, target, c, 0.1, -100),
    (softmax, "cross_entropy_grad", row, x, target, c, 0.1, -100, stats),
    (norm, "channel_moments", x),
    (norm, "channel_affine", x, c, c, c),
    (norm, "channel_grad_sums", g, x, c),
    (norm, "channel_grad", g, x, c, c, c, c),
    (norm, "channel_relu_grad", g, x, np.maximum(x, 0), c, c, c, c),
    (norm, "layer_norm", x, c, c, 1e-5),
    (norm, "add_layer_norm", x, g, c, c, 1e-5),
    (norm, "layer_norm_grad", g, x, c, row, row),
    (norm, "rms_norm", x, c, 1e-5),
    (norm, "add_rms_norm", x, g, c, 1e-5),
    (norm, "rms_norm_grad", g, x, c, row),
    (attention, "softmax", x, 0.3, True, 0, 6, some(6), some(6)),
    (attention, "softmax_again", x, 0.3, True, 0, 6, row),
    (attention, "softmax_grad", g, x, row),
    (rnn, "rnn_step", x, g, False, some(6, 40)),
    (rnn, "rnn_step_grad", x, g, True, some(6, 40)),
    (rnn, "lstm_step", some(3, 20), some(3, 20), some(3, 5), some(3, 5)),
    (rnn, "lstm_step_grad", some(3, 20), some(3, 5), some(3, 5), some(3, 5), some(3, 20)),
    (rnn, "gru_step", some(3, 15), some(3, 15), some(3, 5), some(3, 5)),
    (rnn, "gru_step_grad", some(3, 15), some(3, 5), some(3, 5), some(3, 5), some(3, 15), some(3, 15)),
    (embedding, "take_rows", x, np.array([1, 5, 1])),
    (embedding, "add_rows", g, np.array([1, 5, 1, 0, 2, 1]), 7, 2),
    (pool, "max_pool2d", image, WINDOW, WINDOW.out_size(9, 8)),
    (pool, "max_spans_input_grad", some(2, 4, 2), np.array([[[3, 3]] * 4] * 2), (5,), (HALVES,)),
    (pool, "max_pool2d_input_grad", some(2, 4, *WINDOW.out_size(9, 8)), where(2, 4, 9, 8), (9, 8)),
    (axes, "map_axes", some(3, 6, 6), ((1, spans), (2, axes.selection([1, 1], 6)))),
    (axes, "max_axis", some(3, 6, 6), 1, axes.Spans(np.array([0, 2]), np.array([3, 6]))),
    (conv, "conv2d", image, some(8, 2, 3, 2), some(8), WINDOW, 2),
    (conv, "conv2d_input_grad", back, some(8, 2, 3, 2), WINDOW, 2, (9, 8)),
    (conv, "conv2d_weight_grad", back, image, WINDOW, 2),
    (conv, "conv2d", image, some(8, 1, 3, 2), some(8), WINDOW, 4),
    (conv, "conv2d_input_grad", back, some(8, 1, 3, 2), WINDOW, 4, (9, 8)),
    (conv, "conv2d_weight_grad", back, image, WINDOW, 4),
    (gelu, "erf", row),
    (gelu, "gelu", row),
    (gelu, "gelu_grad", row, row),
    (relu, "relu", row),
    (relu, "relu_grad", row, row),
    (dropout, "dropout", x, KEY, 0.3),
    (casts, "cast", x, np.float16),
    (rows, "row_sums", x),
    (rows, "row_largest", x),
    (rows, "total", row),
    (columns, "column_sums", x),
    (layout, "transpose", some(2, 5, 7)),
    (layout, "swap_middle", some(2, 5, 7, 3)),
    (buckets, "pack", [some(3, 4), some(5)], np.zeros(17, np.float32)),
    (buckets, "unpack", some(17), [some(3, 4), some(5)]),
    (buckets, "fold_tree", ((some(9), some(9)), some(9)), np.zeros(9, np.float32)),
    (optim, "sum_of_squares", row),
    (optim, "sums_of_squares", some(5000)),
    (optim, "all_finite", row),
]  # fmt: skip


def on_gpu(value):
    if type(value) in (list, tuple):
        return type(value)(map(on_gpu, value))
    return cuda_shim.there(value) if isinstance(value, np.ndarray) else value


def flat(values):
    """Return all arrays in nested tuples and lists."""
    if isinstance(values, tuple | list):
        return [a for v in values for a in flat(v)]
    return [np.asarray(values)] if isinstance(values, np.ndarray | np.generic | float | bool) else []


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].__name__.rpartition('.')[2]}.{c[1]}")
def test_arrays_on_a_gpu_launch_kernels(case, gpu):
    module, name, *args = case
    theirs, ours = copy.deepcopy(args), [on_gpu(a) for a in args]

    expected, result = getattr(module, f"{name}_reference")(*theirs), getattr(module, name)(*ours)

    assert gpu
    near(tuple(flat((result, ours))), tuple(flat((expected, theirs))), "float32")


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["draw_uniform", "draw_normal"])
def test_a_key_on_a_gpu_draws_there(name, kind, gpu):
    ours = getattr(random, name)(on_gpu(KEY), 100, kind)

    assert gpu
    assert isinstance(ours, cuda_shim.GpuArray)
    assert ours.tobytes() == getattr(random, name)(KEY, 100, kind).tobytes()


def test_chains_launch_kernels(gpu):
    assert isinstance(elementwise.add_scaled(on_gpu(x), on_gpu(c), 2.0), cuda_shim.GpuArray)
    np.testing.assert_array_equal(gelu.bias_gelu(on_gpu(x), on_gpu(c)).shape, x.shape)
    assert gpu == ["chain", "chain"]


@pytest.mark.parametrize("name", ["adam", "sgd", "lamb", "lars"])
def test_steps_launch_kernels(name, gpu):
    p, d, m, v = some(50), some(50), some(50), np.abs(some(50))
    options = {
        "adam": {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "step": 1},
        "sgd": {"lr": 0.1, "momentum": 0.9},
        "lamb": {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 1},
        "lars": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "trust_coefficient": 0.1},
    }[name]
    rest = {"adam": [m, v, None], "sgd": [m], "lamb": [m, v, [20, 50]], "lars": [m, [20, 50]]}[name]
    step = getattr(optim, f"{name}_step")
    ours = on_gpu([p, d, *rest])

    step(*ours, **options)
    step(p, d, *rest, **options)

    assert gpu
    near(tuple(flat(ours)), tuple(flat([p, d, *rest])), "float32")


def test_clipping_stays_on_the_gpu(gpu):
    square = optim.folds._sum_of_squares_cuda(on_gpu(row))
    scale, skip = optim.folds.clip_scale(square, 0.5)
    bad = optim.folds.find_bad(on_gpu(row))
    y = on_gpu(row)
    optim.folds.scale_(y, scale)

    assert all(isinstance(a, cuda_shim.GpuArray) for a in (scale, skip, bad))
    assert gpu == ["sums_of_squares", "total", "clip", "find_bad", "scale"]
    assert np.linalg.norm(y) == pytest.approx(0.5, rel=1e-5)
