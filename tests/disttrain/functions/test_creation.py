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

CASES: dict[str, list[Any]] = {
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
