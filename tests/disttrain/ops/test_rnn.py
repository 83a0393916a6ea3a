import itertools

import numpy as np
import pytest

from disttrain.ops.rnn import gru, lstm, put_rows, rnn, take_rows

rng = np.random.default_rng(0)
SIZES = [(3, 3, 3), (3, 2, 1), (1,), (2, 2, 1, 1)]
F, H, P = 3, 4, 2


def arguments(op, sizes, bias=True, project=False):
    gates = {rnn: 1, lstm: 4, gru: 3}[op]
    out = P if project else H
    states = [(sizes[0], out), (sizes[0], H)] if op is lstm else [(sizes[0], out)]
    shapes = [(sum(sizes), F), *states, (gates * H, F), (gates * H, out)]
    arrays = [rng.standard_normal(s) for s in shapes]
    arrays += [rng.standard_normal(gates * H) for _ in range(2)] if bias else [None, None]
    return [*arrays, rng.standard_normal((P, H))] if project else arrays


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("op", [rnn, lstm, gru])
def test_first_and_second_derivatives_are_those_of_differences(differences, op, sizes, reverse):
    for bias, project in itertools.product((True, False), (True, False) if op is lstm else (False,)):
        differences(op, *arguments(op, sizes, bias, project), batch_sizes=sizes, reverse=reverse)


def test_the_rectified_layer(differences):
    differences(rnn, *arguments(rnn, (3, 2)), batch_sizes=(3, 2), relu=True)


@pytest.mark.parametrize("op", [rnn, lstm, gru])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_types_stay_and_narrow_ones_are_computed_in_float32(op, dtype):
    wide = [a.astype(dtype).astype(np.float64) for a in arguments(op, (3, 2))]
    narrow = [a.astype(dtype) for a in wide]
    limit = {"float16": 2e-3, "float32": 1e-5}[dtype]
    runs = []
    for arrays in (wide, narrow):
        outs, saved, vjp = op(*arrays, batch_sizes=(3, 2))
        gs = tuple(np.ones_like(o) for o in outs)
        runs.append([*outs, *vjp(gs, (True,) * len(arrays), *saved)])

    for a, b in zip(*runs, strict=True):
        assert b.dtype == dtype
        np.testing.assert_allclose(b.astype(np.float64), a, limit * 4, limit * 4)


def test_a_gradient_that_nobody_wants_is_not_computed():
    arrays = arguments(lstm, (3, 2))
    outs, saved, vjp = lstm(*arrays, batch_sizes=(3, 2))

    grads = vjp((outs[0], None, None), (False, True, False, False, False, False, False), *saved)

    assert [g is not None for g in grads] == [False, True, False, False, False, False, False]


def test_saturated_gates_are_neither_infinite_nor_undefined():
    arrays = [a.astype(np.float32) for a in arguments(lstm, (3, 2))]
    arrays[0] *= 1e6

    outs, saved, vjp = lstm(*arrays, batch_sizes=(3, 2))
    grads = vjp(outs, (True,) * 7, *saved)

    assert all(np.isfinite(a).all() for a in (*outs, *grads))


def test_rows_taken_and_put(differences):
    x, rows = rng.standard_normal((5, 2)), np.array([3, 0, 4])

    differences(take_rows, x, rows=rows)
    differences(put_rows, x[:3], rows=rows, size=6, fill=-1.5)
    np.testing.assert_array_equal(put_rows(x[:1], rows=rows[:1], size=5, fill=7.0)[0][[0, 1, 2, 4]], 7)
