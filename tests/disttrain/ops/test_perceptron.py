"""Linear maps with activations between them: one operation, whose products on a GPU do all that lies between."""

import itertools

import cuda_shim
import lt_on_cpu
import numpy as np
import pytest
from cuda_cases import cast, exact, near

import disttrain as dt
from disttrain.kernels.cublaslt import Epilogue
from disttrain.ops.perceptron import perceptron

rng = np.random.default_rng(0)


def some(*sizes, lead=(5,)):
    """Return an input and the parameters of maps between layers of these sizes."""
    shapes = [(*lead, sizes[0])]
    for inputs, outputs in itertools.pairwise(sizes):
        shapes += [(outputs, inputs), (outputs,)]
    return [rng.standard_normal(s) / 2 for s in shapes]


def placed(args, dtype):
    return [cast(a, dtype).view(cuda_shim.GpuArray) for a in args]


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("sizes", [(3, 4), (3, 4, 2), (3, 4, 5, 4, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_gradient_is_that_of_differences(sizes, activation, last, check):
    for lead in ((5,), (2, 3), ()):
        check(perceptron, *some(*sizes, lead=lead), activation=activation, last=last)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("last", [False, True])
def test_gradients_have_gradients(activation, last):
    args = [dt.tensor(a).requires_grad_() for a in some(3, 4, 5, 2)]

    def run(*args):
        return dt.engine.apply(perceptron, *args, activation=activation, last=last)

    assert dt.autograd.gradcheck(run, args)
    assert dt.autograd.gradgradcheck(run, args)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("sizes", [(3, 8, 5), (6, 8, 16, 4), (3, 5, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_arrays_on_a_gpu(sizes, activation, last, dtype, cublas, gpu):
    args = placed(some(*sizes, lead=(2, 3)), dtype)
    wide = [np.asarray(a) for a in exact(*map(np.asarray, args))]
    needs = (True,) * len(args)

    out, saved, vjp = perceptron(*args, activation=activation, last=last)
    g = cast(rng.standard_normal(out.shape), dtype).view(cuda_shim.GpuArray)
    grads = vjp(g, needs, *saved)

    expected, kept, their_vjp = perceptron(*wide, activation=activation, last=last)
    near(np.asarray(out), expected, dtype, 8)
    for a, b, p in zip(
        grads, their_vjp(np.asarray(exact(np.asarray(g))[0]), needs, *kept), args, strict=True
    ):
        assert (a.shape, a.dtype) == (p.shape, p.dtype)
        near(np.asarray(a), b, dtype, 32)
    library = cublas is not None and dtype != "float64"
    of_product = [
        library and (activation == "relu" or (activation == "gelu_tanh" and n % 8 == 0))
        for n in (sizes[1:] if last else sizes[1:-1])
    ]
    """For each activation whether a product applies it; and its slope, but for the one that comes last."""
    if activation != "relu":
        assert gpu.count("chain") == 2 * of_product.count(False) + (last and of_product[-1])
    if not library:
        return
    done, name = (
        [Epilogue(o["epilogue"]) for o in cublas.operations],
        activation.removesuffix("_tanh").upper(),
    )
    apart = Epilogue.BIAS if activation == "relu" else Epilogue.DEFAULT
    forward = [Epilogue[f"{name}_AUX_BIAS"] if fused else apart for fused in of_product]
    assert done[: len(sizes) - 1] == forward + [Epilogue.BIAS] * (not last)
    slopes = sum(of_product[:-1] if last else of_product)
    assert [e for e in done if "BGRAD" in e.name and e != Epilogue.BGRADB] == [
        Epilogue[f"D{name}_BGRAD"]
    ] * slopes
    assert done.count(Epilogue.BGRADB) == len(sizes) - 1 - slopes  # biases that no other product can sum
    assert len(done) == 3 * (len(sizes) - 1)


def test_parts_that_nobody_asks_for_are_not_made(cublas):
    args = placed(some(4, 8, 8, 2), "float32")
    out, saved, vjp = perceptron(*args, activation="relu")
    products = 0 if cublas is None else cublas.ran

    grads = vjp(out, (False, False, False, False, True, True, True), *saved)

    assert [g is None for g in grads] == [True, True, True, True, False, False, False]
    if cublas is not None:
        assert cublas.ran == products + 2  # the last weight's, and what comes down to the bias
    _, kept, their_vjp = perceptron(*map(np.asarray, args), activation="relu")
    for a, b in zip(grads[4:], their_vjp(np.asarray(out), (True,) * 7, *kept)[4:], strict=True):
        near(np.asarray(a), b, "float32", 8)


@pytest.mark.parametrize("lacks", ["forward", "backward", "both"])
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_what_the_library_lacks_is_done_apart_and_that_is_said(activation, lacks, gpu, monkeypatch, caplog):
    if reason := lt_on_cpu.missing():
        pytest.skip(reason)
    args = some(4, 8, 8, 2)
    refused = [Epilogue.RELU_AUX_BIAS, Epilogue.GELU_AUX_BIAS] * (lacks != "backward")
    refused += [Epilogue.DRELU_BGRAD, Epilogue.DGELU_BGRAD] * (lacks != "forward")
    library = lt_on_cpu.install(monkeypatch, unsupported=lambda o, _: o["epilogue"] in refused)
    ours = placed(args, "float32")
    with caplog.at_level("WARNING", "disttrain"):
        out, saved, vjp = perceptron(*ours, activation=activation)
        grads = vjp(out, (True,) * 7, *saved)

    assert not {o["epilogue"] for o in library.operations} & set(refused)
    assert "an activation is applied apart from the product before it" in caplog.text
    wide = [a.astype(np.float32).astype(np.float64) for a in args]
    expected, kept, their_vjp = perceptron(*wide, activation=activation)
    near(np.asarray(out), expected, "float32", 8)
    for a, b in zip(grads, their_vjp(np.asarray(out, np.float64), (True,) * 7, *kept), strict=True):
        near(np.asarray(a), b, "float32", 64)
