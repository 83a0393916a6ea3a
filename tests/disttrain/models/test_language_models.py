"""GPT-2 and BERT against implementations of their papers in PyTorch, written apart, that read the same state dict."""

import math

import numpy as np
import pytest

import disttrain as dt
from disttrain.models import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
)

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

GPT = GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=3)
BERT = BertConfig(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=50,
    max_position_embeddings=16,
    num_labels=3,
)
TOKENS = np.random.default_rng(0).integers(1, 40, (3, 11))


def weights(model, seed=0):
    """Give a model other parameters than its initial ones, and return them as PyTorch's tensors that record."""
    rng = np.random.default_rng(seed)
    for p in dict.fromkeys(model.parameters()):
        p.data = dt.from_numpy((0.2 * rng.standard_normal(p.shape)).astype(np.float32))
    tensors = {id(p): torch.tensor(p.detach().numpy(), requires_grad=True) for p in model.parameters()}
    return {name: tensors[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def norm(x, w, name, eps):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + eps).sqrt() * w[name + ".weight"] + w[name + ".bias"]


def attention(q, k, v, heads, allowed):
    """Softmax attention written out; ``allowed``: (B or 1, 1, T or 1, T)."""
    B, T, C = q.shape
    q, k, v = (x.reshape(B, T, heads, C // heads).permute(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.permute(0, 1, 3, 2) / math.sqrt(C // heads)
    scores = torch.where(allowed, scores, torch.tensor(-1e9))
    return (torch.softmax(scores, -1) @ v).permute(0, 2, 1, 3).reshape(B, T, C)


def gpt2(w, tokens):
    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: tokens.shape[1]]
    causal = torch.ones(tokens.shape[1], tokens.shape[1]).tril().bool()[None, None]
    for i in range(GPT.n_layer):
        at = f"transformer.h.{i}."
        y = norm(x, w, at + "ln_1", 1e-5) @ w[at + "attn.c_attn.weight"] + w[at + "attn.c_attn.bias"]
        q, k, v = y.chunk(3, -1)
        y = attention(q, k, v, GPT.n_head, causal)
        x = x + y @ w[at + "attn.c_proj.weight"] + w[at + "attn.c_proj.bias"]
        y = norm(x, w, at + "ln_2", 1e-5) @ w[at + "mlp.c_fc.weight"] + w[at + "mlp.c_fc.bias"]
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + y @ w[at + "mlp.c_proj.weight"] + w[at + "mlp.c_proj.bias"]
    return norm(x, w, "transformer.ln_f", 1e-5) @ w["lm_head.weight"].T


def bert(w, tokens, allowed, types, prefix=""):
    def dense(x, name):
        return x @ w[f"{prefix}{name}.weight"].T + w[f"{prefix}{name}.bias"]

    def normed(x, name):
        return norm(x, w, prefix + name, 1e-12)

    x = w[prefix + "embeddings.word_embeddings.weight"][tokens]
    x = x + w[prefix + "embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = normed(x + w[prefix + "embeddings.token_type_embeddings.weight"][types], "embeddings.LayerNorm")
    for i in range(BERT.num_hidden_layers):
        at = f"encoder.layer.{i}."
        q, k, v = (dense(x, f"{at}attention.self.{name}") for name in ("query", "key", "value"))
        y = attention(q, k, v, BERT.num_attention_heads, allowed)
        x = normed(dense(y, at + "attention.output.dense") + x, at + "attention.output.LayerNorm")
        y = dense(x, at + "intermediate.dense")
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        x = normed(dense(y, at + "output.dense") + x, at + "output.LayerNorm")
    return x


def compare(ours, theirs, model, w):
    """Compare results, and the gradients of a loss of them."""
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=2e-4, atol=2e-5)
    factor = np.random.default_rng(2).standard_normal(tuple(ours.shape)).astype(np.float32)
    (ours * dt.from_numpy(factor)).sum().backward()
    (theirs * torch.tensor(factor)).sum().backward()
    for name, p in model.named_parameters():
        expected = w[name].grad
        if expected is None:
            assert p.grad is None
            continue
        expected = expected.numpy()
        np.testing.assert_allclose(
            p.grad.numpy(), expected, rtol=1e-3, atol=2e-5 * max(1, abs(expected).max()), err_msg=name
        )


def test_gpt2():
    model = GPT2LMHeadModel(GPT).eval()
    w = weights(model)

    compare(model(dt.from_numpy(TOKENS)), gpt2(w, torch.tensor(TOKENS)), model, w)


def test_bert_for_masked_language_models():
    model = BertForMaskedLM(BERT).eval()
    w = weights(model)
    types = (np.arange(11) > 5).astype(np.int64)[None].repeat(3, 0)
    mask = np.ones((3, 11), np.int64)
    mask[0, 7:] = 0

    x = bert(w, torch.tensor(TOKENS), torch.tensor(mask != 0)[:, None, None], torch.tensor(types), "bert.")
    at = "cls.predictions."
    x = x @ w[at + "transform.dense.weight"].T + w[at + "transform.dense.bias"]
    x = norm(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), w, at + "transform.LayerNorm", 1e-12)
    theirs = x @ w["bert.embeddings.word_embeddings.weight"].T + w[at + "bias"]
    ours = model(*map(dt.from_numpy, (TOKENS, mask, types)))

    with torch.no_grad():
        np.testing.assert_allclose(ours.detach().numpy(), theirs.numpy(), rtol=2e-4, atol=2e-5)
    assert ours.shape == (3, 11, 40)


def test_bert_for_classification():
    model = BertForSequenceClassification(BERT).eval()
    w = weights(model)

    everything = torch.ones(1, 1, 1, 11).bool()
    x = bert(w, torch.tensor(TOKENS), everything, torch.zeros(3, 11, dtype=torch.int64), "bert.")
    x = torch.tanh(x[:, 0] @ w["bert.pooler.dense.weight"].T + w["bert.pooler.dense.bias"])

    compare(model(dt.from_numpy(TOKENS)), x @ w["classifier.weight"].T + w["classifier.bias"], model, w)


def test_the_sizes_are_those_of_the_papers():
    assert sum(p.numel() for p in GPT2Model().parameters()) == 124_439_808
    assert sum(p.numel() for p in BertModel().parameters()) == 109_482_240


def test_parameters_have_the_names_of_hugging_face():
    gpt = GPT2LMHeadModel(GPT).state_dict()
    assert {
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.h.1.ln_1.bias",
        "transformer.h.0.attn.c_attn.weight",
        "transformer.h.0.attn.c_proj.bias",
        "transformer.h.1.mlp.c_fc.weight",
        "transformer.ln_f.weight",
        "lm_head.weight",
    } <= gpt.keys()
    assert gpt["transformer.h.0.attn.c_attn.weight"].shape == (24, 72)
    assert {
        "bert.embeddings.token_type_embeddings.weight",
        "bert.encoder.layer.1.attention.self.query.bias",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
        "bert.encoder.layer.0.intermediate.dense.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
        "cls.predictions.transform.LayerNorm.bias",
    } <= BertForMaskedLM(BERT).state_dict().keys()


def test_older_files_load():
    source, model = GPT2LMHeadModel(GPT), GPT2LMHeadModel(GPT)
    weights(source, 3)
    files = dict(source.transformer.state_dict())  # of a model without a head
    files["h.0.attn.bias"] = dt.ones(1, 1, 16, 16)
    files["h.1.attn.masked_bias"] = dt.tensor(-1e4)
    assert str(model.load_state_dict(files)) == "<All keys matched successfully>"
    for (name, p), q in zip(model.named_parameters(), source.parameters(), strict=True):
        assert (p == q).all(), name

    source, model = BertForMaskedLM(BERT), BertForMaskedLM(BERT)
    weights(source, 4)
    files = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in source.state_dict().items()
        if "decoder" not in name
    }
    files |= {
        "bert.embeddings.position_ids": dt.arange(16)[None],
        "bert.pooler.dense.weight": dt.zeros(24, 24),
        "bert.pooler.dense.bias": dt.zeros(24),
        "cls.seq_relationship.weight": dt.zeros(2, 24),
        "cls.seq_relationship.bias": dt.zeros(2),
    }
    assert str(model.load_state_dict(files)) == "<All keys matched successfully>"
    for (name, p), q in zip(model.named_parameters(), source.parameters(), strict=True):
        assert (p == q).all(), name


def test_tied_weights_are_one_parameter():
    model = GPT2LMHeadModel(GPT)
    assert model.lm_head.weight is model.transformer.wte.weight
    masked = BertForMaskedLM(BERT)
    assert masked.cls.predictions.decoder.weight is masked.bert.embeddings.word_embeddings.weight
    assert masked.cls.predictions.decoder.bias is masked.cls.predictions.bias


def test_rows_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="17 tokens in a row, but the model has 16 positions"):
        GPT2Model(GPT)(dt.zeros(1, 17, dtype=dt.int64))
    with pytest.raises(ValueError, match="17 tokens in a row, but the model has 16 positions"):
        BertModel(BERT)(dt.zeros(1, 17, dtype=dt.int64))
    with pytest.raises(ValueError, match="multiple of n_head"):
        GPT2Config(n_head=5)


def test_a_small_gpt2_learns():
    dt.manual_seed(0)
    model = GPT2LMHeadModel(GPT)
    optimizer = dt.optim.AdamW(model.parameters(), lr=1e-2)
    x = dt.from_numpy(TOKENS)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = dt.nn.functional.cross_entropy(model(x)[:, :-1].reshape(-1, 50), x[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(50), rel=0.1)
    assert losses[-1] < 0.5 * losses[0]
