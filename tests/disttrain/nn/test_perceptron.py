"""Layers on a GPU that become one operation give what they give on the CPU, one after another."""

import copy

import numpy as np
import pytest

import disttrain as dt
from disttrain import models, nn
from disttrain.nn import perceptron


@pytest.fixture
def joined(gpu, monkeypatch):
    """Arrays on a GPU: the list of what became one operation, its number of maps and its activation."""
    fused, op = [], perceptron.ops.perceptron

    def noted(x, *params, activation):
        fused.append((len(params) // 2, activation))
        return op(x, *params, activation=activation)

    monkeypatch.setattr(perceptron.ops, "perceptron", noted)
    return fused


def trained(model, x, device):
    """Return the output of a copy of a model, and its gradients."""
    model = copy.deepcopy(model).to(device)
    x = x.to(device)
    out = model(x)
    out = out if isinstance(out, dt.Tensor) else out.last_hidden_state
    out.square().sum().backward()
    return [np.asarray(out.detach()._array), *(np.asarray(p.grad._array) for p in model.parameters())]


def same(model, x, room=1e-5):
    for a, b in zip(trained(model, x, "cuda"), trained(model, x, "cpu"), strict=True):
        np.testing.assert_allclose(a, b, 10 * room, room)


L = nn.Linear
TANH = nn.GELU("tanh")
CHAINS = {
    "two": ([L(3, 8), nn.ReLU(), L(8, 2)], [(2, "relu")]),
    "four": ([L(3, 8), TANH, L(8, 8), TANH, L(8, 8), TANH, L(8, 2)], [(4, "gelu")]),
    "in the middle": ([nn.Tanh(), L(3, 8), nn.ReLU(), L(8, 8), nn.Tanh(), L(8, 2)], [(2, "relu")]),
    "activation after the last": ([L(3, 8), nn.ReLU(), L(8, 2), nn.ReLU()], [(2, "relu")]),
    "other activations": ([L(3, 8), nn.GELU(), L(8, 8), nn.SiLU(), L(8, 2)], []),
    "activations that change": ([L(3, 8), nn.ReLU(), L(8, 8), TANH, L(8, 8)], [(2, "relu")]),
    "without a bias": ([L(3, 8, bias=False), nn.ReLU(), L(8, 8), nn.ReLU(), L(8, 2)], [(2, "relu")]),
    "one": ([L(3, 8), nn.ReLU()], []),
    "dropout between": ([L(3, 8), nn.ReLU(), nn.Dropout(0.0), L(8, 2)], []),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_sequences(name, joined):
    modules, fused = CHAINS[name]

    same(nn.Sequential(*modules), dt.randn(5, 3))

    assert joined == fused


def test_layers_that_somebody_looks_at_are_called(joined):
    class Mine(nn.Linear):
        pass

    seen = []
    for which in range(3):
        model = nn.Sequential(L(3, 8), nn.ReLU(), L(8, 2))
        model[which].register_forward_hook(lambda module, args, out: seen.append(module))
        model.to("cuda")(dt.ones(2, 3, device="cuda"))
    patched = nn.Sequential(L(3, 8), nn.ReLU(), L(8, 2)).to("cuda")
    patched[1].forward = lambda x: x * 0
    out = patched(dt.ones(2, 3, device="cuda"))
    nn.Sequential(Mine(3, 8), nn.ReLU(), L(8, 2)).to("cuda")(dt.ones(2, 3, device="cuda"))

    assert (len(seen), joined) == (3, [])
    np.testing.assert_array_equal(
        np.asarray(out._array), np.asarray(patched[2].bias.detach()._array)[None].repeat(2, 0)
    )


def test_shapes_that_do_not_fit_are_the_layers_errors(joined):
    model = nn.Sequential(L(3, 8), nn.ReLU(), L(7, 2)).to("cuda")

    with pytest.raises(RuntimeError, match=r"linear: expected input of shape \(\*, 7\)"):
        model(dt.ones(2, 3, device="cuda"))


def test_autocast_computes_them_in_half_precision(joined):
    model = nn.Sequential(L(3, 8), nn.ReLU(), L(8, 2)).to("cuda")

    with dt.autocast("cuda", dtype=dt.bfloat16):
        out = model(dt.ones(2, 3, device="cuda"))

    assert (out.dtype, joined) == (dt.bfloat16, [(2, "relu")])


@pytest.mark.parametrize(("dropout", "training", "fused"), [(0.0, True, 1), (0.2, False, 1), (0.2, True, 0)])
def test_layers_of_transformers(dropout, training, fused, joined):
    x = dt.randn(4, 2, 8, device="cuda")
    for layer in (
        nn.TransformerEncoderLayer(8, 2, 16, dropout),
        nn.TransformerDecoderLayer(8, 2, 16, dropout),
    ):
        layer = layer.to("cuda").train(training)
        joined.clear()
        layer(x) if isinstance(layer, nn.TransformerEncoderLayer) else layer(x, x)
        assert joined == [(2, "relu")] * fused
    same(nn.TransformerEncoderLayer(8, 2, 16, 0.0), dt.randn(4, 2, 8))


def test_gpt2(joined):
    config = models.GPT2Config(
        vocab_size=11,
        n_positions=6,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )

    dt.manual_seed(0)
    # Embeddings begin so small that the first LayerNorm makes rounding of gradients fifty times as large.
    same(models.GPT2Model(config), dt.tensor([[1, 2, 3, 10], [4, 0, 6, 7]]), 1e-4)

    assert joined == [(2, "gelu")] * 2
