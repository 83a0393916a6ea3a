"""Attention of several heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain import missing
from disttrain.functions.creation import empty
from disttrain.nn import functional as F
from disttrain.nn import init
from disttrain.nn.linear import Linear
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.tensors import Tensor


class NonDynamicallyQuantizableLinear(Linear):
    """A :class:`~disttrain.nn.Linear` by the name that PyTorch gives to the output of its attention."""


class MultiheadAttention(Module):
    """Queries look at keys and get a mean of their values, in several heads (Vaswani et al. 2017).

    Args:
        embed_dim: features of queries and output.
        num_heads: a divisor of ``embed_dim``.
        dropout: probability of dropout on the weights, in training.
        bias: learn biases of the projections.
        add_bias_kv: learn one more key and value.
        add_zero_attn: add a key and a value of zeros.
        kdim: features of keys, ``embed_dim`` by default.
        vdim: features of values, ``embed_dim`` by default.
        batch_first: the batch is the first dimension of queries, keys, values and output.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.

    Raises:
        ValueError: sizes that are not positive, or ``num_heads`` that does not divide ``embed_dim``.
    """

    in_proj_weight: Parameter | None
    q_proj_weight: Parameter | None
    k_proj_weight: Parameter | None
    v_proj_weight: Parameter | None
    in_proj_bias: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(
                f"MultiheadAttention: embed_dim and num_heads must be positive, got {embed_dim} and {num_heads}"
            )
        if embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: embed_dim {embed_dim} is not a multiple of num_heads {num_heads}"
            )
        super().__init__()
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.head_dim = embed_dim // num_heads
        self.add_zero_attn = add_zero_attn

        def new(*shape: int) -> Parameter:
            return Parameter(empty(*shape, dtype=dtype, device=device))

        together = self._qkv_same_embed_dim
        for name, features in (("q", embed_dim), ("k", self.kdim), ("v", self.vdim)):
            self.register_parameter(f"{name}_proj_weight", None if together else new(embed_dim, features))
        self.register_parameter("in_proj_weight", new(3 * embed_dim, embed_dim) if together else None)
        self.register_parameter("in_proj_bias", new(3 * embed_dim) if bias else None)
        self.out_proj = NonDynamicallyQuantizableLinear(
            embed_dim, embed_dim, bias, device=device, dtype=dtype
        )
        self.register_parameter("bias_k", new(1, 1, embed_dim) if add_bias_kv else None)
        self.register_parameter("bias_v", new(1, 1, embed_dim) if add_bias_kv else None)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                init.xavier_uniform_(weight)
        if self.in_proj_bias is not None and self.out_proj.bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                init.xavier_normal_(extra)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the heads give and, if needed, the weights.

        Args:
            query: ``(L, N, E)``, ``(N, L, E)`` if ``batch_first``, or ``(L, E)``.
            key: ``(S, N, kdim)``, ``(N, S, kdim)`` or ``(S, kdim)``.
            value: ``(S, N, vdim)``, ``(N, S, vdim)`` or ``(S, vdim)``.
            key_padding_mask: ``(N, S)`` or ``(S,)``: keys to ignore (bool), or numbers to add to the scores.
            need_weights: return the weights; without them it is faster, and a query that sees no key gets zeros
                instead of nan.
            attn_mask: ``(L, S)`` or ``(N * num_heads, L, S)``: pairs to ignore, or numbers to add to the scores.
            average_attn_weights: return the mean of the heads' weights.
            is_causal: ``attn_mask``, which must be given too, is the causal mask.

        Returns:
            The output, in the form of ``query``, and the weights ``(N, L, S)``, ``(N, num_heads, L, S)`` or ``None``.

        Raises:
            RuntimeError: shapes, dtypes or options that do not fit.
        """
        swap = self.batch_first and query.ndim == 3
        if swap:
            swapped = {id(x): x.transpose(0, 1) if x.ndim == 3 else x for x in (query, key, value)}
            query, key, value = (swapped[id(x)] for x in (query, key, value))  # one tensor stays one
        out, weights = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            self.training,
            key_padding_mask,
            need_weights,
            attn_mask,
            not self._qkv_same_embed_dim,
            self.q_proj_weight,
            self.k_proj_weight,
            self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return out.transpose(0, 1) if swap else out, weights


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
