"""The CUDA kernels of optimizer steps, run on the CPU, equal those of the CPU: to the bit where no order is free."""

import numpy as np
import pytest
from cuda_cases import DTYPES, cast, kind, near

from disttrain.kernels import cuda, random
from disttrain.kernels.optim import adam, common, folds, layerwise, sgd
from disttrain.kernels.optim.adam import adam_scalars

rng = np.random.default_rng(0)
KEY = np.array([5, 1, 9, 2], np.uint64)
COUNTS = [1, 6, 4096, 9001]
OPTIONS = {
    "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 3,
}  # fmt: skip


def some(count, dtype):
    return cast(rng.standard_normal(count), dtype)


def both(run_here, run_on_gpu, arrays):
    """Run on two copies of the arrays; return what is in them then."""
    here, there = ({k: None if a is None else cast(a, a.dtype) for k, a in arrays.items()} for _ in range(2))
    run_here(**here)
    run_on_gpu(**there)
    return here, there


def same(here, there):
    for name, a in here.items():
        if a is not None:
            assert a.tobytes() == there[name].tobytes(), name


def steps(name):
    """Return for one optimizer: its step here, its launch, its states."""
    if name == "sgd":
        numbers = sgd.sgd_scalars(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
        first = sgd.sgd_scalars(lr=0.1, momentum=0.9, dampening=0.5, first_step=True, maximize=True)
        return sgd, [(numbers, ["buf"]), (first, ["buf"]), (sgd.sgd_scalars(lr=0.1), [])]
    numbers = adam.adam_scalars(**OPTIONS, decoupled=True)
    other = adam.adam_scalars(**OPTIONS | {"beta1": 0.3}, maximize=True)
    return adam, [(numbers, ["m", "v"]), (other, ["m", "v", "top"])]


def run(module, numbers, names, arrays, extras=None):
    """Run a step here and as a kernel."""
    wanted = {"sgd": 1, "adam": 3}[module.__name__.rpartition(".")[2]]

    def states(given):
        return [given.get(n) for n in names] + [None] * (wanted - len(names))

    def here(param, grad, **given):
        def step(p, g):
            module._step(p, g, *states(given), numbers)

        made = extras(given) if extras else None
        made.step(param, grad, step) if made else step(param, grad)

    def launched(param, grad, **given):
        made = extras(given) if extras else None
        kernel = module.__name__.rpartition(".")[2]
        common.launch_flat(module._program, kernel, param, grad, tuple(states(given)), numbers, made)

    return both(here, launched, arrays)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_steps_to_the_bit(name, count, dtype, shim):
    module, cases = steps(name)
    for numbers, names in cases:
        arrays = {k: some(count, dtype) for k in ("param", "grad")} | {
            k: np.abs(some(count, dtype)) for k in names
        }
        same(*run(module, numbers, names, arrays))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_steps_in_mixed_precision_to_the_bit(name, count, dtype, shim):
    module, cases = steps(name)
    scale, go = cast([0.125], "float32"), cast([0], "int32")
    for numbers, names in cases:
        states = {k: np.abs(some(count, "float32")) for k in names}
        with_master = {"param": some(count, "float32"), "low": some(count, dtype), **states}
        for grad in (some(count, dtype), some(count, "float32")):
            same(
                *run(
                    module, numbers, names, {**with_master, "grad": grad},
                    lambda given: common.Extras(low=given["low"], grad_scale=scale, skip=go),
                )
            )  # fmt: skip
            same(
                *run(
                    module, numbers, names, {**with_master, "grad": grad},
                    lambda given: common.Extras(low=given["low"], key=KEY),
                )
            )  # fmt: skip
            alone = {"param": some(count, dtype), "grad": grad, **states}
            same(*run(module, numbers, names, alone, lambda _: common.Extras(key=KEY)))
            same(*run(module, numbers, names, alone, lambda _: common.Extras()))


def test_a_step_that_is_skipped_changes_nothing(shim):
    p, g = some(50, "float32"), some(50, "float32")
    before = p.copy()

    common.launch_flat(
        *(sgd._program, "sgd", p, g, (None,), sgd.sgd_scalars(lr=1.0)),
        common.Extras(skip=cast([1], "int32")),
    )

    np.testing.assert_array_equal(p, before)


def test_a_step_reads_its_numbers_from_the_gpu_if_they_are_there(shim):
    p, g, lr = some(50, "float32"), some(50, "float32"), np.array(sgd.sgd_scalars(lr=0.5))
    expected = p - np.float32(0.5) * g

    common.launch_flat(sgd._program, "sgd", p, g, (None,), sgd.sgd_scalars(lr=7.0), common.Extras(scalars=lr))

    np.testing.assert_array_equal(p, expected)


def test_buffers_that_do_not_go_together_are_refused(shim):
    p, numbers = some(8, "float32"), sgd.sgd_scalars(lr=0.1)

    with pytest.raises(TypeError, match="float32 parameters, grad of float64"):
        common.launch_flat(sgd._program, "sgd", p, some(8, "float64"), (None,), numbers, None)
    half = some(8, "float16")
    with pytest.raises(TypeError, match="float16 parameters, state of float16"):
        common.launch_flat(sgd._program, "sgd", half, half, (half,), numbers, None)
    with pytest.raises(ValueError, match=r"one size, got shapes \(8,\) and \(7,\)"):
        common.launch_flat(sgd._program, "sgd", p, some(7, "float32"), (None,), numbers, None)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_random_rounding_is_right_on_average_and_goes_to_a_neighbour(dtype):
    digits, least = (11, 2.0**-24) if dtype == "float16" else (8, 0.0)
    x = np.concatenate([rng.standard_normal(64), rng.standard_normal(64) * 1e-6, [0.0, 1.0, -60000.0]])
    x = x.astype(np.float32).repeat(4096)
    step = np.maximum(2.0 ** (np.frexp(x)[1] - digits), least)  # from one number to the next

    y = random.round_randomly(x, kind(dtype), KEY).astype(np.float64)

    assert (np.abs(y - x) < step).all()
    assert (np.abs((y - x).reshape(-1, 4096).mean(1)) < 0.05 * step[::4096]).all()
    kept = x.astype(kind(dtype)).astype(np.float32) == x
    np.testing.assert_array_equal(y[kept], x[kept])


def layer_case(dtype, low, wide_grad):
    sizes = [3, 5000, 1, 8192, 40]
    count = sum(sizes)
    single = "float64" if dtype == "float64" else "float32"
    arrays = {
        "param": some(count, single if low else dtype),
        "grad": some(count, single if wide_grad else dtype),
        "m": some(count, single),
        "v": np.abs(some(count, single)),
        "low": some(count, dtype) if low else None,
    }
    arrays["param"][:3] = 0  # a parameter without a norm
    return arrays, np.cumsum(sizes).tolist()


@pytest.mark.parametrize(
    ("dtype", "low", "wide_grad"),
    [("float32", False, True), ("float64", False, True)]
    + [(d, low, wide) for d in ("float16", "bfloat16") for low in (False, True) for wide in (False, True)],
)
@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_layerwise_steps(name, dtype, low, wide_grad, shim):
    arrays, ends = layer_case(dtype, low, wide_grad)
    scale = cast([0.5], "float32")
    lars = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.02}

    def here(param, grad, m, v, low):
        extras = common.Extras(low=low, grad_scale=scale)
        if name == "lamb":
            layerwise.lamb_step(param, grad, m, v, ends, **OPTIONS, extras=extras)
        else:
            layerwise.lars_step(param, grad, m, ends, **lars, extras=extras)

    def launched(param, grad, m, v, low):
        extras = common.Extras(low=low, grad_scale=scale)
        if name == "lamb":
            o = OPTIONS
            numbers = (
                *(o["beta1"], 1 - o["beta1"], o["beta2"], 1 - o["beta2"], o["eps"], o["weight_decay"]),
                *(1 - o["beta1"] ** 3, 1 - o["beta2"] ** 3, 1.0, o["lr"]),
            )
            layerwise._lamb_cuda(param, grad, m, v, ends, numbers, extras)
        else:
            layerwise._lars_cuda(param, grad, m, ends, (*lars.values(), 1.0), extras)

    ours, theirs = both(here, launched, arrays)
    for key, a in theirs.items():
        if a is not None:
            near(ours[key], a.astype(np.float64), "float32" if a.dtype == np.float32 else dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_layerwise_steps_round_at_random_as_the_cpu_rounds_what_they_have_made(name, dtype, shim):
    arrays, ends = layer_case(dtype, low=True, wide_grad=False)
    assert any(end % 4 for end in ends[:-1])  # there a thread's elements take bits of two blocks
    extras = common.Extras(low=arrays["low"], key=KEY)
    numbers = (0.9, 0.1, 0.99, 0.01, 1e-6, 0.01, 0.3, 0.1, 1.0, 0.1)
    if name == "lamb":
        layerwise._lamb_cuda(*(arrays[n] for n in ("param", "grad", "m", "v")), ends, numbers, extras)
    else:
        layerwise._lars_cuda(
            *(arrays[n] for n in ("param", "grad", "m")), ends, (0.1, 0.9, 0.01, 0.02, 1.0), extras
        )

    assert arrays["low"].tobytes() == random.round_randomly(arrays["param"], kind(dtype), KEY).tobytes()


@pytest.mark.parametrize("count", [1, 4095, 4096, 3 * 4096 + 13])
def test_sums_of_squares_have_the_bits_of_the_cpu(count, shim):
    for dtype in ("float32", "float64"):
        x = some(count, dtype)

        np.testing.assert_array_equal(folds._sums_of_squares_cuda(x), folds.sums_of_squares(x))
        assert folds._sum_of_squares_cuda(x)[0] == folds.sum_of_squares(x)
    for dtype in ("float16", "bfloat16"):
        x = some(count, dtype)
        assert folds._sum_of_squares_cuda(x)[0] == folds.sum_of_squares(x.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_found(dtype, shim):
    for count, at in ((1, 0), (5000, 4999), (5000, 17)):
        x = some(count, dtype)
        assert folds._find_bad_cuda(x, None)[0] == folds.find_bad_reference(x)[0] == 0
        for bad in (np.nan, np.inf, -np.inf):
            x[at] = bad
            assert folds._find_bad_cuda(x, None)[0] == folds.find_bad_reference(x)[0] == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping(dtype, shim):
    for square in (0.0, 4.0, 1e300, np.inf, np.nan):
        ours = folds._clip_scale_cuda(np.array([square]), 1.0)
        for a, b in zip(ours, folds.clip_scale_reference(np.array([square]), 1.0), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    x = some(300, dtype)
    y, factor = x.copy(), cast([0.3], "float32")

    folds._scale_cuda(x, factor)
    folds.scale__reference(y, factor)

    np.testing.assert_array_equal(x.astype(np.float64), y.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [None, 0, 4096, 8999])
def test_gradients_are_unscaled_and_looked_at(bad, dtype, shim):
    x, factor = some(9000, dtype), np.array([0.3], np.float32)
    if bad is not None:
        x[bad] = np.inf
    y, found = cast(x, dtype), [np.zeros(1, np.int32) for _ in range(2)]

    launch = folds._program.launch
    launch("unscale", (3,), (256,), x, factor, found[0], x.size, T=cuda.c_type(x.dtype))
    folds.unscale__reference(y, factor, found[1])

    assert x.tobytes() == y.tobytes()
    assert found[0][0] == found[1][0] == (bad is not None)


@pytest.mark.parametrize(("scale", "tracker"), [(4.0, 0), (4.0, 1), (3e38, 1), (1.0, 5)])
@pytest.mark.parametrize("bad", [0, 1])
def test_the_scale_of_a_loss_changes_as_on_the_cpu(scale, tracker, bad, shim):
    ours, theirs = (
        (np.array([scale], np.float32), np.array([tracker], np.int32), np.array([bad], np.int32))
        for _ in range(2)
    )

    folds._program.launch("update_scale", (1,), (32,), *ours, 2.0, 0.5, 2, T="float")
    folds.update_scale_reference(*theirs, growth=2.0, backoff=0.5, interval=2)

    assert [a[0] for a in ours] == [a[0] for a in theirs]


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("adam", [False, True])
def test_steps_are_counted_where_they_are_skipped(adam, skip, shim):
    ours, theirs = ((np.full(10, 7.0), np.array([3], np.int32), np.array([skip], np.int32)) for _ in range(2))
    options = {"at": 5, "adam": adam, "tried": 11, "lr": 0.1, "beta1": 0.9, "beta2": 0.999}

    folds._program.launch("count_step", (1,), (32,), *ours, 5, int(adam), 11, 0.1, 0.9, 0.999, T="float")
    folds.count_step_reference(*theirs, **options)

    np.testing.assert_allclose(ours[0], theirs[0], 1e-14)
    assert ours[1][0] == theirs[1][0] == 3 + skip
    if adam:
        numbers = adam_scalars(**OPTIONS | {"step": 8, "lr": 0.1, "beta2": 0.999})
        np.testing.assert_allclose(ours[0][5:7], numbers[5:7], 1e-13)
