"""Products of arrays on a GPU go to cuBLASLt, in half precision too, and loudly to CuPy where that cannot be."""

import logging

import cuda_shim
import lt_on_cpu
import numpy as np
import pytest
from cuda_cases import cast, exact, near

from disttrain.kernels import cublaslt, gemm
from disttrain.kernels.libraries import LibraryMissing
from disttrain.ops import linalg

rng = np.random.default_rng(0)
SHAPES = [
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((4, 1, 2, 3), (5, 3, 2)),
    ((5, 2, 3), (3,)),
    ((3,), (5, 3, 2)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
]


def placed(shape, dtype):
    return cast(rng.standard_normal(shape), dtype).view(cuda_shim.GpuArray)


def compare(op, args, dtype):
    """Compare forward and backward with the CPU's in float64; return the gradients."""
    out, saved, vjp = op(*args)
    g = placed(np.shape(out), dtype)
    grads = vjp(g, (True,) * len(args), *saved)
    expected, saved, vjp = op(*(a if a is None else exact(np.asarray(a))[0] for a in args))
    near(np.asarray(out), np.asarray(expected), dtype, 8)
    theirs = vjp(exact(np.asarray(g))[0], (True,) * len(args), *saved)
    for ours, other, a in zip(grads, theirs, args, strict=True):
        if a is not None:
            summed = [
                np.asarray(x).astype(np.float64).sum(tuple(range(np.ndim(x) - a.ndim))) for x in (ours, other)
            ]
            near(*summed, dtype, 16)
    return out, grads


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_matmul(shapes, dtype, cublas):
    out, _ = compare(linalg.matmul, [placed(s, dtype) for s in shapes], dtype)

    assert isinstance(out, cuda_shim.GpuArray)
    if cublas is not None:
        assert cublas.ran == (0 if 0 in shapes[0] + shapes[1] else 3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(), (2,), (5, 2)])
def test_linear(lead, bias, dtype, cublas):
    args = [placed((*lead, 3), dtype), placed((4, 3), dtype), placed((4,), dtype) if bias else None]

    _, grads = compare(linalg.linear, args, dtype)

    if cublas is not None and bias and lead:
        epilogues = [o["epilogue"] for o in cublas.operations]
        forward = 1 if dtype == "float64" else cublaslt.Epilogue.BIAS
        assert epilogues == [forward, 1, cublaslt.Epilogue.BGRADB]
        assert grads[2].shape == (4,)


def test_the_weights_gradient_is_written_where_it_is_wanted(cublas):
    x, w, b, g = (placed(s, "float32") for s in ((6, 3), (4, 3), (4,), (6, 4)))
    _, saved, vjp = linalg.linear(x, w, b)
    slot = cuda_shim.poisoned((4, 3), np.float32).view(cuda_shim.GpuArray)

    _, gw, _ = vjp(g, (True, True, True), *saved, into=slot)

    assert gw is slot
    near(np.asarray(slot), exact(g.T @ x)[0], "float32")


def test_a_product_that_the_library_lacks_goes_through_cupy_and_says_so_once(gpu, monkeypatch, caplog):
    if reason := lt_on_cpu.missing():
        pytest.skip(reason)
    with caplog.at_level(logging.WARNING, "disttrain"):
        library = lt_on_cpu.install(monkeypatch, unsupported=lambda operation, result: True)
        args = [placed((6, 3), "bfloat16"), placed((4, 3), "bfloat16"), placed((4,), "bfloat16")]
        for _ in range(2):
            compare(linalg.linear, args, "bfloat16")

    assert library.ran == 0
    assert "a product of matrices goes through cupy.matmul: choosing an algorithm" in caplog.text
    assert "the sums of a gradient's columns are made apart from its product" in caplog.text
    assert len(caplog.messages) == len(set(caplog.messages))


def test_without_the_library_products_go_through_cupy_and_that_is_said_once(gpu, monkeypatch, caplog):
    def none():
        raise LibraryMissing("not installed")

    monkeypatch.setattr(cublaslt, "load_library", none)
    monkeypatch.setattr(cublaslt, "handle", cublaslt.handle.__wrapped__)
    for name in ("_is_there", "_say"):
        getattr(gemm, name).cache_clear()
    with caplog.at_level(logging.WARNING, "disttrain"):
        for shape in ((2, 3), (4, 3)):
            compare(linalg.matmul, [placed(shape, "float32"), placed((3, 2), "float32")], "float32")

    assert caplog.messages == [
        "products of matrices on the GPU go through cupy.matmul, which no graph can capture: not installed"
    ]
    gemm._say.cache_clear()
