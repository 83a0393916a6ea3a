"""The optimizers that step over flat buffers, all parameters of a group at once."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from disttrain import dtypes
from disttrain.engine import enable_grad
from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, on_gpu, to_host
from disttrain.kernels.casts import cast
from disttrain.kernels.optim.common import Extras
from disttrain.nn.parameter import is_lazy
from disttrain.optim.flat import MASTER, FlatParameters, Run, group_by_memory
from disttrain.optim.optimizer import Optimizer
from disttrain.random import ROUND
from disttrain.tensors import Tensor

_NO_EXTRAS = Extras()


class FusedOptimizer(Optimizer):
    """An optimizer whose step is one pass over flat buffers.

    A subclass names its state in :meth:`buffers` and ``scalars``, and writes one step in :meth:`update`. What
    ``state`` holds are views of the flat buffers; what somebody puts there is taken in at the next step.
    """

    scalars: tuple[str, ...] = ("step",)
    """State that is one number per parameter; ``step``, if it is there, is counted before :meth:`update`."""

    takes_extras = False
    """Whether :meth:`update` hands ``run.extras`` on, and half precision on a GPU to its kernel as it is."""

    def buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the state that is of the size of the parameters."""
        raise NotImplementedError

    def initial(self, group: dict[str, Any], name: str) -> float:
        """Return what a state is filled with."""
        return 0.0

    def update(self, group: dict[str, Any], run: Run) -> None:
        """Step once over flat float32 or float64 arrays of one size: change ``run.param`` and the state in place."""
        raise NotImplementedError

    def _make_own(self) -> None:
        super()._make_own()
        self._flats: list[tuple[list[Tensor], list[FlatParameters]]] = []
        """Of each group, its parameters and how they lie in memory."""
        self._scaled: Extras | None = None
        """What a ``GradScaler`` asks of the step that it calls."""
        self._rounding_stream = 0
        """What tells the numbers that whole parameters are rounded by from those of other ranks that step others."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._flats_of(len(self.param_groups) - 1)  # gives the gradients their places

    def _flats_of(self, index: int) -> list[FlatParameters]:
        """Return the parameters of a group as they lie in memory, which is arranged anew if they are others."""
        cache = self._flats
        params = self.param_groups[index]["params"]
        if index < len(cache):
            known, flats = cache[index]
            if len(known) == len(params) and all(map(operator.is_, known, params)):
                return flats
        arranged = [
            p for p in params if not is_lazy(p)
        ]  # those of lazy modules follow once they have a shape
        flats = group_by_memory(arranged)
        cache[index : index + 1] = [(arranged, flats)]
        return flats

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
            self._check_wrapped()
        stretches = itertools.count()
        for i, group in enumerate(self.param_groups):
            if "rounding_seed" in group:
                group["rounded_steps"] += 1
            for flat in self._flats_of(i):
                buffers = self._buffers_of(flat, group)
                extras = self._extras(flat, buffers)
                if extras is None:
                    continue
                for run in flat.runs(self.state, group, buffers, self.scalars, self.initial):
                    if "step" in run.scalars:
                        run.scalars["step"] += 1
                    key = self._rounding_key(group, flat, next(stretches))
                    if MASTER in run.state:
                        run.extras = dataclasses.replace(extras, low=run.param, key=key)
                        run.param = run.state[MASTER]
                        self.update(group, run)
                    elif self.takes_extras and on_gpu(run.param):
                        run.extras = extras if key is None else dataclasses.replace(extras, key=key)
                        self.update(group, run)
                    elif run.param.dtype.itemsize > 2:
                        self.update(group, run)
                    else:  # half precision steps in float32 and is rounded once
                        param = run.param
                        run.param, run.grad = param.astype(np.float32), run.grad.astype(np.float32)
                        self.update(group, run)
                        param[...] = run.param if key is None else cast(run.param, param.dtype, key)
        return loss

    def keep_masters(self) -> None:
        """Keep parameters in half precision in float32 too, and step those: small steps are not lost by rounding.

        The parameters are what that becomes when it is rounded. It is part of the state (``"master"``),
        and made of the parameters at the next step; call this again after other weights were loaded into the model.

        Raises:
            TypeError: this kind of optimizer cannot; SGD, Adam, AdamW, LARS and LAMB can.
        """
        if not self.takes_extras:
            raise TypeError(
                f"{type(self).__name__} cannot keep float32 copies of half precision; SGD, Adam, AdamW, LARS and "
                f"LAMB can, or keep the parameters in float32 and use autocast"
            )
        for group in self.param_groups:
            group["keep_masters"] = True
        for state in self.state.values():
            state.pop(MASTER, None)

    def round_randomly(self, seed: int = 0) -> None:
        """Round parameters in half precision up or down at random from now on, and no more to the nearest number.

        A number between two that the type has becomes the upper one with a probability by its distance from the lower
        (Gupta et al., "Deep learning with limited numerical precision", 2015). So steps far smaller than the last
        place move parameters as far as they should on average, without the memory of :meth:`keep_masters`; together
        with that, the masters are what is rounded. Parameters in float32 and float64 are not touched.

        What is drawn follows from ``seed``, the number of the step and the parameters' places, and is the same on the
        CPU and on a GPU, and on all ranks that have the same parameters. It is part of the options of the groups
        (``"rounding_seed"``, ``"rounded_steps"``), so a loaded state goes on with what it would have drawn.

        Args:
            seed: of 64 bits, not negative; the same on all ranks.

        Raises:
            ValueError: another seed.
        """
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"round_randomly() takes a seed of 64 bits that is not negative, got {seed}")
        for group in self.param_groups:
            group["rounding_seed"], group["rounded_steps"] = int(seed), 0

    def _buffers_of(self, flat: FlatParameters, group: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the state of these parameters that is of their size."""
        master = group.get("keep_masters") and flat.array.dtype.itemsize == 2
        return (*self.buffers(group), MASTER) if master else self.buffers(group)

    def _extras(self, flat: FlatParameters, buffers: tuple[str, ...]) -> Extras | None:
        """Return what the step over these parameters does besides; None if it is skipped."""
        scaled = self._scaled
        if scaled is None:
            flat.settle()
            return _NO_EXTRAS
        skipped = flat.skipping(self.state, buffers, self.scalars)
        if skipped is not None:
            return dataclasses.replace(scaled, skipped=skipped)
        flat.settle()
        return None if to_host(scaled.skip)[0] else dataclasses.replace(scaled, skip=None)

    def step_scaled(self, grad_scale: Array | None, skip: Array) -> Any:
        """Step with gradients times ``grad_scale``, a float32 number in an array (1,) on the GPU, if ``skip`` is 0.

        Steps that are skipped are counted on the GPU, without waiting for it; ``state`` counts them too until it is
        asked for by :meth:`state_dict`, or until a step that is not scaled.
        """
        self._scaled = Extras(grad_scale=grad_scale, skip=skip)
        try:
            return self.step()
        finally:
            self._scaled = None

    def grads(self) -> list[Array]:
        """Return the memory of all gradients, those side by side as one flat array."""
        return [
            g for i, _ in enumerate(self.param_groups) for flat in self._flats_of(i) for g in flat.grads()
        ]

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._settle()
        super().load_state_dict(state_dict)

    def _settle(self) -> None:
        for _, flats in self._flats:
            for flat in flats:
                flat.settle()

    def _make_state(self) -> None:
        """Make the state of all parameters now, not at their first step."""
        for i, group in enumerate(self.param_groups):
            for flat in self._flats_of(i):
                flat.make_state(self.state, group, self._buffers_of(flat, group), self.scalars, self.initial)

    def _state_dtype(self, param: Tensor, value: Tensor) -> Any:
        return dtypes.float32 if param.itemsize == 2 else param.dtype

    def _rounding_key(self, group: dict[str, Any], flat: FlatParameters, stretch: int) -> Array | None:
        """Return by what the parameters of a stretch are rounded at random, where they are; None for to the nearest.

        Args:
            group: options.
            flat: the parameters' memory.
            stretch: its number in this step.
        """
        if "rounding_seed" not in group or flat.array.dtype.itemsize != 2:
            return None
        shard = flat.params[0]._shard  # of which every rank has another
        stream = self._rounding_stream if shard is None else shard.comm.rank
        words = (group["rounding_seed"], stream, group["rounded_steps"], ROUND | stretch << 8)
        key = np.array(words, np.uint64)
        return cuda.upload(key) if on_gpu(flat.array) else key

    def _check_loaded(self, state: dict[Any, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        owner = [group for group, old in zip(groups, self.param_groups, strict=True) for _ in old["params"]]
        wrong = [
            f"{name} of parameter {i} has shape {list(value.shape)}, expected {list(p.shape)}"
            for i, (p, group) in enumerate(zip(params, owner, strict=True))
            if p in state
            for name in self.buffers(self.defaults | group)
            if isinstance(value := state[p].get(name), Tensor) and value.shape != p.shape
        ]
        if wrong:
            raise ValueError("the loaded state does not fit: " + "; ".join(wrong))
