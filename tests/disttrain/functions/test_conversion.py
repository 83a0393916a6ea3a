"""Functions that make tensors from data that is there, against PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import disttrain as dt

f = np.random.default_rng(0).standard_normal


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


DATA = [
    1,
    1.5,
    True,
    [1, 2],
    [1.5, 2],
    [True, False],
    [[1, 2], [3, 4]],
    [],
    [[]],
    [True, 2],
    [1, 2.5],
    [[1], [2, 3]],
    "a",
    (1, 2),
    np.float64(1.5),
    np.int32(3),
    [np.float32(1.5)],
    range(3),
    1 << 40,
    float("nan"),
    [float("inf")],
    [np.float32(1), 2],
    [np.float16(1), True],
    [np.arange(2), np.arange(2)],
    [np.asarray(1.0, np.float32), np.asarray(2)],  # arrays become tensors here
    [np.asarray(1), 2.5],
    [np.asarray(True), 1],
    [np.ones((1, 1)), 3],
    [range(2), (3, 4)],
    [[1], 2],
    [1, [2]],
    [[[1, 2]], [[1, 2], [3, 4]]],
    [[[1, 2], [1]], [[1, 2], [3, 4]]],
    None,
    [None],
    {1: 2},
    1 << 64,
    [[], []],
    [[[]]],
]
CASES: dict[str, list[Any]] = {
    "tensor": [c(d) for d in DATA]
    + [c(d, dtype=t) for d in DATA[:9] for t in (dt.float64, dt.float16, dt.int32, dt.bool)]
    + [c(d, dtype=t) for d in (float("nan"), 1e40, [1e300], [1 << 70]) for t in (dt.int64, dt.float32)]
    + [c([0.1, 1 / 3], dtype=dt.float64), c([1.0], requires_grad=True), c([1], requires_grad=True)],
    "as_tensor": [c(d) for d in DATA]
    + [c([0.1], dtype=dt.float64), c(f(3).astype(np.float32)), c(f(3).astype(np.float32), dtype=dt.float64)],
    "asarray": [c(d) for d in DATA]
    + [
        c(f(3)),
        c(f(3), copy=True),
        c(f(3), copy=False),
        c(f(3), dtype=dt.float32, copy=False),
        c([1, 2], copy=False),
        c([1.5], requires_grad=True),
    ],
    "frombuffer": [
        c(bytearray(range(8)), dtype=dt.int16),
        c(bytearray(range(8)), dtype=dt.uint8, count=2, offset=3),
        c(bytearray(range(7)), dtype=dt.int16),
        c(bytearray(range(8)), dtype=dt.int16, count=9),
        c(bytearray(range(8)), dtype=dt.int16, offset=9),
    ],
    "new_tensor": [c(f(3), [1.0, 2.0]), c(np.arange(3), [1, 2]), c(np.arange(3), 5, dtype=dt.float64)],
}


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


def test_from_numpy_shares_memory_and_refuses_the_rest() -> None:
    a = np.zeros(3)
    dt.from_numpy(a)[0] = 1
    assert a.tolist() == [1, 0, 0]
    with pytest.raises(TypeError, match=r"expects a numpy\.ndarray, got list"):
        dt.from_numpy([1])
    with pytest.raises(TypeError, match="complex128"):
        dt.from_numpy(np.zeros(2, complex))
    with pytest.raises(ValueError, match="byte order"):
        dt.from_numpy(np.zeros(2, ">i4"))
    with pytest.raises(TypeError, match="object"):
        dt.tensor(np.array([1, 2], object))


def test_tensor_copies_and_as_tensor_shares() -> None:
    a = np.zeros(3)
    t = dt.from_numpy(a)
    assert dt.tensor(t) is not t
    assert dt.as_tensor(t) is t
    dt.tensor(a)[0] = 1
    dt.tensor(t)[0] = 1
    assert a[0] == 0
    dt.as_tensor(a)[0] = 1
    assert a[0] == 1


def test_what_a_type_cannot_hold_is_no_data() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    for data, kind in (
        ([300], "uint8"),
        (-256, "uint8"),
        ([2**40], "int32"),
        (-129, "int8"),
        ([1e10], "int32"),
        ([255.5], "uint8"),
        ([float("nan")], "int64"),
        (np.int64(300), "uint8"),
    ):
        for T in (dt, torch):
            with pytest.raises(RuntimeError):
                T.tensor(data, dtype=getattr(T, kind))
    for data in ([-255, 255], np.array([300, -1])):
        assert dt.tensor(data, dtype=dt.uint8).tolist() == torch.tensor(data, dtype=torch.uint8).tolist()


def test_arrays_that_run_backwards_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    for T in (dt, torch):
        for make in (T.from_numpy, T.tensor, T.as_tensor):
            with pytest.raises(ValueError, match="negative"):
                make(np.arange(3)[::-1])


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"copy": False}, {"device": "cpu"}])
def test_arrays_of_other_libraries_come_as_in_pytorch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    found = []
    for T in (dt, torch):
        array = np.arange(6, dtype=np.int32).reshape(2, 3)
        t = T.from_dlpack(array.T, **options)
        array[0, 1] = 9
        found.append((t.tolist(), tuple(t.shape), str(t.dtype).rpartition(".")[2]))

    assert found[0] == found[1]
