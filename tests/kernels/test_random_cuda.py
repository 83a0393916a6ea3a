"""The CUDA kernels of random numbers and dropout, run on the CPU, give the bits of the CPU."""

import numpy as np
import pytest
from cuda_cases import DTYPES, cast, kind

from disttrain.kernels import dropout, random

KEY = np.array([1 << 63 | 12345, 3, 7, 0], np.uint64)


def test_words_are_those_of_numpy(shim):
    np.testing.assert_array_equal(random._words_cuda(KEY, 1003), random.words(KEY, 1003))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["uniform", "normal"])
@pytest.mark.parametrize("count", [0, 1, 5001])
def test_numbers_have_the_bits_of_the_cpu(count, name, dtype, shim):
    ours = random._draw_cuda(name, KEY, count, kind(dtype))
    theirs = getattr(random, f"draw_{name}")(KEY, count, kind(dtype))

    assert ours.dtype == theirs.dtype
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_numbers_far_out_have_the_bits_of_the_cpu(dtype, shim):
    """The draws above hold no number of the far tail: words that lead there."""
    word = np.uint32 if dtype == "float32" else np.uint64
    rare = np.array([0, 1, 2, 3, 100, 1 << 20, np.iinfo(word).max], word)
    rare = np.concatenate(
        [rare, *(np.array([1 << k, (1 << k) + 1], word) for k in range(8 * word().itemsize))]
    )
    program = next(p for k, p in random._programs.items() if k == dtype)
    probe = program.text + "KERNEL probe(const W* w, T* y, long long n) {\n"
    probe += "    for (int i = 0; i < n; i++) y[i] = normal_of(w[i]);\n}\n"
    probe = probe.replace("const W*", "const unsigned*" if dtype == "float32" else "const u64*")
    out = np.empty(rare.size, dtype)

    variant = next(program.variants())
    given = type(program)(str(program.path), random._tables(), **{k: (v,) for k, v in variant.items()})
    given.text = probe
    given.launch("probe", (1,), (32,), rare, out, rare.size, **variant)

    assert out.tobytes() == random.normal(rare).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(7,), (16, 129), (8, 512)])
def test_dropout(shape, p, dtype, shim):
    x = cast(np.random.default_rng(0).standard_normal(shape), dtype)

    ours, theirs = dropout._dropout_cuda(x, KEY, p), dropout.dropout(x, KEY, p)

    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours.astype(np.float64), theirs.astype(np.float64))
