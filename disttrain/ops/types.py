"""What an operation is: one function on arrays that also says how its gradient goes.

An op takes arrays positionally and options by keyword, and returns ``(out, saved, vjp)``:

* ``out``: the result, an array, or a tuple of arrays for an op of several outputs;
* ``saved``: a tuple of what backward needs (arrays, shapes, numbers), the least that will do;
* ``vjp(g, needs, *saved)``: one gradient per array argument, ``None`` (and no work) where ``needs`` is false.
  ``g`` is the gradient of ``out`` (a tuple with ``None`` for unused ones if there are several outputs).

A gradient may have the broadcast shape of the output: the engine sums it down to the shape of the argument.

Ops do not know ``Tensor``. For gradients of any order the engine calls ``vjp`` with Tensors in place of the
arrays, so a ``vjp`` is written with Python operators and :func:`call`, which serve arrays and Tensors alike.
"""

from collections.abc import Callable
from typing import Any

from disttrain.kernels.arrays import Array, get_array_module, is_array

Vjp = Callable[..., tuple[Any, ...]]
Result = tuple[Any, tuple[Any, ...], Vjp]
Op = Callable[..., Result]

__all__ = [
    "Array",
    "Op",
    "Result",
    "Vjp",
    "call",
    "get_array_module",
    "is_array",
    "no_vjp",
    "saved_for",
    "writes",
]

SAVED_FOR: dict[Vjp, tuple[tuple[int, ...], ...]] = {}
"""For a ``vjp``, whose gradients need each saved value; see :func:`saved_for`."""


def saved_for(*arguments: tuple[int, ...]) -> Callable[[Vjp], Vjp]:
    """Declare, for each value that an op saves, the numbers of the arguments whose gradients need it.

    Where none of them wants a gradient the engine drops the value, and the ``vjp`` gets ``None`` for it: a product
    with a constant keeps only the constant.
    """

    def declare(vjp: Vjp) -> Vjp:
        SAVED_FOR[vjp] = arguments
        return vjp

    return declare


WRITES: dict[Vjp, int] = {}
"""For a ``vjp``, the argument whose gradient it can write where the engine wants it; see :func:`writes`."""


def writes(argument: int) -> Callable[[Vjp], Vjp]:
    """Declare that a ``vjp`` takes ``into``: an array of the shape and type of this argument, or ``None``.

    Its memory is where the gradient will be kept. The ``vjp`` may write the gradient there and return that very array:
    a large weight's gradient is then not copied.
    """

    def declare(vjp: Vjp) -> Vjp:
        WRITES[vjp] = argument
        return vjp

    return declare


def call(op: Op, *args: Any, **options: Any) -> Any:
    """Return the output of ``op`` on ``args``: an array for arrays, a recorded Tensor where a Tensor is among them."""
    for a in args:
        apply = getattr(type(a), "__apply__", None)
        if apply is not None:
            return apply(op, *args, **options)
    return op(*args, **options)[0]


def no_vjp(g: Any, needs: tuple[bool, ...]) -> tuple[None, ...]:
    """The ``vjp`` of an op that is piecewise constant or not differentiable: no gradient for any argument."""
    return (None,) * len(needs)
