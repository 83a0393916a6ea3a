"""One comparison for the functions of nn.functional: values, gradients and second derivatives against PyTorch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.nn import functional as F

LIMIT = 1e-9


@pytest.fixture
def like_torch() -> Callable[[str, Any, Any], None]:
    """Compare a call of ``nn.functional``; arrays become tensors, those of float64 ask for gradients."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def compare(name: str, args: Any, options: Any) -> None:
        def convert(i: int, a: Any, new: Any, leaves: list[Any]) -> Any:
            if not isinstance(a, np.ndarray):
                return a
            t = new(a.copy())
            running = name in ("batch_norm", "instance_norm") and i in (1, 2)  # asks for no gradient
            if a.dtype == np.float64 and not running:
                leaves.append(t.requires_grad_())
            return t

        results = []
        for lib, functions, new in ((torch, torch.nn.functional, torch.tensor), (dt, F, dt.tensor)):
            leaves: list[Any] = []
            given = [convert(i, a, new, leaves) for i, a in enumerate(args)]
            out = getattr(functions, name)(*given, **options)
            outs = list(out) if isinstance(out, tuple) else [out]
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
