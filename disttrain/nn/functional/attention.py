"""Attention, with PyTorch's names and defaults."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from disttrain import engine, random
from disttrain.functions.activation import softmax
from disttrain.functions.creation import zeros, zeros_like
from disttrain.functions.join import cat
from disttrain.nn.functional.dropout import dropout
from disttrain.nn.functional.linear import linear
from disttrain.nn.functional.padding import pad
from disttrain.ops import attention as ops
from disttrain.precision import autocasts
from disttrain.tensors import Tensor


@autocasts
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(scale * query @ key.T + attn_mask) @ value`` (Vaswani et al. 2017).

    Args:
        query: ``(*, L, E)``.
        key: ``(*, S, E)``; leading dimensions are broadcast.
        value: ``(*, S, F)``.
        attn_mask: booleans, which key a query sees, or numbers to add to the scores (float32, or of the dtype of
            ``query``); broadcast to ``(*, L, S)``. A query that sees no key gets zeros.
        dropout_p: probability that dropout drops a key for a query; also outside of training.
        is_causal: query i sees the keys 0 to i only.
        scale: factor of the scores, ``1 / sqrt(E)`` by default.
        enable_gqa: each head of ``key`` and ``value`` (dimension -3) serves as many heads of ``query``, one after the
            other.

    Returns:
        ``(*, L, F)``.

    Raises:
        RuntimeError: dtypes or shapes that do not fit, or a ``dropout_p`` outside of [0, 1].
        TypeError: something is no Tensor.
    """
    name = "scaled_dot_product_attention"
    for what, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: {what} must be a Tensor, got {type(x).__name__}")
        if x.ndim < 2:
            raise RuntimeError(
                f"{name}: expected query, key and value of at least 2 dimensions, got {what} of shape {list(x.shape)}"
            )
        if not x.is_floating_point() or x.dtype is not query.dtype:
            raise RuntimeError(
                f"{name}: expected query, key and value of one floating point dtype, got {query.dtype}, {key.dtype} "
                f"and {value.dtype}"
            )
    if not 0 <= dropout_p <= 1:
        raise RuntimeError(f"{name}: dropout_p is a probability, in [0, 1], got {dropout_p}")
    if enable_gqa:
        key, value = _repeat_heads(query, key), _repeat_heads(query, value)
    E, S = query.shape[-1], key.shape[-2]
    if key.shape[-1] != E or value.shape[-2] != S:
        raise RuntimeError(
            f"{name}: expected query (*, L, E), key (*, S, E) and value (*, S, F), got {list(query.shape)}, "
            f"{list(key.shape)} and {list(value.shape)}"
        )
    query, key, value = _alike(name, query, key, value)
    if attn_mask is not None:
        _check_mask(name, attn_mask, query, (*query.shape[:-1], S))
    if scale is None:
        scale = 1 / math.sqrt(E) if E else 1.0
    keep = None
    if dropout_p:
        keep = random.kept((*query.shape[:-1], S), dropout_p, query.device)
    return engine.apply(  # type: ignore[no-any-return]
        ops.attention, query, key, value, attn_mask, keep, scale=scale, causal=bool(is_causal), p=dropout_p
    )


def _repeat_heads(query: Tensor, x: Tensor) -> Tensor:
    """Return ``x`` with each head repeated until there are as many as ``query`` has."""
    if query.ndim < 3 or x.ndim < 3:
        raise RuntimeError("scaled_dot_product_attention: enable_gqa needs heads, in dimension -3")
    heads, own = query.shape[-3], x.shape[-3]
    if heads == own:
        return x
    if not own or heads % own:
        raise RuntimeError(
            f"scaled_dot_product_attention: heads of key and value must divide those of query, got {own} and {heads}"
        )
    wide = x.unsqueeze(-3).expand(*x.shape[:-2], heads // own, *x.shape[-2:])
    return wide.reshape(*x.shape[:-3], heads, *x.shape[-2:])


def _alike(name: str, *tensors: Tensor) -> list[Tensor]:
    """Return the tensors with their leading dimensions broadcast."""
    leads = [tuple(t.shape[:-2]) for t in tensors]
    if len(set(leads)) == 1:
        return list(tensors)
    try:
        lead = np.broadcast_shapes(*leads)
    except ValueError:
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise RuntimeError(f"{name}: the leading dimensions of {shapes} cannot be broadcast") from None
    return [t.expand(*lead, *t.shape[-2:]) for t in tensors]


def _check_mask(name: str, mask: Any, query: Tensor, size: tuple[int, ...]) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: attn_mask must be a Tensor, got {type(mask).__name__}")
    if mask.dtype.name not in ("bool", "float32") and mask.dtype is not query.dtype:
        raise RuntimeError(
            f"{name}: expected attn_mask of dtype bool, float32 or that of query, {query.dtype}, got {mask.dtype}"
        )
    shape = tuple(mask.shape)
    fits = 2 <= len(shape) <= len(size) and all(
        n in (1, m) for n, m in zip(shape[::-1], size[::-1], strict=False)
    )
    if not fits:
        raise RuntimeError(
            f"{name}: attn_mask must have a shape that can be broadcast to {list(size)}, at least (L, S), got "
            f"{list(shape)}"
        )


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Project queries, keys and values, let each head attend, and project what they give (Vaswani et al. 2017).

    Args:
        query: ``(L, N, E)``, or ``(L, E)`` without a batch.
        key: ``(S, N, E)``, or ``(S, E)``; other features with ``use_separate_proj_weight``.
        value: like ``key``.
        embed_dim_to_check: E.
        num_heads: a divisor of E.
        in_proj_weight: ``(3E, E)``: of queries, keys, values.
        in_proj_bias: ``(3E,)`` or ``None``.
        bias_k: one more key for all, ``(1, 1, E)``, or ``None``.
        bias_v: its value, likewise.
        add_zero_attn: add a key and a value of zeros.
        dropout_p: probability of dropout on the weights, in training.
        out_proj_weight: ``(E, E)``.
        out_proj_bias: ``(E,)`` or ``None``.
        training: whether to drop.
        key_padding_mask: ``(N, S)``, ``(S,)`` without a batch: keys to ignore (bool), or numbers to add to the scores.
        need_weights: also return the weights. Without them a query that sees no key gets zeros instead of nan, less
            memory is used and it is faster.
        attn_mask: ``(L, S)`` or ``(N * num_heads, L, S)``: pairs to ignore (bool), or numbers to add to the scores.
        use_separate_proj_weight: take the next three instead of ``in_proj_weight``.
        q_proj_weight: ``(E, E)``.
        k_proj_weight: ``(E, features of key)``.
        v_proj_weight: ``(E, features of value)``.
        static_k: ``(N * num_heads, S, E / num_heads)``: take it for the projected keys.
        static_v: likewise, for the projected values.
        average_attn_weights: return the mean of the heads' weights.
        is_causal: say that ``attn_mask`` is the causal one.

    Returns:
        ``(L, N, E)``, and the weights: ``(N, L, S)``, ``(N, num_heads, L, S)`` unless averaged, or ``None``.

    Raises:
        RuntimeError: shapes, dtypes or options that do not fit.
    """
    single = _check_dims(query, key, value, key_padding_mask, attn_mask, num_heads)
    if single:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    L, N, E = query.shape
    if embed_dim_to_check != E:
        raise RuntimeError(f"attention: query must have {embed_dim_to_check} features, got {E}")
    if num_heads < 1 or E % num_heads:
        raise RuntimeError(f"attention: embed_dim {E} is not a multiple of num_heads {num_heads}")
    features = 2 if use_separate_proj_weight else 3
    if key.shape[:features] != value.shape[:features] or key.shape[1] != N:
        raise RuntimeError(
            f"key and value must fit together and to the query, got query {list(query.shape)}, key "
            f"{list(key.shape)}, value {list(value.shape)}"
        )
    if is_causal and attn_mask is None:
        raise RuntimeError(
            "attention: is_causal=True says that attn_mask is the causal one, so give it too; "
            "nn.Transformer.generate_square_subsequent_mask(size) makes one"
        )
    if is_causal and key_padding_mask is None and not need_weights:
        attn_mask = None
    else:
        is_causal = False
    padding = _additive("key_padding_mask", key_padding_mask, query)
    mask = _additive("attn_mask", attn_mask, query)
    H, D = num_heads, E // num_heads
    if mask is not None:
        mask = _to_heads(mask, L, key.shape[0], N, H)

    q, k, v = _project(
        query,
        key,
        value,
        in_proj_weight,
        in_proj_bias,
        (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None,
    )
    if (bias_k is None) != (bias_v is None):
        raise RuntimeError("bias_k and bias_v must be given together")
    if bias_k is not None and bias_v is not None:
        if static_k is not None or static_v is not None:
            raise RuntimeError("bias_k and bias_v cannot be added to static_k and static_v")
        k = cat([k, bias_k.expand(1, N, E)])
        v = cat([v, bias_v.expand(1, N, E)])
        mask, padding = _one_more(mask), _one_more(padding)

    def heads(x: Tensor) -> Tensor:
        """Return ``(length, N, E)`` as ``(N, H, length, D)``."""
        return x.reshape(x.shape[0], N, H, D).permute(1, 2, 0, 3)

    q = heads(q)
    k = heads(k) if static_k is None else _static("static_k", static_k, N, H, D)
    v = heads(v) if static_v is None else _static("static_v", static_v, N, H, D)
    if add_zero_attn:
        zero = zeros(N, H, 1, D, dtype=k.dtype, device=k.device)
        k, v = cat([k, zero], 2), cat([v, zero], 2)
        mask, padding = _one_more(mask), _one_more(padding)
    S = k.shape[2]
    if padding is not None:
        if tuple(padding.shape) != (N, S):
            raise RuntimeError(f"key_padding_mask must have shape {[N, S]}, got {list(padding.shape)}")
        padding = padding.reshape(N, 1, 1, S)
        mask = padding if mask is None else mask + padding

    p = dropout_p if training else 0.0
    weights = None
    if need_weights:
        scores = (q * math.sqrt(1 / D)) @ k.transpose(-2, -1)
        weights = softmax(scores if mask is None else scores + mask.to(scores.dtype), -1)
        if p:
            weights = dropout(weights, p)
        out = weights @ v
    else:
        out = scaled_dot_product_attention(q, k, v, mask, p, is_causal)
    out = linear(out.permute(2, 0, 1, 3).reshape(L, N, E), out_proj_weight, out_proj_bias)
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if single:
        out = out.squeeze(1)
        weights = None if weights is None else weights.squeeze(0)
    return out, weights


def _check_dims(
    query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, mask: Tensor | None, heads: int
) -> bool:
    """Return whether the arguments have no batch dimension."""
    if query.ndim not in (2, 3):
        raise RuntimeError(f"attention: query is (L, N, E) or (L, E), got shape {list(query.shape)}")
    single = query.ndim == 2
    kind = "an unbatched" if single else "a batched"
    if key.ndim != query.ndim or value.ndim != query.ndim:
        raise RuntimeError(
            f"attention: key and value must have {query.ndim} dimensions like {kind} query, got {key.ndim} and "
            f"{value.ndim}"
        )
    if padding is not None and padding.ndim != query.ndim - 1:
        raise RuntimeError(
            f"attention: key_padding_mask must have {query.ndim - 1} dimensions with {kind} query, got {padding.ndim}"
        )
    if mask is not None and mask.ndim not in (2, 3):
        raise RuntimeError(
            f"attention: attn_mask is (L, S) or (N * num_heads, L, S), got shape {list(mask.shape)}"
        )
    if single and mask is not None and mask.ndim == 3 and mask.shape[0] != heads:
        raise RuntimeError(
            f"attention: attn_mask must have shape {[heads, query.shape[0], key.shape[0]]}, got {list(mask.shape)}"
        )
    return single


def _additive(name: str, mask: Tensor | None, query: Tensor) -> Tensor | None:
    """Return a mask as numbers to add: minus infinity where a boolean one says to ignore."""
    if mask is None:
        return None
    if mask.dtype.name == "bool":
        return zeros_like(mask, dtype=query.dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise RuntimeError(f"attention: {name} holds booleans or floating point numbers, got {mask.dtype}")
    return mask


def _to_heads(mask: Tensor, L: int, S: int, N: int, H: int) -> Tensor:
    """Return the mask ``(L, S)`` or ``(N * H, L, S)`` in four dimensions."""
    expected = (L, S) if mask.ndim == 2 else (N * H, L, S)
    if tuple(mask.shape) != expected:
        raise RuntimeError(f"attention: attn_mask must have shape {list(expected)}, got {list(mask.shape)}")
    return mask.reshape(1, 1, L, S) if mask.ndim == 2 else mask.reshape(N, H, L, S)


def _one_more(mask: Tensor | None) -> Tensor | None:
    """Return the mask with one more key, that all see."""
    return None if mask is None else pad(mask, (0, 1))


def _project(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    separate: tuple[Tensor | None, Tensor | None, Tensor | None] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    E = query.shape[-1]
    if bias is not None and tuple(bias.shape) != (3 * E,):
        raise RuntimeError(f"attention: in_proj_bias must have shape {[3 * E]}, got {list(bias.shape)}")
    if separate is not None:
        wq, wk, wv = separate
        if wq is None or wk is None or wv is None:
            raise RuntimeError(
                "attention: use_separate_proj_weight=True needs q_proj_weight, k_proj_weight and v_proj_weight"
            )
        for word, w, x in (("q", wq, query), ("k", wk, key), ("v", wv, value)):
            if tuple(w.shape) != (E, x.shape[-1]):
                raise RuntimeError(
                    f"attention: {word}_proj_weight must have shape {[E, x.shape[-1]]}, got {list(w.shape)}"
                )
    else:
        if weight is None:
            raise RuntimeError("attention: in_proj_weight is needed, unless use_separate_proj_weight=True")
        if tuple(weight.shape) != (3 * E, E) or key.shape[-1] != E:
            raise RuntimeError(
                f"attention: in_proj_weight must have shape {[3 * E, E]} and keys {E} features, got "
                f"{list(weight.shape)} and {key.shape[-1]}"
            )
        if query is key and key is value:  # one product instead of three
            q, k, v = linear(query, weight, bias).chunk(3, -1)
            return q, k, v
        wq, wk, wv = weight.chunk(3)
    bq, bk, bv = (None if bias is None else bias[i * E : (i + 1) * E] for i in range(3))
    return linear(query, wq, bq), linear(key, wk, bk), linear(value, wv, bv)


def _static(name: str, x: Tensor, N: int, H: int, D: int) -> Tensor:
    if x.ndim != 3 or x.shape[0] != N * H or x.shape[2] != D:
        raise RuntimeError(f"expecting {name} of shape {[N * H, 'S', D]}, but got {list(x.shape)}")
    return x.reshape(N, H, x.shape[1], D)
