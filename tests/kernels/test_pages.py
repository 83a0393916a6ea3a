"""Memory in large pages: what it holds, where it begins, and that the system was asked."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from disttrain.kernels import pages
from disttrain.kernels.arrays import address

PAGE = 2 << 20


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("nbytes", [0, 4096, PAGE - 8, PAGE, 3 * PAGE + 8])
def test_zeros_that_can_be_written_to_the_last(dtype, nbytes):
    size = nbytes // np.dtype(dtype).itemsize
    array = pages.zeros(size, dtype, np.empty(0))
    assert array.shape == (size,)
    assert array.dtype == dtype
    assert not array.any()
    array[:] = 1
    assert array.astype(np.float64).sum() == size


def test_the_memory_lives_as_long_as_an_array_in_it():
    part = pages.zeros(PAGE, np.float32, np.empty(0))[PAGE // 2 :].reshape(-1, 2)
    pages.zeros(PAGE, np.float32, np.empty(0))[:] = 1  # where the first would be, if it had been given back
    assert not part.any()


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no large pages"
)
def test_the_system_is_asked_for_large_pages():
    array = pages.zeros(PAGE, np.float32, np.empty(0))
    assert address(array) % PAGE == 0
    assert "hg" in flags_of(address(array)), "advised memory is marked so"
    assert "hg" in flags_of(address(array) + array.nbytes - 1)


def flags_of(where):
    """Return what proc(5) says of the mapping at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            low, high = (int(bound, 16) for bound in head.split("-"))
            inside = low <= where < high
        elif inside and head == "VmFlags:":
            return rest.split()
    raise AssertionError(f"nothing is mapped at {where:#x}")
