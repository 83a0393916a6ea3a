"""What all tests share: with DISTTRAIN_TEST_FORBID_SKIP=torch,mpi a skip for want of one of these is a failure."""

import gc
import os
import signal

import cuda_shim
import pytest

FORBIDDEN = [word for word in os.environ.get("DISTTRAIN_TEST_FORBID_SKIP", "").split(",") if word]


def pytest_configure():
    """Hear Ctrl-C, which tests send: a shell's job in the background ignores it, and all that it starts would too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def forbid(report):
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if any(word in reason.lower() for word in FORBIDDEN):
            report.outcome = "failed"
            report.longrepr = f"skipped, although what it needs was installed: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    forbid((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    forbid((yield).get_result())


def pytest_collection_modifyitems(items):
    """Begin with the files that have slow tests: in the end no core waits for another that has just begun with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Spare every later gc.collect() the half a million objects of PyTorch and of the tests, which stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def gpu(monkeypatch):
    """The shim stands for a GPU with the arrays of `cuda_shim.there`. Yields the names of the kernels launched."""
    if reason := cuda_shim.missing():
        pytest.skip(reason)
    with cuda_shim.stand_in("round-robin", monkeypatch) as launched:
        yield launched


@pytest.fixture
def cupy():
    """The stand-in for CuPy that collectives are tested on, which must have found nothing wrong in the end."""
    import fake_cupy  # which has a thread from then on

    with fake_cupy.installed() as module:
        yield module
    assert fake_cupy.failures == []
