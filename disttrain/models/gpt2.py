"""GPT-2 (Radford et al., "Language models are unsupervised multitask learners", 2019), by Hugging Face's names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from disttrain import nn
from disttrain.functions.creation import arange, empty, zeros
from disttrain.kernels.arrays import on_gpu
from disttrain.nn import functional as F
from disttrain.nn.fusion import add_norm, is_plain, perceptron
from disttrain.tensors import Tensor


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2, by default the small one of 124 million parameters; Hugging Face's names."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    """Width inside the MLP; by default four times ``n_embd``."""
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head, got {self.n_embd} and {self.n_head}")


class _Projection(nn.Module):
    """``x @ weight + bias``: a linear layer whose weight GPT-2 keeps as (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(empty(inputs, outputs))
        self.bias = nn.Parameter(zeros(outputs))
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class _Attention(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.heads = config.n_head
        self.dropout = config.attn_pdrop
        std = config.initializer_range
        self.c_attn = _Projection(config.n_embd, 3 * config.n_embd, std)
        self.c_proj = _Projection(config.n_embd, config.n_embd, std / math.sqrt(2 * config.n_layer))
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.c_attn(x).split(C, dim=2)
        )
        p = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.resid_dropout(self.c_proj(out.transpose(1, 2).reshape(B, T, C)))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        std = config.initializer_range
        self.c_fc = _Projection(config.n_embd, inner, std)
        self.c_proj = _Projection(inner, config.n_embd, std / math.sqrt(2 * config.n_layer))
        self.act = nn.GELU(approximate="tanh")
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        layers = self.c_fc, self.c_proj
        if (
            on_gpu(x._array)
            and is_plain(self.act, nn.GELU)
            and self.act.approximate == "tanh"
            and all(is_plain(layer, _Projection) for layer in layers)
        ):
            params = [p for layer in layers for p in (layer.weight.t(), layer.bias)]
            return self.dropout(perceptron(x, *params, activation="gelu_tanh"))  # type: ignore[no-any-return]
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = _Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x, normed = add_norm(self.ln_2, x, self.attn(self.ln_1(x)))
        return x + self.mlp(normed)  # type: ignore[no-any-return]


class GPT2Model(nn.Module):
    """The transformer without a head: tokens ``(B, T)`` to features ``(B, T, n_embd)``.

    Args:
        config: its shape.
    """

    def __init__(self, config: GPT2Config | None = None) -> None:
        super().__init__()
        self.config = config = config or GPT2Config()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        for embedding in (self.wte, self.wpe):
            nn.init.normal_(embedding.weight, std=config.initializer_range)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([_Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.register_load_state_dict_pre_hook(_drop_masks)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the features of tokens.

        Args:
            input_ids: int64, (B, T).

        Raises:
            ValueError: there are more tokens in a row than the model has positions.
        """
        T = input_ids.shape[-1]
        if self.config.n_positions < T:
            raise ValueError(f"{T} tokens in a row, but the model has {self.config.n_positions} positions")
        x = self.drop(self.wte(input_ids) + self.wpe(arange(T, device=input_ids.device)))
        for block in self.h:
            x = block(x)
        return self.ln_f(x)  # type: ignore[no-any-return]


class GPT2LMHeadModel(nn.Module):
    """GPT-2 as a language model: tokens ``(B, T)`` to scores of the next one, ``(B, T, vocab_size)``.

    The head's weight is that of the token embedding. Hugging Face's weights load, with the names of ``GPT2LMHeadModel``
    or of ``GPT2Model``.

    Args:
        config: its shape.
    """

    def __init__(self, config: GPT2Config | None = None) -> None:
        super().__init__()
        self.transformer = GPT2Model(config)
        self.config = self.transformer.config
        self.lm_head = nn.Linear(self.config.n_embd, self.config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.register_load_state_dict_pre_hook(_complete)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the scores of the token behind each; arguments as of :meth:`GPT2Model.forward`."""
        return self.lm_head(self.transformer(input_ids))  # type: ignore[no-any-return]


def _drop_masks(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Old files hold each layer's causal mask."""
    for name in [n for n in state_dict if n.startswith(prefix + "h.")]:
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            del state_dict[name]


def _complete(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take names of a model without a head, and a head that is not written down beside its twin."""
    inner = prefix + "transformer."
    if not any(name.startswith(inner) for name in state_dict):
        for name in [n for n in state_dict if n.startswith(prefix) and not n.startswith(prefix + "lm_head.")]:
            state_dict[inner + name.removeprefix(prefix)] = state_dict.pop(name)
    if inner + "wte.weight" in state_dict:
        state_dict.setdefault(prefix + "lm_head.weight", state_dict[inner + "wte.weight"])
