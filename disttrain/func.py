"""Functions of functions: derivatives as ``torch.func`` spells them, and modules called with other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from disttrain import autograd, engine, missing
from disttrain.autograd import functional
from disttrain.batching import vmap
from disttrain.nodes import Node

if TYPE_CHECKING:
    from disttrain.nn.module import Module

__all__ = [
    "functional_call",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "stack_module_state",
    "vjp",
    "vmap",
]

Argnums = int | tuple[int, ...]


def _numbers(name: str, argnums: Argnums, count: int) -> tuple[int, ...]:
    """Return the positions of arguments, counted from the front.

    Raises:
        RuntimeError: there is no such argument, one is named twice, or a name is no integer.
    """
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    for i in numbers:
        if not isinstance(i, int):
            raise RuntimeError(f"{name}(): argnums must be an int or a tuple of ints, got {argnums!r}")
        if not -count <= i < count:
            raise RuntimeError(
                f"{name}(): there is no argument {i} (argnums), {count} were given by position"
            )
    found = tuple([i % count for i in numbers])
    if len(set(found)) < len(found):
        raise RuntimeError(f"{name}(): argnums names an argument twice: {argnums}")
    return found


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, engine.Tensor_):
        return [tree]
    if isinstance(tree, dict):
        return [t for v in tree.values() for t in _leaves(v)]
    if isinstance(tree, tuple | list):
        return [t for v in tree for t in _leaves(v)]
    return []


def _map(f: Callable[[Any], Any], tree: Any) -> Any:
    """Return ``tree`` with each Tensor replaced by what ``f`` makes of it."""
    if isinstance(tree, engine.Tensor_):
        return f(tree)
    if isinstance(tree, dict):
        return type(tree)({k: _map(f, v) for k, v in tree.items()})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[_map(f, v) for v in tree])
    if isinstance(tree, tuple | list):
        return type(tree)([_map(f, v) for v in tree])
    return tree


def _check(name: str, what: str, tree: Any, error: type[Exception] = RuntimeError) -> None:
    """Raise ``error`` where ``tree`` holds something else than Tensors."""
    if isinstance(tree, dict | tuple | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            _check(name, what, part, error)
    elif not isinstance(tree, engine.Tensor_):
        raise error(
            f"{name}(): {what} must be Tensors or nests of them, got {type(tree).__name__}: {tree!r:.80}"
        )


def _fill(tree: Any, values: Iterable[Any]) -> Any:
    """Return ``tree`` with ``values`` in the places of its Tensors, in order."""
    rest = iter(values)
    return _map(lambda _: next(rest), tree)


def _fresh(tree: Any) -> Any:
    """Return new tensors to differentiate with respect to, that have the history of those in ``tree``."""
    return _map(lambda t: t.view_as(t) if t.requires_grad else t.detach().requires_grad_(), tree)


def _reach_beyond(outs: Sequence[Any], own: Sequence[Any]) -> bool:
    """Return whether the history of ``outs`` reaches a leaf that is none of ``own``: one of the caller's."""
    mine = set(map(id, own))
    edges = [t._edge() for t in outs]
    seen: set[int] = set()
    while edges:
        edge = edges.pop()
        if edge is None or id(edge[0]) in seen:
            continue
        target = edge[0]
        seen.add(id(target))
        if isinstance(target, Node):
            edges.extend(target.edges)
        elif id(target) not in mine:
            return True
    return False


def grad_and_value(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Return a function that returns the gradient of ``func`` and its value, as ``torch.func.grad_and_value``.

    Args:
        func: returns one number, and something else beside it if ``has_aux``.
        argnums: with respect to which arguments, each a Tensor or a nest of dicts, tuples and lists of Tensors.
        has_aux: the function returned returns ``(gradient, (value, aux))``.

    Raises:
        RuntimeError: from the function returned: ``func`` returns no single number, or ``argnums`` are wrong.
        ValueError: the same: such an argument holds something that is no Tensor.
    """

    def both(*args: Any, **kwargs: Any) -> Any:
        numbers = _numbers("grad", argnums, len(args))
        _check("grad", "the arguments named by argnums", [args[i] for i in numbers], ValueError)
        outer = engine.is_grad_enabled()
        with autograd.enable_grad():
            given = {i: _fresh(args[i]) for i in numbers}
            out = func(*[given.get(i, a) for i, a in enumerate(args)], **kwargs)
            aux = None
            if has_aux:
                if not (isinstance(out, tuple) and len(out) == 2):
                    raise RuntimeError("grad(): has_aux=True needs a function that returns (output, aux)")
                out, aux = out
            if not isinstance(out, engine.Tensor_):
                raise RuntimeError(f"grad(): the function must return a Tensor, got {type(out).__name__}")
            if out.ndim:
                raise RuntimeError(
                    f"grad(): the function must return a number, a Tensor without dimensions, got shape "
                    f"{list(out.shape)}"
                )
            leaves = _leaves(list(given.values()))
            if out.requires_grad:
                found = autograd.grad(
                    out, leaves, create_graph=True, allow_unused=True, materialize_grads=True
                )
            else:
                found = tuple([t.detach() * 0 for t in leaves])
        wants = outer and _reach_beyond([out, *found], leaves)
        finish: Callable[[Any], Any] = (lambda t: t) if wants else (lambda t: t.detach())
        grads = _fill([given[i] for i in numbers], map(finish, found))
        result = tuple(grads) if isinstance(argnums, tuple) else grads[0]
        value = finish(out)
        return result, ((value, _map(finish, aux)) if has_aux else value)

    return both


def grad(func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Return a function that returns the gradient of ``func``, as ``torch.func.grad``; see :func:`grad_and_value`."""
    both = grad_and_value(func, argnums, has_aux)

    def only(*args: Any, **kwargs: Any) -> Any:
        found, value = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return only


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """Return ``func(*primals)`` and a function from gradients of it to gradients of ``primals``, as ``torch.func.vjp``.

    Args:
        func: takes and returns Tensors or nests of them.
        primals: its arguments.
        has_aux: ``func`` returns something else beside; it is returned third.

    Raises:
        RuntimeError: ``func`` returns something that is no Tensor.
        ValueError: ``primals`` hold such a thing.
    """
    _check("vjp", "primals", primals, ValueError)
    with autograd.enable_grad():
        given = _fresh(primals)
        out = func(*given)
        aux = None
        if has_aux:
            out, aux = out
    _check("vjp", "what the function returns", out)
    outs = _leaves(out)
    beyond = engine.is_grad_enabled() and _reach_beyond(outs, _leaves(given))

    def back(*cotangents: Any) -> Any:
        vectors = _leaves(cotangents)
        if len(vectors) != len(outs):
            raise RuntimeError(f"vjp(): expected {len(outs)} gradients, got {len(vectors)}")
        used = [(o, v) for o, v in zip(outs, vectors, strict=True) if o.requires_grad]
        found = autograd.grad(
            [o for o, _ in used],
            _leaves(given),
            [v for _, v in used],
            retain_graph=True,
            create_graph=engine.is_grad_enabled() and (beyond or any(v.requires_grad for v in vectors)),
            materialize_grads=True,
        )
        return _fill(tuple(given), found)

    if not beyond:
        out, aux = (_map(lambda t: t.detach(), tree) for tree in (out, aux))
    return (out, back, aux) if has_aux else (out, back)


def jvp(
    func: Callable[..., Any], primals: Any, tangents: Any, *, strict: bool = False, has_aux: bool = False
) -> Any:
    """Return ``func(*primals)`` and its derivative in the direction of ``tangents``, as ``torch.func.jvp``.

    It is made of two backward passes (the derivative of :func:`vjp`, which is linear, with respect to its argument).

    Args:
        func: takes and returns Tensors or nests of them.
        primals: a tuple of its arguments.
        tangents: a tuple like ``primals``.
        strict: there for PyTorch's signature.
        has_aux: ``func`` returns something else beside; it is returned third.

    Raises:
        RuntimeError: ``primals`` is no tuple or holds no Tensor, ``tangents`` differs from it in its structure or
            shapes, or ``func`` returns something that is no Tensor.
    """
    if not isinstance(primals, tuple):
        raise RuntimeError(f"jvp(): primals go in a tuple, got {type(primals).__name__}")
    directions, points = _leaves(tangents), _leaves(primals)
    if not points:
        raise RuntimeError("jvp(): there is no Tensor in primals")
    if not isinstance(tangents, tuple) or len(directions) != len(points):
        raise RuntimeError("jvp(): tangents must be a tuple nested like primals")
    for p, d in zip(points, directions, strict=True):
        if p.shape != d.shape:
            raise RuntimeError(f"jvp(): a primal has shape {list(p.shape)}, and its tangent {list(d.shape)}")
    with autograd.enable_grad():
        given = _fresh(primals)
        out = func(*given)
        aux = None
        if has_aux:
            out, aux = out
        _check("jvp", "what the function returns", out)
        outs = _leaves(out)
        weights = {i: o.detach().clone().requires_grad_() for i, o in enumerate(outs) if o.requires_grad}
        found: dict[int, Any] = {}
        if weights:
            rows = autograd.grad(
                [outs[i] for i in weights],
                _leaves(given),
                list(weights.values()),
                create_graph=True,
                materialize_grads=True,
            )
            used = [(r, d) for r, d in zip(rows, directions, strict=True) if r.requires_grad]
            columns = autograd.grad(
                [r for r, _ in used],
                list(weights.values()),
                [d for _, d in used],
                create_graph=True,
                materialize_grads=True,
            )
            found = dict(zip(weights, columns, strict=True))
    own = [*_leaves(given), *weights.values()]
    recorded = engine.is_grad_enabled() and _reach_beyond([*outs, *found.values()], own)
    finish: Callable[[Any], Any] = (lambda t: t) if recorded else (lambda t: t.detach())
    tilted = [finish(found[i]) if i in found else o.detach() * 0 for i, o in enumerate(outs)]
    result = _map(finish, out), _fill(out, tilted)
    return (*result, _map(finish, aux)) if has_aux else result


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """Return ``func(*primals)`` and a function from tangents to its derivative there, as ``torch.func.linearize``."""

    def along(*tangents: Any) -> Any:
        return jvp(func, primals, tangents)[1]

    return func(*primals), along


def jacfwd(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False, *, randomness: str = "error"
) -> Callable[..., Any]:
    """Return what :func:`jacrev` does, as ``torch.func.jacfwd``: there are no forward-mode gradients to be quicker."""
    return jacrev(func, argnums, has_aux)


def jacrev(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False, *, chunk_size: int | None = None
) -> Callable[..., Any]:
    """Return a function that returns the Jacobian of ``func``, row by row, as ``torch.func.jacrev``.

    Args:
        func: takes and returns Tensors or nests of them.
        argnums: with respect to which arguments.
        has_aux: ``func`` returns something else beside; the function returned then returns ``(jacobian, aux)``.
        chunk_size: there for PyTorch's signature.

    Returns:
        From the function returned: for each Tensor of the result, in its place, a nest like the arguments of Tensors
        of shape ``(*result.shape, *argument.shape)``.

    Raises:
        RuntimeError: from the function returned: ``func`` returns something else, or ``argnums`` are wrong.
        ValueError: the same: such an argument holds something that is no Tensor.
    """

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        numbers = _numbers("jacrev", argnums, len(args))

        _check("jacrev", "the arguments named by argnums", [args[i] for i in numbers], ValueError)
        outer = engine.is_grad_enabled()
        with autograd.enable_grad():
            given = {i: _fresh(args[i]) for i in numbers}
            out = func(*[given.get(i, a) for i, a in enumerate(args)], **kwargs)
            aux = None
            if has_aux:
                out, aux = out
            _check("jacrev", "what the function returns", out)
            leaves, outs = tuple(_leaves(list(given.values()))), _leaves(out)
            beyond = outer and _reach_beyond(outs, leaves)
            inputs = tuple(given.values()) if isinstance(argnums, tuple) else given[numbers[0]]
            found = _fill(out, [_fill(inputs, functional.rows(o, leaves, beyond)) for o in outs])
        return (found, _map(lambda t: t.detach(), aux)) if has_aux else found

    return jacobian


def hessian(func: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., Any]:
    """Return a function that returns the Hessian of ``func``, as ``torch.func.hessian``."""
    return jacrev(jacrev(func, argnums), argnums)


def stack_module_state(models: Sequence[Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the buffers of modules of one kind, each stacked along a new first dimension.

    As ``torch.func.stack_module_state``, for :func:`vmap` over :func:`functional_call`. The stacked parameters are
    new leaves.

    Raises:
        RuntimeError: no module, modules of several classes, or some training and others not.
    """
    from disttrain.functions.join import stack

    if not models:
        raise RuntimeError("stack_module_state(): there are no modules")
    if len({m.training for m in models}) > 1:
        raise RuntimeError("stack_module_state(): some modules train and others evaluate")
    if len({type(m) for m in models}) > 1:
        raise RuntimeError(
            f"stack_module_state(): the modules are of several classes: {sorted({type(m).__name__ for m in models})}"
        )
    states = [(dict(m.named_parameters()), dict(m.named_buffers())) for m in models]
    params = {
        k: stack([p[k].detach() for p, _ in states]).requires_grad_(bool(v.requires_grad))
        for k, v in states[0][0].items()
    }
    return params, {k: stack([b[k] for _, b in states]) for k in states[0][1]}


def functional_call(
    module: Module,
    parameter_and_buffer_dicts: dict[str, Any] | Sequence[dict[str, Any]],
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """Call ``module`` with other tensors in place of its parameters and buffers, as ``torch.func.functional_call``.

    Args:
        module: keeps what it has; only this call sees the others.
        parameter_and_buffer_dicts: tensors by the names of ``named_parameters()`` and ``named_buffers()``, or several
            such dicts; what they do not name stays, and names that are not the module's are ignored.
        args: the argument, or a tuple of them.
        kwargs: keyword arguments.
        tie_weights: whether a tensor that the module has under several names is replaced under all of them.
        strict: refuse dicts that do not name all.

    Raises:
        RuntimeError: see ``strict``.
        ValueError: something is no dict, the dicts name something twice, or two names of one tied tensor get
            different tensors.
    """
    given: dict[str, Any] = {}
    dicts: Any = parameter_and_buffer_dicts
    for d in dicts if isinstance(dicts, tuple | list) else (dicts,):
        if not isinstance(d, dict):
            raise ValueError(
                f"functional_call(): parameters and buffers come in a dict or several, got {type(d).__name__}: "
                f"{d!r:.80}"
            )
        twice = given.keys() & d.keys()
        if twice:
            raise ValueError(
                f"functional_call(): more than one of the dictionaries has {sorted(twice)}; give each name once"
            )
        given |= d
    args = () if args is None else args if isinstance(args, tuple) else (args,)
    with _swapped(module, given, tie_weights, strict):
        return module(*args, **(kwargs or {}))


@contextmanager
def _swapped(module: Module, given: dict[str, Any], tie: bool, strict: bool) -> Any:
    places: dict[str, tuple[dict[str, Any], str]] = {}
    tables: tuple[Any, ...]
    for prefix, sub in module.named_modules(remove_duplicate=False):
        tables = (sub._parameters, sub._buffers)
        for table in tables:
            for name in table:
                places[f"{prefix}.{name}" if prefix else name] = (table, name)
    unknown = sorted(given.keys() - places.keys())
    missing = sorted(k for k in places.keys() - given.keys() if places[k][0][places[k][1]] is not None)
    if strict and (unknown or missing):
        raise RuntimeError(
            f"functional_call(strict=True): unexpected names {unknown}, missing names {missing}"
        )
    given = {k: v for k, v in given.items() if k in places}
    replaced = dict(given)
    if tie:
        for name, value in given.items():
            table, key = places[name]
            for other, (table2, key2) in places.items():
                tied = other != name and table[key] is not None and table2[key2] is table[key]
                if tied and replaced.setdefault(other, value) is not value:
                    raise ValueError(
                        f"functional_call() got different values for {name!r} and {other!r}, which are tied"
                    )
    before = {name: places[name][0][places[name][1]] for name in replaced}
    try:
        for name, value in replaced.items():
            table, key = places[name]
            table[key] = value
        yield
    finally:
        for name, value in before.items():
            table, key = places[name]
            table[key] = value


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
