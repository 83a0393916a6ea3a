"""Functions that make tensors, against PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import disttrain as dt

f = np.random.default_rng(0).standard_normal


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


SIZES = [
    c(2, 3),
    c((2, 3)),
    c([2]),
    c(0),
    c(()),
    c(2, dtype=dt.int64),
    c(2, 3, dtype=dt.bool),
    c(2, dtype=dt.float16),
    c(-1),
    c("a"),
    c(2.5),
    c(2, requires_grad=True),
    c(2, dtype=dt.int64, requires_grad=True),
    c(2, device="cpu"),
    c(2, dtype="float32"),
    c(2, dtype=float),
    c(2, dtype=int),
    c(True),
]
LIKES = [c(f((2, 3)).astype(d)) for d in (np.float64, np.float32, np.int64, np.bool_)]
LIKES += [
    c(f((2, 3)).astype(np.float32), dtype=dt.int32),
    c(np.arange(3), dtype=dt.float64, requires_grad=True),
]
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
    "zeros": SIZES,
    "ones": SIZES,
    "full": [
        c((2, 3), 1.5),
        c((2,), 1),
        c((2,), True),
        c([2], 1, dtype=dt.float64),
        c((), 2.5),
        c((2,), 1.5, dtype=dt.int64),
        c((2,), "a"),
        c((2,), 1e40),
        c((2,), float("inf")),
        c((2,), 1e40, dtype=dt.float64),
        c((2,), 1e6, dtype=dt.float16),
        c((2,), 300, dtype=dt.uint8),
    ],
    "zeros_like": LIKES,
    "ones_like": LIKES,
    "full_like": [c(x, v) for (x,), _ in LIKES[:4] for v in (1, 2.5, True)]
    + [c(np.arange(3), 1.5, dtype=dt.float64)],
    "arange": [
        c(5),
        c(2, 5),
        c(1, 10, 3),
        c(0.5, 3),
        c(0, 1, 0.25),
        c(5, 0, -2),
        c(0),
        c(5, 0),
        c(0, 5, 0),
        c(1.0, 2.0, 0.1),
        c(3, dtype=dt.float32),
        c(3.5, dtype=dt.int64),
        c(0, 5, -1),
        c(3, 3),
        c(0, 5, 2.0),
    ],
    "linspace": [
        c(0, 1, 5),
        c(1, -1, 3),
        c(0, 1, 1),
        c(0, 1, 0),
        c(0.0, 10.0, 7, dtype=dt.float64),
        c(0, 10, 3, dtype=dt.int64),
        c(0, 1, -1),
        c(5, 0, 4, dtype=dt.float16),
        c(0.5, -3, 7, dtype=dt.float16),
        c(float("inf"), 1, 3, dtype=dt.int64),
    ],
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
    "logspace": [
        c(0, 2, 3),
        c(0, 1, 4, 2),
        c(0, 2, 3, dtype=dt.int64),
        c(0, 1, -1),
        c(2.5, -1, 5, base=3.0),
        c(0, 1, 1),
    ],
    "scalar_tensor": [c(2), c(1.5, dtype=dt.float64), c(True)],
    "vander": [c(f(3).astype(np.float32), *a) for a in ((), (2,), (0,), (4, True), (-1,))]
    + [c(f((2, 2))), c(np.arange(3))],
    "eye": [c(3), c(2, 4), c(4, 2), c(0), c(3, dtype=dt.int64), c(-1)],
    "new_tensor": [c(f(3), [1.0, 2.0]), c(np.arange(3), [1, 2]), c(np.arange(3), 5, dtype=dt.float64)],
    "new_zeros": [c(f(3), 2, 3), c(np.arange(3), (2,)), c(np.arange(3), (2,), dtype=dt.float64)],
    "new_ones": [c(f(3), 2, 3), c(np.arange(3), (2,)), c(f(3), (2,), requires_grad=True)],
    "new_full": [c(f(3), (2, 3), 1.5), c(np.arange(3), (2,), 7)],
}


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


def test_unset_elements_have_size_and_type() -> None:
    x = dt.zeros(2, dtype=dt.float16)
    for made in (
        dt.empty(2, 3, dtype=dt.int32),
        dt.empty((2, 3), dtype=dt.int32),
        x.new_empty(2, 3, dtype=dt.int32),
    ):
        assert made.shape == (2, 3)
        assert made.dtype is dt.int32
    assert dt.empty_like(x).dtype is dt.float16


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


def test_memory_formats_and_strides() -> None:
    image = dt.empty(2, 3, 4, 5, memory_format=dt.channels_last)
    assert image.stride() == (60, 1, 15, 3)
    assert image.is_contiguous(memory_format=dt.channels_last)
    assert not image.is_contiguous()
    assert dt.zeros_like(image).stride() == image.stride()
    assert image[1, 2].storage_offset() == 62
    assert dt.zeros_like(image, memory_format=dt.contiguous_format).is_contiguous()
    assert image.contiguous().contiguous(memory_format=dt.channels_last).stride() == image.stride()
    assert image.clone(memory_format=dt.contiguous_format).is_contiguous()
    assert dt.empty_strided((2, 3), (1, 2)).stride() == (1, 2)
    assert image.new_empty_strided((2, 3), (1, 2)).dtype is image.dtype
    with pytest.raises(RuntimeError, match="4 dimensions"):
        dt.empty(2, 3, memory_format=dt.channels_last)


def test_resize_keeps_what_fits() -> None:
    x = dt.arange(4)
    assert x.resize_(2).tolist() == [0, 1]
    assert x.resize_(2, 3).shape == (2, 3)
    assert x[0, :2].tolist() == [0, 1]
    assert x.resize_as_(dt.zeros(1)).tolist() == [0]
    with pytest.raises(RuntimeError, match="requires grad"):
        dt.zeros(2, requires_grad=True).resize_(3)


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
