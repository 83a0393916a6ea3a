"""Buckets of gradients in half precision on a GPU: kernels weigh, round and average them, with the bits of the CPU."""

import cuda_shim
import numpy as np
import pytest
from cuda_cases import kind

from disttrain.parallel.buckets import Bucket
from disttrain.tensors import Tensor


class Ranks:
    """A communicator of ranks that all contribute the same."""

    def __init__(self, size):
        self.size = size

    def empty(self, shape, dtype, like):
        made = cuda_shim.poisoned(shape, dtype)
        return made.view(type(like))

    def all_reduce(self, x, out, tag, averaged):
        out[...] = x * out.dtype.type(self.size)
        if averaged and out[averaged]:
            out[:averaged] /= out[averaged]


def averaged(place, dtype, ranks, weight, weighted=False):
    rng = np.random.default_rng(0)
    params = [
        Tensor._of(place(rng.standard_normal(s).astype(kind(dtype)))).requires_grad_()
        for s in ((3, 5), (70,))
    ]
    bucket = Bucket(params, Ranks(ranks), last=True)
    bucket.take_slots()
    bucket.weighted = weighted
    for p in params:
        p._slot.array[...] = rng.standard_normal(p.shape).astype(kind(dtype))
        p._give_slot()
    bucket.fill(weight, weight)
    bucket.sum((0, 0, 0))
    bucket.average(divide=True)
    return [np.array(p.grad._array) for p in params]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("ranks", "weight"), [(1, 1.0), (4, 1.0), (3, 1.0), (2, 3.0), (2, 0.0), (4, 8.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_averages_have_the_bits_of_the_cpu(weighted, ranks, weight, dtype, gpu):
    theirs = averaged(lambda x: x, dtype, ranks, weight, weighted)
    ours = averaged(cuda_shim.there, dtype, ranks, weight, weighted)

    half = dtype != "float32"
    assert gpu == ["pack"] * (half and weight != 0) + ["unpack"] * half
    for a, b in zip(ours, theirs, strict=True):
        assert a.tobytes() == b.tobytes()
