"""CUDA kernels on the CPU, and on a GPU where there is one."""

import cuda_cases
import cuda_shim
import pytest


def pytest_generate_tests(metafunc):
    gpu = (
        [pytest.param("gpu", marks=pytest.mark.gpu)] if stands_in(metafunc) or not cuda_shim.no_gpu() else []
    )
    for name, places in (("shim", cuda_shim.SCHEDULES), ("movers", ["cpu"])):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [*places, *gpu], indirect=True)


def stands_in(request):
    """Return whether the shim stands for a GPU, which `gpu_journal` has an option for."""
    return request.config.getoption("--gpu-stand-in", default=False)


@pytest.fixture
def movers(request):
    """What brings an array to the CPU, or the GPU where there is one, and what brings it back."""
    return cuda_cases.arrays_at("cpu" if stands_in(request) else request.param)


@pytest.fixture
def shim(request):
    """Launches run on NumPy arrays: on the CPU in each schedule of threads, and on a GPU. Yields which."""
    where = cuda_shim.SCHEDULES[0] if stands_in(request) and request.param == "gpu" else request.param
    if where != "gpu" and (reason := cuda_shim.missing()):
        pytest.skip(reason)
    with cuda_shim.shim(where):
        yield where
    kernels, forms, threads = set(), set(), 0
    for program, variant, kernel, size in cuda_shim.launched:
        if name := cuda_cases.kernel_of(program, variant, kernel):
            kernels.add(name)
            forms.add(cuda_cases.form_of(program, variant, kernel))
            threads += size
    request.node.user_properties += [
        ("kernels", sorted(kernels)),
        ("forms", sorted(forms)),
        ("threads", threads),
    ]


@pytest.fixture(params=cuda_shim.SCHEDULES)
def cpu_shim(request):
    """Launches run on NumPy arrays on the CPU, where mistakes are found."""
    if reason := cuda_shim.missing():
        pytest.skip(reason)
    with cuda_shim.shim(request.param):
        yield
