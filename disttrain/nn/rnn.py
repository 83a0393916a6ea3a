"""Recurrent layers."""

from __future__ import annotations

import functools
import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any

from disttrain import engine
from disttrain.functions.creation import empty
from disttrain.functions.index import index_select
from disttrain.functions.join import cat
from disttrain.modes import reads_values
from disttrain.nn import functional as F
from disttrain.nn import init
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.nn.utils.rnn import PackedSequence
from disttrain.ops import rnn as ops
from disttrain.ops import shape as shape_ops
from disttrain.ops.types import Op, get_array_module
from disttrain.precision import autocast_enabled, autocasts_as
from disttrain.tensors import Tensor

_OPS: dict[str, Op] = {"RNN_TANH": ops.rnn, "RNN_RELU": ops.rnn, "LSTM": ops.lstm, "GRU": ops.gru}
_LISTED = {"RNN_TANH": "rnn", "RNN_RELU": "rnn", "LSTM": "lstm", "GRU": "gru"}
"""Their names in the lists of autocast; those of single cells end with ``_cell``."""
_GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
"""By the nonlinearity of a plain RNN."""


class RNNBase(Module):
    """What :class:`RNN`, :class:`LSTM` and :class:`GRU` share.

    The parameters of layer k are ``weight_ih_lk``, ``weight_hh_lk``, ``bias_ih_lk``, ``bias_hh_lk`` and, with a
    projection, ``weight_hr_lk``; those of the backward direction end in ``_reverse``.
    """

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if mode not in _GATES:
            raise ValueError(f"RNNBase: mode is one of {', '.join(_GATES)}, got {mode}")
        _check_sizes(input_size, hidden_size, num_layers, proj_size, dropout)
        for name, flag in (("bias", bias), ("batch_first", batch_first), ("bidirectional", bidirectional)):
            if not isinstance(flag, bool):
                raise TypeError(f"{mode}: {name} is True or False, got {type(flag).__name__}")
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} has no effect with num_layers=1: it comes between the layers",
                stacklevel=3,
            )
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._all_weights: list[list[str]] = []
        rows, out = _GATES[mode] * hidden_size, proj_size or hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else out * (2 if bidirectional else 1)
            shapes = {"weight_ih": (rows, width), "weight_hh": (rows, out)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}  # type: ignore[dict-item]
            if proj_size:
                shapes["weight_hr"] = (proj_size, hidden_size)
            for end in ("", "_reverse") if bidirectional else ("",):
                names = {f"{kind}_l{layer}{end}": shape for kind, shape in shapes.items()}
                for name, shape in names.items():
                    setattr(self, name, Parameter(empty(*shape, dtype=dtype, device=device)))
                self._all_weights.append(list(names))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters again: evenly in ±1 / sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing: the layer needs no particular place for its weights."""

    @property
    def all_weights(self) -> list[list[Any]]:
        """The weights of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Any]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Check dtype and shape of the input ``(T, B, input_size)``, or packed ``(rows, input_size)``.

        Raises:
            ValueError: the input has another dtype than the weights.
            RuntimeError: another number of dimensions or features.
        """
        kind = getattr(self, self._all_weights[0][0]).dtype
        if input.dtype is not kind and not autocast_enabled():
            raise ValueError(
                f"{self._get_name()}: input is {input.dtype}, the weights are {kind}; convert one of them with .to()"
            )
        dims = 3 if batch_sizes is None else 2
        if input.ndim != dims:
            raise RuntimeError(f"{self._get_name()}: input must have {dims} dimensions, got {input.ndim}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{self._get_name()}: input must have {self.input_size} features (input_size), got {input.shape[-1]}"
            )

    def check_hidden_size(
        self,
        hx: Tensor,
        expected_hidden_size: tuple[int, ...],
        msg: str = "the hidden state must have shape {}, got {}",
    ) -> None:
        """Check the shape of a state.

        Raises:
            RuntimeError: it has another one than expected.
        """
        if tuple(hx.shape) != expected_hidden_size:
            raise RuntimeError(msg.format(expected_hidden_size, list(hx.shape)))

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Return the shape that the hidden state must have for this input."""
        if batch_sizes is not None:
            reads_values("a PackedSequence, at whose lengths the layer looks,")
            batch = int(batch_sizes._array[0])
        else:
            batch = input.shape[0 if self.batch_first else 1]
        return self.num_layers * (1 + self.bidirectional), batch, self.proj_size or self.hidden_size

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run the layers.

        Args:
            input: ``(T, B, input_size)``, ``(B, T, input_size)`` if ``batch_first``, ``(T, input_size)`` for one
                sequence, or a ``PackedSequence``.
            hx: the state to begin with, zeros by default: ``(layers * directions, B, hidden_size)``, without B for
                one sequence; for an LSTM a tuple of hidden state (``proj_size`` features if that is set) and cells.

        Returns:
            What the last layer gives at each step, in the form of ``input``, and the state after the last step.

        Raises:
            ValueError: the input has a wrong number of dimensions or another dtype than the weights.
            RuntimeError: sizes that do not fit.
        """
        cells = self.mode == "LSTM"
        packed = isinstance(input, PackedSequence)
        if packed:
            data, batch_sizes, order, back = input
            single = False
        else:
            if input.ndim not in (2, 3):
                raise ValueError(
                    f"{self._get_name()}: input has 3 dimensions, or 2 without a batch, got shape {tuple(input.shape)}"
                )
            single, batch_sizes, order, back = input.ndim == 2, None, None, None
            data = input.unsqueeze(0 if self.batch_first else 1) if single else input
        states = self._states(hx, single, packed)
        self.check_input(data, batch_sizes)
        expected = self.get_expected_hidden_size(data, batch_sizes)
        shapes = [expected, (*expected[:2], self.hidden_size)] if cells else [expected]
        if states is None:  # the same zeros for all layers: nothing writes to them
            xp, kind = get_array_module(data._array), data._array.dtype
            nothing = [Tensor._of(xp.zeros(shape[1:], kind)) for shape in shapes]
            of_layers = [nothing] * expected[0]
        else:
            for k, (state, shape) in enumerate(zip(states, shapes, strict=True)):
                what = f"hidden[{k}]" if cells else "hidden"
                self.check_hidden_size(
                    state, shape, f"{self._get_name()}: {what} must have shape {{}}, got {{}}"
                )
                if state.dtype is not data.dtype and not autocast_enabled():
                    raise RuntimeError(
                        f"{self._get_name()}: {what} must have the dtype of input, {data.dtype}, got {state.dtype}"
                    )
            if order is not None:
                states = [index_select(s, 1, order) for s in states]
            of_layers = [[s[k] for s in states] for k in range(expected[0])]
        if packed:
            rows, sizes = data, tuple(batch_sizes.tolist())
        else:
            data = data.transpose(0, 1) if self.batch_first else data
            steps, batch, _ = data.shape
            if not steps:
                raise RuntimeError(
                    f"{self._get_name()}: the sequences have no steps, got shape {tuple(input.shape)}"
                )
            rows, sizes = data.reshape(steps * batch, self.input_size), (batch,) * steps
        rows, last = self._layers(rows, of_layers, sizes)
        if back is not None:
            last = [index_select(s, 1, back) for s in last]
        if packed:
            return PackedSequence(rows, batch_sizes, order, back), tuple(last) if cells else last[0]
        out = rows.reshape(steps, batch, rows.shape[1])
        out = out.transpose(0, 1) if self.batch_first else out
        if single:
            out = out.squeeze(0 if self.batch_first else 1)
            last = [s.squeeze(1) for s in last]
        return out, tuple(last) if cells else last[0]

    def _states(self, hx: Any, single: bool, packed: bool) -> list[Tensor] | None:
        """Return the states that the user gave, each with a batch dimension."""
        if hx is None:
            return None
        states = [hx]
        if self.mode == "LSTM":
            if not isinstance(hx, tuple | list | Tensor) or len(hx) != 2:
                raise RuntimeError(
                    f"LSTM: hx must be a tuple of hidden state and cells, got {type(hx).__name__}"
                )
            states = [hx[0], hx[1]]
        dims = 2 if single else 3
        if not packed and any(s.ndim != dims for s in states):
            got = " and ".join(str(s.ndim) for s in states)
            raise RuntimeError(
                f"{self._get_name()}: a state must have {dims} dimensions like input, got {got}"
            )
        return [s.unsqueeze(1) for s in states] if single else states

    def _layers(
        self, rows: Tensor, states: list[list[Tensor]], sizes: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the rows that the last layer gives, and the last states of all layers, given the first of each."""
        last: list[list[Tensor]] = [[] for _ in states[0]]
        directions = 1 + self.bidirectional
        for layer in range(self.num_layers):
            outs = []
            for direction in range(directions):
                k = layer * directions + direction
                out, *ends = runner(self.mode, "")(
                    rows,
                    *states[k],
                    *self._weights(k),
                    batch_sizes=sizes,
                    **options_of(self.mode, direction),
                )
                outs.append(out)
                for ends_so_far, end in zip(last, ends, strict=True):
                    ends_so_far.append(end)
            rows = outs[0] if directions == 1 else cat(outs, 1)
            if self.dropout and layer < self.num_layers - 1:
                rows = F.dropout(rows, self.dropout, self.training)
        return rows, [engine.apply(shape_ops.stack, *ends, axis=0) for ends in last]

    def _weights(self, k: int) -> list[Any]:
        """Return the arguments of the op for one layer and direction."""
        own = self._parameters
        weights = [own[name] if name in own else getattr(self, name) for name in self._all_weights[k]]
        return weights if self.bias else [*weights[:2], None, None, *weights[2:]]

    def extra_repr(self) -> str:
        words = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
        }
        words += [f"{n}={getattr(self, n)}" for n, default in defaults.items() if getattr(self, n) != default]
        return ", ".join(words)


@functools.cache
def runner(mode: str, ending: str) -> Callable[..., tuple[Tensor, ...]]:
    """Return the op as a function of Tensors, of a layer or (``ending`` is ``"_cell"``) of one step."""

    @autocasts_as(_LISTED[mode] + ending)
    def run(*tensors: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
        kinds = {t._array.dtype for t in tensors if t is not None}
        if len(kinds) > 1:
            raise RuntimeError(
                f"{_LISTED[mode]}{ending}: input, states and weights must have one dtype, and autocast does not make "
                f"one of {', '.join(sorted({str(t.dtype) for t in tensors if t is not None}))}; convert them with .to()"
            )
        return engine.apply(_OPS[mode], *tensors, **options)  # type: ignore[no-any-return]

    return run


def options_of(mode: str, direction: int) -> dict[str, Any]:
    """Return the options of the op of a layer in a direction, 1 for backward."""
    options: dict[str, Any] = {"reverse": bool(direction)}
    return options | {"relu": mode == "RNN_RELU"} if mode.startswith("RNN") else options


def _check_sizes(input_size: int, hidden_size: int, num_layers: int, proj_size: int, dropout: Any) -> None:
    if isinstance(dropout, bool) or not isinstance(dropout, numbers.Number | str):
        raise ValueError(f"dropout is a probability, a number in [0, 1], got {dropout!r}")
    if not 0 <= float(dropout) <= 1:  # type: ignore[arg-type]
        raise ValueError(f"dropout is a probability, a number in [0, 1], got {dropout}")
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if proj_size < 0:
        raise ValueError(f"proj_size must be positive, or 0 for no projection, got {proj_size}")
    if proj_size >= hidden_size:
        raise ValueError(f"proj_size {proj_size} must be less than hidden_size {hidden_size}")


def _without_projection(proj_size: int) -> None:
    if proj_size:
        raise ValueError(f"proj_size is for LSTM only; RNN and GRU have no projection, got {proj_size}")


class RNN(RNNBase):
    """Elman's network: ``h = tanh(x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh)`` at each step.

    Args:
        input_size: features of the input.
        hidden_size: features of the hidden state.
        num_layers: layers on top of one another.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bias: learn biases.
        batch_first: the batch is the first dimension of input and output; never of the states.
        dropout: probability of :func:`~disttrain.nn.functional.dropout` after each layer but the last.
        bidirectional: a second network reads each sequence from its end; the features of both are joined.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
        proj_size: only an LSTM can have it.

    Raises:
        ValueError: a size that is not positive, an unknown nonlinearity, a dropout that is no probability.
        TypeError: a size that is no integer, or a flag that is no bool.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int = 0,
    ) -> None:
        _without_projection(proj_size)
        if nonlinearity not in MODES:
            raise ValueError(f"RNN: nonlinearity is 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(
            MODES[nonlinearity],
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    """Long short-term memory (Hochreiter and Schmidhuber 1997).

    Args:
        input_size: features of the input.
        hidden_size: features of the cells, and of the hidden state without projection.
        num_layers: layers on top of one another.
        bias: learn biases.
        batch_first: the batch is the first dimension of input and output; never of the states.
        dropout: probability of :func:`~disttrain.nn.functional.dropout` after each layer but the last.
        bidirectional: a second network reads each sequence from its end; the features of both are joined.
        proj_size: project the hidden state to so many features (Sak et al. 2014); 0 for no projection.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.

    Raises:
        ValueError: a size that is not positive, a projection not smaller than ``hidden_size``, a dropout that is no
            probability.
        TypeError: a size that is no integer, or a flag that is no bool.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )


class GRU(RNNBase):
    """Gated recurrent units (Cho et al. 2014), whose reset gate acts on the product with ``weight_hh``.

    Args:
        input_size: features of the input.
        hidden_size: features of the hidden state.
        num_layers: layers on top of one another.
        bias: learn biases.
        batch_first: the batch is the first dimension of input and output; never of the states.
        dropout: probability of :func:`~disttrain.nn.functional.dropout` after each layer but the last.
        bidirectional: a second network reads each sequence from its end; the features of both are joined.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
        proj_size: only an LSTM can have it.

    Raises:
        ValueError: a size that is not positive, a dropout that is no probability.
        TypeError: a size that is no integer, or a flag that is no bool.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int = 0,
    ) -> None:
        _without_projection(proj_size)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
