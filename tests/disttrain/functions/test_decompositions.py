"""Inverses, determinants and factorisations, against PyTorch's; where signs are free, what they do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

rng = np.random.default_rng(0)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


def i(*values: Any) -> Any:
    return np.array(values, np.int64)


def far(*shape: int) -> Any:
    """Matrices that are well conditioned."""
    return f(*shape) + 3 * np.eye(*shape[-2:])


POSITIVE = (lambda a: a @ np.swapaxes(a, -1, -2))(far(2, 3, 3))
SQUARES = [
    c(far(3, 3)),
    c(far(2, 3, 3)),
    c(f(2, 3)),
    c(f(3)),
    c(far(3, 3).astype(np.float32)),
    c(i([1, 2], [3, 4])),
]
SQUARES += [c(f(0, 0)), c(far(3, 3).astype(np.float16))]
CASES: dict[str, list[Any]] = {
    "det": SQUARES,
    "logdet": [c(POSITIVE), c(-np.eye(3)), c(f(2, 3))],
    "slogdet": SQUARES,
    "inverse": SQUARES,
    "pinverse": [c(far(4, 3)), c(far(2, 3, 4)), c(f(3))],
    "matrix_power": [c(far(3, 3), n) for n in (0, 1, 2, 5, -1, -2)] + [c(f(2, 3), 2)],
    "matrix_exp": [c(f(3, 3)), c(f(2, 2, 2)), c(f(2, 3)), c(np.zeros((2, 2)))],
    "cholesky": [c(POSITIVE), c(POSITIVE[0], True), c(f(2, 3))],
    "cholesky_solve": [
        c(f(3, 2), far(3, 3)),
        c(f(3, 2), far(3, 3), True),
        c(f(3), far(3, 3)),
        c(f(2, 2), far(3, 3)),
    ],
    "cholesky_inverse": [c(far(3, 3)), c(far(3, 3), True), c(f(2, 3))],
    "triangular_solve": [
        c(f(3, 2), far(3, 3), *a) for a in ((), (False,), (True, True), (False, False, True))
    ],
    "qr": [c(far(4, 3)), c(far(2, 3, 3)), c(far(3, 5)), c(f(3))],
    "svd": [c(np.array([[3.0, 0.0], [0.0, 1.0]])), c(f(3))],
}


def test_linalg_as_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    import disttrain as dt

    tall, square = far(2, 4, 3), far(2, 3, 3)
    for call in (
        lambda m, t: m.linalg.inv(t(square)),
        lambda m, t: m.linalg.solve(t(square), t(tall[:, :3])),
        lambda m, t: m.linalg.solve(t(square), t(square[..., 0])),
        lambda m, t: m.linalg.solve(t(square), t(tall), left=False),
        lambda m, t: m.linalg.solve_triangular(t(square), t(square), upper=True),
        lambda m, t: m.linalg.solve_triangular(
            t(square), t(tall), upper=False, left=False, unitriangular=True
        ),
        lambda m, t: m.linalg.svdvals(t(tall)),
        lambda m, t: m.linalg.svd(t(tall)).S,
        lambda m, t: m.linalg.eigvalsh(t(POSITIVE)),
        lambda m, t: m.linalg.eigh(t(POSITIVE), "U").eigenvectors.abs(),
        lambda m, t: m.linalg.pinv(t(tall)),
        lambda m, t: m.linalg.pinv(t(POSITIVE), hermitian=True),
        lambda m, t: m.linalg.lstsq(t(tall), t(tall[..., :2])).solution,
        lambda m, t: m.linalg.slogdet(t(square)).logabsdet,
        lambda m, t: m.linalg.det(t(square)),
        lambda m, t: m.linalg.cholesky(t(POSITIVE), upper=True),
        lambda m, t: m.linalg.qr(t(tall)).R,
        lambda m, t: m.linalg.cond(t(square)),
        lambda m, t: m.linalg.multi_dot([t(tall[0, 0]), t(square[0]), t(square[1])]),
        lambda m, t: m.linalg.tensorsolve(t(square[0].reshape(3, 3)), t(square[0, 0])),
        lambda m, t: m.linalg.vecdot(t(square), t(square), dim=1),
        lambda m, t: m.linalg.cross(t(square), t(square.swapaxes(1, 2).copy())),
        *(
            lambda m, t, o=o: m.linalg.matrix_norm(t(tall), o, keepdim=True)
            for o in ("fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf)
        ),
    ):
        x, y = [], []

        def ours(a: Any, x: Any = x) -> Any:
            x.append(dt.tensor(a).requires_grad_())
            return x[-1]

        def theirs(a: Any, y: Any = y) -> Any:
            y.append(torch.tensor(a).requires_grad_())
            return y[-1]

        a, b = call(dt, ours), call(torch, theirs)
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-9, atol=1e-9)
        weight = np.random.default_rng(3).standard_normal(tuple(b.shape))
        (a * dt.tensor(weight)).sum().backward()
        (b * torch.tensor(weight)).sum().backward()
        for p, q in zip(x, y, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-8, atol=1e-8)


def test_the_derivative_of_a_singular_determinant_is_exact() -> None:
    import disttrain as dt

    x = dt.ones(2, 2, dtype=dt.float64, requires_grad=True)
    x.det().backward()

    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [[1, -1], [-1, 1]], atol=1e-12)


def test_a_singular_matrix_has_its_own_error() -> None:
    import disttrain as dt

    for call in (dt.linalg.inv, dt.inverse, dt.linalg.cholesky, lambda x: dt.linalg.solve(x, x)):
        with pytest.raises(dt.linalg.LinAlgError, match=r"singular|positive"):
            call(dt.zeros(2, 2))
    assert issubclass(dt.linalg.LinAlgError, RuntimeError)


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


FAILING = np.stack(
    [
        np.eye(3),
        [[1.0, 2.0, 3.0], [2.0, 4.0, 7.0], [1.0, 2.0, 5.0]],
        np.zeros((3, 3)),
        [[4.0, 2.0, 0.0], [2.0, 5.0, 1.0], [0.0, 1.0, 3.0]],
        [[4.0, 2.0, 0.0], [2.0, -5.0, 1.0], [0.0, 1.0, 3.0]],
        [[1.0, 2.0, 3.0], [2.0, 5.0, 7.0], [3.0, 7.0, 10.0]],
    ]
)


@pytest.mark.parametrize(
    ("name", "options"), [("inv_ex", {}), ("cholesky_ex", {}), ("cholesky_ex", {"upper": True})]
)
def test_what_fails_is_told_by_matrix_and_the_others_have_gradients(name: str, options: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    import disttrain as dt

    def outcome(lib: Any) -> Any:
        x = lib.from_numpy(FAILING.copy()).requires_grad_()
        out, info = getattr(lib.linalg, name)(x, **options)
        good = info == 0
        out[good].square().sum().backward()
        return info.numpy(), out.detach().numpy()[good.numpy()], x.grad.numpy()[good.numpy()]

    ours, theirs = outcome(dt), outcome(torch)
    assert ours[0].dtype == np.int32
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    one, info = getattr(dt.linalg, name)(dt.zeros(2, 2), **options)
    assert one.isnan().all()
    assert info.shape == ()
    assert info.item() == 1
    with pytest.raises(dt.linalg.LinAlgError, match=f"{name}.*one of the batch"):
        getattr(dt.linalg, name)(dt.from_numpy(FAILING), check_errors=True, **options)
