"""The questions that scripts ask before they choose a device."""

import sys

import disttrain as dt


def test_without_cupy_there_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)

    assert not dt.cuda.is_available()
    assert dt.cuda.device_count() == 0
    dt.cuda.manual_seed_all(0)
    dt.cuda.synchronize()
    assert dt.device("cuda" if dt.cuda.is_available() else "cpu") == dt.device("cpu")
