"""``vmap``: a function of one sample as a function of a batch of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from disttrain import engine, random

__all__ = ["vmap"]


def vmap(
    func: Callable[..., Any],
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Return a function that maps ``func`` over a dimension of its arguments, as ``torch.func.vmap``.

    The samples are computed one after the other and their results stacked: what it means is PyTorch's, what it costs
    is a loop's. Unlike there, ``func`` may decide by the values of its arguments. Gradients go through it, and inside
    it: ``vmap(grad(loss), in_dims=(None, 0, 0))`` is the gradient of each sample.

    Args:
        func: takes and returns Tensors or nests (tuples, lists, dicts) of them.
        in_dims: which dimension of each argument counts the samples, or a nest like the arguments; ``None`` where all
            samples share a value. Keyword arguments go to every sample as they are.
        out_dims: where that dimension goes in each result, or a tuple, one for each.
        randomness: what random functions do in ``func``: ``"different"`` numbers for each sample, the ``"same"`` for
            all, or (``"error"``) raise.
        chunk_size: there for PyTorch's signature.

    Raises:
        ValueError: from the function returned: ``in_dims`` or ``out_dims`` do not fit the arguments or results, or the
            arguments disagree on the number of samples.
        RuntimeError: another ``randomness``, or ``func`` drew random numbers and it is ``"error"``.
    """
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(f'vmap(): randomness must be "error", "different" or "same", got {randomness!r}')
    if chunk_size is not None and chunk_size <= 0:
        raise ValueError(f"vmap(): chunk_size must be positive or None, got {chunk_size}")

    @functools.wraps(func)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        if not isinstance(in_dims, int | tuple | list):
            raise ValueError(
                f"vmap(): in_dims must be an int or a (possibly nested) tuple of them, got {type(in_dims).__name__}"
            )
        if not args:
            raise ValueError(
                "vmap(): there is nothing to map over; the function was called without positional arguments"
            )
        dims = [in_dims] * len(args) if isinstance(in_dims, int) else list(in_dims)
        if len(dims) != len(args):
            raise ValueError(f"vmap(): in_dims has {len(dims)} entries, and there are {len(args)} arguments")
        count = _samples(list(zip(args, dims, strict=True)))
        state = random.get_rng_state() if randomness != "different" else None
        outs = []
        for i in range(count):
            if randomness == "same" and state is not None:
                random.set_rng_state(state)
            outs.append(func(*[_sample(a, d, i) for a, d in zip(args, dims, strict=True)], **kwargs))
            if randomness == "error" and i == 0 and not (random.get_rng_state() == state).all():
                raise RuntimeError(
                    'vmap(): the function drew random numbers; give randomness="same" or randomness="different"'
                )
        return _together(outs, out_dims)

    return mapped


def _samples(pairs: list[tuple[Any, Any]]) -> int:
    """Return how many samples the arguments hold."""
    sizes: list[int] = []
    for tree, dims in pairs:
        _collect(tree, dims, sizes)
    if not sizes:
        raise ValueError("vmap(): at least one argument must be mapped, but all in_dims are None")
    if len(set(sizes)) > 1:
        raise ValueError(f"vmap(): the mapped dimensions of the arguments must have one size, got {sizes}")
    if not sizes[0]:
        raise ValueError("vmap(): there is no sample: the mapped dimension has size 0")
    return sizes[0]


def _collect(tree: Any, dims: Any, sizes: list[int]) -> None:
    """Append the number of samples of each Tensor in ``tree``."""
    if isinstance(tree, dict | tuple | list) and dims is not None:
        for key, part in _parts(tree):
            _collect(part, _dims_of(tree, dims, key), sizes)
        return
    if dims is None:
        return
    if not isinstance(dims, int) or isinstance(dims, bool):
        raise ValueError(
            f"vmap(): in_dims has {dims!r} where there is a {type(tree).__name__}; expected an int or None"
        )
    if not isinstance(tree, engine.Tensor_):
        raise ValueError(
            f"vmap(): got in_dim={dims} for an input that is no Tensor but a {type(tree).__name__}; use None"
        )
    if not -tree.ndim <= dims < tree.ndim:
        raise ValueError(f"vmap(): got in_dim={dims} for a tensor of {tree.ndim} dimensions")
    sizes.append(tree.shape[dims])


def _parts(tree: Any) -> list[tuple[Any, Any]]:
    return list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))


def _dims_of(tree: Any, dims: Any, key: Any) -> Any:
    """Return the part of ``dims`` that belongs to a part of ``tree``."""
    if isinstance(dims, int):
        return dims
    fits = isinstance(dims, dict) == isinstance(tree, dict) and isinstance(dims, dict | tuple | list)
    if not fits or len(dims) != len(tree):
        raise ValueError(
            f"vmap(): in_dims has {dims!r} where the argument has a {type(tree).__name__} of {len(tree)}"
        )
    return dims[key]


def _sample(tree: Any, dims: Any, i: int) -> Any:
    """Return ``tree`` with sample ``i`` of each Tensor."""
    if dims is None:
        return tree
    if isinstance(tree, engine.Tensor_):
        return tree.select(dims, i)
    if isinstance(tree, dict):
        return type(tree)({k: _sample(v, _dims_of(tree, dims, k), i) for k, v in tree.items()})
    parts = [_sample(v, _dims_of(tree, dims, k), i) for k, v in enumerate(tree)]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def _together(outs: list[Any], dims: Any) -> Any:
    """Return the results of all samples as one, stacked along ``dims``."""
    from disttrain.functions.join import stack

    first = outs[0]
    if isinstance(first, engine.Tensor_):
        if isinstance(dims, tuple | list) and len(dims) == 1:
            (dims,) = dims
        if not isinstance(dims, int):
            raise ValueError(f"vmap(): out_dims={dims!r} does not fit a function that returns one Tensor")
        return stack(outs, dims)
    if isinstance(first, dict):
        return type(first)(
            {k: _together([o[k] for o in outs], dims if isinstance(dims, int) else dims[k]) for k in first}
        )
    if isinstance(first, tuple | list):
        each = [dims] * len(first) if isinstance(dims, int) else dims
        if each is None or len(each) != len(first):
            raise ValueError(f"vmap(): out_dims={dims!r} does not fit {len(first)} results")
        parts = [_together([o[k] for o in outs], d) for k, d in enumerate(each)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    raise ValueError(f"vmap(): the function must return Tensors, got {type(first).__name__}: {first!r:.80}")
