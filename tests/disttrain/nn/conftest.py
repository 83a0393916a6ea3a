"""One comparison for the functions of nn.functional: values, gradients and second derivatives against PyTorch."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.nn import functional as F

LIMIT = 1e-9
FIXED = {
    "batch_norm": (1, 2),
    "instance_norm": (1, 2),
    "fractional_max_pool2d": (5,),
    "fractional_max_pool3d": (5,),
}
"""Which arguments of floating point ask for no gradient."""


@pytest.fixture
def like_torch() -> Callable[[str, Any, Any], None]:
    """Compare a call of ``nn.functional``; arrays become tensors, those of float64 ask for gradients."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def compare(name: str, args: Any, options: Any) -> None:
        def convert(i: int, a: Any, new: Any, leaves: list[Any]) -> Any:
            if not isinstance(a, np.ndarray):
                return a
            t = new(a.copy())
            running = i in FIXED.get(name, ())  # asks for no gradient
            if a.dtype == np.float64 and not running:
                leaves.append(t.requires_grad_())
            return t

        results = []
        for lib, functions, new in ((torch, torch.nn.functional, torch.tensor), (dt, F, dt.tensor)):
            leaves: list[Any] = []
            given = [convert(i, a, new, leaves) for i, a in enumerate(args)]
            named = {k: convert(-1, a, new, leaves) for k, a in options.items()}
            out = getattr(functions, name)(*given, **named)
            outs = [o for o in out if o is not None] if isinstance(out, tuple) else [out]
            found = []
            if leaves and outs[0].requires_grad:
                g = new(np.random.default_rng(1).standard_normal(tuple(outs[0].shape))).requires_grad_()
                grads = lib.autograd.grad(outs[0], leaves, g, create_graph=True, allow_unused=True)
                total = sum((v * v).sum() for v in grads if v is not None)
                seconds = lib.autograd.grad(total, [*leaves, g], allow_unused=True)
                found = [*grads, *seconds]
            results.append((outs, found, leaves))
        (theirs, their_grads, leaves), (ours, our_grads, _) = results

        for a, b in zip(ours, theirs, strict=True):
            assert str(a.dtype).split(".")[1] == str(b.dtype).split(".")[1]
            assert tuple(a.shape) == tuple(b.shape)
            np.testing.assert_allclose(a.detach().numpy(), b.numpy(force=True), LIMIT, LIMIT)
        assert len(our_grads) == len(their_grads)
        for i, (a, b) in enumerate(zip(our_grads, their_grads, strict=True)):
            kind = "gradient" if i < len(leaves) else "second derivative"
            if a is None or b is None:  # an unused argument is None here and zero there
                assert all(v is None or not bool((v != 0).any()) for v in (a, b)), f"{kind} {i}"
                continue
            np.testing.assert_allclose(
                a.detach().numpy(), b.numpy(force=True), LIMIT, LIMIT, err_msg=f"{kind} {i}"
            )

    return compare


def listed(x: Any) -> list[Any]:
    return list(x) if isinstance(x, tuple) else [x]


def our_tensor(a: Any, dtype: str) -> dt.Tensor:
    return dt.tensor(a.astype(dtype)).requires_grad_() if a.dtype == np.float64 else dt.tensor(a)


@pytest.fixture
def layer_like_torch() -> Callable[[str, Any, str], None]:
    """Compare a layer: output, gradients, changed buffers, state dict and repr, in training and evaluation.

    A case is (arguments of the constructor, its options, inputs); arrays become tensors.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def compare(name: str, case: Any, dtype: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")  # PyTorch's
            _compare_layer(torch, name, case, dtype)

    return compare


def _compare_layer(torch: Any, name: str, case: Any, dtype: str) -> None:
    tolerance = {"float64": 1e-11, "float32": 3e-5}[dtype]

    def their_tensor(a: Any) -> Any:
        t = torch.tensor(a)
        return t.to(getattr(torch, dtype)).requires_grad_() if a.dtype == np.float64 else t

    def close(ours: Any, theirs: Any, what: str) -> None:
        assert (ours is None) == (theirs is None), what
        if ours is not None:
            assert str(ours.dtype).split(".")[1] == str(theirs.dtype).split(".")[1], what
            theirs = theirs.detach().numpy()
            assert tuple(ours.shape) == theirs.shape, what
            np.testing.assert_allclose(ours.detach().numpy(), theirs, tolerance, tolerance, err_msg=what)

    args, options, inputs = case
    theirs = getattr(torch.nn, name)(
        *args, **{k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    ).to(getattr(torch, dtype))
    ours = getattr(nn, name)(
        *args, **{k: dt.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    ).to(getattr(dt, dtype))

    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        for p in theirs.parameters():  # so that scales and shifts matter
            p.normal_()
    ours.load_state_dict({k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        ours.zero_grad(), theirs.zero_grad()
        xs, ts = [our_tensor(a, dtype) for a in inputs], [their_tensor(a) for a in inputs]

        outs, wanted = listed(ours(*xs)), listed(theirs(*ts))

        where = "training" if training else "evaluation"
        assert len(outs) == len(wanted)
        for out, want in zip(outs, wanted, strict=True):
            close(out, want, f"output in {where}")
        g = np.asarray(np.random.default_rng(1).standard_normal(tuple(wanted[0].shape)), dtype)
        if wanted[0].requires_grad:
            outs[0].backward(dt.tensor(g))
            wanted[0].backward(torch.tensor(g))
        for i, (x, t) in enumerate(zip(xs, ts, strict=True)):
            close(x.grad, t.grad, f"gradient of input {i} in {where}")
        for (key, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            close(p.grad, q.grad, f"gradient of {key} in {where}")
        for (key, p), (_, q) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            close(p, q, f"buffer {key} after {where}")


@pytest.fixture
def layer_differences() -> Callable[[str, Any], None]:
    """Compare the gradients of a layer with central differences."""

    def check(name: str, case: Any) -> None:
        args, options, inputs = case
        layer = getattr(nn, name)(
            *args, **{k: dt.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        ).double()
        leaves = [our_tensor(a, "float64") for a in inputs]
        wanted = [t for t in [*leaves, *layer.parameters()] if t.requires_grad]
        out = listed(layer(*leaves))[0]
        random = np.random.default_rng(2)
        g = dt.tensor(np.asarray(random.standard_normal(tuple(out.shape))))
        found = dt.autograd.grad(out, wanted, g, allow_unused=True, materialize_grads=True)

        for t, grad in zip(wanted, found, strict=True):
            step = 1e-6 * random.standard_normal(tuple(t.shape))
            if getattr(layer, "padding_idx", None) is not None:
                step[layer.padding_idx] = 0  # not trained, though the output depends on it
            ends = []
            for sign in (1, -1):
                with dt.no_grad():
                    t += dt.tensor(np.asarray(sign * step))
                    ends.append(float((listed(layer(*leaves))[0] * g).sum()))
                    t -= dt.tensor(np.asarray(sign * step))
            analytic = float((grad.numpy() * step).sum())
            assert analytic == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-5, abs=1e-12)

    return check
