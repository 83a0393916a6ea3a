"""CUDA kernels on the CPU."""

import cuda_shim
import pytest


@pytest.fixture(params=cuda_shim.SCHEDULES)
def shim(request):
    """Launches run on NumPy arrays, in each schedule of threads."""
    if reason := cuda_shim.missing():
        pytest.skip(reason)
    with cuda_shim.shim(request.param):
        yield
