"""Run the table of layers that ships inside the torch wheel against disttrain, and count where both agree.

As a program it prints, for some layers or for all of them, how many cases agree and how the others differ:

    python tests/lib/torch_modules.py nn.Conv2d nn.LSTM
    python tests/lib/torch_modules.py
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch_tables import (
    Foreign,
    Score,
    attempt,
    cotangents,
    difference,
    fresh,
    gradient_difference,
    gradients,
    report,
    resolve,
    seed,
    show,
    tensors_in,
    to_numpy,
)
from torch_tables import to_ours as values_to_ours

import disttrain as dt

RANDOM = {"nn.FractionalMaxPool2d", "nn.FractionalMaxPool3d"}
"""Layers that draw in every mode: only the shapes can agree."""


@functools.cache
def table() -> dict[str, Any]:
    """Return the entries of PyTorch's table of layers by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_modules import module_db
    return {entry.name: entry for entry in module_db}


def to_ours(x: Any) -> Any:
    """Return PyTorch's argument as ours; layers are built anew and get the same weights."""
    if isinstance(x, torch.nn.Module):
        return _layer_to_ours(x)
    if inspect.isfunction(x) or inspect.isbuiltin(x):
        ours = getattr(dt.nn.functional, x.__name__, None) or getattr(dt, x.__name__, None)
        return x if ours is None else ours
    if isinstance(x, tuple | list) and not isinstance(x, torch.Size):
        return type(x)(map(to_ours, x))
    if isinstance(x, dict):
        return {k: to_ours(v) for k, v in x.items()}
    return values_to_ours(x)


def _layer_to_ours(layer: torch.nn.Module) -> Any:
    cls = getattr(dt.nn, type(layer).__name__, None)
    if cls is None:
        raise AttributeError(f"disttrain.nn has no {type(layer).__name__}")
    if isinstance(layer, torch.nn.TransformerEncoderLayer | torch.nn.TransformerDecoderLayer):
        ours = cls(
            layer.self_attn.embed_dim,
            layer.self_attn.num_heads,
            layer.linear1.out_features,
            layer.dropout.p,
            to_ours(layer.activation),
            layer.norm1.eps,
            layer.self_attn.batch_first,
            layer.norm_first,
            layer.linear1.bias is not None,
        )
    elif isinstance(layer, torch.nn.LayerNorm):
        ours = cls(layer.normalized_shape, layer.eps, layer.elementwise_affine)
    else:
        raise Foreign(type(layer).__name__)
    ours = ours.to(values_to_ours(next(layer.parameters()).dtype))
    ours.load_state_dict(state_to_ours(layer))
    return ours


def state_to_ours(layer: torch.nn.Module) -> dict[str, Any]:
    return {
        k: dt.Tensor._of(to_numpy(v.clone()))
        for k, v in layer.state_dict().items()
        if isinstance(v, torch.Tensor)
    }


def samples(entry: Any, dtype: torch.dtype, training: bool) -> Iterator[Any]:
    seed()
    yield from entry.module_inputs_func(
        entry, device="cpu", dtype=dtype, requires_grad=dtype.is_floating_point, training=training
    )


def run_sample(score: Score, entry: Any, ours: Any, sample: Any, dtype: torch.dtype, training: bool) -> None:
    """Compare a layer's construction, output, gradients, state afterwards and ``repr``."""
    made, given = sample.constructor_input, sample.forward_input
    at = f"({show(made.args)} {show(made.kwargs)}).{'train' if training else 'eval'}()"
    if given is not None:
        at += f"({show(given.args)} {show(given.kwargs)})"
    seed()
    theirs = entry.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
    layer, error = attempt(
        lambda: ours(*to_ours(made.args), **to_ours(made.kwargs)).to(to_ours(dtype)).train(training)
    )
    if isinstance(error, Foreign):
        score.foreign += 1
        return
    if error is not None:
        score.note("forward", f"{at}: construction {error!r}")
        return
    score.note("repr", None if repr(layer) == repr(theirs) else f"{at}: {layer!r}, PyTorch {theirs!r}")
    lazy = any(isinstance(p, torch.nn.parameter.UninitializedParameter) for p in theirs.parameters())
    if lazy and given is not None:
        theirs(*fresh(given.args), **fresh(given.kwargs))
        layer(*to_ours(fresh(given.args)), **to_ours(fresh(given.kwargs)))
    _, error = attempt(lambda: layer.load_state_dict(state_to_ours(theirs)))
    if error is not None:
        score.note("forward", f"{at}: the state dict does not fit: {error}")
        return
    if given is None:
        return
    args, kwargs = fresh(given.args), fresh(given.kwargs)
    try:
        our_args, our_kwargs = to_ours(fresh(args)), to_ours(fresh(kwargs))
    except Foreign:
        score.foreign += 1
        return
    want, error = attempt(theirs, *args, **kwargs)
    if error is not None:
        return
    got, error = attempt(layer, *our_args, **our_kwargs)
    if entry.name in RANDOM and error is None:
        shapes = (
            [t.shape for t in tensors_in(want, torch.Tensor)],
            [t.shape for t in tensors_in(got, dt.Tensor)],
        )
        score.note("forward", None if shapes[0] == shapes[1] else f"{at}: shapes {shapes}")
        return
    score.note("forward", f"{at}: {error!r}" if error else (d := difference(got, want, 3.0)) and f"{at}: {d}")
    if error:
        return
    state = layer.state_dict()
    for name, value in theirs.state_dict().items():
        if isinstance(value, torch.Tensor) and (d := difference(state[name], value, 3.0)):
            score.note("state", f"{at}: {name} afterwards: {d}")
    parameters = dict(layer.named_parameters())
    leaves = [t for t in tensors_in([args, kwargs], torch.Tensor) if t.requires_grad]
    our_leaves = [t for t in tensors_in([our_args, our_kwargs], dt.Tensor) if t.requires_grad]
    for name, p in theirs.named_parameters():
        leaves.append(p)
        our_leaves.append(parameters[name])
    roots = [o for o in tensors_in(want, torch.Tensor) if o.requires_grad]
    if not roots or not leaves:
        return
    gs = cotangents(roots)
    their_grads, error = attempt(gradients, want, leaves, torch, gs)
    if error is not None:
        return
    our_grads, error = attempt(gradients, got, our_leaves, dt, [dt.Tensor._of(to_numpy(g)) for g in gs])
    failure = f"{error!r}" if error else gradient_difference(our_grads, their_grads, "gradient")
    score.note("gradient", failure and f"{at}: {failure}")


def run(name: str, dtypes: str = "float32,float64") -> Score:
    """Run all cases of one layer: PyTorch's samples in both modes, and its invalid calls."""
    entry, score = table()[name], Score(name)
    ours = resolve(name)
    for dtype in (getattr(torch, d) for d in dtypes.split(",")):
        for training in (True, False):
            for sample in samples(entry, dtype, training):
                if ours is None:
                    score.note("forward", f"disttrain has no {name}")
                    continue
                run_sample(score, entry, ours, sample, dtype, training)
    if ours is None or entry.module_error_inputs_func is None:
        return score
    seed()
    errors = entry.module_error_inputs_func(
        entry, device="cpu", dtype=torch.float32, requires_grad=True, training=True
    )
    for case in errors:
        sample = case.module_error_input
        made, given = sample.constructor_input, sample.forward_input
        at = f"({show(made.args)} {show(made.kwargs)})({show(given.args) if given else ''})"

        def call(cls: Any = ours, made: Any = made, given: Any = given) -> Any:
            layer = cls(*to_ours(made.args), **to_ours(made.kwargs))
            return layer if given is None else layer(*to_ours(given.args), **to_ours(given.kwargs))

        got, error = attempt(call)
        if isinstance(error, Foreign):
            score.foreign += 1
            continue
        message = f"{at}: gives {got!r:.80}, PyTorch refuses: {case.error_regex}" if error is None else None
        if error is not None and len(str(error)) < 12:
            message = f"{at}: says no more than {error!r}"
        score.note("error", message)
    return score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="layers such as nn.Linear; all of the table by default")
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--show", type=int, default=6, help="failures to print for each layer")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    return report((run(name, options.dtypes) for name in options.names or table()), options.show)


if __name__ == "__main__":
    sys.exit(main())
