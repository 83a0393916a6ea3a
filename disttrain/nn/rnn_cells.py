"""Recurrent cells: one step of a recurrent layer."""

from __future__ import annotations

import math
from typing import Any

from disttrain.functions.creation import empty, zeros
from disttrain.nn import init
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.nn.rnn import MODES, options_of, runner
from disttrain.precision import autocast_enabled
from disttrain.tensors import Tensor


class RNNCellBase(Module):
    """What :class:`RNNCell`, :class:`LSTMCell` and :class:`GRUCell` share: weights and checks."""

    weight_ih: Parameter
    weight_hh: Parameter
    bias_ih: Parameter | None
    bias_hh: Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        num_chunks: int,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = num_chunks * hidden_size

        def new(*shape: int) -> Parameter:
            return Parameter(empty(*shape, dtype=dtype, device=device))

        self.weight_ih = new(rows, input_size)
        self.weight_hh = new(rows, hidden_size)
        self.register_parameter("bias_ih", new(rows) if bias else None)
        self.register_parameter("bias_hh", new(rows) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters again: evenly in ±1 / sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def _step(self, mode: str, input: Tensor, states: tuple[Any, ...] | None, what: tuple[str, ...]) -> Any:
        """Return what the op gives for one step, without the batch dimension if ``input`` has none."""
        name = self._get_name()
        if input.ndim not in (1, 2):
            raise ValueError(
                f"{name}: input is (N, input_size) or (input_size), got shape {tuple(input.shape)}"
            )
        for word, state in zip(what, states or (), strict=False):
            if state.ndim not in (1, 2):
                raise ValueError(
                    f"{name}: {word} is (N, hidden_size) or (hidden_size), got shape {tuple(state.shape)}"
                )
        single = input.ndim == 1
        x = input.unsqueeze(0) if single else input
        batch = x.shape[0]
        if x.shape[1] != self.input_size:
            raise RuntimeError(
                f"{name}: input must have {self.input_size} features (input_size), got {x.shape[1]}"
            )
        kind = self.weight_ih.dtype
        if states is None:
            zero = zeros(batch, self.hidden_size, dtype=input.dtype, device=input.device)
            states = (zero,) * len(what)
        elif single:
            states = tuple([s.unsqueeze(0) for s in states])
        for k, state in enumerate(states):
            if state.shape[0] != batch:
                raise RuntimeError(
                    f"{name}: hidden{k} has {state.shape[0]} rows, input {batch}; they must be as many"
                )
            if state.ndim != 2 or state.shape[1] != self.hidden_size:
                raise RuntimeError(
                    f"{name}: hidden{k} must have {self.hidden_size} features (hidden_size), got {state.shape[1]}"
                )
        if any(t.dtype is not kind for t in (x, *states)) and not autocast_enabled():
            got = ", ".join(str(t.dtype) for t in (x, *states))
            raise RuntimeError(f"{name}: input, state and weights must have one dtype, {kind}, got {got}")
        outs = runner(mode, "_cell")(
            x,
            *states,
            self.weight_ih,
            self.weight_hh,
            self.bias_ih,
            self.bias_hh,
            batch_sizes=(batch,),
            **options_of(mode, 0),
        )
        return tuple([o.squeeze(0) for o in outs]) if single else outs

    def extra_repr(self) -> str:
        words = f"{self.input_size}, {self.hidden_size}"
        if self.bias is not True:
            words += f", bias={self.bias}"
        nonlinearity = getattr(self, "nonlinearity", "tanh")
        return words if nonlinearity == "tanh" else f"{words}, nonlinearity={nonlinearity}"


class RNNCell(RNNCellBase):
    """One step of :class:`RNN`.

    Args:
        input_size: features of the input.
        hidden_size: features of the hidden state.
        bias: learn biases.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the new hidden state ``(B, hidden_size)`` for ``(B, input_size)`` and a state, by default zeros.

        Raises:
            ValueError: not one or two dimensions.
            RuntimeError: sizes or dtypes that do not fit, or an unknown nonlinearity.
        """
        if self.nonlinearity not in MODES:
            raise RuntimeError(f"RNNCell: nonlinearity is 'tanh' or 'relu', got {self.nonlinearity!r}")
        states = None if hx is None else (hx,)
        return self._step(MODES[self.nonlinearity], input, states, ("hidden",))[0]  # type: ignore[no-any-return]


class LSTMCell(RNNCellBase):
    """One step of :class:`LSTM`.

    Args:
        input_size: features of the input.
        hidden_size: features of the hidden state and of the cells.
        bias: learn biases.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the new hidden state and cells ``(B, hidden_size)`` for ``(B, input_size)`` and both before.

        Raises:
            ValueError: not one or two dimensions.
            RuntimeError: sizes or dtypes that do not fit.
        """
        states = None if hx is None else (hx[0], hx[1])
        out, _, cells = self._step("LSTM", input, states, ("hx[0]", "hx[1]"))
        return out, cells


class GRUCell(RNNCellBase):
    """One step of :class:`GRU`.

    Args:
        input_size: features of the input.
        hidden_size: features of the hidden state.
        bias: learn biases.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the new hidden state ``(B, hidden_size)`` for ``(B, input_size)`` and a state, by default zeros.

        Raises:
            ValueError: not one or two dimensions.
            RuntimeError: sizes or dtypes that do not fit.
        """
        states = None if hx is None else (hx,)
        return self._step("GRU", input, states, ("hidden",))[0]  # type: ignore[no-any-return]
