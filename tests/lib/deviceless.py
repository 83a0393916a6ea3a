"""cuDNN's plans for an H100 on a machine without a GPU or a driver.

As a program, with a folder to work in: makes every plan that the models of `disttrain` need, and prints a line of JSON
for each, with its workspace in bytes or the error. Needs nvidia-cudnn-frontend, cuDNN, and gcc.
"""

import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

H100 = {
    "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536, "multiProcessorCount": 132, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
    "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048,
    "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "smClockRateKHz": 1980000,
    "memClockRateKHz": 2619000, "l2CacheSize": 52428800, "totalGlobalMem": 85017624576,
    "deviceName": "NVIDIA H100 80GB HBM3",
}  # fmt: skip
"""What a driver would say of one; written by hand."""
IMAGES = 64
TOKENS = {"gpt2": 8 * 1024, "bert": 16 * 512}
WIDTH = 768


def missing():
    """Return why this cannot work here, or an empty string."""
    if importlib.util.find_spec("cudnn") is None:
        return "needs nvidia-cudnn-frontend"
    return "" if shutil.which("gcc") else "needs gcc, for a stub of a driver beside cuDNN"


def target(library):
    """Return what the frontend is told instead of a handle."""
    properties = library.create_device_properties(json.dumps(H100))
    return {"device_property": properties, "sm_version": 90, "sm_count": H100["multiProcessorCount"]}


def load_stub(folder):
    """Load a library in place of a driver's, which cuDNN asks for by name when it compiles a plan."""
    path = Path(folder) / "libcuda.so.1"
    source = Path(__file__).with_name("cuda_stub.c")
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), str(source)]
    subprocess.run(command, check=True, timeout=60)
    ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


def convolutions():
    """Return every convolution of ResNet-50: sizes of images and filters, and the window."""
    import disttrain as dt
    from disttrain.kernels import conv
    from disttrain.vision import models

    found = {}

    def noted(x, w, bias, window, groups):
        found[x.shape, w.shape, window] = None
        N, O = len(x), len(w)  # noqa: E741
        return np.zeros((N, *window.out_size(*x.shape[2:]), O), x.dtype).transpose(0, 3, 1, 2)

    kept, conv.conv2d = conv.conv2d, noted
    try:
        with dt.no_grad():
            models.resnet50().eval()(dt.zeros(1, 3, 224, 224))
    finally:
        conv.conv2d = kept
    return list(found)


def attentions():
    """Return how queries, keys, values and masks lie in memory in GPT-2 and BERT-base, with one layer each."""
    import disttrain as dt
    from disttrain import models
    from disttrain.ops import attention

    found, seen, views = [], [], attention._views

    def noted(*args):
        seen.append(views(*args))
        return seen[-1]

    attention._views = noted
    try:
        with dt.no_grad():
            for model, network, length, masks in (
                ("gpt2", models.GPT2Model(models.GPT2Config(n_layer=1)), 1024, [{}]),
                (
                    "bert",
                    models.BertModel(models.BertConfig(num_hidden_layers=1)),
                    512,
                    [{}, {"attention_mask": dt.ones(2, 512)}],
                ),
            ):
                for mask in masks:
                    network.eval()(dt.zeros(2, length, dtype=dt.int64), **mask)
                    found.append((model, seen.pop()))
    finally:
        attention._views = views
    return found


def cases():
    """Yield a name, the function that describes a graph, and its arguments, of every plan."""
    from disttrain.kernels import cudnn

    results = {}
    for x, w, window in convolutions():
        N, C, H, W = IMAGES, *x[1:]
        size = (N, w[0], *window.out_size(H, W))
        results[size[1:]] = None
        for dtype in ("bfloat16", "float16", "float32"):
            image, filters, out = (last(shape, dtype) for shape in ((N, C, H, W), w, size))
            name = f"conv {C}x{H}x{W} by {w} /{window.stride[0]} {dtype}"
            yield f"{name} forward", cudnn.convolution_graph, (image, filters, out, window, False, False)
            yield f"{name} input grad", cudnn.input_grad_graph, (out, filters, image, window)
            yield f"{name} weight grad", cudnn.weight_grad_graph, (image, out, filters, window)
            for relu in (False, True):
                yield (
                    f"{name} bias {relu=}",
                    cudnn.convolution_graph,
                    (image, filters, out, window, True, relu),
                )
    yield from norms(results)
    for model, a in attentions():
        for dtype in ("bfloat16", "float16"):
            q, k, v = (like(x, dtype) for x in (a.q, a.k, a.v))
            out, lse = like(a.q, dtype), cudnn._rows(np.empty(a.q.shape[:-1], np.float32))
            mask = None
            if a.mask is not None:
                mask = cudnn._heads(np.empty((*a.mask.shape[:2], a.q.shape[2], a.k.shape[2]), np.float16))
                mask = mask._replace(dtype=dtype)
            causal = model == "gpt2"
            name = f"attention {model} {dtype}{' mask' if mask else ''}"
            yield f"{name} forward", cudnn.attention_graph, (q, k, v, mask, 0.125, causal, out, lse)
            yield (
                f"{name} grad",
                cudnn.attention_grad_graph,
                (q, k, v, out, out, lse, mask, 0.125, causal, q, k, v),
            )


def norms(sizes):
    """Yield the cases of norms, given channels and sizes of the images that ResNet-50 normalises."""
    from disttrain.kernels import cudnn

    for dtype in ("bfloat16", "float32"):  # float16 takes the engines of bfloat16
        for model, rows in TOKENS.items():
            tokens = cudnn._rows_of(np.broadcast_to(np.float32(0), (rows, WIDTH)))._replace(dtype=dtype)
            yield f"norm {model} {dtype} layer_norm", cudnn.layer_norm_graph, (tokens,)
            yield f"norm {model} {dtype} layer_norm grad", cudnn.layer_norm_grad_graph, (tokens,)
        yield f"norm {dtype} rms_norm", cudnn.rms_norm_graph, (tokens,)
        yield f"norm {dtype} rms_norm grad", cudnn.rms_norm_grad_graph, (tokens,)
        for C, H, W in sizes:
            pixels = cudnn._rows_of(np.broadcast_to(np.float32(0), (IMAGES * H * W, C)))._replace(dtype=dtype)
            yield f"norm {C}x{H}x{W} {dtype} batch_norm", cudnn.batch_norm_graph, (pixels,)
            yield f"norm {C}x{H}x{W} {dtype} batch_norm grad", cudnn.batch_norm_grad_graph, (pixels,)


def last(shape, dtype):
    """Describe images or filters in channels-last memory."""
    from disttrain.kernels import cudnn

    return cudnn._filters(np.broadcast_to(np.float32(0), shape))._replace(dtype=dtype)


def like(x, dtype):
    """Describe heads that lie as those of an array of another type."""
    from disttrain.kernels import cudnn

    return cudnn._heads(x)._replace(dtype=dtype)


def main(folder):
    load_stub(folder)
    from disttrain.kernels import cudnn

    library = cudnn.load_library()
    told = target(library)
    for name, describe, args in cases():
        graph = cudnn.Graph(library, **told)
        try:
            describe(graph, *args)
            graph.build(tf32=True)
            row = {"bytes": int(graph.graph.get_workspace_size())}
        except RuntimeError as error:
            row = {"error": str(error)[:500]}
        print(json.dumps({"plan": name} | row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
