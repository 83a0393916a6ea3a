"""BERT (Devlin et al., "BERT: Pre-training of deep bidirectional transformers", 2019), by Hugging Face's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from disttrain import nn
from disttrain.functions.creation import arange, zeros, zeros_like
from disttrain.kernels.arrays import on_gpu
from disttrain.nn import functional as F
from disttrain.nn import fusion
from disttrain.tensors import Tensor


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT, by default the base one of 110 million parameters; Hugging Face's names."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    num_labels: int = 2
    """Classes of :class:`BertForSequenceClassification`."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        T, most = input_ids.shape[-1], self.position_embeddings.num_embeddings
        if most < T:
            raise ValueError(f"{T} tokens in a row, but the model has {most} positions")
        types = zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(types)
        x = x + self.position_embeddings(arange(T, device=input_ids.device))
        return self.dropout(self.LayerNorm(x))  # type: ignore[no-any-return]


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part(x).view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        p = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return out.transpose(1, 2).reshape(B, T, C)


class _Output(nn.Module):
    """A projection, dropout, and the norm of its sum with what it began from."""

    def __init__(self, inputs: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return fusion.add_norm(self.LayerNorm, self.dropout(self.dense(x)), residual)[1]


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _Output(config.hidden_size, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(x, mask), x)  # type: ignore[no-any-return]


class _Dense(nn.Module):
    """A projection with GELU, or with tanh."""

    def __init__(self, inputs: int, outputs: int, activation: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if on_gpu(x._array):
            return fusion.run((self.dense, self.activation), x)
        return self.activation(self.dense(x))  # type: ignore[no-any-return]


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Dense(config.hidden_size, config.intermediate_size, nn.GELU())
        self.output = _Output(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class BertModel(nn.Module):
    """The encoder: tokens ``(B, T)`` to features ``(B, T, hidden_size)`` and, of the first token, ``(B, hidden_size)``.

    Args:
        config: its shape.
        add_pooling_layer: make the second result; else it is None.
    """

    def __init__(self, config: BertConfig | None = None, add_pooling_layer: bool = True) -> None:
        super().__init__()
        self.config = config = config or BertConfig()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.pooler = _Dense(config.hidden_size, config.hidden_size, nn.Tanh()) if add_pooling_layer else None
        _initialize(self, config)
        self.register_load_state_dict_pre_hook(_modern_names)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the features of the tokens, and that of the text.

        Args:
            input_ids: int64, (B, T).
            attention_mask: (B, T), 0 where a token is padding.
            token_type_ids: int64, (B, T): 0 or 1, of which of two texts a token is; by default 0.

        Raises:
            ValueError: there are more tokens in a row than the model has positions.
        """
        mask = None if attention_mask is None else (attention_mask != 0)[:, None, None, :]
        x = self.encoder(self.embeddings(input_ids, token_type_ids), mask)
        return x, None if self.pooler is None else self.pooler(x[:, 0])


class BertForMaskedLM(nn.Module):
    """BERT that fills in masked tokens: tokens ``(B, T)`` to scores ``(B, T, vocab_size)``.

    The head's weight is that of the word embedding.
    """

    def __init__(self, config: BertConfig | None = None) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.config = self.bert.config
        self.cls = _Heads(self.config, self.bert.embeddings.word_embeddings.weight)
        self.register_load_state_dict_pre_hook(_complete)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the scores; arguments as of :meth:`BertModel.forward`."""
        return self.cls(self.bert(input_ids, attention_mask, token_type_ids)[0])  # type: ignore[no-any-return]


class BertForSequenceClassification(nn.Module):
    """BERT that classifies texts: tokens ``(B, T)`` to scores ``(B, num_labels)``."""

    def __init__(self, config: BertConfig | None = None) -> None:
        super().__init__()
        self.bert = BertModel(config)
        self.config = self.bert.config
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_labels)
        _initialize(self.classifier, self.config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the scores; arguments as of :meth:`BertModel.forward`."""
        return self.classifier(self.dropout(self.bert(input_ids, attention_mask, token_type_ids)[1]))  # type: ignore[no-any-return]


class _Transform(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = fusion.run((self.dense, _GELU), x) if on_gpu(x._array) else F.gelu(self.dense(x))
        return self.LayerNorm(x)  # type: ignore[no-any-return]


_GELU = nn.GELU()


class _Predictions(nn.Module):
    def __init__(self, config: BertConfig, words: nn.Parameter) -> None:
        super().__init__()
        self.transform = _Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        _initialize(self, config)
        self.decoder.weight = words
        self.decoder.bias = self.bias = nn.Parameter(zeros(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))  # type: ignore[no-any-return]


class _Heads(nn.Module):
    def __init__(self, config: BertConfig, words: nn.Parameter) -> None:
        super().__init__()
        self.predictions = _Predictions(config, words)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictions(x)  # type: ignore[no-any-return]


def _initialize(module: nn.Module, config: BertConfig) -> None:
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=config.initializer_range)
            assert m.bias is not None
            nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, std=config.initializer_range)
            if m.padding_idx is not None:
                m.weight.data[m.padding_idx].zero_()


def _modern_names(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Old files say gamma and beta, and hold the positions."""
    state_dict.pop(prefix + "embeddings.position_ids", None)
    for name in [n for n in state_dict if n.endswith(("LayerNorm.gamma", "LayerNorm.beta"))]:
        if not name.startswith(prefix):
            continue
        new = (
            name.removesuffix("gamma") + "weight"
            if name.endswith("gamma")
            else name.removesuffix("beta") + "bias"
        )
        state_dict[new] = state_dict.pop(name)


def _complete(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Add what is not written down beside its twin; drop the head that tells whether two texts follow each other."""
    _modern_names(module, state_dict, prefix)
    for name in [
        n for n in state_dict if n.startswith((prefix + "cls.seq_relationship", prefix + "bert.pooler"))
    ]:
        del state_dict[name]
    words, head = prefix + "bert.embeddings.word_embeddings.weight", prefix + "cls.predictions."
    if words in state_dict:
        state_dict.setdefault(head + "decoder.weight", state_dict[words])
    if head + "bias" in state_dict:
        state_dict.setdefault(head + "decoder.bias", state_dict[head + "bias"])
