"""Run PyTorch's table of optimizers against disttrain: every input gives the same trajectory, every error is refused.

python tests/lib/torch_optimizers.py             # all
python tests/lib/torch_optimizers.py Adam LBFGS --dtype float32
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch_tables import Foreign, Score, attempt, to_numpy, to_ours

import disttrain as dt

STEPS = 20
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
SHAPES = [(4, 3), (3,), (), (2, 0), (5, 2, 2)]


def table() -> dict[str, Any]:
    """Return the entries of PyTorch's table of optimizers by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_optimizers import optim_db
    return {entry.name: entry for entry in optim_db}


def parameters(library: Any, dtype: str) -> list[Any]:
    """Return equal parameters in either library."""
    rng = np.random.default_rng(3)
    arrays = [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]
    return [library.nn.Parameter(library.as_tensor(a)) for a in arrays]


def loss_of(params: list[Any], step: int) -> Any:
    """Return a loss that the first of the parameters does not always enter."""
    used = params[1:] if step % 7 == 3 else params
    terms = [((p - 0.3 * i) ** 2 * (1 + 0.1 * i) + 0.05 * (p * 3).sin()).sum() for i, p in enumerate(used)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def train(optimizer: Any, params: list[Any], steps: range) -> None:
    """Make steps with a closure, which all optimizers accept."""
    always = type(optimizer).__name__ == "LBFGS"  # which magnifies rounding when the loss is another
    for step in steps:

        def closure(step: int = step) -> Any:
            optimizer.zero_grad()
            loss = loss_of(params, 0 if always else step)
            loss.backward()
            return loss

        optimizer.step(closure)


def converted(x: Any, known: dict[int, Any]) -> Any:
    """Return PyTorch's argument as ours; a tensor that comes twice is one tensor."""
    if isinstance(x, torch.Tensor):
        if id(x) not in known:
            known[id(x)] = to_ours(x)
        return known[id(x)]
    if isinstance(x, list | tuple):
        return type(x)(converted(i, known) for i in x)
    return {k: converted(v, known) for k, v in x.items()} if isinstance(x, dict) else x


def difference(ours: list[Any], theirs: list[Any], rtol: float) -> str | None:
    """Return where two lists of parameters differ, or ``None``."""
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        a, b = p.detach().numpy(), to_numpy(q)
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"parameter {i} is {a.dtype} {a.shape}, PyTorch's {b.dtype} {b.shape}"
        if not np.allclose(a, b, rtol=rtol, atol=rtol):
            return f"parameter {i} is off by {np.abs(a - b).max():.2e}"
    return None


def state_difference(ours: Any, theirs: Any) -> str | None:
    """Return how two state dicts differ in what they hold, or ``None``; values are not compared."""
    a, b = ours.state_dict(), theirs.state_dict()
    for one, other in zip(a["param_groups"], b["param_groups"], strict=True):
        if set(one) != set(other):
            return f"options {sorted(set(one) ^ set(other))} are only on one side"
    if set(a["state"]) != set(b["state"]):
        return f"state of {sorted(a['state'])}, PyTorch {sorted(b['state'])}"
    for i, theirs_of in b["state"].items():
        missing = set(theirs_of) - set(a["state"][i]) - {"al"}  # scratch space of LBFGS
        if missing or set(a["state"][i]) - set(theirs_of):
            return f"state {sorted(set(theirs_of) ^ set(a['state'][i]))} is only on one side"
    return None


def run_inputs(entry: Any, ours: Callable[..., Any], dtype: str, score: Score) -> None:
    """Compare the trajectory of every input of the table, also when a new optimizer continues from PyTorch's state."""
    rtol = TOLERANCE[dtype]
    for case in entry.optim_inputs_func("cpu", getattr(torch, dtype)):
        at = f"{case.desc} {case.kwargs}"
        q = parameters(torch, dtype)
        theirs = entry.optim_cls(q, **case.kwargs)
        p = parameters(dt, dtype)
        mine, error = attempt(ours, p, **to_ours(case.kwargs))
        if error is not None:
            score.note("trajectory", f"{at}: {error!r}")
            continue
        train(theirs, q, range(STEPS // 2))
        _, error = attempt(train, mine, p, range(STEPS // 2))
        copied = ours(parameters(dt, dtype), **to_ours(case.kwargs))
        r = copied.param_groups[0]["params"]
        for a, b in zip(r, q, strict=True):
            a.data = dt.tensor(to_numpy(b).copy())
        failure = error and repr(error)
        _, error = attempt(copied.load_state_dict, to_ours(theirs.state_dict()))
        failure = failure or state_difference(mine, theirs) or (error and repr(error))
        train(theirs, q, range(STEPS // 2, STEPS))
        if not failure:
            _, error = attempt(train, mine, p, range(STEPS // 2, STEPS))
            _, resumed = attempt(train, copied, r, range(STEPS // 2, STEPS))
            error = error or resumed
            failure = repr(error) if error else difference(p, q, rtol)
        score.note("trajectory", failure and f"{at}: {failure}")
        if not failure:
            failure = difference(r, q, rtol)
            score.note("continued from PyTorch's state", failure and f"{at}: {failure}")
        score.note("repr", None if repr(mine) == repr(theirs) else f"{at}: {mine!r}, PyTorch {theirs!r}")


def run_errors(entry: Any, ours: Callable[..., Any], score: Score) -> None:
    """Check that every input that PyTorch refuses, or warns of, is refused or warned of."""
    for case in entry.optim_error_inputs_func("cpu", torch.float32):
        given = case.optimizer_error_input
        params = parameters(torch, "float32") if given.params is None else given.params
        at = f"{given.desc} {given.kwargs}"
        try:
            our_params, our_kwargs = converted(params, {}), to_ours(given.kwargs)
        except Foreign:
            score.foreign += 1
            continue
        kind = case.error_type
        with warnings.catch_warnings():
            warnings.simplefilter("error" if issubclass(kind, Warning) else "ignore")
            try:
                ours(our_params, **our_kwargs)
            except kind:
                score.note("error", None)
            except Exception as e:
                score.note("error", f"{at}: {e!r}, PyTorch raises {kind.__name__}")
            else:
                score.note("error", f"{at}: accepted, PyTorch raises {kind.__name__}: {case.error_regex}")


def run(name: str, dtype: str = "float64") -> Score:
    """Run the table's entry of one optimizer."""
    entry, score = table()[name], Score(name)
    ours = getattr(dt.optim, name)
    run_inputs(entry, ours, dtype, score)
    run_errors(entry, ours, score)
    return score


def offered() -> Iterator[str]:
    """Yield the names of the table's optimizers that disttrain has."""
    return (name for name in table() if name in dt.optim.__all__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--dtype", default="float64", choices=list(TOLERANCE))
    options = parser.parse_args()
    failed = False
    for name in options.names or offered():
        score = run(name, options.dtype)
        failed |= bool(score.failed)
        print(
            name, ", ".join(f"{a}: {n - len(score.failed.get(a, ()))} of {n}" for a, n in score.ran.items())
        )
        for failures in score.failed.values():
            for f in failures:
                print("    " + f)
    return failed


if __name__ == "__main__":
    sys.exit(main())
