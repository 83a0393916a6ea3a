"""Operations on arrays on a GPU launch kernels, in half precision without a detour, with the results of the CPU."""

import cuda_shim
import numpy as np
import pytest
from cuda_cases import cast, exact, near

from disttrain.ops import activation, loss, norm

rng = np.random.default_rng(0)
x = rng.standard_normal((6, 40))
weight, bias = rng.standard_normal(40), rng.standard_normal(40)
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
}  # fmt: skip


def placed(a, dtype):
    a = cast(a, "int64" if a.dtype.kind == "i" else dtype)
    return a.view(cuda_shim.GpuArray)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_operations_launch_kernels(name, dtype, gpu):
    op, args, options, kernels = CASES[name]
    ours = [placed(a, dtype) for a in args]
    out, saved, vjp = op(*ours, **options)
    g = placed(rng.standard_normal(out.shape), dtype)
    grads = vjp(g, (True,) * len(args), *saved)

    assert gpu == kernels.split()
    assert out.dtype == ours[0].dtype
    wide = [np.asarray(a) if a.dtype.kind == "i" else exact(np.asarray(a))[0] for a in ours]
    expected, saved, vjp = op(*wide, **options)
    near(np.asarray(out), expected, dtype, 4)
    for ours_, theirs in zip(grads, vjp(exact(np.asarray(g))[0], (True,) * len(args), *saved), strict=False):
        if theirs is not None:
            near(np.asarray(ours_), theirs, dtype, 8)
