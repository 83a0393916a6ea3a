"""cuDNN: every plan that the models need can be made for an H100, and graphs say what is meant."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import cuda_shim
import cudnn_on_cpu
import deviceless
import numpy as np
import pytest
from cuda_cases import cast, exact, near

from disttrain.kernels import conv, cudnn
from disttrain.kernels.conv import Window
from disttrain.ops import attention, norm
from disttrain.ops import conv as ops

rng = np.random.default_rng(0)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_all_plans_of_the_models_can_be_made_for_an_h100(tmp_path):
    if reason := deviceless.missing():
        pytest.skip(reason)
    program = Path(deviceless.__file__)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, timeout=380
    )

    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row for row in rows if "error" in row] == []
    assert (
        sum(row["plan"].startswith("conv ") for row in rows) == 23 * 3 * 5
    )  # all different ones of ResNet-50
    assert sum(row["plan"].startswith("norm ") for row in rows) == 2 * (2 * 2 + 2 + 12 * 2)
    assert sum(row["plan"].startswith("attention gpt2") for row in rows) == 2 * 2
    assert sum(row["plan"].startswith("attention bert") for row in rows) == 2 * 2 * 2


def placed(shape, dtype):
    return cast(rng.standard_normal(shape) / 2, dtype).view(cuda_shim.GpuArray)


@pytest.fixture(params=["cuDNN", "own kernels"])
def nodes(request, gpu, monkeypatch):
    """The nodes of the graphs that cuDNN ran, or None where it is missing."""
    if request.param != "cuDNN":
        monkeypatch.setattr(cudnn, "_is_there", lambda device: False)
        return None
    if reason := cudnn_on_cpu.missing():
        pytest.skip(reason)
    return cudnn_on_cpu.install(monkeypatch)


def compare(op, args, dtype, room=8, **options):
    """Compare forward and backward with the CPU's in float64."""
    out, saved, vjp = op(*args, **options)
    g = placed(out.shape, dtype)
    needs = tuple(a is not None and a.dtype != np.bool_ for a in args)
    grads = vjp(g, needs, *saved)
    wide = [a if a is None or a.dtype == np.bool_ else exact(np.asarray(a))[0] for a in args]
    wide = [None if a is None else np.asarray(a) for a in wide]
    expected, saved, vjp = op(*wide, **options)
    assert isinstance(out, cuda_shim.GpuArray)
    assert out.dtype == args[0].dtype
    near(np.asarray(out), expected, dtype, room)
    for ours, theirs in zip(grads, vjp(exact(np.asarray(g))[0], needs, *saved), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            near(np.asarray(ours), theirs, dtype, 4 * room)
    return out


# ---------------------------------------------------------------------------------------------- convolution

WINDOWS = {
    "3x3": (Window((3, 3), (1, 1), (1, 1), (1, 1)), 1),
    "1x1": (Window((1, 1), (1, 1), (0, 0), (1, 1)), 1),
    "uneven": (Window((3, 2), (2, 1), (1, 0), (1, 2)), 1),
    "groups": (Window((3, 3), (2, 2), (1, 1), (1, 1)), 2),
    "depthwise": (Window((3, 3), (1, 1), (1, 1), (1, 1)), 4),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("which", WINDOWS)
def test_convolutions(which, bias, dtype, nodes, gpu):
    window, groups = WINDOWS[which]
    args = [placed((2, 4, 7, 6), dtype), placed((8, 4 // groups, *window.kernel), dtype)]

    out = compare(
        ops.convolution, [*args, placed(8, dtype) if bias else None], dtype, window=window, groups=groups
    )

    assert np.moveaxis(out, 1, -1).flags.c_contiguous
    if nodes is not None:
        assert nodes == ["CONV_FPROP", *["POINTWISE"] * bias, "CONV_DGRAD", "CONV_WGRAD"]
        assert gpu in ([], ["part_sums", "merge"])  # but for the gradient of the bias


def test_a_convolution_with_relu(nodes):
    if nodes is None:
        pytest.skip("for the library alone, as layers do not ask for it")
    window, groups = WINDOWS["3x3"]
    x, w, b = placed((2, 5, 6, 4), "float16"), placed((8, 4, 3, 3), "float16"), placed(8, "float16")

    out = cudnn.convolution(x, w, b, window, groups, relu=True)

    expected = conv.conv2d_reference(*exact(np.moveaxis(x, -1, 1), w, b), window, groups)
    near(np.moveaxis(np.asarray(out), -1, 1), np.maximum(expected, 0), "float16", 8)
    assert nodes == ["CONV_FPROP", "POINTWISE", "POINTWISE"]


def test_images_and_filters_that_lie_otherwise(nodes):
    window, groups = WINDOWS["3x3"]
    x = placed((2, 4, 7, 13), "float32")[..., 1::2]  # begins beside a multiple of 16 bytes, with gaps
    w = np.moveaxis(placed((8, 3, 3, 4), "float32"), -1, 1)

    compare(ops.convolution, [x, w], "float32", window=window, groups=groups)


def test_transposed_convolutions(nodes):
    window = Window((3, 2), (2, 1), (1, 0), (1, 2))
    args = [placed((2, 4, 3, 5), "float16"), placed((4, 6, 3, 2), "float16"), placed(6, "float16")]

    compare(ops.conv_transpose, args, "float16", window=window, groups=1, size=(6, 7))


def test_volumes_go_as_images(nodes):
    window = Window((2, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1))

    compare(
        ops.convolution, [placed((1, 2, 3, 4, 5), "float16"), placed((4, 2, 2, 3, 3), "float16")], "float16",
        window=window, groups=1,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ attention


def packed(B, T, heads, features, dtype):
    """Return queries, keys and values as views of what one projection makes."""
    qkv = placed((B, T, 3, heads, features), dtype)
    return [qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal, dtype, nodes):
    compare(attention.attention, packed(2, 6, 3, 8, dtype), dtype, 16, scale=0.3, causal=causal)

    if nodes is not None:
        assert nodes == ([] if dtype == "float32" else ["SDPA", "SDPA_BWD"])


MASKS = {
    "padding": lambda: np.arange(7)[None, None, None] < np.array([5, 7])[:, None, None, None],
    "one for all": lambda: rng.random((6, 7)) < 0.5,
    "nothing seen": lambda: np.array([0, 1, 1, 1, 0, 1])[:, None].astype(bool) & (np.arange(7) < 4),
}


@pytest.mark.parametrize("which", MASKS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_with_booleans(which, dtype, nodes):
    q, k, v = (placed((2, 3, n, 8), dtype) for n in (6, 7, 7))
    mask = MASKS[which]().view(cuda_shim.GpuArray)

    compare(attention.attention, [q, k, v, mask], dtype, 16, scale=0.3)

    assert nodes in (None, ["SDPA", "SDPA_BWD"])


def test_attention_with_numbers_added_without_their_gradient(nodes):
    q, k, v = (placed((2, 3, n, 8), "float16") for n in (6, 7, 7))
    mask = placed((2, 1, 6, 7), "float16")
    mask[0, 0, 2], mask[1, 0, 3, 4] = -np.inf, -np.inf
    out, saved, vjp = attention.attention(q, k, v, mask, scale=0.3)
    g = placed(out.shape, "float16")
    wide = exact(*map(np.asarray, (q, k, v, mask)))
    expected, theirs, their_vjp = attention.attention(*wide, scale=0.3)
    needs = (True, True, True, False)

    near(np.asarray(out), expected, "float16", 16)
    for a, b in zip(vjp(g, needs, *saved)[:3], their_vjp(exact(g)[0], needs, *theirs)[:3], strict=True):
        near(np.asarray(a), b, "float16", 64)
    assert nodes in (None, ["SDPA", "SDPA_BWD"])


def test_the_gradient_of_a_mask_is_made_by_own_kernels(nodes):
    q, k, v = (placed((2, 3, n, 8), "float16") for n in (6, 7, 7))

    compare(attention.attention, [q, k, v, placed((2, 1, 6, 7), "float16")], "float16", 16, scale=0.3)

    assert nodes in (None, ["SDPA"])


def test_what_dropout_keeps_is_as_on_the_cpu(nodes):
    q, k, v = (placed((2, 3, n, 8), "float16") for n in (6, 7, 7))
    keep = (rng.random((2, 3, 6, 7)) < 0.8).view(cuda_shim.GpuArray)

    compare(attention.attention, [q, k, v, None, keep], "float16", 16, scale=0.3, p=0.2)

    assert not nodes


# ---------------------------------------------------------------------------------------------------- norms

LAYER, RMS, BATCH = ([f"{name}NORM", f"{name}NORM_BWD"] for name in ("LAYER", "RMS", "BATCH"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("factors", [0, 1, 2])
@pytest.mark.parametrize("shape", [(5, 7, 24), (3, 40)])
def test_layer_norm(shape, factors, dtype, nodes, gpu):
    args = [placed(shape, dtype), *(placed(shape[-1], "float32") for _ in range(factors))]

    compare(norm.layer_norm, [*args, *[None] * (2 - factors)], dtype, normalized_shape=shape[-1:], eps=1e-3)

    if nodes is not None:
        assert (nodes, gpu) == (LAYER, [])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rms_norm(dtype, nodes, gpu):
    args = [placed((4, 5, 24), dtype), placed(24, dtype)]

    compare(norm.rms_norm, args, dtype, normalized_shape=(24,), eps=1e-3)

    if nodes is not None:
        assert (nodes, gpu) == (RMS, [])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("factors", [0, 2])
@pytest.mark.parametrize("shape", [(3, 8, 5, 4), (30, 8)])
def test_batch_norm(shape, factors, dtype, nodes, gpu):
    args = [placed(shape, dtype), *(placed(8, "float32") for _ in range(factors))]
    ours = [placed(8, "float32") + np.float32(1) for _ in range(2)]
    theirs = [np.asarray(a).copy() for a in ours]

    def op(*arrays, **options):
        here = theirs if type(arrays[0]) is np.ndarray else ours
        return norm.batch_norm(*arrays, running_mean=here[0], running_var=here[1], **options)

    out = compare(op, [*args, *[None] * (2 - factors)], dtype, 16, training=True, momentum=0.3, eps=1e-3)

    assert np.moveaxis(out, 1, -1).flags.c_contiguous
    for a, b in zip(ours, theirs, strict=True):
        near(np.asarray(a), b, "float32", 4)
    if nodes is not None:
        assert (nodes, gpu) == (BATCH, [])


def test_batch_norm_without_running_values_and_outside_of_training(nodes):
    x, w, b = placed((6, 8), "float32"), placed(8, "float32"), placed(8, "float32")
    compare(norm.batch_norm, [x, w, b], "float32", training=True, eps=1e-3)
    running = {"running_mean": np.zeros(8, np.float32), "running_var": np.ones(8, np.float32)}
    ours = {name: a.view(cuda_shim.GpuArray) for name, a in running.items()}

    out, saved, vjp = norm.batch_norm(x, w, b, **ours, training=False)

    expected = norm.batch_norm(*map(np.asarray, (x, w, b)), **running, training=False)
    near(np.asarray(out), expected[0], "float32", 4)
    vjp(out, (True,) * 3, *saved)
    assert nodes in (None, BATCH)


def test_norms_that_cudnn_has_no_plan_for_are_done_by_own_kernels(ran):
    done = ran(unsupported=["LAYERNORM", "RMSNORM_BWD", "BATCHNORM", "BATCHNORM_BWD"])
    x, w, b = placed((6, 8), "float16"), placed(8, "float32"), placed(8, "float32")

    compare(norm.layer_norm, [x, w, b], "float16", normalized_shape=(8,), eps=1e-3)
    compare(norm.rms_norm, [x, w], "float16", normalized_shape=(8,), eps=1e-3)
    compare(norm.batch_norm, [x, w, b], "float16", 16, training=True, eps=1e-3)

    assert done == ["LAYERNORM_BWD", "RMSNORM"]


# --------------------------------------------------------------------------------------------- plans, falling back


@pytest.fixture
def ran(gpu, monkeypatch):
    if reason := cudnn_on_cpu.missing():
        pytest.skip(reason)
    return lambda **options: cudnn_on_cpu.install(monkeypatch, **options)


def test_a_plan_is_made_once(ran, monkeypatch):
    ran()
    made, build = [], cudnn.Graph.build
    monkeypatch.setattr(cudnn.Graph, "build", lambda graph, tf32: made.append(tf32) or build(graph, tf32))
    window, groups = WINDOWS["3x3"]
    x, w = placed((2, 5, 6, 4), "float32"), placed((8, 4, 3, 3), "float32")

    for _ in range(2):
        cudnn.convolution(x, w, None, window, groups)
    monkeypatch.setattr(cudnn.settings, "tf32", False)
    cudnn.convolution(x, w, None, window, groups)

    assert made == [True, False]


def test_what_cudnn_has_no_plan_for_goes_to_own_kernels_and_that_is_said_once(ran, caplog):
    done = ran(unsupported=["CONV_FPROP", "CONV_WGRAD", "SDPA"])
    window, groups = WINDOWS["3x3"]

    with caplog.at_level(logging.WARNING, "disttrain"):
        for _ in range(2):
            args = [placed((2, 4, 7, 6), "float16"), placed((8, 4, 3, 3), "float16")]
            compare(ops.convolution, args, "float16", window=window, groups=groups)
            compare(attention.attention, packed(2, 6, 3, 8, "float16"), "float16", 16, scale=0.3)

    assert done == ["CONV_DGRAD"] * 2
    said = [m for m in caplog.messages if "cuDNN has no plan for" in m]
    assert [m.split()[5] for m in said] == ["convolution_graph", "weight_grad_graph", "attention_graph"]


def test_without_cudnn_own_kernels_are_used_and_that_is_said_once(ran, monkeypatch, caplog):
    def none():
        raise ImportError("No module named 'cudnn'")

    monkeypatch.setattr(cudnn, "handle", none)
    monkeypatch.setattr(cudnn, "_is_there", cudnn._is_there.__wrapped__)
    window, groups = WINDOWS["3x3"]
    with caplog.at_level(logging.WARNING, "disttrain"):
        for _ in range(2):
            args = [placed((2, 4, 7, 6), "float16"), placed((8, 4, 3, 3), "float16")]
            compare(ops.convolution, args, "float16", window=window, groups=groups)

    said = [m for m in caplog.messages if "cuDNN" in m]
    assert said == [
        "convolution, attention and norms on the GPU use disttrain's own kernels, as cuDNN cannot be used: "
        "No module named 'cudnn'; install disttrain[cudnn12] or disttrain[cudnn13]"
    ]
    cudnn._say.cache_clear()


def test_it_can_be_switched_off(ran):
    import disttrain as dt

    done = ran()
    window, groups = WINDOWS["3x3"]
    args = [placed((2, 4, 7, 6), "float16"), placed((8, 4, 3, 3), "float16")]
    with dt.backends.cudnn.flags(enabled=False):
        compare(ops.convolution, args, "float16", window=window, groups=groups)

    assert done == []
    assert dt.backends.cudnn.enabled


def test_tf32_is_left_out_where_it_is_not_wanted(ran):
    library = cudnn.load_library()
    left_out = []

    class Recorder:
        def __getattr__(self, name):
            return lambda *args: left_out.extend(args[0]) if name == "deselect_numeric_notes" else None

    for tf32 in (False, True):
        graph = cudnn.Graph(library, **deviceless.target(library))
        graph.graph = Recorder()
        _BUILD(graph, tf32)

    note = library.numerical_note
    assert left_out == [note.NONDETERMINISTIC, note.TENSOR_CORE, note.NONDETERMINISTIC]


_BUILD = cudnn.Graph.build
