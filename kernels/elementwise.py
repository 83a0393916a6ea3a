"""Chains of operations element by element, which a GPU does in one kernel: every array is read and written once.

A chain is a Python function of arrays and numbers, made of operators and the functions of this module::

    @fuse
    def silu(x):
        return x / (1 + exp(-x))

Called with NumPy arrays it is that function. Called with arrays on a GPU it is run once on :class:`Symbol` objects
instead, which note what is done with them; what they have noted becomes a kernel. float16 and bfloat16 are calculated
with in float32 and rounded at the end, where NumPy rounds after every operation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, overload

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module, on_gpu

_MOST_INPUTS, _MOST_OUTPUTS, _MOST_SCALARS = 6, 3, 4


class Symbol:
    """Stands for an array or a number while a chain is traced; what is done with it becomes a line of C++."""

    __array_ufunc__ = None  # NumPy leaves operators to this class

    def __init__(self, text: str, lines: list[str]) -> None:
        self.text, self.lines = text, lines

    def __add__(self, other: Any) -> Symbol:
        return _note("{} + {}", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return _note("{} + {}", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return _note("{} - {}", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return _note("{} - {}", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return _note("{} * {}", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return _note("{} * {}", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return _note("{} / {}", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return _note("{} / {}", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return self * self if other == 2 else _note("pow({}, {})", self, other)

    def __neg__(self) -> Symbol:
        return _note("-{}", self)

    def __abs__(self) -> Symbol:
        return _note("fabs({})", self)

    def __lt__(self, other: Any) -> Symbol:
        return _note("A({} < {})", self, other)

    def __le__(self, other: Any) -> Symbol:
        return _note("A({} <= {})", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return _note("A({} > {})", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return _note("A({} >= {})", self, other)

    def __eq__(self, other: Any) -> Symbol:  # type: ignore[override] # element by element, as arrays
        return _note("A({} == {})", self, other)

    def __ne__(self, other: Any) -> Symbol:  # type: ignore[override]
        return _note("A({} != {})", self, other)

    __hash__ = None  # type: ignore[assignment] # as arrays

    def __bool__(self) -> bool:
        raise TypeError("a chain may not ask for the value of an element; use where(condition, a, b)")


def _note(form: str, *operands: Any) -> Symbol:
    lines = next(o.lines for o in operands if isinstance(o, Symbol))
    lines.append(f"const A t{len(lines)} = {form.format(*map(_text, operands))};")
    return Symbol(f"t{len(lines) - 1}", lines)


def _text(operand: Any) -> str:
    if isinstance(operand, Symbol):
        return operand.text
    if not isinstance(operand, int | float | numpy.number):
        raise TypeError(
            f"a chain is made of arrays and numbers, got {type(operand).__name__}: {operand!r:.80}"
        )
    value = float(operand)
    if math.isfinite(value):
        return f"A({value!r})"
    return (
        "A(infinity<A>() - infinity<A>())" if value != value else f"{'-' if value < 0 else ''}infinity<A>()"
    )


def _function(form: str, name: str | None = None, array: Callable[..., Any] | None = None) -> Any:
    """Make a function of the C++ ``form`` for symbols, and of NumPy's ``name`` or of ``array`` for arrays."""

    def function(*operands: Any) -> Any:
        if any(isinstance(o, Symbol) for o in operands):
            return _note(form, *operands)
        if array is not None:
            return array(*operands)
        return getattr(get_array_module(*operands), name or "")(*operands)

    return function


def _erf(x: Array) -> Array:
    from disttrain.kernels import gelu  # whose chains are of this module

    wide = numpy.ascontiguousarray(x, cuda.wide(x.dtype)).reshape(-1)
    return gelu.erf(wide).reshape(x.shape).astype(x.dtype, copy=False)


exp = _function("exp({})", "exp")
expm1 = _function("expm1({})", "expm1")
log = _function("log({})", "log")
log1p = _function("log1p({})", "log1p")
sqrt = _function("sqrt({})", "sqrt")
tanh = _function("tanh({})", "tanh")
erf = _function("erf({})", array=_erf)
floor = _function("floor({})", "floor")
maximum = _function("({0} > {1} || {0} != {0} ? {0} : {1})", "maximum")
minimum = _function("({0} < {1} || {0} != {0} ? {0} : {1})", "minimum")
where = _function("({} != 0 ? {} : {})", "where")


class Chain:
    """A function of arrays and numbers, element by element; see :func:`fuse`."""

    def __init__(self, function: Callable[..., Any], arguments: str) -> None:
        functools.update_wrapper(self, function)
        self._function, self._arguments = function, arguments

    def __call__(self, *args: Any) -> Any:
        if any(map(on_gpu, args)):
            return self.launch(*args)
        return self._function(*args)

    @functools.cached_property
    def program(self) -> cuda.Program:
        """The kernel."""
        lines: list[str] = []
        names, counts = [], {"a": 0, "n": 0}
        for kind in self._arguments:
            names.append(Symbol(f"{'x' if kind == 'a' else 's'}[{counts[kind]}]", lines))
            counts[kind] += 1
        result = self._function(*names)
        outputs = result if isinstance(result, tuple) else (result,)
        self._check(counts["a"], counts["n"], len(outputs))
        lines += [f"y[{i}] = {_text(o)};" for i, o in enumerate(outputs)]
        body = "\n    ".join(lines)
        text = (
            "typedef Wide<T>::type A;\n"
            f"constexpr int INPUTS = {counts['a']}, SCALARS = {counts['n']}, OUTPUTS = {len(outputs)};\n"
            f"inline void body(const A* x, const A* s, A* y) {{\n    {body}\n}}\n"
        )
        return cuda.Program(__file__, text, T=cuda.FLOATS, VECTOR=(0, 1))

    def _check(self, arrays: int, numbers: int, outputs: int) -> None:
        if arrays > _MOST_INPUTS or numbers > _MOST_SCALARS or outputs > _MOST_OUTPUTS or not arrays:
            raise ValueError(
                f"a chain has 1 to {_MOST_INPUTS} arrays, at most {_MOST_SCALARS} numbers and {_MOST_OUTPUTS} results, "
                f"{self.__name__} has {arrays}, {numbers} and {outputs}; split it"  # type: ignore[attr-defined]
            )

    @functools.cached_property
    def _outputs(self) -> int:
        return int(
            self.program.source(next(self.program.variants())).partition("OUTPUTS = ")[2].partition(";")[0]
        )

    def launch(self, *args: Any) -> Any:
        """Compute on the GPU.

        Raises:
            TypeError: arrays of different types, or something else than an array or a number.
            ValueError: shapes that cannot be broadcast.
        """
        arrays = [a for a, kind in zip(args, self._arguments, strict=True) if kind == "a"]
        numbers = [float(a) for a, kind in zip(args, self._arguments, strict=True) if kind == "n"]
        dtype = arrays[0].dtype
        if any(a.dtype != dtype for a in arrays):
            raise TypeError(
                f"a chain takes arrays of one type, got {', '.join(str(a.dtype) for a in arrays)}"
            )
        shape = numpy.broadcast_shapes(*(a.shape for a in arrays))
        arrays = [_repeating(a, shape) for a in arrays]
        outputs = [cuda.empty(shape, dtype) for _ in range(self._outputs)]
        count = math.prod(shape)
        rows = min((a.size for a in arrays if a.size > 1), default=1)
        vector = cuda.vector(rows, arrays[0], *(a for a in arrays[1:] if a.size > 1)) if count > 1 else 0
        vector = vector and int(all(a.size == 1 or a.size * a.itemsize % 16 == 0 for a in arrays))
        grid = (cuda.blocks(count, 256 * (16 // dtype.itemsize if vector else 1)),)
        self.program.launch(
            *("chain", grid, (256,)),
            *(arrays + [None] * (_MOST_INPUTS - len(arrays))),
            *(outputs + [None] * (_MOST_OUTPUTS - len(outputs))),
            *(numbers + [0.0] * (_MOST_SCALARS - len(numbers))),
            *([a.size for a in arrays] + [1] * (_MOST_INPUTS - len(arrays))),
            count,
            T=cuda.c_type(dtype),
            VECTOR=vector,
        )
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _repeating(a: Array, shape: tuple[int, ...]) -> Array:
    """Return a contiguous array which repeated makes ``shape``: ``a``, or a copy where another axis must grow."""
    inner = a.shape[next((i for i, n in enumerate(a.shape) if n != 1), a.ndim) :]
    if inner != shape[len(shape) - len(inner) :]:
        a = get_array_module(a).broadcast_to(a, shape)
    return get_array_module(a).ascontiguousarray(a)


@overload
def fuse(function: Callable[..., Any]) -> Chain: ...


@overload
def fuse(*, arguments: str) -> Callable[[Callable[..., Any]], Chain]: ...


def fuse(function: Callable[..., Any] | None = None, *, arguments: str | None = None) -> Any:
    """Make a :class:`Chain` of a function; use as a decorator.

    Args:
        function: takes arrays and numbers and returns one array or a tuple.
        arguments: a letter for each argument, "a" for an array, "n" for a number. By default all are arrays.
    """
    if function is None:
        return functools.partial(fuse, arguments=arguments)
    return Chain(function, arguments or "a" * function.__code__.co_argcount)


# ---------------------------------------------------------------------------------------------------- families


@fuse
def add(x: Any, y: Any) -> Any:
    """``x + y``."""
    return x + y


@fuse
def multiply(x: Any, y: Any) -> Any:
    """``x * y``."""
    return x * y


@fuse(arguments="aan")
def add_scaled(x: Any, y: Any, factor: Any) -> Any:
    """``x + factor * y``."""
    return x + factor * y


@fuse
def sigmoid(x: Any) -> Any:
    """``1 / (1 + e ** -x)``."""
    return 1 / (1 + exp(-x))


@fuse
def sigmoid_grad(g: Any, y: Any) -> Any:
    """The gradient of the input of :func:`sigmoid`, whose output is ``y``."""
    return g * (y * (1 - y))


@fuse
def silu(x: Any) -> Any:
    """``x * sigmoid(x)`` (Elfwing et al. 2017)."""
    return x / (1 + exp(-x))


@fuse
def silu_grad(g: Any, x: Any) -> Any:
    """The gradient of the input of :func:`silu`."""
    s = 1 / (1 + exp(-x))
    return g * s * (1 + x * (1 - s))


@fuse
def swiglu(x: Any, y: Any) -> Any:
    """``silu(x) * y`` (Shazeer 2020)."""
    return x / (1 + exp(-x)) * y


@fuse
def swiglu_grad(g: Any, x: Any, y: Any) -> Any:
    """The gradients of both inputs of :func:`swiglu`."""
    s = 1 / (1 + exp(-x))
    return g * y * s * (1 + x * (1 - s)), g * x * s


@fuse
def tanh_grad(g: Any, y: Any) -> Any:
    """The gradient of the input of the hyperbolic tangent, whose output is ``y``."""
    return g * (1 - y * y)
