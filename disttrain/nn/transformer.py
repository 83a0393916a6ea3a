"""Transformers (Vaswani et al. 2017)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from disttrain import context, dtypes
from disttrain.functions.activation import gelu, relu
from disttrain.kernels.arrays import on_gpu
from disttrain.nn import fusion, init
from disttrain.nn.activation import GELU, ReLU
from disttrain.nn.attention import MultiheadAttention
from disttrain.nn.container import ModuleList
from disttrain.nn.dropout import Dropout
from disttrain.nn.linear import Linear
from disttrain.nn.module import Module
from disttrain.nn.normalization import LayerNorm
from disttrain.tensors import Tensor

Activation = str | Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu}


class TransformerEncoderLayer(Module):
    """Self-attention and two linear layers, each around a residual connection and a :class:`LayerNorm`.

    Args:
        d_model: features of input and output.
        nhead: heads of attention, a divisor of ``d_model``.
        dim_feedforward: features between the two linear layers.
        dropout: probability of each dropout.
        activation: between the linear layers: ``"relu"``, ``"gelu"``, or a function of one tensor.
        layer_norm_eps: added to variances.
        batch_first: tensors are ``(batch, length, features)`` instead of ``(length, batch, features)``.
        norm_first: normalise before attention and linear layers instead of after the sums.
        bias: learn biases of linear layers and normalisations.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.

    Raises:
        RuntimeError: an ``activation`` of another name.
        ValueError: ``nhead`` does not divide ``d_model``.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, **place)
        self.linear1 = Linear(d_model, dim_feedforward, bias, **place)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, **place)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.activation = _activation(activation)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return ``(S, N, E)`` for ``(S, N, E)`` (``(N, S, E)`` if ``batch_first``, or ``(S, E)``).

        Args:
            src: the input.
            src_mask: ``(S, S)`` or ``(N * nhead, S, S)``: pairs to ignore (bool), or numbers to add to the scores.
            src_key_padding_mask: ``(N, S)``: keys to ignore, or numbers to add.
            is_causal: ``src_mask``, which must be given too, is the causal mask.

        Raises:
            RuntimeError: shapes, dtypes or options that do not fit.
        """
        if self.norm_first:
            attended = self._attend(self.norm1(src), src_mask, src_key_padding_mask, is_causal)
            x, normed = fusion.add_norm(self.norm2, src, attended)
            return x + self._feed(normed)
        _, x = fusion.add_norm(self.norm1, src, self._attend(src, src_mask, src_key_padding_mask, is_causal))
        return fusion.add_norm(self.norm2, x, self._feed(x))[1]

    def _attend(self, x: Tensor, mask: Tensor | None, padding: Tensor | None, causal: bool) -> Tensor:
        out = self.self_attn(
            x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False, is_causal=causal
        )
        return self.dropout1(out[0])  # type: ignore[no-any-return]

    def _feed(self, x: Tensor) -> Tensor:
        return self.dropout2(_feed(self, x))  # type: ignore[no-any-return]


class TransformerDecoderLayer(Module):
    """Self-attention, attention to an encoder's output and two linear layers, each with a sum and a LayerNorm.

    The arguments and errors are those of :class:`TransformerEncoderLayer`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, **place)
        self.multihead_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, **place
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias, **place)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, **place)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.norm3 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.dropout3 = Dropout(dropout)
        self.activation = _activation(activation)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return ``(T, N, E)`` for ``tgt`` ``(T, N, E)`` and ``memory`` ``(S, N, E)`` (N first if ``batch_first``).

        Args:
            tgt: the input.
            memory: what the encoder gave.
            tgt_mask: ``(T, T)`` or ``(N * nhead, T, T)``: pairs to ignore (bool), or numbers to add to the scores.
            memory_mask: ``(T, S)`` or ``(N * nhead, T, S)``, likewise.
            tgt_key_padding_mask: ``(N, T)``: keys to ignore, or numbers to add.
            memory_key_padding_mask: ``(N, S)``, likewise.
            tgt_is_causal: ``tgt_mask``, which must be given too, is the causal mask.
            memory_is_causal: likewise for ``memory_mask``.

        Raises:
            RuntimeError: shapes, dtypes or options that do not fit.
        """
        own = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        other = (memory_mask, memory_key_padding_mask, memory_is_causal)
        if self.norm_first:
            normed = self.norm1(tgt)
            attended = self.dropout1(self._attend(self.self_attn, normed, normed, *own))
            x, normed = fusion.add_norm(self.norm2, tgt, attended)
            attended = self.dropout2(self._attend(self.multihead_attn, normed, memory, *other))
            x, normed = fusion.add_norm(self.norm3, x, attended)
            return x + self._feed(normed)
        attended = self.dropout1(self._attend(self.self_attn, tgt, tgt, *own))
        _, x = fusion.add_norm(self.norm1, tgt, attended)
        attended = self.dropout2(self._attend(self.multihead_attn, x, memory, *other))
        _, x = fusion.add_norm(self.norm2, x, attended)
        return fusion.add_norm(self.norm3, x, self._feed(x))[1]

    @staticmethod
    def _attend(
        attention: Module, x: Tensor, to: Tensor, mask: Tensor | None, padding: Tensor | None, causal: bool
    ) -> Tensor:
        out: tuple[Tensor, None] = attention(
            x, to, to, attn_mask=mask, key_padding_mask=padding, need_weights=False, is_causal=causal
        )
        return out[0]

    def _feed(self, x: Tensor) -> Tensor:
        return self.dropout3(_feed(self, x))  # type: ignore[no-any-return]


class TransformerEncoder(Module):
    """A stack of copies of one encoder layer.

    Args:
        encoder_layer: the layer to copy.
        num_layers: how many copies.
        norm: what the last output goes through, or ``None``.
        enable_nested_tensor: without meaning here: nothing is left out for padded positions.
        mask_check: likewise.
    """

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__()
        self.layers = _copies(encoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm
        self.enable_nested_tensor = enable_nested_tensor
        self.mask_check = mask_check

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Return ``(S, N, E)`` for ``(S, N, E)`` (``(N, S, E)`` if the layers are ``batch_first``, or ``(S, E)``).

        Args:
            src: the input.
            mask: ``(S, S)`` or ``(N * nhead, S, S)``: pairs to ignore (bool), or numbers to add to the scores.
            src_key_padding_mask: ``(N, S)``: keys to ignore, or numbers to add.
            is_causal: whether ``mask`` is the causal mask; found out if ``None``.

        Raises:
            RuntimeError: shapes, dtypes or options that do not fit.
        """
        causal = _is_causal(mask) if is_causal is None else is_causal
        x = src
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=causal, src_key_padding_mask=src_key_padding_mask)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(Module):
    """A stack of copies of one decoder layer.

    Args:
        decoder_layer: the layer to copy.
        num_layers: how many copies.
        norm: what the last output goes through, or ``None``.
    """

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        self.layers = _copies(decoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Run the layers; arguments, result and errors are those of :class:`TransformerDecoderLayer`.

        ``tgt_is_causal=None`` finds out whether ``tgt_mask`` is the causal mask.
        """
        causal = _is_causal(tgt_mask) if tgt_is_causal is None else tgt_is_causal
        x = tgt
        for layer in self.layers:
            x = layer(
                x,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=causal,
                memory_is_causal=memory_is_causal,
            )
        return x if self.norm is None else self.norm(x)


class Transformer(Module):
    """An encoder and a decoder that looks at what the encoder gives.

    Args:
        d_model: features of input and output.
        nhead: heads of attention, a divisor of ``d_model``.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        dim_feedforward: features between the two linear layers of each layer.
        dropout: probability of each dropout.
        activation: between the linear layers: ``"relu"``, ``"gelu"``, or a function of one tensor.
        custom_encoder: use it instead.
        custom_decoder: use it instead.
        layer_norm_eps: added to variances.
        batch_first: tensors are ``(batch, length, features)`` instead of ``(length, batch, features)``.
        norm_first: normalise before attention and linear layers instead of after the sums.
        bias: learn biases of linear layers and normalisations.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.

    Raises:
        RuntimeError: an ``activation`` of another name.
        ValueError: ``nhead`` does not divide ``d_model``.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = relu,
        custom_encoder: Any | None = None,
        custom_decoder: Any | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        each = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first)

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, **place)

        if custom_encoder is None:
            encoder_layer = TransformerEncoderLayer(*each, bias=bias, **place)
            custom_encoder = TransformerEncoder(encoder_layer, num_encoder_layers, norm())
        self.encoder = custom_encoder
        if custom_decoder is None:
            decoder_layer = TransformerDecoderLayer(*each, bias=bias, **place)
            custom_decoder = TransformerDecoder(decoder_layer, num_decoder_layers, norm())
        self.decoder = custom_decoder
        self._reset_parameters()
        self.d_model = d_model
        self.nhead = nhead
        self.batch_first = batch_first

    def _reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.ndim > 1:
                init.xavier_uniform_(parameter)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return ``(T, N, E)`` for ``src`` ``(S, N, E)`` and ``tgt`` ``(T, N, E)`` (N first if ``batch_first``).

        Without a batch both lack N. The masks are those of :class:`TransformerEncoder` and
        :class:`TransformerDecoder`.

        Raises:
            RuntimeError: batches of different size, features that are not ``d_model``, masks that do not fit.
        """
        batch = 0 if self.batch_first else 1
        if src.ndim != tgt.ndim or (src.ndim == 3 and src.shape[batch] != tgt.shape[batch]):
            raise RuntimeError(
                f"Transformer: src and tgt must be batches of one size, got shapes {list(src.shape)} and "
                f"{list(tgt.shape)}"
            )
        if src.shape[-1] != self.d_model or tgt.shape[-1] != self.d_model:
            raise RuntimeError(
                f"Transformer: src and tgt must have {self.d_model} features (d_model), got "
                f"{src.shape[-1]} and {tgt.shape[-1]}"
            )
        memory = self.encoder(
            src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
        )
        return self.decoder(  # type: ignore[no-any-return]
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Tensor:
        """Return the causal mask ``(sz, sz)``: minus infinity above the diagonal, 0 elsewhere."""
        kind = context.current().default_dtype if dtype is None else dtypes.as_dtype(dtype)
        mask = np.triu(np.full((sz, sz), -math.inf, np.float64), 1).astype(kind.numpy)
        return Tensor._of(mask) if device is None else Tensor._of(mask).to(device)


_MODULES: dict[Callable[[Tensor], Tensor], Module] = {relu: ReLU(), gelu: GELU()}


def _feed(layer: TransformerEncoderLayer | TransformerDecoderLayer, x: Tensor) -> Tensor:
    """Return what the two linear layers make of ``x``; on a GPU as one operation, if it can be."""
    if layer.activation in _MODULES and on_gpu(x._array):
        drops = layer.dropout.training and layer.dropout.p
        between = (layer.dropout,) if drops else ()
        return fusion.run((layer.linear1, _MODULES[layer.activation], *between, layer.linear2), x)
    return layer.linear2(layer.dropout(layer.activation(layer.linear1(x))))  # type: ignore[no-any-return]


def _activation(activation: Activation) -> Callable[[Tensor], Tensor]:
    if not isinstance(activation, str):
        return activation
    if activation not in _ACTIVATIONS:
        raise RuntimeError(f"activation is 'relu', 'gelu' or a function, got {activation!r}")
    return _ACTIVATIONS[activation]


def _copies(layer: Module, count: int) -> ModuleList:
    return ModuleList([copy.deepcopy(layer) for _ in range(count)])


def _is_causal(mask: Tensor | None) -> bool:
    """Return whether a mask of numbers is the causal one, so that half of the scores need not be computed."""
    if mask is None or mask.ndim != 2 or mask.shape[0] != mask.shape[1] or not mask.is_floating_point():
        return False
    causal = Transformer.generate_square_subsequent_mask(mask.shape[0], dtype=mask.dtype)
    return np.array_equal(mask._array, causal._array)
