"""Derivatives of functions of tensors: ``jacobian``, ``hessian`` and products with them.

By the names of ``torch.autograd.functional``. All are made of reverse passes; products with a Jacobian from the right
take two ("double backward trick").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from disttrain import autograd, engine, missing
from disttrain.functions.creation import zeros, zeros_like
from disttrain.functions.join import stack

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]

Tensors = tuple[Any, ...]


def _as_tuple(x: Any, name: str, function: str) -> tuple[bool, Tensors]:
    """Return whether ``x`` is a tuple, and it as one.

    Raises:
        TypeError: ``x`` holds something that is no Tensor.
    """
    is_tuple = isinstance(x, tuple)
    xs = x if is_tuple else (x,)
    for i, t in enumerate(xs):
        if not isinstance(t, engine.Tensor_):
            where = f"value {i} of the {name}" if is_tuple else f"the {name}"
            raise TypeError(f"{where} of {function} must be a Tensor, got {type(t).__name__}: {t!r:.80}")
    return is_tuple, xs


def _inputs(xs: Tensors, create_graph: bool) -> Tensors:
    """Return tensors to differentiate with respect to: with the history of ``xs`` if a graph is wanted."""
    return tuple(
        [x.view_as(x) if create_graph and x.requires_grad else x.detach().requires_grad_() for x in xs]
    )


def _unpack(is_tuple: bool, xs: Sequence[Any]) -> Any:
    return tuple(xs) if is_tuple else xs[0]


def _results(xs: Sequence[Any], create_graph: bool) -> Tensors:
    return tuple([x if create_graph else x.detach() for x in xs])


def _check_vector(v: Any, like: Tensors, what: str, function: str) -> Tensors:
    """Return ``v`` as a tuple that fits ``like``; ones if it is ``None`` and ``like`` is a single number."""
    if v is None:
        if len(like) != 1 or like[0].numel() != 1:
            raise RuntimeError(
                f"{function}(): v may be left out only if {what} is one Tensor with one element; give v"
            )
        return (zeros_like(like[0].detach()) + 1,)
    _, vs = _as_tuple(v, "vector v", function)
    if len(vs) != len(like):
        raise RuntimeError(f"{function}(): v has {len(vs)} tensors, {what} {len(like)}")
    for i, (a, b) in enumerate(zip(vs, like, strict=True)):
        if a.shape != b.shape:
            raise RuntimeError(
                f"{function}(): v has invalid size: element {i} has {list(a.shape)}, should be {list(b.shape)}"
            )
    return vs


def _outputs(func: Callable[..., Any], inputs: Tensors, function: str, strict: bool) -> tuple[bool, Tensors]:
    is_tuple, outs = _as_tuple(func(*inputs), "what the function returned", function)
    if strict:
        for i, out in enumerate(outs):
            if not out.requires_grad:
                raise RuntimeError(
                    f"{function}(): output {i} of the function does not require gradients; in strict "
                    f"mode each output must depend on the inputs"
                )
    return is_tuple, outs


def _grads(
    outs: Sequence[Any],
    inputs: Tensors,
    vectors: Sequence[Any] | None,
    create_graph: bool,
    strict: bool,
    function: str,
) -> Tensors:
    """Return the gradients, zeros where an input has no part in the outputs (an error if ``strict``)."""
    used = [i for i, o in enumerate(outs) if o.requires_grad]
    if used:
        found = autograd.grad(
            [outs[i] for i in used],
            inputs,
            None if vectors is None else [vectors[i] for i in used],
            create_graph=create_graph,
            retain_graph=True,
            allow_unused=True,
        )
    else:
        found = (None,) * len(inputs)
    results = []
    for i, (g, x) in enumerate(zip(found, inputs, strict=True)):
        if g is None:
            if strict:
                raise RuntimeError(
                    f"{function}(): the outputs are independent of input {i}; strict=True refuses that"
                )
            g = zeros_like(x.detach())
        elif strict and create_graph and not g.requires_grad:
            raise RuntimeError(
                f"{function}(): the gradient of input {i} does not depend on the inputs; strict=True with "
                f"create_graph=True refuses that"
            )
        results.append(g)
    return tuple(results)


def vjp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> tuple[Any, Any]:
    """Return ``func(*inputs)`` and the product of ``v`` with its Jacobian, as ``torch.autograd.functional.vjp``.

    Args:
        func: takes and returns one or several Tensors.
        inputs: a Tensor or a tuple of them.
        v: of the shapes of the outputs; may be left out if there is a single number.
        create_graph: let the results have a history.
        strict: raise if an output does not depend on an input, instead of returning zeros.

    Raises:
        RuntimeError: ``v`` does not fit, or see ``strict``.
        TypeError: something is no Tensor.
    """
    with autograd.enable_grad():
        is_tuple, given = _as_tuple(inputs, "inputs", "vjp")
        xs = _inputs(given, create_graph)
        outs_tuple, outs = _outputs(func, xs, "vjp", strict)
        vs = _check_vector(v, outs, "the output", "vjp")
        grads = _grads(outs, xs, vs, create_graph, strict, "vjp")
    return _unpack(outs_tuple, _results(outs, create_graph)), _unpack(is_tuple, _results(grads, create_graph))


def jvp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> tuple[Any, Any]:
    """Return ``func(*inputs)`` and the product of its Jacobian with ``v``, as ``torch.autograd.functional.jvp``.

    By two reverse passes: the product of a vector with the Jacobian is linear in the vector, and its derivative with
    respect to the vector is the Jacobian again. For the arguments see :func:`vjp`; ``v`` has the shapes of the inputs.
    """
    with autograd.enable_grad():
        _, given = _as_tuple(inputs, "inputs", "jvp")
        vs = _check_vector(v, given, "the input", "jvp")
        xs = _inputs(given, create_graph)
        outs_tuple, outs = _outputs(func, xs, "jvp", strict)
        dummies = tuple([zeros_like(o.detach()).requires_grad_() for o in outs])
        backs = _grads(outs, xs, dummies, True, strict, "jvp")
        if strict:
            for i, b in enumerate(backs):
                if not b.requires_grad:
                    raise RuntimeError(
                        f"jvp(): the outputs are independent of input {i}; strict=True refuses that"
                    )
        grads = _grads(backs, dummies, vs, create_graph, strict and create_graph, "jvp")
    return _unpack(outs_tuple, _results(outs, create_graph)), _unpack(
        outs_tuple, _results(grads, create_graph)
    )


def jacobian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """Return the Jacobian of ``func`` at ``inputs``, as ``torch.autograd.functional.jacobian``.

    Args:
        func: takes and returns one or several Tensors.
        inputs: a Tensor or a tuple of them.
        create_graph: let the result have a history.
        strict: raise if an output does not depend on an input, instead of returning zeros.
        vectorize: there for PyTorch's signature; rows are made one after the other in any case.
        strategy: ``"reverse-mode"``; ``"forward-mode"`` gives the same result, in the same way.

    Returns:
        For one input and one output a Tensor of shape ``(*output.shape, *input.shape)``; for several inputs or outputs
        a tuple of them, or a tuple (by outputs) of tuples (by inputs).

    Raises:
        NotImplementedError: ``strategy`` is ``"forward-mode"`` with ``create_graph`` or without ``vectorize``.
        RuntimeError, TypeError: see :func:`vjp`.
    """
    if strategy not in ("reverse-mode", "forward-mode"):
        raise ValueError(f'strategy must be "reverse-mode" or "forward-mode", got {strategy!r}')
    if strict and vectorize:
        raise RuntimeError("jacobian(): strict=True and vectorize=True exclude each other; leave one out")
    if strategy == "forward-mode" and (create_graph or not vectorize):
        raise NotImplementedError(
            'jacobian(strategy="forward-mode") goes only with vectorize=True and create_graph=False, as in PyTorch; '
            'use "reverse-mode"'
        )
    with autograd.enable_grad():
        is_tuple, given = _as_tuple(inputs, "inputs", "jacobian")
        xs = _inputs(given, create_graph)
        outs_tuple, outs = _outputs(func, xs, "jacobian", strict)
        table = [rows(out, xs, create_graph, strict) for out in outs]
    if is_tuple and outs_tuple:
        return tuple([tuple(row) for row in table])
    return _unpack(outs_tuple, [_unpack(is_tuple, row) for row in table])


def rows(out: Tensor, xs: Tensors, create_graph: bool, strict: bool = False) -> list[Any]:
    """Return the Jacobian of one output with respect to each input."""
    if not out.numel():
        return [zeros((*out.shape, *x.shape), dtype=out.dtype) for x in xs]
    flat = out.reshape(-1)
    columns: list[list[Any]] = [[] for _ in xs]
    for i in range(out.numel()):
        for column, g in zip(
            columns, _grads([flat[i]], xs, None, create_graph, strict, "jacobian"), strict=True
        ):
            column.append(g)
    whole = [stack(c).reshape((*out.shape, *x.shape)) for c, x in zip(columns, xs, strict=True)]
    return list(_results(whole, create_graph))


def _scalar(func: Callable[..., Any], function: str) -> Callable[..., Any]:
    def single(*inputs: Any) -> Any:
        out = func(*inputs)
        is_tuple, outs = _as_tuple(out, "what the function returned", function)
        if is_tuple:
            raise RuntimeError(f"{function}(): the function must return one Tensor, got a tuple")
        if outs[0].numel() != 1:
            raise RuntimeError(
                f"{function}(): the function must return one number, got a Tensor of shape {list(outs[0].shape)}"
            )
        return outs[0].squeeze() if outs[0].ndim else outs[0]

    return single


def hessian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    """Return the Hessian of a function of one number at ``inputs``, as ``torch.autograd.functional.hessian``.

    For the arguments see :func:`jacobian`.

    Returns:
        For one input a Tensor of shape ``(*input.shape, *input.shape)``, for several a tuple of tuples.

    Raises:
        NotImplementedError: ``outer_jacobian_strategy`` is ``"forward-mode"``; see :func:`jacobian`.
        RuntimeError: ``func`` returns more than one number.
    """
    is_tuple, _ = _as_tuple(inputs, "inputs", "hessian")
    single = _scalar(func, "hessian")

    def gradient(*xs: Any) -> Any:
        outs = _outputs(single, xs, "hessian", strict)[1]
        grads = _grads(outs, xs, None, True, strict, "hessian")
        return _unpack(is_tuple, grads)

    return jacobian(
        gradient,
        inputs,
        create_graph=create_graph,
        strict=strict,
        vectorize=vectorize,
        strategy=outer_jacobian_strategy,
    )


def vhp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> tuple[Any, Any]:
    """Return ``func(*inputs)`` and the product of ``v`` with its Hessian, as ``torch.autograd.functional.vhp``."""
    return _hessian_product("vhp", func, inputs, v, create_graph, strict)


def hvp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> tuple[Any, Any]:
    """Return ``func(*inputs)`` and the product of its Hessian with ``v``, as ``torch.autograd.functional.hvp``.

    The Hessian is symmetric, so that this is :func:`vhp`.
    """
    return _hessian_product("hvp", func, inputs, v, create_graph, strict)


def _hessian_product(
    name: str, func: Callable[..., Any], inputs: Any, v: Any, create_graph: bool, strict: bool
) -> tuple[Any, Any]:
    with autograd.enable_grad():
        is_tuple, given = _as_tuple(inputs, "inputs", name)
        vs = _check_vector(v, given, "the input", name)
        xs = _inputs(given, create_graph)
        _, (out,) = _outputs(_scalar(func, name), xs, name, strict)
        first = _grads([out], xs, None, True, strict, name)
        grads = _grads(first, xs, vs, create_graph, strict, name)
    return _unpack(False, _results([out], create_graph)), _unpack(is_tuple, _results(grads, create_graph))


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
