"""Which functions run in which type under ``autocast``: PyTorch's lists, and the casts that they ask for.

The lists are those of PyTorch 2.13 (``aten/src/ATen/autocast_mode.h`` and ``.cpp``). A function that is in one of them
is decorated with :func:`autocasts`, by its name here. It casts its arguments, by an operation that autograd records,
and runs with autocast off, so that what it is made of is not cast again. A function in no list runs on what it is
given.

The state belongs to the thread, as in PyTorch; ``None`` stands for the state that every thread begins with, and is all
that a decorated function looks at while autocast is off.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

from disttrain import dtypes, engine
from disttrain.context import autocast_state
from disttrain.modes import is_grad_enabled
from disttrain.ops import shape

P = ParamSpec("P")
R = TypeVar("R")


class Policy(enum.Enum):
    """What autocast does with the arguments of a function. Only float32, float16 and bfloat16 are ever cast."""

    LOWER = "the lower precision"
    FULL = "float32"
    FULL_BY_DEFAULT = "float32, unless the caller chooses a dtype"
    WIDEST = "the widest type among the arguments"
    UNTOUCHED = "as given; a list of functions that are made of listed ones here, and not in PyTorch"
    REFUSED = "an error: the function is not safe in lower precision"


def _table(**names: str) -> dict[str, Policy]:
    return {name: Policy[policy] for policy, words in names.items() for name in words.split()}


_LOSSES = """
binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy hinge_embedding_loss huber_loss kl_div l1_loss
margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss poisson_nll_loss smooth_l1_loss
soft_margin_loss triplet_margin_loss
"""
_PRODUCTS = """
addbmm addmm baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear lstm matmul mm
prelu rnn rnn_cell scaled_dot_product_attention vecdot
"""

POLICIES: Mapping[str, Mapping[str, Policy]] = {
    "cpu": _table(
        LOWER=_PRODUCTS,
        FULL=_LOSSES
        + """
        adaptive_avg_pool3d adaptive_max_pool3d avg_pool3d binary_cross_entropy cdist cholesky cholesky_ex
        cholesky_inverse cholesky_solve cond ctc_loss eigh eigvalsh fractional_max_pool2d fractional_max_pool3d
        grid_sample gru gru_cell inv inv_ex inverse lstm_cell lstsq matrix_rank max_pool3d max_unpool2d max_unpool3d
        nanquantile pad_by_copies pinverse prod qr quantile solve svd svdvals tensorinv tensorsolve trace
        triangular_solve
        """,
        WIDEST="cat index_copy stack",
        UNTOUCHED="addmv addr bilinear dot mv vdot",
    ),
    "cuda": _table(
        LOWER=_PRODUCTS + "addmv addr chain_matmul einsum gru gru_cell lstm_cell multi_dot mv",
        FULL=_LOSSES
        + """
        acos asin cdist cosh cosine_similarity dist erfinv exp expm1 group_norm layer_norm log log10 log1p log2
        logsumexp pdist pow reciprocal renorm resize rms_norm rsqrt sinh softplus tan
        """,
        FULL_BY_DEFAULT="cumprod cumsum linalg_norm log_softmax matrix_norm norm prod softmax sum vector_norm",
        WIDEST="addcdiv addcmul atan2 bilinear cross dot grid_sample index_put scatter_add tensordot vdot",
        REFUSED="binary_cross_entropy",
    ),
}
"""By kind of device what autocast does with each function.

The names are public but for three: ``pad_by_copies`` is ``pad`` in the modes ``reflect`` (of one or two dimensions) and
``replicate``, ``resize`` is ``interpolate`` but for the mode ``area``, and what ends with ``_cell`` is one step.
"""

DTYPES: Mapping[str, dtypes.dtype] = {
    "cpu": dtypes.bfloat16,
    "cuda": dtypes.float16,
    "mps": dtypes.float16,
    "xpu": dtypes.float16,
}
"""The lower precision of each kind of device that PyTorch knows and this library has a name for, unless chosen."""


class Cached(NamedTuple):
    """A parameter in lower precision."""

    source: Any
    """The parameter; kept, so that no other can have its id."""
    array: Any
    """Its memory when it was cast, and"""
    version: int
    """how often that had been written."""
    result: Any


class State(NamedTuple):
    """What autocast does in a thread."""

    enabled: frozenset[str] = frozenset()
    """The kinds of devices on which it is on."""
    lower: Mapping[str, dtypes.dtype] = DTYPES
    caching: bool = True
    blocks: tuple[tuple[str, bool, dtypes.dtype, bool], ...] = ()
    """For each block that is open, what its end restores: on which device, enabled or not, the dtype, caching."""
    cache: dict[int, Cached] = {}  # noqa: RUF012 (that of no block: nothing is put into it)

    def switched(self, device: str, enabled: bool) -> State:
        """Return the state with autocast on or off on a kind of device."""
        return self._replace(enabled=self.enabled | {device} if enabled else self.enabled - {device})

    def lowered(self, device: str, dtype: dtypes.dtype) -> State:
        """Return the state with another lower precision on a kind of device."""
        return self._replace(lower={**self.lower, device: dtype})


def state() -> State:
    """Return the state of this thread."""
    return autocast_state.get() or State()


def autocast_enabled() -> bool:
    """Return whether autocast is on for any kind of device: arguments may differ in type."""
    return autocast_state.get() is not None and bool(state().enabled)


def put(new: State) -> None:
    """Let ``new`` be the state of this thread."""
    autocast_state.set(None if new == State() else new)


def autocasts(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` so that it does what the lists say of its name while autocast is on."""
    return autocasts_as(function.__name__)(function)


def autocasts_as(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that does what the lists say of ``name``.

    Raises:
        KeyError: no list has the name.
    """
    policies = {device: table[name] for device, table in POLICIES.items() if name in table}
    if not policies:
        raise KeyError(name)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            if autocast_state.get() is None:
                return function(*args, **options)
            return _run(name, policies, function, args, options)

        call.autocasts_as = name  # type: ignore[attr-defined]  # for the test that no name is left out
        return call

    return decorate


def suspended(function: Callable[..., R], *args: Any, **options: Any) -> R:
    """Return ``function(*args, **options)``, run with autocast off."""
    if autocast_state.get() is None:
        return function(*args, **options)
    token = autocast_state.set(None)
    try:
        return function(*args, **options)
    finally:
        autocast_state.reset(token)


def _run(
    name: str,
    policies: Mapping[str, Policy],
    function: Callable[..., R],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> R:
    now = state()
    tensors = list(_tensors((*args, *options.values()))) if now.enabled else []
    device = next((d for t in tensors if (d := t.device.type) in now.enabled), None)
    policy = None if device is None else policies.get(device)
    if device is None or policy is None:
        return function(*args, **options)
    if policy is Policy.REFUSED:
        raise RuntimeError(
            f"{name}() is unsafe to autocast, because its gradient overflows in {now.lower[device]}; leave out the "
            f"sigmoid before it and use {name}_with_logits(), or call it in a block of autocast(enabled=False) with "
            f"inputs in float32"
        )
    kind = _kind(policy, now.lower[device], device, tensors, function, args, options)
    if kind is not None:
        args = tuple([_cast(a, kind, device, now) for a in args])
        options = {key: _cast(a, kind, device, now) for key, a in options.items()}
    return suspended(function, *args, **options)


def _kind(
    policy: Policy,
    lower: dtypes.dtype,
    device: str,
    tensors: list[Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> dtypes.dtype | None:
    """Return the type to cast to, or ``None`` if nothing is cast."""
    match policy:
        case Policy.LOWER:
            return lower
        case Policy.FULL:
            return dtypes.float32
        case Policy.FULL_BY_DEFAULT:
            chosen = inspect.signature(function).bind(*args, **options).arguments.get("dtype")
            return dtypes.float32 if chosen is None else None
        case Policy.WIDEST:
            kinds = [t.dtype for t in tensors if _is_eligible(t, device)]
            return functools.reduce(dtypes.promote_types, kinds) if kinds else None
        case _:
            return None


def _tensors(values: Any) -> Iterator[Any]:
    """Yield the Tensors among arguments, and in lists and tuples that are arguments."""
    for v in values:
        if isinstance(v, engine.Tensor_):
            yield v
        elif isinstance(v, list | tuple):
            yield from _tensors(v)


def _is_eligible(t: Any, device: str) -> bool:
    return t.dtype.is_floating_point and t.dtype is not dtypes.float64 and t.device.type == device


def _cast(value: Any, kind: dtypes.dtype, device: str, now: State) -> Any:
    """Return an argument with its tensors cast to ``kind``, recorded; others are left as they are."""
    if type(value) in (list, tuple):
        return type(value)([_cast(v, kind, device, now) for v in value])
    if not isinstance(value, engine.Tensor_) or value.dtype is kind or not _is_eligible(value, device):
        return value
    lasting = (
        now.caching
        and now.blocks
        and kind is now.lower[device]
        and value.dtype is dtypes.float32
        and value.requires_grad
        and value.is_leaf
        and value._base is None
        and type(value._version_counter)
        is list  # or its memory comes and goes, and nothing of it may be kept
    )
    if not lasting:
        return engine.apply(shape.astype, value, dtype=kind.numpy)
    found = now.cache.get(id(value))
    version = value._version_counter[0]
    if (
        found is None
        or found.array is not value._array
        or found.version != version
        or (is_grad_enabled() and not found.result.requires_grad)  # cast where nothing was recorded
    ):
        result = engine.apply(shape.astype, value, dtype=kind.numpy)
        found = now.cache[id(value)] = Cached(value, value._array, version, result)
    return found.result
