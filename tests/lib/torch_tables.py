"""Run the case tables that ship inside the torch wheel against disttrain, and count where both agree.

As a program it prints, for some operators or for all of them, how many cases agree and how the others differ:

    python tests/lib/torch_tables.py add nn.functional.conv2d
    python tests/lib/torch_tables.py --more --dtypes float32,int64 cumsum    # the larger tables, other dtypes
    python tests/lib/torch_tables.py --all
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

import disttrain as dt

TOLERANCE = {
    "float64": (1e-7, 1e-7),
    "float32": (1.3e-5, 1e-5),
    "float16": (4e-3, 2e-3),
    "bfloat16": (3e-2, 1e-2),
}
"""Relative and absolute; gradients of float32 and below get ten times as much."""

OPERATORS = (Path(__file__).parent / "operators.txt").read_text().split()
"""The operators that disttrain offers in full."""


class Foreign(Exception):
    """A case uses what disttrain does not have by design: complex numbers, sparse layouts, other devices."""


# ---------------------------------------------------------------------------------------------- conversion


def to_ours(x: Any, requires_grad: bool | None = None) -> Any:
    """Return PyTorch's argument as ours, tensors as leaves over the same memory and strides."""
    if isinstance(x, torch.Tensor):
        if x.dtype.is_complex or x.layout is not torch.strided or x.device.type != "cpu" or x.is_quantized:
            raise Foreign(f"{x.dtype} {x.layout} {x.device}")
        ours = dt.Tensor._of(to_numpy(x))
        wanted = x.requires_grad if requires_grad is None else requires_grad
        return ours.requires_grad_() if wanted else ours
    if isinstance(x, torch.dtype):
        ours = getattr(dt, str(x).removeprefix("torch."), None)
        if ours is None:
            raise Foreign(str(x))
        return ours
    if isinstance(x, torch.device):
        return dt.device(str(x))
    if isinstance(x, torch.layout):
        if x is not torch.strided:
            raise Foreign(str(x))
        return getattr(dt, "strided", None)
    if isinstance(x, torch.memory_format):
        ours = getattr(dt, str(x).removeprefix("torch."), None)
        if ours is None:
            raise Foreign(str(x))
        return ours
    if isinstance(x, complex):
        raise Foreign("complex")
    if isinstance(x, torch.nn.PairwiseDistance):
        return dt.nn.PairwiseDistance(x.norm, x.eps, x.keepdim)
    if isinstance(x, torch.Size):
        return tuple(x)
    if isinstance(x, list | tuple):
        items = [to_ours(i, requires_grad) for i in x]
        return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
    if isinstance(x, dict):
        return {k: to_ours(v, requires_grad) for k, v in x.items()}
    return x


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """Return an array over the memory of ``x``."""
    x = x.detach().resolve_conj().resolve_neg()
    if x._is_zerotensor():
        x = x.clone()
    if x.dtype is torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def fresh(x: Any) -> Any:
    """Return a copy of PyTorch's argument whose tensors are leaves of their own, with equal strides."""
    if isinstance(x, torch.Tensor):
        copy = x.detach().clone() if x.layout is torch.strided else x.detach()
        if x.layout is torch.strided and copy.stride() != x.stride() and 0 not in x.stride():
            copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x.detach())
        return copy.requires_grad_(x.requires_grad)
    if isinstance(x, list | tuple) and not isinstance(x, torch.Size):
        return type(x)(*map(fresh, x)) if hasattr(x, "_fields") else type(x)(map(fresh, x))
    if isinstance(x, dict):
        return {k: fresh(v) for k, v in x.items()}
    return x


def seed(number: int = 0) -> None:
    """Seed PyTorch's generator of the CPU; ``torch.manual_seed`` notes the stack for each device that is not there."""
    torch.default_generator.manual_seed(number)


def tensors_in(x: Any, kind: type) -> list[Any]:
    """Return the tensors in nested arguments or results, in order."""
    if isinstance(x, kind):
        return [x]
    if isinstance(x, list | tuple):
        return [t for i in x for t in tensors_in(i, kind)]
    if isinstance(x, dict):
        return [t for i in x.values() for t in tensors_in(i, kind)]
    return []


# ---------------------------------------------------------------------------------------------- comparison


def difference(ours: Any, theirs: Any, times: float = 1.0) -> str | None:
    """Return how a result differs from PyTorch's, or ``None``: in kind, dtype, shape or values."""
    if isinstance(theirs, torch.Tensor):
        if not isinstance(ours, dt.Tensor):
            return f"{type(ours).__name__} instead of a tensor"
        a, b = ours.detach().numpy(), to_numpy(theirs)
        if a.dtype != b.dtype:
            return f"dtype {a.dtype}, PyTorch {b.dtype}"
        if a.shape != b.shape:
            return f"shape {a.shape}, PyTorch {b.shape}"
        rtol, atol = TOLERANCE.get(b.dtype.name, (0, 0))
        times = 1.0 if b.dtype == np.float64 else times
        wide = np.float64 if b.dtype.kind in "fV" else b.dtype
        a, b = a.astype(wide), b.astype(wide)
        with np.errstate(all="ignore"):
            same = (
                np.array_equal(a, b)
                if not atol
                else np.isclose(a, b, rtol * times, atol * times, equal_nan=True)
            )
        if np.all(same):
            return None
        if not np.ndim(same):
            return f"{a.ravel()[:6]}, PyTorch {b.ravel()[:6]}"
        first = tuple(map(int, np.argwhere(~same)[0]))
        return f"{int(np.sum(~same))} of {a.size} values, at {first}: {a[first]!r}, PyTorch {b[first]!r}"
    if isinstance(theirs, list | tuple):
        if not isinstance(ours, list | tuple) or len(ours) != len(theirs):
            return f"{type(ours).__name__} instead of {len(theirs)} results"
        return next((d for a, b in zip(ours, theirs, strict=True) if (d := difference(a, b, times))), None)
    if isinstance(theirs, float):
        return None if np.isclose(ours, theirs, equal_nan=True) else f"{ours!r}, PyTorch {theirs!r}"
    if isinstance(theirs, torch.dtype):
        return (
            None
            if str(ours).rpartition(".")[2] == str(theirs).rpartition(".")[2]
            else f"{ours}, PyTorch {theirs}"
        )
    return None if ours == theirs else f"{ours!r}, PyTorch {theirs!r}"


def cotangents(outs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return a gradient for each output."""
    rng = torch.Generator().manual_seed(7)
    return [torch.randn(o.shape, generator=rng, dtype=torch.float64).to(o.dtype) for o in outs]


def gradients(
    outs: Any, inputs: list[Any], library: Any, gs: list[Any], create_graph: bool = False
) -> list[Any]:
    """Return the gradient of each input, ``None`` where it has none."""
    kind = library.Tensor
    roots = [o for o in tensors_in(outs, kind) if o.requires_grad]
    return list(
        library.autograd.grad(roots, inputs, gs, allow_unused=True, create_graph=create_graph)
        if roots
        else [None] * len(inputs)
    )


def gradient_difference(ours: list[Any], theirs: list[Any], where: str) -> str | None:
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a is None or b is None:
            present = a if b is None else b
            zero = present is None or not (present.detach() != 0).any()
            d = (
                None
                if zero
                else f"{'None' if a is None else 'a gradient'}, PyTorch {'None' if b is None else 'has one'}"
            )
        else:
            d = difference(a, b, 10.0)
        if d:
            return f"{where} {i}: {d}"
    return None


# ---------------------------------------------------------------------------------------------- running a case


def _where(self: Any, condition: Any, other: Any, **options: Any) -> Any:
    return dt.where(condition, self, other, **options)


OTHER_NAMES = {"relu": "nn.functional.relu", "swapaxes": "transpose"}
"""Where the table has an operator under another name."""

ADAPTERS: dict[str, Callable[..., Any]] = {
    "einsum": lambda tensors, equation: dt.einsum(equation, tensors),
    "where": _where,
    "nn.functional.embedding": lambda weight, idx, **options: dt.nn.functional.embedding(
        idx, weight, **options
    ),
}
"""Where the table's entry is a function of its own around PyTorch's."""


def resolve(name: str) -> Callable[..., Any] | None:
    """Return our function of PyTorch's name, or ``None``."""
    at: Any = dt
    for part in name.split("."):
        at = getattr(at, part, None)
        if at is None:
            return None
    return at  # type: ignore[no-any-return]


def method(name: str) -> Callable[..., Any] | None:
    """Return our method of PyTorch's name (what reads it, if it is a property), or ``None``."""
    found = getattr(dt.Tensor, name, None)
    return found.fget if isinstance(found, property) else found


def forms(entry: Any, name: str) -> Iterator[tuple[str, Callable[..., Any], Callable[..., Any] | None]]:
    """Yield each form of an operator: a word for it, PyTorch's function, ours (``None`` where we have none)."""
    if name != entry.name:
        yield "function", entry.op, resolve(name)
        if "." not in name:
            yield "method", getattr(torch.Tensor, name), method(name)
        return
    own = isinstance(entry.op, types.FunctionType) and "torch.testing" in (entry.op.__module__ or "")
    if not own or entry.name in ADAPTERS or entry.name.startswith("nn."):
        ours = ADAPTERS.get(entry.name) or (
            method(entry.name) if entry.name.startswith("__") else resolve(entry.name)
        )
        if entry.name in ADAPTERS and resolve(entry.name) is None:
            ours = None
        yield "function", entry.op, ours
    theirs = entry.method_variant
    last = entry.name.rpartition(".")[2]
    if own and entry.name not in ADAPTERS and "." not in entry.name:
        yield "method", entry.op, method(last)
    elif theirs is not None and "." not in entry.name:
        yield "method", theirs, method(last)
    if entry.inplace_variant is not None and "." not in entry.name:
        yield "in place", entry.inplace_variant, method(f"{last.removesuffix('_')}_")
    for alias in entry.aliases:
        if alias.op is not None and not alias.name.startswith("special."):
            yield alias.name, alias.op, resolve(alias.name)


@dataclass
class Score:
    """How the cases of one operator went."""

    name: str
    ran: Counter[str] = field(default_factory=Counter)
    """By aspect: forward, gradient, second gradient, error."""
    failed: dict[str, list[str]] = field(default_factory=dict)
    foreign: int = 0

    def note(self, aspect: str, failure: str | None) -> None:
        self.ran[aspect] += 1
        if failure:
            self.failed.setdefault(aspect, []).append(" ".join(failure.split())[:400])


def attempt(f: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Exception | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return f(*args, **kwargs), None
        except Exception as e:
            return None, e


def show(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        strides = "" if x.is_contiguous() else f" strides {x.stride()}"
        return f"<{str(x.dtype).removeprefix('torch.')}{list(x.shape)}{strides}>"
    if isinstance(x, list | tuple):
        return f"({', '.join(map(show, x))})"
    if isinstance(x, dict):
        return ", ".join(f"{k}={show(v)}" for k, v in x.items())
    return repr(x)


def run_sample(
    score: Score, form: str, theirs: Any, ours: Any, sample: Any, *, grad: bool, second: bool
) -> None:
    """Compare one call, its gradient and its second gradient."""
    at = f"{form} {show((sample.input, *sample.args))} {show(sample.kwargs)}"
    args = fresh((sample.input, *sample.args))
    kwargs = fresh(sample.kwargs)
    try:
        our_args, our_kwargs = to_ours(fresh(args)), to_ours(fresh(kwargs))
    except Foreign:
        score.foreign += 1
        return
    leaves = [t for t in tensors_in([args, kwargs], torch.Tensor) if t.requires_grad]
    our_leaves = [t for t in tensors_in([our_args, our_kwargs], dt.Tensor) if t.requires_grad]
    if form == "in place":  # a leaf cannot be changed in place
        args = (_writable(args[0], torch), *args[1:])
        our_args = (_writable(our_args[0], dt), *our_args[1:])
    seed()
    want, error = attempt(theirs, *args, **kwargs)
    if error is not None:
        return  # a case that PyTorch itself refuses belongs to the errors
    if any(t.dtype.is_complex for t in tensors_in(want, torch.Tensor)):
        score.foreign += 1
        return
    dt.manual_seed(0)
    got, error = attempt(ours, *our_args, **our_kwargs)
    process = sample.output_process_fn_grad
    same = _is_identity(process, want)
    if error is None and not same:  # the table says what of a result is unique: of eigenvectors, not the sign
        unique, failed = attempt(process, want)
        our_unique, our_failed = attempt(process, got)
        if failed is None and our_failed is None and tensors_in(our_unique, dt.Tensor):
            want, got, same = unique, our_unique, True
    score.note("forward", f"{at}: {error!r}" if error else (d := difference(got, want)) and f"{at}: {d}")
    if error or not grad:
        return
    roots = [o for o in tensors_in(want, torch.Tensor) if o.requires_grad]
    if not roots or not leaves or not same:
        return
    gs = cotangents(roots)
    their_grads, error = attempt(gradients, want, leaves, torch, gs, second)
    if error is not None:
        return
    if len([o for o in tensors_in(got, dt.Tensor) if o.requires_grad]) != len(roots):
        score.note("gradient", f"{at}: other outputs require a gradient than PyTorch's")
        return
    our_grads, error = attempt(
        gradients, got, our_leaves, dt, [dt.Tensor._of(to_numpy(g)) for g in gs], second
    )
    failure = f"{error!r}" if error else gradient_difference(our_grads, their_grads, "gradient")
    score.note("gradient", failure and f"{at}: {failure}")
    if failure or not second:
        return
    roots = [g for g in their_grads if g is not None and g.requires_grad]
    if not roots:
        return
    gs = cotangents(roots)
    firsts = [g for g, t in zip(our_grads, their_grads, strict=True) if t is not None and t.requires_grad]
    their_grads, error = attempt(gradients, their_grads, leaves, torch, gs)
    if error is not None:
        return
    kept = [(f, g) for f, g in zip(firsts, gs, strict=True) if f is not None and f.requires_grad]
    our_grads, error = attempt(
        gradients, [f for f, _ in kept], our_leaves, dt, [dt.Tensor._of(to_numpy(g)) for _, g in kept]
    )
    failure = f"{error!r}" if error else gradient_difference(our_grads, their_grads, "second gradient")
    score.note("second", failure and f"{at}: {failure}")


def _writable(x: Any, library: Any) -> Any:
    return x.clone() if isinstance(x, library.Tensor) else x


def _is_identity(process: Callable[[Any], Any], out: Any) -> bool:
    value, error = attempt(process, out)
    return error is None and value is out


def without_dropout(name: str, sample: Any) -> Any:
    """Return the sample of an attention without its dropout: the two libraries draw other numbers."""
    if name == "nn.functional.scaled_dot_product_attention":
        sample.kwargs = {**sample.kwargs, "dropout_p": 0.0}
    elif name == "nn.functional.multi_head_attention_forward":
        sample.args = (*sample.args[:9], 0.0, *sample.args[10:])
    return sample


def run_entry(entry: Any, dtypes: str, *, more: bool = False, score: Score | None = None) -> Score:
    """Run the table's samples and invalid calls of one operator.

    Args:
        entry: an ``OpInfo``.
        dtypes: names, with commas.
        more: the larger table of samples, ``reference_inputs``.
    """
    score = score or Score(entry.name)
    found = list(forms(entry, score.name))
    wanted = [getattr(torch, name) for name in dtypes.split(",")]
    floats = [d for d in wanted if d in entry.dtypes]
    for dtype in floats or entry.dtypes & {torch.int64}:  # `one_hot` takes nothing else
        grad = entry.supports_autograd and dtype.is_floating_point
        seed()
        make = entry.reference_inputs if more else entry.sample_inputs
        for sample in _samples(make, dtype, grad):
            sample = without_dropout(entry.name, sample)
            for form, theirs, ours in found:
                if form == "in place" and (
                    sample.broadcasts_input or not isinstance(sample.input, torch.Tensor)
                ):
                    continue
                if ours is None:
                    score.note("forward", f"{form}: disttrain has no {entry.name}")
                    continue
                second = grad and form == "function" and dtype is torch.float64 and entry.supports_gradgrad
                run_sample(score, form, theirs, ours, sample, grad=grad, second=second)
    for case in invalid_calls(entry) if found else ():
        form, _, ours = found[0]
        sample = case.sample_input
        _, refused = attempt(entry.op, sample.input, *sample.args, **sample.kwargs)
        try:
            args = to_ours(
                (sample.input, *sample.args)
            )  # over the same memory: some calls are wrong for that
            kwargs = to_ours(sample.kwargs)
        except (Foreign, RuntimeError, ValueError):  # NumPy has at most 64 dimensions
            score.foreign += 1
            continue
        at = f"{form} {show((sample.input, *sample.args))} {show(sample.kwargs)}"
        if refused is None or ours is None:
            continue
        got, error = attempt(ours, *args, **kwargs)
        message = f"{at}: gives {got!r:.80}, PyTorch: {refused}" if error is None else None
        if error is not None and len(str(error)) < 12:
            message = f"{at}: says no more than {error!r}"
        score.note("error", message)
    return score


def _samples(make: Callable[..., Any], dtype: torch.dtype, grad: bool) -> Iterator[Any]:
    """Yield the table's samples up to where it fails itself: some ask for integers that require a gradient."""
    try:
        yield from make("cpu", dtype, requires_grad=grad)
    except ValueError as error:
        if "not supported for boolean and integral dtypes" not in str(error):
            raise


def invalid_calls(entry: Any) -> Iterator[Any]:
    """Yield the calls that PyTorch refuses."""
    if entry.error_inputs_func is None:
        return
    seed()
    cases, error = attempt(lambda: list(entry.error_inputs("cpu")))
    if error is None:
        yield from cases


def _without_a_test_case() -> None:
    """Spare the tables three quarters of their time: they look in every frame for the TestCase that runs them.

    There is none here. And they seed all devices before each sample, as :func:`seed` does not.
    """
    from torch.testing._internal import common_utils
    from torch.testing._internal.opinfo import core

    def set_rng_seed(number: int) -> None:
        seed(number)
        random.seed(number)
        np.random.seed(number)

    for module, name, own in (
        (common_utils, "extract_test_fn", lambda: None),
        (core, "extract_test_fn", lambda: None),
        (common_utils, "set_rng_seed", set_rng_seed),
    ):
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} of this PyTorch has no {name}")
        setattr(module, name, own)


@functools.cache
def table() -> dict[str, list[Any]]:
    """Return the entries of PyTorch's operator table by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

        _without_a_test_case()
    return {
        name: list(group)
        for name, group in itertools.groupby(sorted(op_db, key=lambda o: o.name), lambda o: o.name)
    }


def run(name: str, dtypes: str = "float32,float64", *, more: bool = False) -> Score:
    """Run all entries of the table that have this name."""
    score = Score(name)
    for entry in table().get(OTHER_NAMES.get(name, name), ()):
        run_entry(entry, dtypes, more=more, score=score)
    return score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="operators by PyTorch's names; those that disttrain offers by default"
    )
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--more", action="store_true", help="the larger table of samples")
    parser.add_argument(
        "--all", action="store_true", help="every operator that the table and disttrain both have"
    )
    parser.add_argument("--show", type=int, default=6, help="failures to print for each operator")
    options = parser.parse_args()
    names = options.names or OPERATORS
    if options.all:
        names = [n for n in table() if resolve(n) is not None]
    return report((run(name, options.dtypes, more=options.more) for name in names), options.show)


def report(scores: Iterable[Score], shown: int) -> int:
    """Print what differs and how many cases agree; return whether any differs."""
    total, failed = Counter[str](), Counter[str]()
    for score in scores:
        total += score.ran
        failed += Counter({a: len(f) for a, f in score.failed.items()})
        if score.failed or not score.ran:
            counts = [f"{a} {len(score.failed.get(a, ()))} of {n} fail" for a, n in score.ran.items()]
            print(f"{score.name}: {', '.join(counts)}")
            for failures in score.failed.values():
                for f in failures[:shown]:
                    print("    " + f)
    for aspect, n in total.items():
        print(f"{aspect}: {n - failed[aspect]} of {n} agree, {100 * (n - failed[aspect]) / n:.2f} %")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
