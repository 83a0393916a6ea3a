"""Futures, next to PyTorch's."""

import threading

import pytest

import disttrain as dt
from disttrain.futures import Future, collect_all, wait_all


def both(program):
    """Return what ``program(futures)`` gives with ours, having checked that PyTorch's gives the same."""
    torch = pytest.importorskip("torch")
    ours, theirs = program(dt.futures), program(torch.futures)
    assert ours == theirs
    return ours


def test_results_go_down_a_chain():
    def program(futures):
        first = futures.Future()
        chain = first.then(lambda f: f.value() + 1).then(lambda f: 2 * f.wait())
        seen = [chain.done()]
        first.add_done_callback(lambda f: seen.append(f.value()))
        first.set_result(1)
        return [*seen, chain.done(), chain.wait(), first.value()]

    assert both(program) == [False, 1, True, 4, 1]


def test_an_error_goes_down_a_chain():
    def program(futures):
        first = futures.Future()
        chain = first.then(lambda f: f.value())
        first.set_exception(ValueError("boom"))
        said = []
        for f in (first, chain):
            try:
                f.wait()
            except Exception as e:
                said.append((isinstance(e, (ValueError, RuntimeError)), "boom" in str(e)))
        return said

    assert both(program) == [(True, True)] * 2


def test_a_result_is_set_once_and_not_read_before():
    def program(futures):
        future = futures.Future()
        with pytest.raises(RuntimeError):
            future.value()
        future.set_result(1)
        with pytest.raises(RuntimeError):
            future.set_result(2)
        return future.value()

    assert both(program) == 1


def test_several_futures():
    def program(futures):
        a, b = futures.Future(), futures.Future()
        whole = futures.collect_all([a, b])
        b.set_result(2)
        seen = [whole.done()]
        a.set_result(1)
        return [*seen, [f.value() for f in whole.wait()], futures.wait_all([a, b])]

    assert both(program) == [False, [1, 2], [1, 2]]


def test_a_waiter_in_another_thread_is_woken():
    future = Future()
    seen = []
    waiter = threading.Thread(target=lambda: seen.append(future.then(lambda f: f.value() + 1).wait()))
    waiter.start()
    future.set_result(1)
    waiter.join(10)
    assert seen == [2]


def test_no_futures_and_no_exception():
    assert wait_all([]) == []
    assert collect_all([]).done()
    with pytest.raises(TypeError, match="takes an exception, got str"):
        Future().set_exception("boom")
