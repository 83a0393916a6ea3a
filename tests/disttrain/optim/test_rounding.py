"""Parameters in half precision that an optimizer rounds at random: unbiased, and the same bits everywhere."""

import cuda_shim
import numpy as np
import pytest
from cuda_cases import kind

import disttrain as dt
from disttrain.kernels import random
from disttrain.optim import SGD, AdamW, RMSprop
from disttrain.optim.lamb import LAMB
from disttrain.optim.lars import LARS
from disttrain.tensors import Tensor

OPTIMIZERS = {
    "adamw": lambda params: AdamW(params, lr=0.01),
    "momentum": lambda params: SGD(params, lr=0.01, momentum=0.9),
    "rmsprop": lambda params: RMSprop(params, lr=0.01),
    "lamb": lambda params: LAMB(params, lr=0.01),
    "lars": lambda params: LARS(params, lr=0.01),
}
SHAPES = [(3, 40), (5,), (2, 2)]


def here(x):
    return x


def make(name, place, dtype, masters=False):
    rng = np.random.default_rng(0)
    params = [Tensor._of(place(rng.standard_normal(s).astype(kind(dtype)))).requires_grad_() for s in SHAPES]
    optimizer = OPTIMIZERS[name](params)
    if masters:
        optimizer.keep_masters()
    optimizer.round_randomly(7)
    return params, optimizer


def train(params, optimizer, place, steps, without=None):
    for step in steps:
        rng = np.random.default_rng(step)
        for i, p in enumerate(params):
            g = (rng.standard_normal(p.shape) / 16).astype(p._array.dtype)
            p._grad = None if i == without else Tensor._of(place(g))
        optimizer.step()
    return [np.array(p._array) for p in params]


@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gpu_rounds_as_the_cpu(name, dtype, masters, gpu):
    if masters and name == "rmsprop":
        pytest.skip("has no masters")
    ours, theirs = (
        train(*make(name, place, dtype, masters), place, range(4), 1) for place in (cuda_shim.there, here)
    )

    for a, b in zip(ours, theirs, strict=True):
        if name in ("adamw", "momentum"):
            assert a.tobytes() == b.tobytes()
        else:  # whose steps are equal up to rounding: then few numbers may fall on the other side
            different = a != b
            assert different.mean() < 0.05
            np.testing.assert_allclose(a.astype(float), b.astype(float), 0.02, 1e-3)


def test_steps_below_the_last_place_are_made_on_average(gpu):
    for place in (here, cuda_shim.there):
        p = Tensor._of(place(np.ones(4096, kind("bfloat16")))).requires_grad_()
        optimizer = SGD([p], lr=2.0**-12)
        optimizer.round_randomly(3)
        for _ in range(8):  # each is a sixteenth of the distance to the next number below 1
            p._grad = Tensor._of(place(np.ones(4096, kind("bfloat16"))))
            optimizer.step()
        values = np.asarray(p._array).astype(np.float64)

        expected, room = 1 - 8 * 2.0**-12, 5 * 2.0**-8 * np.sqrt(8 / 16 / 4096)
        assert abs(values.mean() - expected) < room
        assert len(np.unique(values)) > 1


def test_every_step_and_every_stretch_of_parameters_draws_anew():
    keys = []
    cast = random.round_randomly

    params, optimizer = make("momentum", here, "bfloat16")
    optimizer.add_param_group({"params": [Tensor._of(np.ones(3, kind("bfloat16"))).requires_grad_()]})
    optimizer.round_randomly(2**64 - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            random, "round_randomly", lambda x, t, key: keys.append(tuple(map(int, key))) or cast(x, t, key)
        )
        for _ in range(2):
            train([*params, optimizer.param_groups[1]["params"][0]], optimizer, here, range(1), without=1)

    assert (
        len(keys) == 2 * 3
    )  # what lies before and behind the parameter without a gradient, and the second group
    assert len(set(keys)) == len(keys)
    assert {key[:2] for key in keys} == {(2**64 - 1, 0)}


@pytest.mark.parametrize("masters", [False, True])
def test_a_loaded_state_goes_on_as_if_nothing_had_happened(masters):
    whole = train(*make("adamw", here, "bfloat16", masters), here, range(6))
    params, first = make("adamw", here, "bfloat16", masters)
    train(params, first, here, range(3))
    again = OPTIMIZERS["adamw"](params)
    again.load_state_dict(first.state_dict())

    for a, b in zip(train(params, again, here, range(3, 6)), whole, strict=True):
        assert a.tobytes() == b.tobytes()


def test_wider_types_are_not_touched():
    ours, plain = ([Tensor._of(np.linspace(-1, 1, 9).astype(np.float32)).requires_grad_()] for _ in range(2))
    optimizers = AdamW(ours), AdamW(plain)
    optimizers[0].round_randomly()
    for params, optimizer in zip((ours, plain), optimizers, strict=True):
        train(params, optimizer, here, range(3))

    assert ours[0]._array.tobytes() == plain[0]._array.tobytes()


def test_a_seed_has_64_bits():
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=f"64 bits .* got {seed}"):
            SGD([dt.ones(1).requires_grad_()]).round_randomly(seed)
