"""Layers on a GPU that become one operation give what they give on the CPU, one after another."""

import copy
import functools

import numpy as np
import pytest

import disttrain as dt
from disttrain import models, nn
from disttrain.nn import fusion
from disttrain.vision.models import BasicBlock, Bottleneck


@pytest.fixture
def joined(gpu, monkeypatch):
    """Arrays on a GPU: the list of what became one operation, as the words that the tests have for it."""
    fused = []

    def note(module, name, words):
        op = getattr(module, name)

        def noted(*args, **options):
            fused.extend(words(*args, **options))
            return op(*args, **options)

        monkeypatch.setattr(module, name, functools.wraps(op)(noted))

    note(
        *(fusion.ops, "perceptron"),
        lambda x, *params, activation, last: [(len(params) // 2, activation, *["last"] * last)],
    )
    note(fusion.norms, "add_layer_norm", lambda *args, **options: ["sum, layer norm"])
    note(fusion.norms, "add_rms_norm", lambda *args, **options: ["sum, rms norm"])
    note(
        *(fusion.norms, "batch_norm"),
        lambda x, w, b, r, relu, **options: ["batch norm" + ", sum" * (r is not None) + ", relu"] * relu,
    )
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
    "four": ([L(3, 8), TANH, L(8, 8), TANH, L(8, 8), TANH, L(8, 2)], [(4, "gelu_tanh")]),
    "in the middle": ([nn.Tanh(), L(3, 8), nn.ReLU(), L(8, 8), nn.Tanh(), L(8, 2)], [(2, "relu")]),
    "activation after the last": ([L(3, 8), nn.ReLU(), L(8, 2), nn.ReLU()], [(2, "relu", "last")]),
    "gelu": ([L(3, 8), nn.GELU(), L(8, 8), nn.GELU(), L(8, 2), nn.GELU()], [(3, "gelu", "last")]),
    "another activation": ([L(3, 8), nn.GELU(), L(8, 8), nn.SiLU(), L(8, 2)], [(2, "gelu")]),
    "activations that change": ([L(3, 8), nn.ReLU(), L(8, 8), TANH, L(8, 8)], [(2, "relu")]),
    "without a bias": ([L(3, 8, bias=False), nn.ReLU(), L(8, 8), nn.ReLU(), L(8, 2)], [(2, "relu")]),
    "one": ([L(3, 8), nn.ReLU()], [(1, "relu", "last")]),
    "one, gelu by tanh": ([L(3, 8), TANH], [(1, "gelu_tanh", "last")]),
    "dropout between": ([L(3, 8), nn.ReLU(), nn.Dropout(0.0), L(8, 2)], [(1, "relu", "last")]),
    "normalised": ([L(3, 8), nn.BatchNorm1d(8), nn.ReLU(), L(8, 2)], ["batch norm, relu"]),
    "normalised otherwise": ([L(3, 8), nn.BatchNorm1d(8), nn.GELU(), nn.LayerNorm(8), nn.ReLU()], []),
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

    assert (len(seen), joined) == (3, [(1, "relu", "last")])  # those before the hook on the last
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


@pytest.mark.parametrize(("dropout", "training", "fused"), [(0.0, True, 2), (0.2, False, 2), (0.2, True, 1)])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_layers_of_transformers(activation, norm_first, dropout, training, fused, joined):
    x = dt.randn(4, 2, 8, device="cuda")
    feed, norm = (fused, activation, *["last"] * (fused == 1)), "sum, layer norm"
    for kind, arguments, first in (
        (nn.TransformerEncoderLayer, (x,), [norm, feed]),
        (nn.TransformerDecoderLayer, (x, x), [norm, norm, feed]),
    ):
        layer = kind(8, 2, 16, dropout, activation, norm_first=norm_first).to("cuda").train(training)
        joined.clear()
        layer(*arguments)
        assert joined == first + [norm] * (not norm_first)


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_of_transformers_are_those_of_the_cpu(norm_first, joined):
    same(nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=norm_first), dt.randn(4, 2, 8))
    layer = nn.TransformerDecoderLayer(8, 2, 16, 0.0, norm_first=norm_first)

    class SelfFed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, x)

    same(SelfFed(), dt.randn(4, 2, 8))


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

    assert joined == ["sum, layer norm", (2, "gelu_tanh")] * 2


def test_bert(joined):
    config = models.BertConfig(
        vocab_size=11,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=6,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    dt.manual_seed(0)

    same(models.BertForMaskedLM(config), dt.tensor([[1, 2, 3, 10], [4, 0, 6, 7]]), 1e-4)

    dense = (1, "gelu", "last")
    assert joined == ["sum, layer norm", dense, "sum, layer norm"] * 2 + [dense]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_blocks_of_residual_networks(block, stride, training, joined):
    dt.manual_seed(0)
    shortcut = None
    if stride > 1:
        shortcut = nn.Sequential(
            nn.Conv2d(8, 2 * block.expansion, 1, stride), nn.BatchNorm2d(2 * block.expansion)
        )
    planes = 8 // block.expansion if stride == 1 else 2
    model = block(8, planes, stride, shortcut).train(training)

    same(model, dt.randn(3, 8, 4, 4), 2e-5)

    convolutions = 2 if block.expansion == 1 else 3
    assert joined == ["batch norm, relu"] * (convolutions - 1) + ["batch norm, sum, relu"]


def test_other_norms_and_activations_are_called(joined):
    def run(norm, activation, x, *residual):
        return fusion.batch_norm_relu(norm.to("cuda"), activation, x, *residual)

    x, y = dt.randn(3, 4, 2, 2, device="cuda"), dt.randn(3, 4, 1, 2, device="cuda")
    for norm, activation, *residual in (
        (nn.GroupNorm(2, 4), nn.ReLU()),
        (nn.BatchNorm2d(4), nn.SiLU()),
        (nn.SyncBatchNorm(4), nn.ReLU(), x),
        (nn.BatchNorm2d(4), nn.ReLU(), y),
        (nn.BatchNorm2d(4), nn.ReLU(), x.half()),
    ):
        out = run(norm, activation, x, *residual)
        again = norm.eval()  # the running values moved on: only that the layers were called is compared
        assert out.shape == again(x).shape
    watched, seen = nn.BatchNorm2d(4), []
    watched.register_forward_hook(lambda *args: seen.append(args))
    run(watched, nn.ReLU(), x)

    assert (len(seen), joined) == (1, [])


def test_sums_that_are_not_normalised_as_they_are(joined):
    x, one = dt.randn(3, 4, device="cuda"), dt.randn(4, device="cuda")
    seen = []
    watched = nn.LayerNorm(4)
    watched.register_forward_hook(lambda *args: seen.append(args))
    for norm, a, b, fused in (
        (nn.LayerNorm(4), x, one, False),  # broadcast
        (nn.LayerNorm(4).double(), x, x.double(), True),
        (nn.LayerNorm(4), x.half(), x.half(), True),
        (nn.LayerNorm(4, elementwise_affine=False), x, x, True),
        (nn.GroupNorm(2, 4), x, x, False),
        (watched, x, x, False),
    ):
        norm = norm.to("cuda")
        joined.clear()
        total, out = fusion.add_norm(norm, a, b)
        expected = norm.to("cpu")(a.cpu() + b.cpu())
        assert joined == ["sum, layer norm"] * fused
        np.testing.assert_allclose(
            np.asarray(out.detach()._array), np.asarray(expected.detach()._array), 2e-3, 2e-3
        )
        assert total.dtype == (a + b).dtype
    assert len(seen) == 2


@pytest.mark.parametrize("inside", [dt.float32, dt.bfloat16])
def test_autocast_normalises_sums_in_float32(inside, joined):
    x, y = dt.randn(3, 4, device="cuda").to(inside), dt.randn(3, 4, device="cuda").bfloat16()
    norm = nn.RMSNorm(4).to("cuda")

    with dt.autocast("cuda", dtype=dt.bfloat16):
        total, out = fusion.add_norm(norm, x, y)

    assert (total.dtype, out.dtype) == (inside, dt.float32)
    assert joined == ["sum, rms norm"] * (inside == dt.float32)
