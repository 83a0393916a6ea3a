"""Functions that move elements, against PyTorch's: values, gradients, and what is a view of what."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import disttrain as dt

rng = np.random.default_rng(0)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


RESHAPES = [
    c(f(2, 3), 6),
    c(f(2, 3), (3, 2)),
    c(f(2, 3), [3, -1]),
    c(f(2, 3), -1),
    c(f(2, 3), 4),
    c(f(2, 3), (-1, -1)),
    c(f(2, 3), (-2, 3)),
    c(f(), 1),
    c(f(), ()),
    c(f(1), ()),
    c(f(0), (0, 3)),
    c(f(0), -1),
    c(f(0, 3), (3, -1)),
    c(f(0, 3), (0, -1)),
    c(f(2, 3, 4), 2, 12),
    c(f(2, 3), (2, 3)),
    c(f(2, 3), "a"),
    c(f(4), (2, 2.0)),
]
DIMS = [c(f(*s), d) for s in [(), (1,), (2, 1, 3), (1, 1), (0, 1)] for d in (0, 1, -1, -2, 3, -5)]
TWO = [
    c(f(*s), *d)
    for s in [(2, 3), (2, 3, 4), (), (3,)]
    for d in ((0, 1), (1, 0), (-1, 0), (0, 5), (0, 0), (-2, -1))
]
EXPANDS = [
    c(f(1, 3), 2, 3),
    c(f(1, 3), (2, -1)),
    c(f(3), 2, 3),
    c(f(3), (2, 4)),
    c(f(), 2),
    c(f(), ()),
    c(f(2, 1), 2, 5),
    c(f(2, 3), 3),
    c(f(2, 1), (4, 2, 3)),
    c(f(3), (-1, 3)),
    c(f(1), 0),
    c(f(2, 3), -1, 3),
]


def methods(cases: list[Any]) -> list[Any]:
    """Cases with sizes as a tuple: PyTorch's functions take no others, its methods (and we) do."""
    return [case for case in cases if len(case[0]) == 1 or isinstance(case[0][1], tuple | list)]


CASES: dict[str, list[Any]] = {
    "reshape": RESHAPES,
    "view": [*RESHAPES[:14]],
    "flatten": [
        c(f(*s), *d)
        for s in [(), (2,), (2, 3, 4), (0, 3)]
        for d in ((), (0,), (1,), (0, 1), (-2, -1), (1, 0), (5,))
    ],
    "ravel": [c(f()), c(f(3)), c(f(2, 3)), c(f(0, 3))],
    "unflatten": [
        c(f(6, 2), 0, (2, 3)),
        c(f(6, 2), 0, (-1, 3)),
        c(f(6, 2), -1, (1, 2)),
        c(f(6), 0, (4, 2)),
        c(f(6), 1, (2, 3)),
        c(f(2, 6), dim=1, sizes=(3, 2)),
    ],
    "permute": [
        c(f(2, 3, 4), 2, 0, 1),
        c(f(2, 3, 4), (0, -1, 1)),
        c(f(2, 3), (0, 0)),
        c(f(2, 3), (0,)),
        c(f(2, 3), (0, 5)),
        c(f(), ()),
    ],
    "transpose": TWO,
    "swapaxes": TWO,
    "t": [c(f()), c(f(3)), c(f(2, 3)), c(f(2, 3, 4))],
    "movedim": [
        c(f(2, 3, 4), 0, 2),
        c(f(2, 3, 4), (0, 1), (-1, 0)),
        c(f(2, 3), 0, 5),
        c(f(2, 3), (0,), (0, 1)),
        c(f(2, 3), (0, 0), (0, 1)),
        c(f(2, 3, 4), -1, 0),
        c(f(2, 3), (0, 1), (1, 1)),
    ],
    "squeeze": [
        *DIMS,
        c(f(2, 1, 1)),
        c(f()),
        c(f(1, 2, 1), (0, 2)),
        c(f(1, 2, 1), (0, 1)),
        c(f(1, 2), (0, 0)),
    ],
    "unsqueeze": DIMS,
    "expand": EXPANDS,
    "broadcast_to": [case for case in EXPANDS if len(case[0]) == 2 and not isinstance(case[0][1], int)],
    "expand_as": [c(f(3), f(2, 3)), c(f(2, 1), f(2, 4)), c(f(2), f(3))],
    "view_as": [c(f(6), f(2, 3)), c(f(6), f(2, 2))],
    "reshape_as": [c(f(6), f(2, 3)), c(f(6), f(2, 2))],
    "broadcast_tensors": [c(f(3), f(2, 1)), c(f(2), f(3)), c(f(2, 3))],
    "repeat": [
        c(f(2, 3), 2, 1),
        c(f(2, 3), (2, 2)),
        c(f(2, 3), 4, 1, 2),
        c(f(2, 3), 2),
        c(f(3), 0),
        c(f(), 3),
        c(f(2), -1),
    ],
    "tile": [c(f(2, 3), (2, 1)), c(f(2, 3), (2,)), c(f(2), (2, 3)), c(f(), (2,)), c(f(2, 3), ())],
    "narrow": [
        c(f(4, 3), *a)
        for a in [(0, 1, 2), (1, 0, 3), (-1, -2, 1), (0, 3, 2), (0, 0, 0), (2, 0, 1), (0, 0, -1), (0, -5, 1)]
    ],
    "select": [c(f(4, 3), *a) for a in [(0, 1), (1, -1), (-1, 2), (0, 4), (0, -5), (2, 0)]] + [c(f(), 0, 0)],
    "split": [
        c(f(5, 2), *a)
        for a in [(2,), (5,), (7,), ([1, 4],), ([2, 2],), (1, 1), (2, -1), (0,), (-1,), ([1, -1, 5],), (2, 3)]
    ]
    + [c(f(0, 2), 2), c(f(0), [0]), c(f(3), [0, 3, 0]), c(f(), 1), c(f(0), 0)],
    "chunk": [c(f(5, 2), *a) for a in [(2,), (5,), (7,), (3, 0), (2, 1), (0,), (-1,), (2, -1), (2, 3)]]
    + [c(f(0), 2), c(f(0, 3), 2)],
    "unbind": [c(f(2, 3)), c(f(2, 3), 1), c(f(2, 3), -1), c(f()), c(f(0, 2)), c(f(2), 2)],
    "cat": [
        c([f(2, 3), f(1, 3)]),
        c([f(2, 3), f(2, 1)], 1),
        c((f(2, 3), f(2, 1)), dim=-1),
        c([f(2, 3), f(2, 2)]),
        c([]),
        c([f(2), np.arange(3)]),
        c([f(2).astype(np.float32), f(2)]),
        c([f(0), f(2, 3)]),
        c([f(2, 3)]),
        c([f(2)], 1),
        c([np.arange(2), np.asarray(1)[None]]),
        c([f(), f()]),
        c([f(0), f(0)]),
        c([np.arange(2), np.array([True])]),
        c([f(0, 3), f(2, 3)]),
        c([f(2, 3), f(3)]),
    ],
    "stack": [c([f(2, 3), f(2, 3)], d) for d in (0, 1, 2, -1, -3, 3, -4)]
    + [
        c([f(), f()]),
        c([f(2), f(3)]),
        c([]),
        c([f(2), np.arange(2)]),
        c([np.asarray(1.0), np.arange(1)[0:1].reshape(())]),
    ],
    "flip": [c(f(2, 3), *a) for a in [(0,), (1,), (0, 1), ((0, -1),), (2,), ((0, 0),), ((),)]]
    + [c(f(), 0), c(f(0), 0)],
    "roll": [
        c(f(2, 3), *a)
        for a in [(1,), (-1, 0), (2, 1), ((1, 1), (0, 1)), ((1,), (0, 1)), (1, 5), ((1, 2), (0, 0)), (7,)]
    ]
    + [c(f(0), 1)],
    "diagonal": [c(f(3, 4), *a) for a in [(), (1,), (-1,), (5,), (-5,), (0, 1, 0), (0, 0, 0), (0, 0, 5)]]
    + [c(f(2, 3, 4), o, a, b) for o, a, b in [(0, 0, 1), (1, 0, 2), (-1, 2, 1), (0, -1, -2)]]
    + [c(f(3))],
    "clone": [c(f()), c(f(2, 3)), c(np.arange(3)), c(f(2, 3).T)],
    "contiguous": [c(f(2, 3)), c(f())],
}
STRIDED = [
    c(f(6), (2, 2), (2, 1)),
    c(f(2, 3), (2, 2), (1, 2), 1),
    c(f(2, 3), (3,), (1,), 4),
    c(f(6), (2, 3), (1, 1)),
    c(f(6), (2,), (-1,)),
    c(f(6), (2, 2), (1,)),
    c(f(6), (), ()),
]
CASES |= {
    "swapdims": TWO,
    "moveaxis": CASES["movedim"],
    "adjoint": [c(f(2, 3)), c(f(2, 3, 4)), c(f(3)), c(f())],
    "narrow_copy": CASES["narrow"][:5],
    "as_strided": STRIDED,
    "unfold": [
        c(f(*s), *a)
        for s in ((7,), (4, 5), ())
        for a in ((0, 3, 1), (-1, 2, 2), (0, 1, 1), (0, 0, 1), (0, 8, 1), (0, 2, 0), (2, 1, 1), (0, -1, 1))
    ],
    "broadcast_shapes": [c((2,), (3,)), c((4, 2), (3, 2))],  # those that there are, below
    "numel": [c(f(2, 3)), c(f()), c(f(0, 2))],
    "squeeze_": DIMS,
    "unsqueeze_": DIMS,
    "transpose_": TWO,
    "swapaxes_": TWO,
    "swapdims_": TWO,
    "t_": CASES["t"],
    "as_strided_": STRIDED,
    "is_contiguous": [c(f(2, 3)), c(f(2, 3).T)],
}
for _name in ("reshape", "flip", "permute"):
    CASES[f"Tensor.{_name}"], CASES[_name] = CASES[_name], methods(CASES[_name])
for _name in ("concat", "concatenate"):
    CASES[_name] = CASES["cat"]
CASES["sum_to_size"] = [c(f(2, 3), *a) for a in ((1, 3), ((2, 1),), (3,), (), (2, 3), (2,), (1, 2, 3))]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


def test_strides_decide_between_view_and_copy() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    a = f(4, 3, 2)
    for axes, size in itertools.product(
        itertools.permutations(range(3)), [(12, 2), (4, 6), (24,), (2, 2, 3, 2), (3, 8)]
    ):
        ours, theirs = dt.from_numpy(a).permute(axes), torch.from_numpy(a).permute(axes)
        assert ours.stride() == theirs.stride()
        assert ours.is_contiguous() == theirs.is_contiguous()
        assert ours.contiguous().stride() == theirs.contiguous().stride()
        shared = np.may_share_memory(ours.reshape(size).numpy(), a)
        assert shared == np.may_share_memory(theirs.reshape(size).numpy(), a), (axes, size)
        try:
            theirs.view(size)
        except RuntimeError:
            with pytest.raises(RuntimeError, match="without a copy"):
                ours.view(size)
        else:
            ours.view(size)


def test_shapes_broadcast_as_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    for shapes in (((2, 1), 3), ((2,),), (), ((1, 3), (2, 1), 1), ((0, 1), (5,))):
        assert tuple(dt.broadcast_shapes(*shapes)) == tuple(torch.broadcast_shapes(*shapes))
    with pytest.raises(RuntimeError, match="do not broadcast"):
        dt.broadcast_shapes((2,), (3,))
    with pytest.raises(ValueError, match="negative"):
        dt.broadcast_shapes((-1,))


def test_writing_through_views_reaches_the_base_and_its_gradient() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    a, b = f(3, 4), f(3, 4)
    for take in (
        lambda x: x.view(4, 3)[1],
        lambda x: x.reshape(-1)[::2],
        lambda x: x.t().diagonal(1),
        lambda x: x.unfold(1, 2, 2),
        lambda x: x.as_strided((2, 3), (4, 1), 1),
        lambda x: x[1:].as_strided((2, 2), (1, 5), 4),
        lambda x: x.movedim(0, 1).select(0, 2),
        lambda x: x.unsqueeze(1).squeeze(1).narrow(0, 1, 2),
        lambda x: x.t().flatten(),
        lambda x: x[2:].unflatten(1, (2, 2)),
        lambda x: x.clone().t_(),
    ):
        grads, values = [], []
        for lib in (dt, torch):
            x, y = lib.tensor(a).requires_grad_(), lib.tensor(b).requires_grad_()
            z = x * 2
            part = take(z)
            part.mul_(3.0)
            part.add_(take(y))
            z.mul_(z.detach().clone())
            (z * y + part.sum()).sum().backward()
            values.append(z.detach().numpy())
            grads += [x.grad.numpy(), y.grad.numpy()]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
        np.testing.assert_allclose(grads[0], grads[2], rtol=1e-12)
        np.testing.assert_allclose(grads[1], grads[3], rtol=1e-12)


def test_overlapping_views_cannot_be_written() -> None:
    for view in (dt.zeros(4).unfold(0, 3, 1), dt.zeros(4).as_strided((2, 2), (1, 1)), dt.zeros(1).expand(3)):
        with pytest.raises(RuntimeError, match="several of its elements are one"):
            view.add_(1.0)


def test_bytes_as_another_type() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    a = f(2, 4).astype(np.float32)
    for name in ("int32", "int16", "float64", "uint8", "float32"):
        ours = dt.from_numpy(a).view(getattr(dt, name))
        theirs = torch.from_numpy(a).view(getattr(torch, name))
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    ints = dt.from_numpy(a.copy()).view(dt.int32)
    for wrong in (
        lambda: dt.zeros(3).view(dt.int64),
        lambda: dt.zeros(()).view(dt.int16),
        lambda: ints.t().view(dt.int8),
    ):
        with pytest.raises(RuntimeError, match="view"):
            wrong()


def test_bytes_have_no_gradient() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    for T in (dt, torch):
        x = T.ones(3, requires_grad=True)
        y = x * 1
        same, bits = y.view(T.float32), y.view(T.int32)
        bits += 1  # reaches y, not its gradient
        y.sum().backward()

        assert not same.requires_grad
        assert same[0].item() > 1
        assert x.grad.tolist() == [1, 1, 1]


def test_a_base_given_another_shape_in_place() -> None:
    x = dt.ones(2, 3, requires_grad=True)
    base = x * 1
    view = base[0]
    base.t_()
    assert view.sum().requires_grad  # nothing was written since

    base.mul_(2)
    with pytest.raises(RuntimeError, match="take the view again"):
        view.sum()
    base[:, 0].sum().backward()
    assert x.grad.tolist() == [[2, 2, 2], [0, 0, 0]]

    plain = dt.ones(2, 3)
    view = plain[0]
    plain.t_()
    view.add_(1)
    assert plain.tolist() == [[2, 1], [2, 1], [2, 1]]
    with pytest.raises(RuntimeError, match="take the view again"):
        view.add_(dt.ones(3, requires_grad=True))


def test_ravel_is_contiguous() -> None:
    x = dt.arange(6).reshape(2, 3)

    assert x[:, 1].ravel().stride() == (1,)
    assert x.ravel().data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    "lay", ["{}", "{}.mT", "{}.transpose(0, 1)", "{}[:1].expand(4, -1, -1)", "{}[..., ::2]"]
)
def test_what_pytorch_lays_out_row_major_is_so_here(lay: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    a = f(4, 4, 4)
    for program in (
        "x[:, i]",
        "x[:, :, i]",
        "x[0, :, i]",
        "x[:, m]",
        "x.index_select(1, i)",
        "x.repeat_interleave(2, 1)",
        "x.repeat_interleave(2, -1)",
        "T.cat([x, x], 0)",
        "T.cat([x, x], -1)",
        "T.stack([x, x], 1)",
        "T.hstack([x, x])",
        "T.block_diag(x[0], x[1])",
        "x.roll(1, 1)",
        "x.flip(1)",
        "x.tile([1])",
        "x.narrow_copy(0, 0, 2)",
        "x.rot90()",
        "x.tril()",
        "x.clone()",
        "x + 1",
        "x.float()",
        "T.ones_like(x)",
        "x.sum(0)",
        "x.mean(1)",
        "x.var(0)",
        "x.prod(-1)",
        "x.amax(0)",
        "x.logsumexp(1)",
        "x.norm(dim=0)",
        "x.any(0)",
        "x.cumsum(1)",
        "x.cumprod(0)",
        "x.cummax(1)[0]",
        "x.logcumsumexp(2)",
        "x.softmax(1)",
        "x.log_softmax(0)",
        "x.masked_fill(x > 0, 0)",
        "x @ x",
        "x @ x[0]",
        "T.nn.functional.pad(x, (1, 1))",
        "x.nonzero(as_tuple=True)[1]",
        "x.expand(2, 4, 4, x.shape[-1]).clone()",
    ):
        rows = []
        for T in (dt, torch):
            x = eval(lay.format("x"), {"x": T.from_numpy(a)})
            names = {"T": T, "x": x, "i": T.tensor([1, 0]), "m": T.tensor([True, False, True, True])}
            try:
                rows.append(eval(program, names).is_contiguous())
            except RuntimeError:
                rows.append(None)
        assert rows[0] or not rows[1], program


def test_images_may_be_viewed_as_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    a, w = f(2, 3, 5, 5), f(4, 3, 2, 2)

    def program(T: Any) -> list[Any]:
        F = T.nn.functional
        x = T.from_numpy(a.copy()).requires_grad_()
        y = F.conv2d(x, T.from_numpy(w))
        before = F.relu(y)
        flat = y.view(-1, 4 * 4 * 4)
        flat[:, 3] = 7  # reaches y
        grid = F.max_pool2d(before, 2).view(2, 2, 2, -1)
        one = F.relu(F.conv2d(x[0], T.from_numpy(w))).view(-1)
        line = F.conv1d(x[:, :, 0], T.from_numpy(w[..., 0])).relu().view(2, -1)
        cut = y.flatten(2).view(8, 16)
        parts = [y, flat, grid, one, line, cut]
        sum([(p * p).sum() for p in parts]).backward()
        with pytest.raises(RuntimeError):
            y[:, :, 1:].view(-1)
        return [p.detach().numpy() for p in parts] + [x.grad.numpy()]

    for ours, theirs in zip(program(dt), program(torch), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_an_expansion_that_repeats_nothing_can_be_written() -> None:
    x = dt.zeros(1, 3)

    x.expand(1, 1, 3).add_(1)

    assert x.tolist() == [[1.0, 1.0, 1.0]]
    with pytest.raises(RuntimeError, match="cannot be written"):
        x.expand(2, 3).add_(1)
