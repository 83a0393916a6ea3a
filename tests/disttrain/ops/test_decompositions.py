"""Derivatives of inverses and factorisations, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import decompositions as ops
from disttrain.ops.types import call

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


def far(*shape: int) -> Any:
    """Matrices whose singular values lie apart, so that differences of vectors are well conditioned."""
    m, n = shape[-2:]
    u, _, vh = np.linalg.svd(f(*shape), full_matrices=False)
    return (u * np.linspace(1, 2, min(m, n))) @ vh


def symmetric(*shape: int) -> Any:
    q = np.linalg.qr(f(*shape))[0]
    return (q * np.linspace(1, 3, shape[-1])) @ np.swapaxes(q, -1, -2)


TRIANGLE = np.triu(f(3, 3)) + 2 * np.eye(3)
CUT: dict[str, Any] = {"least": np.asarray(0.0), "share": np.asarray(1e-10), "symmetric": False}
CASES: dict[str, list[Any]] = {
    "inv": [c(far(3, 3)), c(far(2, 3, 3))],
    "solve": [c(far(3, 3), f(3, 2)), c(far(2, 3, 3), f(3, 2)), c(far(3, 3), f(2, 3, 1))],
    "solve_triangular": [
        c(TRIANGLE, f(3, 2), upper=True),
        c(TRIANGLE.T, f(2, 3, 2), upper=False),
    ],
    "pinv": [c(far(4, 3), **CUT), c(far(2, 3, 4), **CUT), c(far(3, 3), **CUT)],
    "det": [c(far(3, 3)), c(far(2, 3, 3)), c(f(1, 1))],
    "cofactors": [c(far(3, 3))],
    "slogdet": [c(far(3, 3)), c(far(2, 3, 3))],
    "qr": [c(far(4, 3), mode="reduced"), c(far(3, 3), mode="complete"), c(far(2, 3, 5), mode="reduced")],
    "svd": [c(far(*s), full=False) for s in ((3, 3), (4, 3), (2, 3, 4))],
    "matrix_exp": [c(f(3, 3)), c(4 * f(2, 2, 2))],
}
HALF: dict[str, list[Any]] = {
    "cholesky": [c(symmetric(3, 3)), c(symmetric(2, 3, 3))],
    "eigh": [c(symmetric(3, 3), upper=u) for u in (False, True)],
    "cholesky_solve": [c(f(3, 2), TRIANGLE, upper=True), c(f(2, 3, 1), TRIANGLE.T, upper=False)],
}
"""Of the last argument one half is read, and the gradient is that along matrices that stay symmetric, triangular."""
CASES |= HALF


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    op = getattr(ops, name)
    for args, options in CASES[name]:
        if name == "cholesky_solve":
            differences(_along(op, _upper if options["upper"] else _lower), *args, **options)
        else:
            differences(_along(op, _symmetric) if name in HALF else op, *args, **options)


def _symmetric(x: Any) -> Any:
    return 0.5 * (x + np.swapaxes(x, -1, -2)), (), lambda g, needs: (call(_symmetric, g),)


def _upper(x: Any) -> Any:
    return np.triu(x), (), lambda g, needs: (call(_upper, g),)


def _lower(x: Any) -> Any:
    return np.tril(x), (), lambda g, needs: (call(_lower, g),)


def _along(op: Any, project: Any) -> Any:
    """The op with its last argument projected first."""

    def vjp(g: Any, needs: Any, *saved: Any) -> Any:
        *rest, inner, last, place = saved
        if place is not None:
            rest[place] = call(project, last)
        *others, final = inner(g, needs, *rest)
        return (*others, call(project, final))

    def run(*args: Any, **options: Any) -> Any:
        *others, last = args
        projected = project(last)[0]
        out, saved, inner = op(*others, projected, **options)
        place = next((k for k, s in enumerate(saved) if s is projected), None)
        return out, (*saved, inner, last, place), vjp

    run.__name__ = op.__name__
    return run
