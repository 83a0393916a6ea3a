"""The scaler of gradients on a GPU: its state stays there, and steps are skipped there, as on the CPU otherwise."""

import cuda_shim
import numpy as np
import pytest
from cuda_cases import kind

import disttrain as dt
from disttrain import amp
from disttrain.optim import SGD, Adagrad, Adam, AdamW, flat, fused
from disttrain.optim.lamb import LAMB
from disttrain.optim.lars import LARS
from disttrain.tensors import Tensor

OPTIMIZERS = {
    "adam": lambda params: Adam(params, lr=0.1, amsgrad=True),
    "adamw": lambda params: AdamW(params, lr=0.1),
    "sgd": lambda params: SGD(params, lr=0.1),
    "momentum": lambda params: SGD(params, lr=0.1, momentum=0.9, dampening=0.5),
    "lamb": lambda params: LAMB(params, lr=0.1, weight_decay=0.01),
    "lars": lambda params: LARS(params, lr=0.1),
}
SHAPES = [(3, 4), (5,), (2, 2)]


@pytest.fixture
def gpu(gpu, monkeypatch):
    monkeypatch.setattr(amp, "is_available", lambda: True)
    return gpu


@pytest.fixture
def waits(monkeypatch):
    """The list of arrays that the CPU has waited for."""
    waited = []
    for module in (amp, flat, fused):
        to_host = module.to_host
        monkeypatch.setattr(module, "to_host", lambda x, f=to_host: waited.append(x) or f(x))
    return waited


def here(x):
    return x


class Training:
    """Parameters, an optimizer and a scaler, whose gradients are given."""

    def __init__(self, name, place, dtype=np.float32):
        rng = np.random.default_rng(0)
        self.place, self.dtype = place, dtype
        self.params = [
            Tensor._of(place(rng.standard_normal(s).astype(dtype))).requires_grad_() for s in SHAPES
        ]
        self.optimizer = (OPTIMIZERS[name] if isinstance(name, str) else name)(self.params)
        self.scaler = dt.amp.GradScaler("cpu" if place is here else "cuda", init_scale=4.0, growth_interval=2)

    def step(self, number, bad=(), unscale=False, without=None):
        """Make step ``number``, with an infinite gradient if it is one of ``bad``."""
        rng = np.random.default_rng(number)
        loss = Tensor._of(self.place(np.ones((), np.float32)))
        scale = float(np.asarray(self.scaler.scale(loss)._array))
        for i, p in enumerate(self.params):
            grad = (rng.standard_normal(p.shape) * scale).astype(self.dtype)
            if number in bad and i == 1:
                grad[2] = np.inf
            if i == without:
                p.grad = None
            elif p.grad is not None and p._slot is not None:
                p.grad._array[...] = grad
            else:
                p._slot.array[...] = grad
                p._grad = Tensor._of(p._slot.array)
        if unscale:
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def seen(self):
        """Return parameters, state and scale on the CPU."""
        state = self.optimizer.state_dict()["state"]
        values = [np.asarray(t._array) for s in state.values() for t in s.values()]
        return [np.asarray(p._array) for p in self.params] + values + [np.array(self.scaler.get_scale())]


def same(ours, theirs):
    for a, b in zip(ours.seen(), theirs.seen(), strict=True):
        np.testing.assert_allclose(a, b, 2e-6, 1e-6)
    assert ours.scaler.state_dict() == theirs.scaler.state_dict()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("bad", [(), (2,), (0, 3), (1, 2, 5)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_skipped_on_the_gpu_without_waiting_for_it(name, bad, unscale, gpu, waits):
    ours, theirs = Training(name, cuda_shim.there), Training(name, here)

    first = 1 + (0 in bad)  # until then there is no state
    for number in range(7):
        if number == first:
            waits.clear()
        ours.step(number, bad, unscale)
    waited = [x for x in waits if isinstance(x, cuda_shim.GpuArray)]
    for number in range(7):
        theirs.step(number, bad, unscale)

    assert waited == []
    same(ours, theirs)
    assert isinstance(ours.scaler._scale, cuda_shim.GpuArray)
    assert "update_scale" in gpu


def test_what_follows_a_skipped_step_without_the_scaler_knows_of_it(gpu):
    ours, theirs = Training("adam", cuda_shim.there), Training("adam", here)
    for training in (ours, theirs):
        for number in range(4):
            training.step(number, bad=(2,))
        for p in training.params:
            p.grad._array[...] = 1
        training.optimizer.step()

    same(ours, theirs)
    assert {float(s["step"]._array) for s in ours.optimizer.state.values()} == {4.0}


def test_parameters_that_do_not_all_step_are_waited_for(gpu):
    ours, theirs = Training("adam", cuda_shim.there), Training("adam", here)
    for training in (ours, theirs):
        for number, without in enumerate((None, None, 1, None, 2)):
            training.step(number, bad=(1, 2, 3), without=without)

    same(ours, theirs)


def test_other_optimizers_wait_to_know(gpu):
    ours, theirs = (
        Training(lambda params: Adagrad(params, lr=0.1), place) for place in (cuda_shim.there, here)
    )
    for training in (ours, theirs):
        for number in range(4):
            training.step(number, bad=(1,))

    same(ours, theirs)


def test_a_state_that_is_loaded_is_not_changed_by_steps_skipped_before(gpu):
    ours, fresh = Training("adam", cuda_shim.there), Training("adam", cuda_shim.there)
    fresh.step(0)
    ours.step(0)
    ours.step(1, bad=(1,))
    ours.optimizer.load_state_dict(fresh.optimizer.state_dict())

    ours.step(2)

    assert {float(s["step"]._array) for s in ours.optimizer.state_dict()["state"].values()} == {2.0}


def test_the_scale_may_not_fit_into_the_type_of_the_loss():
    scaler = dt.amp.GradScaler("cpu", init_scale=2.0**17)
    loss = dt.tensor([0.25], dtype=dt.float16, requires_grad=True)

    scaled = scaler.scale(loss)

    assert scaled.dtype is dt.float16
    assert scaled.tolist() == [2.0**15]
    scaled.float().sum().backward()
    assert np.isinf(loss.grad._array).all()  # 2 ** 17 is no float16


@pytest.mark.parametrize("place", [here, cuda_shim.there])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_in_half_precision_with_masters_are_those_of_float32_rounded(name, dtype, place, request):
    if place is cuda_shim.there:
        request.getfixturevalue("gpu")
    rng = np.random.default_rng(0)
    halves = [rng.standard_normal(s).astype(kind(dtype)) for s in SHAPES]
    ours, theirs = (
        [Tensor._of(place(h.astype(t))).requires_grad_() for h in halves] for t in (kind(dtype), np.float32)
    )
    optimizers = [OPTIMIZERS[name](params) for params in (ours, theirs)]
    optimizers[0].keep_masters()
    for _ in range(4):
        grads = [(rng.standard_normal(s) / 64).astype(kind(dtype)) for s in SHAPES]
        for params in (ours, theirs):
            for p, g in zip(params, grads, strict=True):
                p._grad = Tensor._of(place(g.astype(p._array.dtype)))
        for optimizer in optimizers:
            optimizer.step()

    states = [o.state_dict()["state"] for o in optimizers]
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        mine, other = (s.get(i, {}) for s in states)
        np.testing.assert_array_equal(np.asarray(mine.pop("master")._array), np.asarray(q._array))
        np.testing.assert_array_equal(np.asarray(p._array), np.asarray(q._array).astype(kind(dtype)))
        assert p._array.dtype == kind(dtype)
        for a, b in zip(mine.values(), other.values(), strict=True):
            np.testing.assert_array_equal(np.asarray(a._array), np.asarray(b._array))


def test_masters_are_made_anew_of_other_weights_and_kept_with_the_state():
    p = dt.ones(3, dtype=dt.bfloat16).requires_grad_()
    optimizer = SGD([p], lr=2.0**-11)
    optimizer.keep_masters()
    for _ in range(3):
        p.grad = dt.ones(3, dtype=dt.bfloat16)
        optimizer.step()
    assert p.tolist() == [1.0] * 3  # each step is less than half a unit of the last place
    again = SGD([p], lr=2.0**-11)
    again.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        p.grad = dt.ones(3, dtype=dt.bfloat16)
        again.step()
    assert p.tolist() == [1 - 2.0**-8] * 3
    with dt.no_grad():
        p.fill_(5)
    again.keep_masters()
    p.grad = dt.zeros(3, dtype=dt.bfloat16)
    again.step()
    assert p.tolist() == [5.0] * 3
    with pytest.raises(TypeError, match="Adagrad cannot keep float32 copies"):
        Adagrad([p]).keep_masters()
