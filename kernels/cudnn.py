"""cuDNN, NVIDIA's library of convolutions, attention and norms, through its frontend (``nvidia-cudnn-frontend``).

An operation is a graph of the frontend's nodes over tensors of given sizes, strides and types, from which cuDNN makes a
plan. Plans are kept; a run hands over addresses and waits for nothing. Numbers are summed in float32, and engines whose
sums have no fixed order are left out, so that the same shape gives the same bits at every run.

Functions return ``False`` (or ``None``) where cuDNN is not there or has no plan, which is said once: the caller then
uses kernels of ours. Images are channels-last: N, C, H, W are their axes, (N, H, W, C) is their memory.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from disttrain.kernels import cuda, nvrtc
from disttrain.kernels.arrays import Array, address, get_array_module

if TYPE_CHECKING:
    from disttrain.kernels.conv import Sizes, Window

_logger = logging.getLogger("disttrain")

HALVES = ("float16", "bfloat16")
_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}
"""The frontend's names of NumPy's types."""
_ALIGNED = 16
"""Bytes that plans take every address to be a multiple of."""
_MOST_FEATURES = 128
"""Of a head, in attention with a gradient."""


class _Settings:
    enabled = True
    """Whether cuDNN may be used."""
    tf32 = True
    """Whether convolutions of float32 may round their factors to TF32."""


settings = _Settings()
"""Of the process, as in PyTorch: ``disttrain.backends.cudnn``."""


class Spec(NamedTuple):
    """A tensor of a graph: its sizes, its strides in elements, its type."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class Graph:
    """A graph being described; its tensors are numbered in the order in which a run is given their arrays."""

    def __init__(self, library: Any, **target: Any) -> None:
        self._library = library
        self._count = 0
        single = library.data_type.FLOAT
        self.graph = library.pygraph(
            io_data_type=single, intermediate_data_type=single, compute_data_type=single, **target
        )

    def _kind(self, spec: Spec) -> Any:
        return getattr(self._library.data_type, _TYPES[spec.dtype])

    def takes(self, spec: Spec) -> Any:
        """Return the next array that a run is given, to read."""
        self._count += 1
        return self.graph.tensor(
            dim=list(spec.shape), stride=list(spec.strides), data_type=self._kind(spec), uid=self._count
        )

    def takes_number(self) -> Any:
        """Return the next array that a run is given, to read: one float32, on the host."""
        self._count += 1
        single = self._library.data_type.FLOAT
        return self.graph.tensor(
            dim=[1] * 4, stride=[1] * 4, data_type=single, is_pass_by_value=True, uid=self._count
        )

    def makes(self, tensor: Any, spec: Spec) -> None:
        """Have a tensor written to the next array that a run is given."""
        self._count += 1
        tensor.set_output(True).set_dim(list(spec.shape)).set_stride(list(spec.strides))
        tensor.set_data_type(self._kind(spec)).set_uid(self._count)

    def build(self, tf32: bool) -> None:
        """Have cuDNN choose and compile.

        Raises:
            cudnn.cudnnGraphNotSupportedError: there is no plan.
        """
        library, graph = self._library, self.graph
        note = library.numerical_note
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([library.heur_mode.A, library.heur_mode.FALLBACK])
        graph.deselect_numeric_notes([note.NONDETERMINISTIC, *([] if tf32 else [note.TENSOR_CORE])])
        graph.check_support()
        graph.build_plans()


class Plan:
    """A graph that can be run."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph.graph
        self._bytes = int(self._graph.get_workspace_size())

    def run(self, *arrays: Array) -> None:
        """Start it in the current stream, on arrays in the order in which the graph names them."""
        workspace = cuda.empty(max(self._bytes, 1), numpy.uint8)  # given back in the order of the stream
        addresses = {i: address(a) for i, a in enumerate(arrays, 1)}
        self._graph.execute(addresses, address(workspace), handle=handle())


_local = threading.local()
"""Of each thread: its handles and its plans."""


@functools.cache
def load_library() -> Any:
    """Return the frontend, the module ``cudnn``.

    Raises:
        ImportError: it is not installed, or of a version that has no Python graphs.
    """
    # cuDNN opens it by its bare name, and says what it misses.
    with contextlib.suppress(nvrtc.CompilerMissing):
        nvrtc.load_library()
    import cudnn

    if not hasattr(cudnn, "pygraph"):
        raise ImportError(f"cudnn of {cudnn.__file__} is not nvidia-cudnn-frontend")
    return cudnn


def handle() -> int:
    """Return cuDNN's handle of this thread for the current GPU, set to the current stream.

    Raises:
        ImportError: the frontend is not installed.
        RuntimeError: cuDNN cannot be loaded, or there is no GPU.
    """
    handles = _local.__dict__.setdefault("handles", {})
    library, device = load_library(), cuda.device()
    if device not in handles:
        handles[device] = library.create_handle()
    library.set_stream(handles[device], cuda.stream())
    return int(handles[device])


def target() -> dict[str, Any]:
    """Return for which GPU plans are made, as the frontend wants to be told."""
    return {"handle": handle()}


@functools.cache
def _is_there(device: int) -> bool:
    try:
        handle()
    except (ImportError, RuntimeError) as error:
        _say(
            "convolution, attention and norms on the GPU use disttrain's own kernels, as cuDNN cannot be used: "
            f"{error}; install disttrain[cudnn12] or disttrain[cudnn13]"
        )
        return False
    return True


@functools.cache
def _say(what: str) -> None:
    """Warn, once."""
    _logger.warning("%s", what)


def is_there() -> bool:
    """Return whether cuDNN is used on the current GPU."""
    return settings.enabled and _is_there(cuda.device())


def plan(describe: Callable[..., None], *args: Any) -> Plan | None:
    """Return the plan of a graph for the current GPU, or None if cuDNN has none.

    Args:
        describe: called with a :class:`Graph` and ``args``, to describe it.
        args: sizes and options, hashable.
    """
    plans = _local.__dict__.setdefault("plans", {})
    key = (cuda.device(), settings.tf32, describe, args)
    if key not in plans:
        library = load_library()
        graph = Graph(library, **target())
        describe(graph, *args)
        try:
            graph.build(settings.tf32)
            plans[key] = Plan(graph)
        except library.cudnnGraphNotSupportedError as error:
            _say(f"cuDNN has no plan for {describe.__name__} of {args}, which kernels of ours do: {error}")
            plans[key] = None
    made: Plan | None = plans[key]
    return made


def _ready(x: Array) -> Array:
    """Return ``x``, copied if it does not begin where plans take it to."""
    return x if address(x) % _ALIGNED == 0 else x.copy()


# ---------------------------------------------------------------------------------------------- convolution


def convolution(
    x: Array, w: Array, bias: Array | None, window: Window, groups: int, relu: bool = False
) -> Array | None:
    """Return the cross-correlation of ``x`` with ``w``, plus ``bias``, and its positive part if ``relu``; or None.

    Args:
        x: (N, H, W, C), contiguous, float32, float16 or bfloat16.
        w: (O, C // groups, KH, KW), of any layout and the same type.
        bias: (O,), or ``None``.
        window: where the filters stand.
        groups: of channels.
        relu: see above.

    Returns:
        (N, OH, OW, O), contiguous.
    """
    size = window.out_size(*x.shape[1:3])
    if not _convolves(x, w):
        return None
    out = cuda.empty((len(x), *size, len(w)), x.dtype)
    made = plan(convolution_graph, _image(x), _filters(w), _image(out), window, bias is not None, relu)
    if made is None:
        return None
    given = [] if bias is None else [_ready(get_array_module(x).ascontiguousarray(bias))]
    made.run(_ready(x), _channels_last(w), *given, out)
    return out


def convolution_input_grad(g: Array, w: Array, window: Window, groups: int, size: Sizes) -> Array | None:
    """Return the gradient of the images of :func:`convolution`, (N, *size, C), for ``g`` (N, OH, OW, O); or None."""
    if not _convolves(g, w):
        return None
    gx = cuda.empty((len(g), *size, w.shape[1] * groups), g.dtype)
    made = plan(input_grad_graph, _image(g), _filters(w), _image(gx), window)
    if made is None:
        return None
    made.run(_ready(g), _channels_last(w), gx)
    return gx


def convolution_weight_grad(g: Array, x: Array, window: Window, groups: int) -> Array | None:
    """Return the gradient of the filters of :func:`convolution`, (O, C // groups, KH, KW); or None."""
    if not _convolves(g, x):
        return None
    gw = cuda.empty((g.shape[3], *window.kernel, x.shape[3] // groups), g.dtype)
    made = plan(weight_grad_graph, _image(x), _image(g), _image(gw), window)
    if made is None:
        return None
    made.run(_ready(x), _ready(g), gw)
    return gw.transpose(0, 3, 1, 2)


def convolution_graph(
    graph: Graph, x: Spec, w: Spec, out: Spec, window: Window, has_bias: bool, relu: bool
) -> None:
    """Describe :func:`convolution`."""
    y = graph.graph.conv_fprop(graph.takes(x), graph.takes(w), **_placed(window))
    if has_bias:
        O = out.shape[1]  # noqa: E741
        y = graph.graph.bias(y, graph.takes(Spec((1, O, 1, 1), (O, 1, O, O), out.dtype)))
    if relu:
        y = graph.graph.relu(y)
    graph.makes(y, out)


def input_grad_graph(graph: Graph, g: Spec, w: Spec, gx: Spec, window: Window) -> None:
    """Describe :func:`convolution_input_grad`."""
    graph.makes(graph.graph.conv_dgrad(graph.takes(g), graph.takes(w), **_placed(window)), gx)


def weight_grad_graph(graph: Graph, x: Spec, g: Spec, gw: Spec, window: Window) -> None:
    """Describe :func:`convolution_weight_grad`."""
    graph.makes(graph.graph.conv_wgrad(graph.takes(x), graph.takes(g), **_placed(window)), gw)


def _convolves(x: Array, y: Array) -> bool:
    return x.dtype.name in _TYPES and min(x.size, y.size) > 0 and is_there()


def _placed(window: Window) -> dict[str, list[int]]:
    return {
        "padding": list(window.padding),
        "stride": list(window.stride),
        "dilation": list(window.dilation),
    }


def _image(x: Array) -> Spec:
    """Describe (N, H, W, C) memory by the axes N, C, H, W."""
    N, H, W, C = x.shape
    return Spec((N, C, H, W), (H * W * C, 1, W * C, C), x.dtype.name)


def _filters(w: Array) -> Spec:
    O, C, H, W = w.shape  # noqa: E741
    return Spec((O, C, H, W), (H * W * C, 1, W * C, C), w.dtype.name)


def _channels_last(w: Array) -> Array:
    return _ready(get_array_module(w).ascontiguousarray(w.transpose(0, 2, 3, 1)))


# ------------------------------------------------------------------------------------------------ attention


def attends(q: Array, k: Array, v: Array) -> bool:
    """Return whether :func:`attention` is for such arrays: half precision, heads of up to 128 features in eights."""
    return (
        q.dtype.name in HALVES
        and all(x.shape[-1] % 8 == 0 and 0 < x.shape[-1] <= _MOST_FEATURES for x in (q, v))
        and min(q.size, k.size) > 0
        and is_there()
    )


def attention(
    q: Array, k: Array, v: Array, mask: Array | None, scale: float, causal: bool, out: Array, lse: Array
) -> bool:
    """Write ``softmax(scale * q @ k.T + mask) @ v`` to ``out``, and return whether that was possible.

    Args:
        q: (B, H, L, E), float16 or bfloat16, features side by side; see :func:`attends`.
        k: (B, H, S, E), likewise.
        v: (B, H, S, F), likewise.
        mask: what to add to the scores, (1 or B, 1 or H, L, S) of the type of ``q``, finite; or ``None``.
        scale: factor of the scores.
        causal: query i sees the keys 0 to i only.
        out: (B, H, L, F), of the type of ``q``.
        lse: where the logarithms of the sums of ``e ** score`` go: (B, H, L) float32, C-contiguous.
    """
    q, k, v = (_strided(x) for x in (q, k, v))
    made = plan(
        attention_graph, *map(_heads, (q, k, v)), *_given(mask), scale, causal, _heads(out), _rows(lse)
    )
    if made is None:
        return False
    made.run(q, k, v, *([] if mask is None else [_ready(mask)]), out, lse)
    return True


def attention_grad(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    scale: float,
    causal: bool,
    out: Array,
    lse: Array,
    grads: tuple[Array, Array, Array],
) -> bool:
    """Write the gradients of ``q``, ``k`` and ``v`` in :func:`attention`, and return whether that was possible."""
    g, q, k, v, out = (_strided(x) for x in (g, q, k, v, out))
    specs = [_heads(x) for x in (q, k, v, out, g)]
    made = plan(
        attention_grad_graph,
        *(*specs, _rows(lse), *_given(mask), scale, causal),
        *(_heads(x) for x in grads),
    )
    if made is None:
        return False
    made.run(q, k, v, out, g, lse, *([] if mask is None else [_ready(mask)]), *grads)
    return True


def attention_graph(
    graph: Graph,
    q: Spec,
    k: Spec,
    v: Spec,
    mask: Spec | None,
    scale: float,
    causal: bool,
    out: Spec,
    lse: Spec,
) -> None:
    """Describe :func:`attention`."""
    result, stats = graph.graph.sdpa(
        q=graph.takes(q),
        k=graph.takes(k),
        v=graph.takes(v),
        **_masked(graph, mask, causal),
        attn_scale=scale,
        generate_stats=True,
    )
    graph.makes(result, out)
    graph.makes(stats, lse)


def attention_grad_graph(
    graph: Graph,
    q: Spec,
    k: Spec,
    v: Spec,
    out: Spec,
    g: Spec,
    lse: Spec,
    mask: Spec | None,
    scale: float,
    causal: bool,
    gq: Spec,
    gk: Spec,
    gv: Spec,
) -> None:
    """Describe :func:`attention_grad`."""
    made = graph.graph.sdpa_backward(
        q=graph.takes(q),
        k=graph.takes(k),
        v=graph.takes(v),
        o=graph.takes(out),
        dO=graph.takes(g),
        stats=graph.takes(lse),
        **_masked(graph, mask, causal),
        attn_scale=scale,
        use_deterministic_algorithm=True,
    )
    for tensor, spec in zip(made, (gq, gk, gv), strict=True):
        graph.makes(tensor, spec)


def _masked(graph: Graph, mask: Spec | None, causal: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"use_causal_mask": causal}
    return options if mask is None else options | {"bias": graph.takes(mask)}


def _given(mask: Array | None) -> Sequence[Spec | None]:
    return [None if mask is None else _heads(mask)]


def _heads(x: Array) -> Spec:
    strides = [s // x.itemsize for s in x.strides]
    return Spec(x.shape, tuple(strides), x.dtype.name)


def _rows(lse: Array) -> Spec:
    B, H, L = lse.shape
    return Spec((B, H, L, 1), (H * L, L, 1, 1), lse.dtype.name)


def _strided(x: Array) -> Array:
    """Return ``x``, copied if its features are not side by side, or its rows do not begin at multiples of 16 bytes."""
    steps = [s for s, n in zip(x.strides[:-1], x.shape[:-1], strict=True) if n > 1]
    if x.strides[-1] != x.itemsize or any(s % _ALIGNED or s <= 0 for s in steps):
        x = get_array_module(x).ascontiguousarray(x)
    return _ready(x)


# ---------------------------------------------------------------------------------------------------- norms


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array] | None:
    """Return the rows of ``x`` normalised, times ``weight`` plus ``bias``, their means and 1 / deviations; or None.

    Args:
        x: (M, K), contiguous, float32, float16 or bfloat16.
        weight: (K,) float32, as is ``bias``.
        bias: see above.
        eps: added to the variance.

    Returns:
        (M, K) of the type of ``x``; (M,) and (M,), float32.
    """
    if not _normalises(x):
        return None
    out, mean, rstd = cuda.empty(x.shape, x.dtype), *_each(x, 0, 2)
    made = plan(layer_norm_graph, _rows_of(x))
    if made is None:
        return None
    made.run(_ready(x), _ready(weight), _ready(bias), _number(eps), out, mean, rstd)
    return out, mean, rstd


def layer_norm_grad(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array] | None:
    """Return the gradients of ``x`` (M, K), ``weight`` and ``bias`` (K,) float32 of :func:`layer_norm`; or None."""
    return _norm_grad(layer_norm_grad_graph, g, x, weight, mean, rstd)


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array] | None:
    """Return the rows of ``x`` over their root mean squares, times ``weight``, and 1 / these roots; or None.

    The arguments are those of :func:`layer_norm`.
    """
    if not _normalises(x):
        return None
    out, (rstd,) = cuda.empty(x.shape, x.dtype), _each(x, 0, 1)
    made = plan(rms_norm_graph, _rows_of(x))
    if made is None:
        return None
    made.run(_ready(x), _ready(weight), _number(eps), out, rstd)
    return out, rstd


def rms_norm_grad(g: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array] | None:
    """Return the gradients of ``x`` (M, K) and ``weight`` (K,) float32 of :func:`rms_norm`; or None."""
    if not _normalises(x):
        return None
    gx, (gw,) = cuda.empty(x.shape, x.dtype), _each(x, 1, 1)
    made = plan(rms_norm_grad_graph, _rows_of(x))
    if made is None:
        return None
    made.run(_ready(g), _ready(x), _ready(weight), _ready(rstd), gx, gw)
    return gx, gw


def batch_norm(
    x: Array, weight: Array, bias: Array, running: tuple[Array, Array], momentum: float, eps: float
) -> tuple[Array, Array, Array, Array, Array] | None:
    """Return the columns of ``x`` normalised, times ``weight`` plus ``bias``, and what was found of them; or None.

    Args:
        x: pixels in rows, channels in columns (M, C), contiguous, float32, float16 or bfloat16.
        weight: (C,) float32, as are ``bias`` and both arrays of ``running``.
        bias: see above.
        running: mean and unbiased variance before this batch.
        momentum: weight of this batch in those after it.
        eps: added to the variance.

    Returns:
        (M, C) of the type of ``x``; (C,) float32: mean, 1 / deviation, running mean and variance after this batch.
    """
    if not _normalises(x):
        return None
    out, *found = cuda.empty(x.shape, x.dtype), *_each(x, 1, 4)
    made = plan(batch_norm_graph, _rows_of(x))
    if made is None:
        return None
    made.run(
        *(_ready(x), _ready(weight), _ready(bias), *map(_ready, running)),
        *(_number(momentum), _number(eps), out, *found),
    )
    mean, rstd, next_mean, next_var = found
    return out, mean, rstd, next_mean, next_var


def batch_norm_grad(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array] | None:
    """Return the gradients of ``x`` (M, C), ``weight`` and ``bias`` (C,) float32 of :func:`batch_norm`; or None."""
    return _norm_grad(batch_norm_grad_graph, g, x, weight, mean, rstd)


def _norm_grad(
    describe: Callable[..., None], g: Array, x: Array, weight: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array] | None:
    if not _normalises(x):
        return None
    gx, gw, gb = cuda.empty(x.shape, x.dtype), *_each(x, 1, 2)
    made = plan(describe, _rows_of(x))
    if made is None:
        return None
    made.run(*map(_ready, (g, x, weight, mean, rstd)), gx, gw, gb)
    return gx, gw, gb


def layer_norm_graph(graph: Graph, x: Spec) -> None:
    """Describe :func:`layer_norm`."""
    y, mean, rstd = graph.graph.layernorm(
        norm_forward_phase=load_library().norm_forward_phase.TRAINING,
        input=graph.takes(x),
        scale=graph.takes(_along(x, 1)),
        bias=graph.takes(_along(x, 1)),
        epsilon=graph.takes_number(),
    )
    for tensor, spec in ((y, x), (mean, _along(x, 0)), (rstd, _along(x, 0))):
        graph.makes(tensor, spec)


def layer_norm_grad_graph(graph: Graph, x: Spec) -> None:
    """Describe :func:`layer_norm_grad`."""
    _describe_grad(graph, graph.graph.layernorm_backward, x, _along(x, 0))


def rms_norm_graph(graph: Graph, x: Spec) -> None:
    """Describe :func:`rms_norm`."""
    y, rstd = graph.graph.rmsnorm(
        norm_forward_phase=load_library().norm_forward_phase.TRAINING,
        input=graph.takes(x),
        scale=graph.takes(_along(x, 1)),
        epsilon=graph.takes_number(),
    )
    graph.makes(y, x)
    graph.makes(rstd, _along(x, 0))


def rms_norm_grad_graph(graph: Graph, x: Spec) -> None:
    """Describe :func:`rms_norm_grad`."""
    gx, gw, _ = graph.graph.rmsnorm_backward(
        grad=graph.takes(x),
        input=graph.takes(x),
        scale=graph.takes(_along(x, 1)),
        inv_variance=graph.takes(_along(x, 0)),
        has_dbias=False,
    )
    graph.makes(gx, x)
    graph.makes(gw, _along(x, 1))


def batch_norm_graph(graph: Graph, x: Spec) -> None:
    """Describe :func:`batch_norm`."""
    channels = _along(x, 1)
    names = "input", "scale", "bias", "in_running_mean", "in_running_var"
    given = {name: graph.takes(x if name == "input" else channels) for name in names}
    made = graph.graph.batchnorm(**given, momentum=graph.takes_number(), epsilon=graph.takes_number())
    for i, tensor in enumerate(made):
        graph.makes(tensor, channels if i else x)


def batch_norm_grad_graph(graph: Graph, x: Spec) -> None:
    """Describe :func:`batch_norm_grad`."""
    _describe_grad(graph, graph.graph.batchnorm_backward, x, _along(x, 1))


def _describe_grad(graph: Graph, node: Callable[..., Any], x: Spec, found: Spec) -> None:
    """Describe a gradient, given the node and what forward has found: a mean and 1 / a deviation."""
    made = node(
        grad=graph.takes(x),
        input=graph.takes(x),
        scale=graph.takes(_along(x, 1)),
        mean=graph.takes(found),
        inv_variance=graph.takes(found),
    )
    for tensor, spec in zip(made, (x, _along(x, 1), _along(x, 1)), strict=True):
        graph.makes(tensor, spec)


def _normalises(x: Array) -> bool:
    return x.dtype.name in _TYPES and x.size > 0 and is_there()


def _rows_of(x: Array) -> Spec:
    """Describe a matrix as images of one pixel, whose channels are its columns."""
    M, C = x.shape
    return Spec((M, C, 1, 1), (C, 1, C, C), x.dtype.name)


def _along(x: Spec, axis: int) -> Spec:
    """Describe one float32 for each row (0) or column (1) of such images."""
    shape = tuple(n if i == axis else 1 for i, n in enumerate(x.shape))
    step = 1 if axis == 0 else x.shape[1]
    return Spec(shape, (step, 1, step, step), "float32")


def _each(x: Array, axis: int, count: int) -> list[Array]:
    """Return room for that many float32 of each row (0) or column (1) of ``x``."""
    return [cuda.empty(x.shape[axis], numpy.float32) for _ in range(count)]


def _number(value: float) -> Array:
    """Return a number as a run is given it: on the host, which is read before the run returns."""
    return numpy.array([value], numpy.float32)
