"""CUDA kernels on the CPU, and on a GPU where there is one."""

import cuda_shim
import pytest

ON_GPU = [] if cuda_shim.no_gpu() else [pytest.param("gpu", marks=pytest.mark.gpu)]


@pytest.fixture(params=[*cuda_shim.SCHEDULES, *ON_GPU])
def shim(request):
    """Launches run on NumPy arrays: on the CPU in each schedule of threads, and on a GPU."""
    if request.param != "gpu" and (reason := cuda_shim.missing()):
        pytest.skip(reason)
    with cuda_shim.shim(request.param):
        yield request.param


@pytest.fixture(params=cuda_shim.SCHEDULES)
def cpu_shim(request):
    """Launches run on NumPy arrays on the CPU, where mistakes are found."""
    if reason := cuda_shim.missing():
        pytest.skip(reason)
    with cuda_shim.shim(request.param):
        yield
