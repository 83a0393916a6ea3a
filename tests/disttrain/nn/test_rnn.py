"""Recurrent layers against PyTorch: values, states and gradients in every combination of options, and errors."""

import itertools
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.nn.utils import rnn as packing

rng = np.random.default_rng(0)
LAYERS = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2}),
    ("GRU", {}),
]
CELLS = [("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"}), ("LSTMCell", {}), ("GRUCell", {})]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is the reference")


def twins(torch: Any, name: str, *args: Any, dtype: str = "float64", **options: Any) -> tuple[Any, Any]:
    """Return PyTorch's layer and ours with the same weights."""
    theirs = getattr(torch.nn, name)(*args, dtype=getattr(torch, dtype), **options)
    ours = getattr(nn, name)(*args, dtype=getattr(dt, dtype), **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    ours.load_state_dict({k: dt.from_numpy(v.numpy().copy()) for k, v in theirs.state_dict().items()})
    return theirs, ours


def flat(result: Any) -> list[Any]:
    if isinstance(result, tuple):
        return [t for r in result for t in flat(r)]
    return [result]


def results(library: Any, layer: Any, call: Any, arrays: Any) -> list[np.ndarray[Any, Any]]:
    """Return outputs and the gradients of arguments and weights."""
    leaves = [library.from_numpy(a.copy()).requires_grad_() for a in arrays]
    outs = flat(call(layer, *leaves))
    loss = sum((o * o.detach().cos()).sum() for o in outs)
    weights = [p for _, p in sorted(layer.named_parameters())]
    grads = library.autograd.grad(loss, [*leaves, *weights])
    return [t.detach().numpy() for t in (*outs, *grads)]


def agree(torch: Any, theirs: Any, ours: Any, call: Any, arrays: Any) -> None:
    limit = {"float32": 3e-5, "float64": 1e-11}[arrays[0].dtype.name]
    wanted, got = results(torch, theirs, call, arrays), results(dt, ours, call, arrays)
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, limit, limit, err_msg=f"number {number}")


def states(name: str, options: dict[str, Any], *lead: int, dtype: str = "float64") -> list[Any]:
    shapes = [(*lead, options.get("proj_size", 4))] + ([(*lead, 4)] if name.startswith("LSTM") else [])
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def with_states(name: str, given: Any) -> Any:
    """Return the states as the layer takes them."""
    if not given:
        return None
    return tuple(given) if name.startswith("LSTM") else given[0]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_layer_is_that_of_torch(torch, name, options, layers, bidirectional, packed):
    for bias, batch_first, given in itertools.product(*[(True, False)] * 3):
        dtype = "float64" if bias else "float32"
        theirs, ours = twins(
            torch,
            name,
            *(3, 4, layers),
            dtype=dtype,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            **options,
        )
        x = rng.standard_normal((3, 5, 3) if batch_first else (5, 3, 3)).astype(dtype)
        first = states(name, options, layers * (1 + bidirectional), 3, dtype=dtype) if given else []

        def call(layer, x, *first, batch_first=batch_first):
            if not packed:
                return layer(x, with_states(name, first))
            tools = torch.nn.utils.rnn if isinstance(x, torch.Tensor) else packing
            sequences = tools.pack_padded_sequence(x, [3, 5, 1], batch_first, enforce_sorted=False)
            out, last = layer(sequences, with_states(name, first))
            return tools.pad_packed_sequence(out, batch_first)[0], last

        agree(torch, theirs, ours, call, [x, *first])


@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_one_sequence_without_a_batch(torch, name, options):
    for batch_first, given in itertools.product((True, False), (True, False)):
        theirs, ours = twins(torch, name, 3, 4, 2, batch_first=batch_first, bidirectional=True, **options)
        first = states(name, options, 4) if given else []

        agree(
            torch,
            theirs,
            ours,
            lambda layer, x, *first: layer(x, with_states(name, first)),
            [rng.standard_normal((5, 3)), *first],
        )


@pytest.mark.parametrize(("name", "options"), CELLS)
def test_cell_is_that_of_torch(torch, name, options):
    for bias, batch, given, dtype in itertools.product(
        (True, False), ((3,), ()), (True, False), ("float64", "float32")
    ):
        theirs, ours = twins(torch, name, 3, 4, bias=bias, dtype=dtype, **options)
        first = states(name, {}, *batch, dtype=dtype) if given else []
        x = rng.standard_normal((*batch, 3)).astype(dtype)

        agree(
            torch,
            theirs,
            ours,
            lambda layer, x, *first: layer(layer_input(x), layer(x, with_states(name, first))),
            [x, *first],
        )


def layer_input(x: Any) -> Any:
    return x * 0.5


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_gradients_of_gradients(torch, name):
    theirs, ours = twins(torch, name, 3, 4, 2, bidirectional=True)
    x, first = rng.standard_normal((3, 2, 3)), states(name, {}, 4, 2)
    found = []
    for library, layer in ((torch, theirs), (dt, ours)):
        leaves = [library.from_numpy(a.copy()).requires_grad_() for a in (x, *first)]
        leaves += [p for _, p in sorted(layer.named_parameters())]
        outs = flat(layer(leaves[0], with_states(name, leaves[1 : 1 + len(first)])))
        grads = library.autograd.grad(sum((o * o).sum() for o in outs), leaves, create_graph=True)
        seconds = library.autograd.grad(sum((g * g).sum() for g in grads), leaves)
        found.append([g.detach().numpy() for g in (*grads, *seconds)])

    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, 1e-10, 1e-10)


def test_dropout_is_between_layers_and_in_training_only():
    dt.manual_seed(0)
    layer = nn.LSTM(3, 4, 2, dropout=0.5)
    with pytest.warns(UserWarning, match="dropout=1.0 has no effect with num_layers=1"):
        one = nn.LSTM(3, 4, 1, dropout=1.0)
    x = dt.randn(5, 2, 3)

    assert not layer(x)[0].equal(layer(x)[0])
    assert one(x)[0].equal(one(x)[0])
    layer.eval()
    assert layer(x)[0].equal(layer(x)[0])


def test_all_dropped_leaves_the_second_layer_its_biases(torch):
    theirs, ours = twins(torch, "GRU", 3, 4, 2, dropout=1.0)

    agree(torch, theirs, ours, lambda layer, x: layer(x), [rng.standard_normal((5, 2, 3))])


def test_a_stray_batch_of_nothing():
    out, (h, c) = nn.LSTM(3, 4)(dt.zeros(5, 0, 3))

    assert [list(t.shape) for t in (out, h, c)] == [[5, 0, 4], [1, 0, 4], [1, 0, 4]]
    out.sum().backward()


def test_output_may_be_changed_in_place():
    layer = nn.GRU(3, 4)
    x = dt.randn(5, 2, 3)

    (2 * layer(x)[0]).sum().backward()
    plain = layer.weight_hh_l0.grad.clone()
    layer.zero_grad()
    layer(x)[0].mul_(2).sum().backward()

    assert layer.weight_hh_l0.grad.allclose(plain)


def test_weights_by_layer_and_replaced_weights_are_used():
    layer = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)

    assert [len(w) for w in layer.all_weights] == [5] * 4
    assert layer.all_weights[1][4] is layer.weight_hr_l0_reverse
    layer.flatten_parameters()
    with dt.no_grad():
        for p in layer.parameters():
            p.zero_()
    assert not layer(dt.ones(5, 2, 3))[0].any()


def test_initial_weights_are_spread_evenly():
    dt.manual_seed(0)
    for layer in (nn.LSTM(20, 100), nn.GRUCell(20, 100)):
        for p in layer.parameters():
            assert -0.1 <= float(p.min()) < -0.09
            assert 0.09 < float(p.max()) <= 0.1


BAD_LAYERS = [
    ("RNN", (3, 4), {"nonlinearity": "x"}),
    ("RNN", (3, 4), {"proj_size": 2}),
    ("GRU", (3, 4), {"proj_size": 2}),
    ("LSTM", (3, 4), {"proj_size": 4}),
    ("LSTM", (3, 4), {"proj_size": -1}),
    ("LSTM", (3, 4), {"num_layers": 0}),
    ("LSTM", (3, 0), {}),
    ("LSTM", (0, 4), {}),
    ("LSTM", (3, 4.0), {}),
    ("LSTM", (3, 4), {"dropout": 1.5}),
    ("LSTM", (3, 4), {"dropout": True}),
    ("LSTM", (3, 4), {"bias": 1}),
    ("RNNBase", ("X", 3, 4), {}),
]


@pytest.mark.parametrize(("name", "args", "options"), BAD_LAYERS)
def test_layers_that_torch_refuses(torch, name, args, options):
    with pytest.raises((ValueError, TypeError)) as theirs:
        getattr(torch.nn, name)(*args, **options)
    with pytest.raises(type(theirs.value)):
        getattr(nn, name)(*args, **options)


H = (1, 3, 4)
BAD_CALLS = [
    ("LSTM", (5, 3, 2), None),
    ("LSTM", (2, 5, 3, 3), None),
    ("LSTM", (3,), None),
    ("LSTM", (0, 3, 3), None),
    ("LSTM", (5, 3, 3), ((3, 4), (3, 4))),
    ("LSTM", (5, 3, 3), ((1, 2, 4), H)),
    ("LSTM", (5, 3, 3), (H, (1, 3, 5))),
    ("LSTM", (5, 3), (H, H)),
    ("GRU", (5, 3, 3), (3, 4)),
    ("GRU", (5, 3, 3), (2, 3, 4)),
    ("GRU", (5, 3), H),
    ("LSTMCell", (2, 3, 3), None),
    ("LSTMCell", (3, 2), None),
    ("LSTMCell", (3, 3), ((2, 4), (2, 4))),
    ("LSTMCell", (3, 3), ((3, 4), (3, 5))),
    ("LSTMCell", (3, 3), (H, H)),
    ("LSTMCell", (3,), ((1, 4), (1, 4))),
    ("GRUCell", (3, 3), (3, 5)),
    ("GRUCell", (3, 3), (4,)),
    ("RNNCell", (3, 3), H),
]


@pytest.mark.parametrize(("name", "x", "hx"), BAD_CALLS)
def test_calls_that_torch_refuses(torch, name, x, hx):
    raised = []
    for library in (torch, dt):
        layer = getattr(library.nn, name)(3, 4)
        first = hx
        if hx is not None:
            several = isinstance(hx[0], tuple)
            first = tuple(library.zeros(*s) for s in hx) if several else library.zeros(*hx)
        with pytest.raises((ValueError, RuntimeError)) as error:
            layer(library.zeros(*x), first)
        raised.append(error.value)

    assert type(raised[1]) is type(raised[0])
    assert str(raised[1]).startswith(f"{name}: ")


def test_dtypes_must_agree():
    with pytest.raises(ValueError, match=r"LSTM: input is .*float64, the weights are .*float32"):
        nn.LSTM(3, 4)(dt.zeros(5, 2, 3, dtype=dt.float64))
    with pytest.raises(
        RuntimeError, match=r"GRU: hidden must have the dtype of input, .*float32, got .*float64"
    ):
        nn.GRU(3, 4)(dt.zeros(5, 2, 3), dt.zeros(1, 2, 4, dtype=dt.float64))
    with pytest.raises(RuntimeError, match=r"one dtype, .*float32, got .*int64"):
        nn.GRUCell(3, 4)(dt.zeros(2, 3, dtype=dt.int64))
    with pytest.raises(RuntimeError, match="must be a tuple of hidden state and cells, got Tensor"):
        nn.LSTM(3, 4)(dt.zeros(5, 2, 3), dt.zeros(1, 2, 4))
    cell = nn.RNNCell(3, 4, nonlinearity="x")
    with pytest.raises(RuntimeError, match="'tanh' or 'relu', got 'x'"):
        cell(dt.zeros(2, 3))


def test_cells_and_networks_have_their_bases() -> None:
    assert all(isinstance(cell(2, 3), nn.RNNCellBase) for cell in (nn.RNNCell, nn.LSTMCell, nn.GRUCell))
    assert all(isinstance(network(2, 3), nn.RNNBase) for network in (nn.RNN, nn.LSTM, nn.GRU))
