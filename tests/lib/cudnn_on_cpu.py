"""cuDNN without a GPU: its frontend takes the graphs, and NumPy does what their nodes say, at the addresses of a run.

The nodes, their ports and the sizes and strides of tensors are read back from the frontend. Needs its version 1.27,
whose graphs are objects of Python.
"""

import functools
import importlib.util
import threading

import ml_dtypes
import numpy as np
from deviceless import target
from lt_on_cpu import at

from disttrain.kernels import conv, cudnn, norm

TYPES = {"FLOAT": np.float32, "HALF": np.float16, "BFLOAT16": ml_dtypes.bfloat16}


def missing():
    """Return why this cannot work here, or an empty string."""
    return "" if importlib.util.find_spec("cudnn") else "needs nvidia-cudnn-frontend"


def install(monkeypatch, unsupported=()):
    """Let runs of plans happen on the CPU; return the list of the names of the nodes that ran.

    Args:
        monkeypatch: pytest's.
        unsupported: names of nodes for which there is no plan.
    """
    library, ran = cudnn.load_library(), []

    def build(graph, tf32):
        graph.graph.validate()
        names = [node.node_type.name for node in graph.graph.nodes]
        if set(names) & set(unsupported):
            raise library.cudnnGraphNotSupportedError(f"not {names}")

    def execute(graph, addresses, workspace, handle):
        assert handle == 4711
        assert workspace
        values = {}
        for node in graph.nodes:
            ran.append(node.node_type.name)
            given = {
                port: values[t.uid] if t.uid in values else view(t, addresses)
                for port, t in node.inputs.items()
            }
            made = NODES[node.node_type.name](given, node.params, node.outputs)
            values |= {node.outputs[port].uid: value for port, value in made.items()}
        for uid, value in values.items():
            if uid in addresses:
                tensor = next(t for t in graph.tensors.values() if t.uid == uid)
                out = view(tensor, addresses)
                out[...] = value.astype(out.dtype)

    monkeypatch.setattr(cudnn.Graph, "build", build)
    monkeypatch.setattr(library.pygraph, "execute", execute)
    monkeypatch.setattr(library.pygraph, "get_workspace_size", lambda graph: 64)
    monkeypatch.setattr(cudnn, "target", functools.cache(lambda: target(library)))
    monkeypatch.setattr(cudnn, "handle", lambda: 4711)
    monkeypatch.setattr(cudnn, "_local", threading.local())
    monkeypatch.setattr(cudnn, "_is_there", lambda device: True)
    monkeypatch.setattr(cudnn, "_say", functools.cache(cudnn._say.__wrapped__))
    return ran


def view(tensor, addresses):
    """Return the memory of a tensor of a run, as its description says that it lies."""
    kind = np.dtype(TYPES[str(tensor.data_type).rpartition(".")[2]])
    by_value = tensor.is_pass_by_value
    assert by_value or addresses[tensor.uid] % 16 == 0
    last = sum((n - 1) * s for n, s in zip(tensor.dim, tensor.stride, strict=True))
    flat = at(addresses[tensor.uid], kind, (last + 1,))
    return np.lib.stride_tricks.as_strided(flat, tensor.dim, [s * kind.itemsize for s in tensor.stride])


def wide(x):
    return np.asarray(x, np.float32)


def window(params, kernel):
    return conv.Window(tuple(kernel), *(tuple(params[name]) for name in ("stride", "padding", "dilation")))


def forward(given, params, outputs):
    x, w = wide(given["image"]), wide(given["weight"])
    return {"Y": conv.conv2d(x, w, None, window(params, w.shape[2:]), x.shape[1] // w.shape[1])}


def input_grad(given, params, outputs):
    g, w = wide(given["loss"]), wide(given["filter"])
    _, C, *size = outputs["DX"].dim
    return {"DX": conv.conv2d_input_grad(g, w, window(params, w.shape[2:]), C // w.shape[1], tuple(size))}


def weight_grad(given, params, outputs):
    x, g = wide(given["image"]), wide(given["loss"])
    _, c, *kernel = outputs["DW"].dim
    return {"DW": conv.conv2d_weight_grad(g, x, window(params, kernel), x.shape[1] // c)}


def pointwise(given, params, outputs):
    x = given["IN_0"]
    return {"OUT_0": x + wide(given["IN_1"]) if params["mode"] == "bias" else np.maximum(x, 0)}


def scores(given, params):
    q, k = wide(given["q"]), wide(given["k"])
    s = q @ k.swapaxes(-1, -2) * np.float32(params["attn_scale"])
    if "bias" in given:
        s = s + wide(given["bias"])
    return np.where(np.tri(*s.shape[-2:], dtype=bool), s, -np.inf) if params["use_causal_mask"] else s


def attention(given, params, outputs):
    s = scores(given, params)
    lse = np.log(np.exp(s - s.max(-1, keepdims=True)).sum(-1, keepdims=True)) + s.max(-1, keepdims=True)
    return {"O": np.exp(s - lse) @ wide(given["v"]), "Stats": lse}


def attention_grad(given, params, outputs):
    assert params["use_deterministic_algorithm"]
    p = np.exp(scores(given, params) - given["stats"])
    q, k, v, o, g = (wide(given[name]) for name in ("q", "k", "v", "o", "dO"))
    ds = p * (g @ v.swapaxes(-1, -2) - (g * o).sum(-1, keepdims=True)) * np.float32(params["attn_scale"])
    return {"dQ": ds @ k, "dK": ds.swapaxes(-1, -2) @ q, "dV": p.swapaxes(-1, -2) @ g}


def layer_norm(given, params, outputs):
    assert params["norm_forward_phase"].name == "TRAINING"
    x, w, b = (wide(given[name])[..., 0, 0] for name in ("input", "scale", "bias"))
    y, mean, rstd = norm.layer_norm_reference(x, w[0], b[0], float(given["epsilon"].item()))
    return pixels({"Y": y, "mean": mean[:, None], "inv_var": rstd[:, None]})


def rms_norm(given, params, outputs):
    assert params["norm_forward_phase"].name == "TRAINING"
    x, w = (wide(given[name])[..., 0, 0] for name in ("input", "scale"))
    y, rstd = norm.rms_norm_reference(x, w[0], float(given["epsilon"].item()))
    return pixels({"Y": y, "inv_var": rstd[:, None]})


def row_norm_grad(given, params, outputs):
    g, x, w, *found = (wide(t)[..., 0, 0] for t in given.values())
    if "mean" in given:
        made = norm.layer_norm_grad_reference(g, x, w[0], *(f[:, 0] for f in found))
    else:
        assert not params["has_dbias"]
        made = norm.rms_norm_grad_reference(g, x, w[0], found[0][:, 0])
    names = "DX", "DScale", "DBias"
    return pixels({name: v if v.ndim == 2 else v[None] for name, v in zip(names, made, strict=False)})


def batch_norm(given, params, outputs):
    x, w, b, mean, var = (
        wide(given[name])[..., 0, 0]
        for name in ("input", "scale", "bias", "in_running_mean", "in_running_var")
    )
    factor = float(given["momentum"].item())
    mu, square = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    rstd = 1 / np.sqrt(square + float(given["epsilon"].item()))
    return pixels(
        {
            "Y": (x - mu) * rstd * w + b,
            "mean": mu[None],
            "inv_var": rstd[None],
            "next_running_mean": (1 - factor) * mean + factor * mu,
            "next_running_var": (1 - factor) * var + factor * square * len(x) / (len(x) - 1),
        }
    )


def batch_norm_grad(given, params, outputs):
    g, x, w, mean, rstd = (
        wide(given[n])[..., 0, 0] for n in ("grad", "input", "scale", "mean", "inv_variance")
    )
    xhat = (x - mean) * rstd
    gw, gb = (g * xhat).sum(0, keepdims=True), g.sum(0, keepdims=True)
    return pixels({"DX": w * rstd * (g - gb / len(x) - xhat * gw / len(x)), "DScale": gw, "DBias": gb})


def pixels(matrices):
    return {port: v[..., None, None] for port, v in matrices.items()}


NODES = {
    "LAYERNORM": layer_norm,
    "LAYERNORM_BWD": row_norm_grad,
    "RMSNORM": rms_norm,
    "RMSNORM_BWD": row_norm_grad,
    "BATCHNORM": batch_norm,
    "BATCHNORM_BWD": batch_norm_grad,
    "CONV_FPROP": forward,
    "CONV_DGRAD": input_grad,
    "CONV_WGRAD": weight_grad,
    "POINTWISE": pointwise,
    "SDPA": attention,
    "SDPA_BWD": attention_grad,
}
