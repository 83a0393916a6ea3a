import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from disttrain.kernels import conv, gemm, heads, threads


def some(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(threads, "_PART", 1)


def stretches(monkeypatch, n, size, cost=1 << 30):
    """Return the stretches of a spread over ``n`` threads, in order, and the threads that had them."""
    monkeypatch.setattr(threads, "_chosen", n)
    found = []
    threads.spread(lambda *stretch: found.append((stretch, threading.get_ident())), size, cost)
    return sorted(stretch for stretch, _ in found), {thread for _, thread in found}


def test_stretches_are_even_and_cover_everything(monkeypatch):
    found, used = stretches(monkeypatch, 3, 10)

    assert found == [(0, 3), (3, 6), (6, 10)]
    assert threading.get_ident() in used


@pytest.mark.parametrize(("n", "size", "cost"), [(1, 10, 1 << 30), (4, 1, 1 << 30), (4, 10, 1), (4, 0, 1)])
def test_little_work_stays_in_one_stretch_of_this_thread(monkeypatch, n, size, cost):
    assert stretches(monkeypatch, n, size, cost) == ([(0, size)], {threading.get_ident()})


def test_an_error_comes_after_all_stretches_have_ended(monkeypatch, small_parts):
    monkeypatch.setattr(threads, "_chosen", 2)
    ended, go = [], threading.Event()

    def work(first, last):
        if first == 0:
            go.set()
            raise ValueError("the first half")
        assert go.wait(30)
        ended.append((first, last))

    with pytest.raises(ValueError, match="the first half"):
        threads.spread(work, 2, 1)
    assert ended == [(1, 2)]


def test_an_error_of_another_thread_is_raised(monkeypatch, small_parts):
    monkeypatch.setattr(threads, "_chosen", 2)

    with pytest.raises(ZeroDivisionError):
        threads.spread(lambda first, last: 1 // (1 - first), 2, 1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_makes_threads_of_its_own(monkeypatch):
    assert len(stretches(monkeypatch, 2, 2)[0]) == 2

    child = os.fork()
    if not child:
        os._exit(len(stretches(monkeypatch, 2, 2)[0]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


def of_gemm():
    return [
        gemm.matmul(some(101, 70), some(70, 90)),
        gemm.matmul(some(70, 101).T, some(70, 90), bias=some(90)),
    ]


def of_conv(C, O, groups, stride):  # noqa: E741
    def run():
        window = conv.Window((3, 3), (stride, stride), (1, 1), (1, 1))
        x, w = some(5, C, 16, 16), some(O, C // groups, 3, 3)
        out = conv.conv2d(x, w, some(O), window, groups)
        g = some(*out.shape)
        gx = conv.conv2d_input_grad(g, w, window, groups, (16, 16))
        return [out, gx, conv.conv2d_weight_grad(g, x, window, groups)]

    return run


def of_attention():
    q, k, v, g = (some(5, 2, 20, 16) for _ in range(4))
    out, lse = np.empty_like(q), np.empty((5, 2, 20), np.float32)
    heads.attention(q, k, v, 0.25, True, out, lse)
    grads = [np.empty_like(q) for _ in range(3)]
    heads.attention_grad(g, q, k, v, 0.25, True, out, lse, *grads)
    return [out, lse, *grads]


KERNELS = {
    "products": of_gemm,
    "attention": of_attention,
    "winograd": of_conv(32, 48, 1, 1),
    "direct": of_conv(6, 40, 1, 2),
    "in large groups": of_conv(96, 64, 2, 1),
    "depthwise": of_conv(18, 18, 18, 1),
    "in groups": of_conv(32, 32, 8, 2),
}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("n", [2, 3, 16])
@pytest.mark.parametrize("run", KERNELS.values(), ids=KERNELS)
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch, run, n):
    monkeypatch.setattr(threads, "_chosen", 1)
    alone = run()
    monkeypatch.setattr(threads, "_chosen", n)
    calls = []
    submit = ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda *args: calls.append(args) or submit(*args))

    together = run()

    assert calls
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)
