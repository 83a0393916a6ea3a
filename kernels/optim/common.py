"""What the optimizer steps share: when the compiled kernel serves, the check of the buffers, half precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

from disttrain.kernels import cuda, random
from disttrain.kernels.arrays import Array, get_array_module

SMALL = 2048
"""Below this many elements plain array operations are quicker than loading Numba; they give the same bits."""


def step_flat(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    arrays: tuple[Array, ...],
    scalars: tuple[float, ...],
) -> None:
    """Make one step over flat buffers, the parameters first, with ``scalars`` rounded to their type.

    Args:
        kernel: compiled; called with the arrays and the scalars.
        reference: the same in plain array operations, for small buffers and other devices.
        arrays: an empty one stands for a buffer that the options do not need.
        scalars: numbers and switches.
    """
    param = arrays[0]
    check_flat(param, *(a for a in arrays[1:] if a.size))
    T = param.dtype.type
    values = [s if isinstance(s, bool) else T(s) for s in scalars]
    if compiled(param):
        kernel(*arrays, *values)
    else:
        with numpy.errstate(all="ignore"):  # compiled code does not warn either
            reference(*arrays, *values)


def compiled(param: Array) -> bool:
    """Return whether the compiled kernel serves: by place and size alone, never by what is loaded."""
    return get_array_module(param) is numpy and param.size >= SMALL


def check_flat(*arrays: Array | None) -> None:
    """Raise for buffers (``None`` is passed over) that are not flat, alike and of a type that kernels know."""
    first = arrays[0]
    assert first is not None
    for a in arrays:
        if a is None:
            continue
        if a.dtype != first.dtype or a.dtype.char not in "fd":
            raise TypeError(
                f"flat buffers must all be float32 or all float64, got {first.dtype} and {a.dtype}"
            )
        if a.shape != first.shape or a.ndim != 1 or not a.flags.c_contiguous:
            raise ValueError(
                f"flat buffers must be contiguous and of one size, got shapes {first.shape}, {a.shape}"
            )


@dataclass(frozen=True)
class Extras:
    """What a step in mixed precision does besides; everything is an array where the parameters are.

    With it the parameters may be float16 or bfloat16 (their state is float32 then), and the gradients of the type of
    the parameters, or of ``low``, or float32.
    """

    low: Array | None = None
    """A copy of float32 parameters in half precision, written anew."""
    key: Array | None = None
    """Seed, stream, draw and purpose (4 uint64) of random numbers: what becomes half precision is rounded up or down
    with a probability by the distance, so that small updates are not lost on average. None: to the nearest."""
    grad_scale: Array | None = None
    """A float32 number which the gradients are multiplied by first: one over the loss scale, or a clipping factor."""
    skip: Array | None = None
    """An int32 number: if it is not 0 nothing changes."""
    skipped: Array | None = None
    """On a GPU, with ``skip``: an int32 number, how many steps were skipped before. Then the number of this step, which
    Adam and LAMB are given, counts those too, and is made right there."""
    scalars: Array | None = None
    """On a GPU: the float64 numbers that the step otherwise makes of its options (``adam_scalars`` and so on). A step
    that was captured reads them again at each replay."""

    def step(self, param: Array, grad: Array, step: Callable[[Array, Array], None]) -> None:
        """Do with arrays of the host what a kernel does, given the step in single precision."""
        if self.skip is not None and int(self.skip[0]):
            return
        wide = cuda.wide(param.dtype)
        p, g = param.astype(wide, copy=False), grad.astype(wide, copy=False)
        step(p, g if self.grad_scale is None else g * self.grad_scale.astype(wide))
        to = param if self.low is None else self.low
        if to is p:
            return
        if self.key is None:
            to[...] = p.astype(to.dtype)
        else:
            to[...] = random.round_randomly(p, to.dtype, self.key)


def launch_flat(
    program: cuda.Program,
    kernel: str,
    param: Array,
    grad: Array,
    states: tuple[Array | None, ...],
    scalars: tuple[float, ...],
    extras: Extras | None,
) -> None:
    """Launch a kernel made with ``flat.cuh`` over flat buffers on a GPU.

    Raises:
        TypeError: types that do not go together.
        ValueError: buffers of different sizes.
    """
    extras = extras or Extras()
    to, master, WIDE_GRAD = narrow_first(param, grad, states, extras)
    numbers = upload_scalars(scalars) if extras.scalars is None else extras.scalars
    program.launch(
        *(kernel, (cuda.blocks(param.size, 4096),), (256,)),
        *(to, master, grad, *states, numbers, extras.grad_scale, extras.skip, extras.key, param.size),
        T=cuda.c_type(to.dtype),
        WIDE_GRAD=WIDE_GRAD,
        VECTOR=cuda.aligned(to, master, grad, *states),
    )


def narrow_first(
    param: Array, grad: Array, states: tuple[Array | None, ...], extras: Extras
) -> tuple[Array, Array | None, int]:
    """Return the buffer that becomes narrow, the master if that is another, and whether gradients are wide."""
    low = extras.low
    to, master = (param, None) if low is None else (low, param)
    wide = cuda.wide(param.dtype)
    for name, a, kinds in (
        ("low", low, (to.dtype,)),
        ("grad", grad, (to.dtype, wide)),
        *(("state", s, (wide,)) for s in states),
    ):
        if a is None:
            continue
        if a.dtype not in kinds or (low is not None and param.dtype != numpy.float32):
            raise TypeError(f"flat buffers do not go together: {param.dtype} parameters, {name} of {a.dtype}")
        if a.shape != (param.size,):
            raise ValueError(f"flat buffers must be of one size, got shapes {param.shape} and {a.shape}")
    return to, master, int(grad.dtype != to.dtype)


def upload_scalars(scalars: tuple[float, ...]) -> Array:
    """Return the numbers that a kernel reads, float64, on the GPU."""
    return cuda.upload(numpy.array(scalars, numpy.float64))
