"""Tensors share memory with arrays of other libraries."""

import cuda_shim
import numpy as np
import pytest

import disttrain as dt
from disttrain.utils import dlpack


def test_another_library_sees_the_tensors_memory():
    x = dt.arange(6.0).reshape(2, 3).T

    seen = np.from_dlpack(x)
    x[0, 1] = 7

    assert (seen.shape, seen.strides) == (x.shape, x._array.strides)
    assert seen[0, 1] == 7
    assert x.__dlpack_device__() == (1, 0)


def test_a_tensor_shares_the_memory_of_an_array():
    a = np.arange(6, dtype=np.int64)
    shared, own = dt.from_dlpack(a), dlpack.from_dlpack(a, copy=True)
    a[2] = 9

    assert (shared.dtype, shared.tolist(), own.tolist()) == (dt.int64, [0, 1, 9, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    assert (
        dt.from_dlpack(shared, device="cpu", copy=False)._array.__array_interface__["data"]
        == (a.__array_interface__["data"])
    )


def test_pytorch_and_back():
    torch = pytest.importorskip("torch", reason="needs torch")
    ours = dt.from_dlpack(torch.ones(3))
    theirs = torch.from_dlpack(dt.full((3,), 2.0))
    ours += 1

    assert (ours.tolist(), theirs.tolist()) == ([2.0] * 3, [2.0] * 3)


def test_what_cannot_be_shared_is_an_error():
    with pytest.raises(BufferError, match=r"requires grad .* use detach\(\)"):
        dlpack.to_dlpack(dt.ones(2).requires_grad_())
    with pytest.raises(TypeError, match="got list; give the array"):
        dt.from_dlpack([1, 2])

    class Elsewhere:
        def __dlpack__(self):
            raise AssertionError("nobody asks")

        def __dlpack_device__(self):
            return 8, 0

    with pytest.raises(BufferError, match="DLPack's device 8"):
        dt.from_dlpack(Elsewhere())


def test_arrays_on_a_gpu_come_by_cupy(gpu, monkeypatch):
    monkeypatch.setattr(cuda_shim.GpuArray, "__dlpack_device__", lambda self: (2, 0), raising=False)
    import cupy

    cupy.from_dlpack = lambda x: x
    given = cuda_shim.there(np.arange(3.0))
    t = dt.from_dlpack(given)

    assert t._array is given
    assert t.is_cuda
    assert t.__dlpack_device__() == (2, 0)
    with pytest.raises(ValueError, match="on cuda:0 cannot be on cpu without a copy"):
        dt.from_dlpack(given, device="cpu", copy=False)
