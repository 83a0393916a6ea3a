"""The ``out=`` argument of functions: the result is written into tensors that the caller has."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from disttrain import dtypes, engine
from disttrain.modes import is_grad_enabled, no_grad
from disttrain.precision import suspended

_NAMES = """
abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr all amax amin aminmax angle any arange
arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin asin asinh atan atan2 atanh baddbmm
bernoulli bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bmm
bucketize cat ceil chain_matmul cholesky cholesky_inverse cholesky_solve clamp clamp_max clamp_min clip
column_stack complex concat concatenate conj_physical copysign cos cosh cross cummax cummin cumprod cumsum
deg2rad diag diff digamma div divide dot dstack empty empty_permuted eq erf erfc erfinv exp exp2 expm1 eye
fix float_power floor floor_divide fmax fmin fmod frac frexp full gather gcd ge geqrf ger greater
greater_equal gt hamming_window hardshrink hash_tensor heaviside histc histogram histogramdd hspmm hstack
hypot i0 igamma igammac index_add index_copy index_reduce index_select inner inverse isin isneginf isposinf
kron kthvalue lcm ldexp le lerp less less_equal lgamma linspace log log10 log1p log2 log_softmax logaddexp
logaddexp2 logcumsumexp logical_and logical_not logical_or logical_xor logit logspace logsumexp lt lu
lu_solve lu_unpack masked_select matmul matrix_power max maximum mean median min minimum mm mode msort mul
multinomial multiply mv mvlgamma nan_to_num nanmean nanmedian nanquantile nansum narrow_copy ne neg negative
nextafter nonzero norm normal not_equal ones ormqr outer polar polygamma pow prod qr quantile rad2deg rand
randint randn randperm range reciprocal remainder renorm round row_stack rsqrt scatter scatter_add
scatter_reduce searchsorted sgn sigmoid sign signbit sin sinc sinh slice_scatter slogdet softmax sort sqrt
square sspaddmm stack std sub subtract sum svd take take_along_dim tan tanh tensordot threshold topk
triangular_solve tril triu true_divide trunc var vdot vstack where xlogy zeros
"""
TAKES_OUT = frozenset(_NAMES.split())
"""PyTorch's functions that have ``out=``; the façade wraps those of them that are here."""

_SAME_TYPE = """
abs addbmm addmm addmv amax amin aminmax argmax argmin baddbmm bitwise_not bmm bucketize ceil cholesky_ex
conj_physical cross cummax cummin det diag dot eigh eigvalsh float_power floor frac gather heaviside histc
index_add index_copy index_select inner inv inv_ex inverse isin isneginf isposinf kthvalue linalg_cross
linalg_norm log_softmax logcumsumexp masked_select matmul matrix_norm median mm mode msort multi_dot
multinomial mv nan_to_num nanmedian nanquantile neg nonzero norm qr quantile round scatter scatter_add
scatter_reduce searchsorted sgn sign signbit slice_scatter slogdet softmax solve solve_triangular sort svd
svdvals take take_along_dim tensordot topk triangular_solve tril triu trunc vdot vecdot vector_norm where
"""
SAME_TYPE = frozenset(_SAME_TYPE.split())
"""Those that want ``out`` of the type of the result; the others convert."""

_TAKES_TYPE = "arange cumprod cumsum empty eye full linspace logspace ones prod randperm sum zeros"
TAKES_TYPE_OF_OUT = frozenset(_TAKES_TYPE.split())
"""Those whose result has the type of ``out`` where no ``dtype`` is given."""

_APART = "cat gather index_select kthvalue masked_select stack take take_along_dim"
APART = frozenset(_APART.split())
"""Those that read elements elsewhere than they write them: ``out`` must not be an argument."""


def with_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` with PyTorch's keyword ``out``: a tensor, or a tuple of them for several results.

    Written in one place, around functions that know nothing of it: methods and operators do not pay for it.
    """

    @functools.wraps(function)
    def call(*args: Any, out: Any = None, **options: Any) -> Any:
        if out is None:
            return function(*args, **options)
        return _write(function, out, args, options)

    return call


def _write(function: Callable[..., Any], out: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    name = function.__name__
    several = isinstance(out, tuple | list)
    targets = list(out) if several else [out]
    for target in targets:
        if not isinstance(target, engine.Tensor_):
            raise TypeError(f"{name}(): out must be a Tensor, got {type(target).__name__}: {target!r:.80}")
    if is_grad_enabled() and any(map(_wants_gradient, (*targets, *args, *options.values()))):
        raise RuntimeError(
            f"{name}(): what goes to out=... is not recorded, and an argument requires a gradient; "
            f"leave out= away, or call it under disttrain.no_grad()"
        )
    given = (*args, *options.values())
    operands = [x for a in given for x in (a if isinstance(a, tuple | list) else (a,))]
    for target in targets:
        _check_memory(name, target, operands)
    if name in TAKES_TYPE_OF_OUT:
        options = {**options, "dtype": _type_of_out(name, targets[0], options.get("dtype"))}
    with no_grad():
        result = suspended(function, *args, **options)
        results = list(result) if isinstance(result, tuple | list) else [result]
        if len(results) != len(targets):
            raise TypeError(f"{name}(): out must hold {len(results)} tensors, got {len(targets)}")
        for target, value in zip(targets, results, strict=True):
            _put(name, target, value)
    if not several:
        return out
    return type(result)(*targets) if hasattr(result, "_fields") else type(out)(targets)


def _type_of_out(name: str, target: Any, dtype: Any) -> Any:
    if dtype is not None and dtypes.as_dtype(dtype) is not target.dtype:
        raise RuntimeError(
            f"{name}(): dtype={dtype!r} and out= of {target.dtype} do not agree; leave dtype away"
        )
    return target.dtype


def _wants_gradient(x: Any) -> bool:
    if isinstance(x, tuple | list):
        return any(map(_wants_gradient, x))
    return isinstance(x, engine.Tensor_) and bool(x.requires_grad)


def _check_memory(name: str, target: Any, operands: Iterable[Any]) -> None:
    """Refuse what PyTorch refuses: elements of ``out`` that are one, or that are in part those of an argument."""
    array = target._array
    if array.size and any(
        stride == 0 and size > 1 for stride, size in zip(array.strides, array.shape, strict=True)
    ):
        raise RuntimeError(f"{name}(): several elements of out= are one in memory; clone() it first")
    apart = name in APART
    for x in operands:
        if not isinstance(x, engine.Tensor_):
            continue
        a = x._array
        same = a.ctypes.data == array.ctypes.data and a.shape == array.shape and a.strides == array.strides
        if (apart or not same) and _share_memory(a, array):
            raise RuntimeError(
                f"{name}(): out= and an argument have some elements in common; clone() one of them first"
            )


def _share_memory(a: Any, b: Any) -> bool:
    try:
        return bool(np.shares_memory(a, b, max_work=1000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:  # then the result, made before it is written, is right all the same
        return False


def _put(name: str, target: Any, value: Any) -> None:
    """Write ``value`` into ``target``, which takes its shape, as PyTorch resizes it."""
    have, want = value.dtype, target.dtype
    same = name in SAME_TYPE or (name in ("all", "any") and want is not dtypes.uint8)
    if have.category > want.category or (same and have is not want):
        raise RuntimeError(
            f"{name}(): the result is {have}, which cannot be written into out= of {want}; give one of {have}"
        )
    if target.shape != value.shape:
        if target.numel():
            warnings.warn(
                f"{name}(): out= has shape {list(target.shape)} and is resized to {list(value.shape)}; empty it "
                f"first with out.resize_(0), or give one that fits",
                stacklevel=4,
            )
        target._array = value.to(want)._array.copy()
        target._version_counter[0] += 1
    else:
        target.copy_(value)
