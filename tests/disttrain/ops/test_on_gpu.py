"""Operations on arrays on a GPU launch kernels, in half precision without a detour, with the results of the CPU."""

import cuda_shim
import numpy as np
import pytest
from cuda_cases import cast, exact, near

from disttrain.kernels.conv import Window
from disttrain.ops import activation, loss, norm, pool

rng = np.random.default_rng(0)
x, shifted = rng.standard_normal((6, 40)), rng.standard_normal((6, 40)) + 1
weight, bias, mean, var = *rng.standard_normal((3, 40)), rng.random(40) + 1
images = rng.standard_normal((2, 3, 6, 5))
classes = np.array([3, 0, -100, 39, 7, 7])
large = rng.standard_normal(20_000)
CASES = {
    "softmax": (activation.softmax, (x,), {"dim": 1}, "softmax softmax_grad"),
    "log_softmax": (activation.log_softmax, (x,), {"dim": 0}, "log_softmax log_softmax_grad"),
    "gelu": (activation.gelu, (x,), {}, "chain chain"),
    "gelu by tanh": (activation.gelu, (x,), {"approximate": "tanh"}, "chain chain"),
    "silu": (activation.silu, (x,), {}, "chain chain"),
    "sigmoid": (activation.sigmoid, (x,), {}, "chain chain"),
    "relu": (activation.relu, (large,), {}, "chain chain"),
    "cross_entropy": (loss.cross_entropy, (x, classes), {}, "cross_entropy cross_entropy_grad"),
    "layer_norm": (norm.layer_norm, (x, weight, bias), {"normalized_shape": (40,), "eps": 1e-5},
                   "layer_norm row_norm_grad row_norm_weight_grad merge_sums merge_sums"),
    "rms_norm": (norm.rms_norm, (x, weight), {"normalized_shape": (40,), "eps": 1e-5},
                 "rms_norm row_norm_grad row_norm_weight_grad merge_sums"),
    "batch_norm": (norm.batch_norm, (x, weight, bias), {"training": True, "momentum": 0.1, "eps": 1e-5},
                   "channel_moments merge_moments channel_affine channel_grad_sums merge_sums merge_sums channel_grad"),
    "batch_norm, sum, relu": (norm.batch_norm, (x, weight, bias, shifted), {"training": True, "relu": True},
                   "channel_moments merge_moments channel_affine channel_grad_sums merge_sums merge_sums channel_grad"),
    "batch_norm, relu, running": (norm.batch_norm, (x, weight, bias),
                   {"training": False, "relu": True, "running_mean": mean, "running_var": var},
                   "channel_affine channel_grad_sums merge_sums merge_sums channel_grad"),
    "add_layer_norm": (norm.add_layer_norm, (x, shifted, weight, bias), {"normalized_shape": (40,)},
                   "layer_norm row_norm_grad row_norm_weight_grad merge_sums merge_sums"),
    "add_rms_norm": (norm.add_rms_norm, (x, shifted, weight), {"normalized_shape": (40,), "eps": 1e-5},
                   "rms_norm row_norm_grad row_norm_weight_grad merge_sums"),
    "max_pool": (pool.max_pool, (images,), {"window": Window((3, 2), (2, 1), (1, 1), (1, 2))},
                 "max_pool gather_places"),
    "max_pool of lines": (pool.max_pool, (images[0],), {"window": Window((2,), (1,), (0,), (1,))},
                          "max_axis gather_places"),
    "adaptive_max_pool": (pool.adaptive_max_pool, (images,), {"output_size": (3, 2)},
                          "max_axis max_axis gather_places"),
}  # fmt: skip


def placed(a, dtype):
    a = cast(a, "int64" if a.dtype.kind == "i" else dtype)
    return a.view(cuda_shim.GpuArray)


def wide(a):
    return np.asarray(a) if a.dtype.kind == "i" else np.asarray(exact(np.asarray(a))[0])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_operations_launch_kernels(name, dtype, gpu):
    op, args, options, kernels = CASES[name]
    running = {k: placed(v, dtype) for k, v in options.items() if isinstance(v, np.ndarray)}
    ours, needs = [placed(a, dtype) for a in args], (True,) * len(args)
    out, saved, vjp = op(*ours, **{**options, **running})
    outs = out if isinstance(out, tuple) else (out,)
    gs = [placed(rng.standard_normal(o.shape), dtype) for o in outs]
    grads = vjp(tuple(gs) if isinstance(out, tuple) else gs[0], needs, *saved)

    assert gpu == kernels.split()
    theirs, saved, vjp = op(*map(wide, ours), **{**options, **{k: wide(v) for k, v in running.items()}})
    for o, expected in zip(outs, theirs if isinstance(out, tuple) else (theirs,), strict=True):
        assert o.dtype == (ours[0] if expected.dtype.kind == "f" else expected).dtype
        near(np.asarray(o), expected, dtype, 4)
    gs = [wide(g) for g in gs]
    expected = vjp(tuple(gs) if isinstance(out, tuple) else gs[0], needs, *saved)
    for a, b in zip(grads, expected, strict=False):
        if b is not None:
            near(np.asarray(a), b, dtype, 8)
