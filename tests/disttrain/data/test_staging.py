"""Batches in pinned memory and on a GPU: on the stand-in for CuPy, whose streams are slow and which reuses memory."""

import gc
import os
import signal
import sys
import time

import fake_cupy
import numpy as np
import pytest

import disttrain as dt
from disttrain.data import DataLoader, Dataset, TensorDataset
from disttrain.data.ledger import Account

N = 50


@pytest.fixture
def cupy(cupy, monkeypatch):
    monkeypatch.setattr(fake_cupy, "JITTER_S", 0.01)
    return cupy


def values():
    return dt.arange(N * 30, dtype=dt.float32).reshape(N, 30)


def make_loader(**options):
    return DataLoader(TensorDataset(values(), dt.arange(N)), 8, shuffle=True, seed=1, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_are_those_of_the_host(cupy, workers):
    there, here = make_loader(num_workers=workers).to("cuda"), make_loader()

    for _ in range(2):
        found = []
        for x, y in there:
            assert (str(x.device), x.dtype, y.dtype) == ("cuda:0", dt.float32, dt.int64)
            total = cupy.empty(x.shape, np.float32)
            cupy.add(x._array, x._array, total)  # on the stream of the user
            found.append((total.get(), y._array.get()))
            del x, y, total  # memory that the next batch may be given
        expected = [(2 * x.numpy(), y.numpy()) for x, y in here]
        for pair, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(pair[0], wanted[0])
            np.testing.assert_array_equal(pair[1], wanted[1])


def test_the_copies_follow_the_work_on_the_memory_that_they_are_given(cupy):
    """A batch is read late by the user's stream, after the loader has gone on."""
    outs = []
    for x, _ in make_loader().to("cuda"):
        out = cupy.empty(x.shape, np.float32)
        fake_cupy.get_current_stream()._put(lambda: time.sleep(0.02))
        cupy.add(x._array, x._array, out)
        outs.append(out)
    found = np.concatenate([out.get() for out in outs])

    np.testing.assert_array_equal(np.sort(found, 0), np.sort(2 * values().numpy(), 0))


def test_a_loop_that_is_left_early_leaves_its_copies_whole(cupy):
    for _ in range(5):
        x, y = next(iter(make_loader().to("cuda")))
        np.testing.assert_array_equal(x._array.get(), values().numpy()[y._array.get()])


def test_a_forked_process_does_not_wait_for_copies_of_its_parent(cupy):
    running = iter(make_loader().to("cuda"))
    next(running)

    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # the streams' threads are not here: who waits for one waits for ever
        del running
        gc.collect()
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_batch_that_was_read_ahead_is_not_used_yet(cupy):
    loader = make_loader().to("cuda")
    running = iter(loader)
    next(running), next(running)

    assert loader.state_dict()["position"] == 16
    assert Account(N, 0, loader.ledger.uses, 16, 1).whole
    assert dt.context.current().dealt.position == (0, 1)


def test_an_error_is_raised_where_its_batch_is_asked_for(cupy):
    class Spoilt(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            if index == 5:
                raise ArithmeticError("spoilt")
            return np.full(3, index)

    running = iter(DataLoader(Spoilt(), 4).to("cuda"))

    assert next(running)._array.get()[3].tolist() == [3] * 3
    with pytest.raises(ArithmeticError):
        next(running)
    assert next(running)._array.get()[0].tolist() == [8] * 3
    with pytest.raises(StopIteration):
        next(running)


def test_what_is_no_tensor_stays_and_empty_tensors_travel(cupy):
    class Named(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"name": f"n{index}", "none": np.empty((0, 2), np.int16), "x": index}

    (batch,) = DataLoader(Named(), 2).to("cuda:1")

    assert batch["name"] == ["n0", "n1"]
    assert batch["none"]._array.get().shape == (2, 0, 2)
    assert (batch["x"]._array.get().tolist(), str(batch["x"].device)) == ([0, 1], "cuda:1")


def test_pinned_batches_are_in_host_memory(cupy):
    for (x, y), (same, labels) in zip(make_loader(pin_memory=True), make_loader(), strict=True):
        assert [t.is_pinned() for t in (x, y, x[1:], same)] == [True, True, True, False]
        assert x.pin_memory() is x
        assert (x.device.type, x.tolist(), y.tolist()) == ("cpu", same.tolist(), labels.tolist())
    with pytest.raises(RuntimeError, match="is for tensors in host memory, got one on cuda:0"):
        dt.ones(3).to("cuda").pin_memory()


def test_without_a_gpu_pinning_warns_and_the_device_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)

    loader = make_loader(pin_memory=True)
    with pytest.warns(UserWarning, match="pin_memory=True has no effect, since no GPU can be used"):
        batches = list(loader)

    assert len(batches) == 7
    with pytest.raises(RuntimeError, match="device cuda: no GPU can be used"):
        loader.to("cuda")
    assert loader.to("cpu") is loader
