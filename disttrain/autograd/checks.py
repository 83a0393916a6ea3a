"""Gradients against differences of function values: ``torch.autograd.gradcheck`` and ``gradgradcheck``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import autograd, dtypes, engine
from disttrain.functions.creation import zeros_like
from disttrain.functions.random import randn_like

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck"]


class GradcheckError(RuntimeError):
    """A gradient is not what differences say."""


def gradcheck(
    func: Callable[..., Any],
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """Compare the gradients of ``func`` with central differences, element by element, as ``torch.autograd.gradcheck``.

    Args:
        func: takes ``inputs`` and returns one or several Tensors.
        inputs: a Tensor or a sequence; those that require grad are checked, and should be float64.
        eps: step of the differences.
        atol: largest absolute difference.
        rtol: largest relative difference.
        raise_exception: raise, or return ``False``.
        nondet_tol: largest difference between two runs of backward.
        check_undefined_grad: whether backward must bear gradients that are not there.
        check_grad_dtypes: whether gradients must have the type of their inputs.
        check_batched_grad: whether ``is_grads_batched`` must agree.
        check_batched_forward_grad: must be false: there are no forward-mode gradients.
        check_forward_ad: the same.
        check_backward_ad: whether to check reverse-mode gradients.
        fast_mode: compare along one random direction only.
        masked: there for PyTorch's signature; concerns sparse tensors.

    Raises:
        GradcheckError: a gradient differs, if ``raise_exception``.
        NotImplementedError: forward mode is asked for.
        ValueError: no input requires grad.
    """
    if check_forward_ad or check_batched_forward_grad:
        raise NotImplementedError(
            "gradcheck(): there are no forward-mode gradients; leave check_forward_ad out"
        )
    try:
        with autograd.enable_grad():
            given = _as_inputs(inputs)
            _check(func, given, eps, atol, rtol, nondet_tol, check_grad_dtypes, fast_mode, check_backward_ad)
            if check_undefined_grad and check_backward_ad:
                _check_undefined(func, given)
            if check_batched_grad:
                _check_batched(func, given)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def _as_inputs(inputs: Any) -> tuple[Any, ...]:
    given = (inputs,) if isinstance(inputs, engine.Tensor_) else tuple(inputs)
    checked = [t for t in given if isinstance(t, engine.Tensor_) and t.requires_grad]
    if not checked:
        raise ValueError("gradcheck: there is nothing to check, no input has requires_grad=True")
    for i, t in enumerate(given):
        if isinstance(t, engine.Tensor_) and t.requires_grad:
            if t.dtype is not dtypes.float64:
                warnings.warn(
                    f"input {i} of gradcheck requires grad and is {t.dtype}: its differences are not exact enough; "
                    f"use float64",
                    stacklevel=3,
                )
            if t.numel() and 0 in [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]:
                raise RuntimeError(f"input {i} of gradcheck has elements that share memory; clone() it first")
            t.retain_grad()
    return given


def _leaves(given: Sequence[Any]) -> list[Tensor]:
    return [t for t in given if isinstance(t, engine.Tensor_) and t.requires_grad]


def _outputs(func: Callable[..., Any], given: Sequence[Any]) -> list[Tensor]:
    """Return the outputs that have gradients."""
    out = func(*given)
    outs = out if isinstance(out, tuple | list) else (out,)
    return [o for o in outs if isinstance(o, engine.Tensor_) and o.dtype.is_floating_point]


def _values(func: Callable[..., Any], given: Sequence[Any]) -> list[Any]:
    with autograd.no_grad():
        return [o._array.astype(np.float64) for o in _outputs(func, given)]


def _check(
    func: Callable[..., Any],
    given: tuple[Any, ...],
    eps: float,
    atol: float,
    rtol: float,
    nondet_tol: float,
    check_dtypes: bool,
    fast: bool,
    check_backward: bool,
) -> None:
    leaves = _leaves(given)
    outs = _outputs(func, given)
    if not any(o.requires_grad for o in outs):
        for i, t in enumerate(leaves):
            numeric = _differences(func, given, t, eps)
            if any(np.any(np.abs(column) > atol) for column in numeric):
                raise GradcheckError(
                    f"gradcheck: no output is recorded, yet input {i} changes them; its gradient must be zero"
                )
        return
    if not check_backward:
        return
    for k, out in enumerate(outs):
        if not out.requires_grad:
            continue
        analytic = _jacobian(out, leaves, k, check_dtypes)
        again = _jacobian(_outputs(func, given)[k], leaves, k, False)
        for i, (a, b) in enumerate(zip(analytic, again, strict=True)):
            if a.size and np.abs(a - b).max() > nondet_tol:
                raise GradcheckError(
                    f"Backward is not reentrant: the gradient of output {k} with respect to input {i} differs by "
                    f"{np.abs(a - b).max():.3g} between two runs with the same arguments"
                )
        for i, t in enumerate(leaves):
            numeric_i = _differences(func, given, t, eps)[k]
            a, n = analytic[i], numeric_i
            if fast:
                rng = np.random.default_rng(0)
                u, v = rng.standard_normal(n.shape[0]), rng.standard_normal(n.shape[1])
                a, n = np.asarray([u @ a @ v]), np.asarray([u @ n @ v])
            if not np.allclose(a, n, rtol=rtol, atol=atol):
                raise GradcheckError(
                    f"gradcheck: two Jacobians of output {k} by input {i} differ.\nBy differences: {n}\nRecorded: {a}\n"
                )


def _jacobian(out: Tensor, leaves: list[Tensor], k: int, check_dtypes: bool) -> list[Any]:
    """Return, for each leaf, the array (elements of the leaf, elements of the output) of derivatives."""
    columns: list[list[Any]] = [[] for _ in leaves]
    for j in range(out.numel()):
        one = zeros_like(out)
        one._array.reshape(-1)[j] = 1
        found = autograd.grad(out, leaves, one.detach(), retain_graph=True, allow_unused=True)
        for i, (g, t) in enumerate(zip(found, leaves, strict=True)):
            if g is not None and check_dtypes and g.dtype is not t.dtype:
                raise GradcheckError(f"the gradient of input {i} is {g.dtype}, the input {t.dtype}")
            columns[i].append(np.zeros(t.numel()) if g is None else g._array.astype(np.float64).reshape(-1))
    return [
        np.stack(c, 1) if c else np.zeros((t.numel(), out.numel()))
        for c, t in zip(columns, leaves, strict=True)
    ]


def _differences(func: Callable[..., Any], given: tuple[Any, ...], leaf: Tensor, eps: float) -> list[Any]:
    """Return, for each output, what :func:`_jacobian` should be, by central differences."""
    array = leaf._array
    rows: list[list[Any]] = []
    for index in np.ndindex(array.shape):
        before = array[index]
        array[index] = before + eps
        up = _values(func, given)
        array[index] = before - eps
        down = _values(func, given)
        array[index] = before
        rows.append([(u - d).reshape(-1) / (2 * eps) for u, d in zip(up, down, strict=True)])
    sizes = [v.size for v in _values(func, given)]
    return [np.stack([r[k] for r in rows]) if rows else np.zeros((0, n)) for k, n in enumerate(sizes)]


def _check_undefined(func: Callable[..., Any], given: tuple[Any, ...]) -> None:
    """Let backward run with no gradient at all for an output: the gradients of the inputs must be nothing or zero."""
    outs = [o for o in _outputs(func, given) if o.requires_grad]
    for skipped in range(len(outs)) if len(outs) > 1 else ():
        kept = [o for i, o in enumerate(outs) if i != skipped]
        try:
            found = autograd.grad(
                kept,
                _leaves(given),
                [zeros_like(o.detach()) for o in kept],
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as e:
            raise GradcheckError(
                f"backward raised {e!r} when the gradient of output {skipped} was None; it must take that for zeros"
            ) from e
        if any(g is not None and np.any(g._array != 0) for g in found):
            raise GradcheckError(
                "the gradients of the outputs were None or zero, and one of an input was not zero"
            )


def _check_batched(func: Callable[..., Any], given: tuple[Any, ...]) -> None:
    leaves = _leaves(given)
    for k, out in enumerate(_outputs(func, given)):
        if not out.requires_grad:
            continue
        rows = [randn_like(out.detach()) for _ in range(2)]
        from disttrain.functions.join import stack

        both = autograd.grad(
            out, leaves, stack(rows), retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        for i, g in enumerate(both):
            for n, row in enumerate(rows):
                one = autograd.grad(out, leaves, row, retain_graph=True, allow_unused=True)[i]
                if (one is None) != (g is None) or (
                    one is not None and not np.allclose(g[n]._array, one._array)
                ):
                    raise GradcheckError(f"batched gradients of output {k} differ for input {i}")


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    """Compare the gradients of the gradients of ``func`` with differences, as ``torch.autograd.gradgradcheck``.

    Args:
        func: see :func:`gradcheck`.
        inputs: see :func:`gradcheck`.
        grad_outputs: gradients of the outputs; random ones by default.
        eps: see :func:`gradcheck`, as for the rest.
        atol: largest absolute difference.
        rtol: largest relative difference.
        gen_non_contig_grad_outputs: whether the random gradients should not be contiguous.
        raise_exception: raise, or return ``False``.
        nondet_tol: largest difference between two runs.
        check_undefined_grad: whether backward must bear gradients that are not there.
        check_grad_dtypes: whether gradients must have the type of their inputs.
        check_batched_grad: whether ``is_grads_batched`` must agree.
        check_fwd_over_rev: must be false: there are no forward-mode gradients.
        check_rev_over_rev: whether to check at all.
        fast_mode: compare along one random direction only.
        masked: there for PyTorch's signature.

    Raises:
        GradcheckError: a gradient differs, if ``raise_exception``.
        NotImplementedError: forward mode is asked for.
    """
    if check_fwd_over_rev:
        raise NotImplementedError("gradgradcheck(): there are no forward-mode gradients")
    if not check_rev_over_rev:
        return True
    given = (inputs,) if isinstance(inputs, engine.Tensor_) else tuple(inputs)
    with autograd.enable_grad():
        outs = _outputs(func, _as_inputs(given))
    if grad_outputs is None:
        vectors = []
        for o in outs:
            v = randn_like(o.detach())
            if gen_non_contig_grad_outputs and o.ndim:
                wide = np.repeat(v._array[..., None], 2, -1)
                v = engine.Tensor_._of(wide)[..., 0]
            vectors.append(v.detach().requires_grad_())
    else:
        vectors = [grad_outputs] if isinstance(grad_outputs, engine.Tensor_) else list(grad_outputs)
    n = len(given)

    def gradients(*args: Any) -> tuple[Any, ...]:
        arguments = args[:n]
        leaves = [
            a
            for a, b in zip(arguments, given, strict=True)
            if isinstance(b, engine.Tensor_) and b.requires_grad
        ]
        with autograd.enable_grad():
            leaves = [a if a.requires_grad else a.requires_grad_() for a in leaves]
            results = _outputs(func, arguments)
            used = [(o, g) for o, g in zip(results, args[n:], strict=True) if o.requires_grad]
            found = autograd.grad(
                [o for o, _ in used], leaves, [g for _, g in used], create_graph=True, allow_unused=True
            )
        return tuple([g for g in found if g is not None])

    return gradcheck(
        gradients,
        (*given, *vectors),
        eps=eps,
        atol=atol,
        rtol=rtol,
        raise_exception=raise_exception,
        nondet_tol=nondet_tol,
        check_undefined_grad=check_undefined_grad,
        check_grad_dtypes=check_grad_dtypes,
        check_batched_grad=check_batched_grad,
        fast_mode=fast_mode,
        masked=masked,
    )
