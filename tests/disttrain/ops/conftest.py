"""One comparison for all operations: values, gradients and second derivatives against PyTorch."""

from collections.abc import Callable
from typing import Any

import lt_on_cpu
import ml_dtypes
import numpy as np
import pytest

from disttrain import engine
from disttrain.autograd import grad
from disttrain.kernels import gemm
from disttrain.tensors import Tensor
from disttrain.testing import check_vjp

TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


def first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


@pytest.fixture
def compare() -> Callable[..., None]:
    """Compare an op with a function of PyTorch on float64 arrays cast to each type; integers stay."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def to_torch(a: Any, dtype: str) -> Any:
        if not isinstance(a, np.ndarray):
            return a
        if a.dtype != np.float64:
            return torch.tensor(a.copy("C"))
        t = torch.tensor(a).to(getattr(torch, dtype))
        return t.requires_grad_()

    def to_ours(a: Any, dtype: str) -> Any:
        if not isinstance(a, np.ndarray) or a.dtype != np.float64:
            return a
        return a.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    def close(ours: Any, theirs: Any, dtype: str, what: str) -> None:
        theirs = theirs.detach().double().numpy()
        assert np.shape(ours) == theirs.shape, what
        limit = TOLERANCE[dtype] * max(1.0, float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0)))
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), theirs, limit, limit, err_msg=f"{what}, {dtype}"
        )

    def run(
        op: Any,
        reference: Callable[..., Any],
        *arrays: Any,
        dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16"),
        second: bool = True,
        fixed: tuple[int, ...] = (),
        **options: Any,
    ) -> None:
        floats = [
            i
            for i, a in enumerate(arrays)
            if isinstance(a, np.ndarray) and a.dtype == np.float64 and i not in fixed
        ]
        rng = np.random.default_rng(5)
        for dtype in dtypes:
            ours = [to_ours(a, dtype) for a in arrays]
            theirs = [to_torch(a, dtype) for a in arrays]

            out, saved, vjp = op(*ours, **options)
            expected = reference(*theirs)

            assert first(out).dtype == ours[0].dtype
            close(first(out), expected, dtype, "value")
            g = to_ours(np.asarray(rng.standard_normal(expected.shape)), dtype)
            g_torch = torch.tensor(g.astype(np.float64)).to(expected.dtype)
            needs = tuple(i in floats for i in range(len(arrays)))
            grads = vjp((g, *[None] * (len(out) - 1)) if isinstance(out, tuple) else g, needs, *saved)
            wanted = torch.autograd.grad(expected, [theirs[i] for i in floats], g_torch)
            assert len(grads) == len(arrays)
            for i, w in zip(floats, wanted, strict=True):
                close(grads[i], w, dtype, f"gradient of argument {i}")
            nothing = vjp(
                (g, *[None] * (len(out) - 1)) if isinstance(out, tuple) else g, (False,) * len(arrays), *saved
            )
            assert len(arrays) == 1 or all(n is None for n in nothing), "computed a gradient nobody asked for"
        if second:
            _compare_second(torch, op, reference, arrays, floats, options, close)

    def _compare_second(
        torch: Any, op: Any, reference: Any, arrays: Any, floats: Any, options: Any, close: Any
    ) -> None:
        def second_gradients(leaves: list[Any], out: Any, g: Any, vs: Any, grad_of: Any) -> Any:
            firsts = grad_of(out, leaves, g, create_graph=True)
            total = sum((f * f * v).sum() for f, v in zip(firsts, vs, strict=True))
            return total, grad_of(total, [*leaves, g], allow_unused=True)

        ours = [
            Tensor._of(a).requires_grad_()
            if i in floats
            else a
            if not isinstance(a, np.ndarray)
            else Tensor._of(a)
            for i, a in enumerate(arrays)
        ]
        theirs = [to_torch(a, "float64") for a in arrays]
        out, expected = first(engine.apply(op, *ours, **options)), reference(*theirs)
        rng = np.random.default_rng(7)
        g = np.asarray(rng.standard_normal(expected.shape))
        vs = [rng.standard_normal(arrays[i].shape) for i in floats]
        total, got = second_gradients(
            [ours[i] for i in floats], out, Tensor._of(g).requires_grad_(), [Tensor._of(v) for v in vs], grad
        )
        total_torch, wanted = second_gradients(
            [theirs[i] for i in floats],
            expected,
            torch.tensor(g).requires_grad_(),
            [torch.tensor(v) for v in vs],
            torch.autograd.grad,
        )
        close(total._array, total_torch, "float64", "recorded gradient")
        for number, (a, w) in enumerate(zip(got, wanted, strict=True)):
            zero = np.zeros(1)
            value = zero if a is None else a._array
            close(
                value if a is not None else np.zeros(() if w is None else tuple(w.shape)),
                torch.zeros(() if a is None else tuple(value.shape)).double() if w is None else w,
                "float64",
                f"second derivative {number}",
            )

    return run


@pytest.fixture
def check() -> Callable[..., None]:
    """Compare gradients with central differences."""
    return check_vjp


@pytest.fixture(params=["cuBLASLt", "CuPy"])
def cublas(request: Any, gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What multiplies on the GPU: the stand-in for cuBLASLt, or None where CuPy does it instead."""
    if request.param == "CuPy":
        monkeypatch.setattr(gemm, "_is_there", lambda device: False)
        return None
    if reason := lt_on_cpu.missing():
        pytest.skip(reason)
    return lt_on_cpu.install(monkeypatch)
