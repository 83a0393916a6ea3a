"""What a Tensor tells of itself, conversions, and Python's protocols, against PyTorch's."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asarray(2.5),
    np.zeros(0),
    np.array([3], np.int32),
    np.asarray(True),
    np.arange(3),
]

ASKED: dict[str, Any] = {
    "shape": lambda t: tuple(t.shape),
    "size": lambda t: (tuple(t.size()), t.size(-1)),
    "dim": lambda t: (t.dim(), t.ndim),
    "numel": lambda t: (t.numel(), t.nelement(), t.shape.numel()),
    "stride": lambda t: (t.stride(), t.stride(0)),
    "itemsize": lambda t: (t.itemsize, t.element_size(), t.nbytes),
    "is_contiguous": lambda t: t.is_contiguous(),
    "is_floating_point": lambda t: (t.is_floating_point(), t.is_cuda),
    "device": lambda t: str(t.device),
    "item": lambda t: (t.item(), type(t.item()).__name__),
    "tolist": lambda t: t.tolist(),
    "__len__": len,
    "__iter__": lambda t: [x.tolist() for x in t],
    "__contains__": lambda t: (2 in t, 77 in t),
    "__contains__ of a stranger": lambda t: "a" in t,
    "__reversed__": lambda t: reversed(t).tolist(),
    "__array_wrap__": lambda t: (
        (np.abs(t) * 1).tolist(),
        type(np.abs(t)).__name__,
        type(np.argmax(t)).__name__,
    ),
    "a float of NumPy": lambda t: ((t * np.float64(2)).dtype, (np.float64(2) * t.float()).dtype),
    "real": lambda t: (t.real is t, t.is_conj(), t.is_neg()),
    "layout": lambda t: str(t.layout),
    "is_set_to": lambda t: (t.is_set_to(t), t.is_set_to(t.detach()), t.is_set_to(t.clone())),
    "parts of sizes": lambda t: [
        (type(s).__name__, tuple(s))
        for s in (t.shape[:-1], t.shape + (2,), (2,) + t.shape, t.shape * 2, t.shape + t.shape)
    ],
    "__float__": float,
    "__int__": int,
    "__index__": lambda t: [0, 1, 2, 3, 4][t],
    "__bool__": bool,
    "__format__": lambda t: f"{t:.2f}",
    "__array__": lambda t: np.asarray(t).tolist(),
    "__dlpack__": lambda t: np.from_dlpack(t).tolist(),
    "__dlpack_device__": lambda t: tuple(map(int, t.__dlpack_device__())),
    "__hash__": lambda t: len({t, t}),
    "mT": lambda t: t.mT.tolist() if t.ndim == 2 else None,
    "mH": lambda t: t.mH.tolist() if t.ndim == 2 else None,
    "H": lambda t: t.H.tolist(),
    "is_inference": lambda t: t.is_inference(),
    "T": lambda t: t.T.tolist() if t.ndim == 2 else None,
    "to": lambda t: [str(x.dtype) for x in (t.to("cpu"), t.to(t), t.to(t.dtype, copy=True))],
    "cpu": lambda t: t.cpu() is t,
}


def ask(question: Any, t: Any) -> tuple[str, Any]:
    """Return an answer as text, or the classes of an exception."""
    try:
        with warnings.catch_warnings():
            if not isinstance(t, dt.Tensor):
                warnings.simplefilter("ignore")
            answer = question(t)
        return str(answer).replace("disttrain.", "torch."), None
    except (RuntimeError, TypeError, ValueError, IndexError) as e:
        return "", e


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_those_of_pytorch(name: str) -> None:
    for array in ARRAYS:
        theirs, their_error = ask(ASKED[name], torch.from_numpy(array.copy()))
        ours, our_error = ask(ASKED[name], dt.from_numpy(array.copy()))
        where = f"{name} of {array!r}: {our_error or ours!r}, PyTorch {their_error or theirs!r}"
        assert ours == theirs, where
        assert their_error is None or isinstance(our_error, type(their_error)), where


@pytest.mark.parametrize("name", ["float", "double", "half", "bfloat16", "long", "int", "bool"])
def test_conversions(name: str) -> None:
    for array in (np.array([1.7, -2.3, 0.0]), np.array([1, 0, 300])):
        ours, theirs = getattr(dt.from_numpy(array), name)(), getattr(torch.from_numpy(array), name)()
        assert str(ours.dtype).replace("disttrain", "torch") == str(theirs.dtype)
        assert ours.tolist() == theirs.tolist()
    x = dt.from_numpy(np.zeros(1, np.float32))
    assert x.float() is x


def test_type_and_its_like() -> None:
    x = dt.tensor([1.5])
    assert x.type(dt.int64).tolist() == [1]
    assert x.type_as(dt.tensor([1])).dtype is dt.int64
    assert x.to(dtype=dt.float64).dtype is dt.float64
    assert x.to("cpu", dt.float16).dtype is dt.float16
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        x.to(speed=1)


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    from disttrain import devices

    if devices.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match=r"device cuda.*(CuPy|GPU)"):
        dt.zeros(1).cuda()


def test_sizes() -> None:
    x = dt.zeros(2, 3)
    assert dt.is_tensor(x)
    assert not dt.is_tensor(x.numpy())
    assert repr(x.shape) == "disttrain.Size([2, 3])"
    assert x.shape == (2, 3)
    assert x.data_ptr() == x.numpy().ctypes.data


@pytest.mark.parametrize("sizes", [[1, 2], (3,), [], [1.5], "ab", 3, [None]], ids=repr)
def test_sizes_are_of_integers(sizes: Any) -> None:
    try:
        expected = tuple(torch.Size(sizes))
    except TypeError:
        with pytest.raises(TypeError):
            dt.Size(sizes)
        return
    assert tuple(dt.Size(sizes)) == expected
    assert dt.Size([dt.tensor(2)]) == (2,)
    with pytest.raises(TypeError):
        dt.Size([2]) + [3]


def test_numpy_shares_memory_and_arrays_give_way() -> None:
    x = dt.zeros(3)
    x.numpy()[0] = 5
    assert x.tolist() == [5, 0, 0]
    assert isinstance(np.ones(3, np.float32) * x, dt.Tensor)
    with pytest.raises(RuntimeError, match=r"detach\(\)\.numpy"):
        x.requires_grad_().numpy()


def test_comparison_with_strangers() -> None:
    x = dt.zeros(2)
    assert (x == "a") is False
    assert x.__eq__(object()) is NotImplemented
    assert x.__ne__(object()) is NotImplemented


def test_copies_of_leaves() -> None:
    x = dt.ones(2, requires_grad=True)
    y = copy.deepcopy(x)
    with dt.no_grad():
        y.add_(1)
    assert y.requires_grad
    assert x.tolist() == [1, 1]
    assert x.__deepcopy__({}) is not x
    with pytest.raises(RuntimeError, match="detach"):
        copy.deepcopy(x * 2)


def test_the_constructor_takes_lists_and_arrays() -> None:
    assert dt.Tensor([1, 2]).dtype is dt.float32
    assert dt.Tensor(np.zeros(2)).dtype is dt.float32  # as PyTorch: of an array too
    assert dt.Tensor(np.arange(2)).tolist() == [0.0, 1.0]
    assert dt.Tensor(np.int64(3)).shape == (3,)
    assert dt.Tensor.full_(3).item() == 3
    assert dt.Tensor.__init__ is not object.__init__


def test_the_library_wraps_arrays_and_converts_none() -> None:
    """``Tensor(array)`` converts, as PyTorch's; what the library computed keeps its type, by ``Tensor._of(array)``."""
    sources = Path(dt.__file__).parent.rglob("*.py")

    assert not [str(s) for s in sources if "Tensor_(" in s.read_text()]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_functions_of_python_are_applied_to_each_element(dtype: str) -> None:
    def program(lib: Any) -> list[Any]:
        x = lib.arange(6, dtype=getattr(lib, dtype)).reshape(2, 3).t()
        x.apply_(lambda v: v * 2 + 1)
        x.map_(lib.ones(3, 2, dtype=getattr(lib, dtype)), lambda v, w: v - w)
        with pytest.raises(TypeError):
            x.apply_(3)
        with pytest.raises(RuntimeError):
            lib.ones(2, requires_grad=True).apply_(abs)
        return [x.tolist(), lib.zeros(0).apply_(abs).tolist()]

    assert program(dt) == program(torch)
