"""Vectors of 16 float32 in compiled kernels, for what LLVM does not vectorise by itself.

A vector is a value like a number: it lives in registers (one of AVX-512, two of AVX, four of 128 bits), and ``+``,
``-`` and ``*`` work lane by lane. The functions below exist in kernels only. They take pointers, not arrays, for which
Numba would count references in the innermost loop; indices count elements, and are not checked.
"""

import functools
import operator
from typing import Any

from disttrain.kernels.arrays import Array

LANES = 16
"""float32 elements of a vector."""
TILE_ROWS = 8
"""Rows of what :func:`multiply_tile` computes; it has :data:`LANES` columns."""


def pointer(a: Array, i: int) -> Any:
    """Return where element ``i``, row by row, of a contiguous float32 array is. The array must outlive the pointer."""
    raise NotImplementedError("pointer() exists in compiled kernels only")


def load(p: Any, i: int) -> Any:
    """Return ``p[i : i + 16]``."""
    raise NotImplementedError("load() exists in compiled kernels only")


def store(p: Any, i: int, v: Any) -> None:
    """Set ``p[i : i + 16]``."""
    raise NotImplementedError("store() exists in compiled kernels only")


def broadcast(x: Any) -> Any:
    """Return a vector of one float32 number."""
    raise NotImplementedError("broadcast() exists in compiled kernels only")


def multiply_tile(a: Any, am: int, ak: int, b: Any, bk: int, c: Any, cm: int, K: int, add: bool) -> None:
    """Multiply an 8 x K matrix with a K x 16 one into (or, with ``add``, onto) 8 rows of 16 elements.

    ``c[m * cm + n] = sum of a[m * am + k * ak] * b[k * bk + n] over k``, for m < 8 and n < 16, summed in the order of
    k: the inner part of a matrix product, at the peak of the core where its operands are in cache.
    """
    raise NotImplementedError("multiply_tile() exists in compiled kernels only")


@functools.cache
def define() -> None:
    """Tell Numba what the functions above are. Needed once, before a kernel that uses them is compiled."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.core.typing.templates import AbstractTemplate, infer_global, signature
    from numba.extending import lower_builtin, models, register_model, type_callable

    lanes = ir.VectorType(ir.FloatType(), LANES)

    class Vector(types.Type):
        def __init__(self) -> None:
            super().__init__(name="float32x16")

    vector, floats = Vector(), types.CPointer(types.float32)

    @register_model(Vector)
    class _Model(models.PrimitiveModel):
        def __init__(self, manager: Any, kind: Any) -> None:
            super().__init__(manager, kind, lanes)  # type: ignore[no-untyped-call]

    def load_vector(builder: Any, at: Any) -> Any:
        return builder.load(builder.bitcast(at, lanes.as_pointer()), align=4)

    def store_vector(builder: Any, at: Any, v: Any) -> None:
        builder.store(v, builder.bitcast(at, lanes.as_pointer()), align=4)

    def spread(builder: Any, x: Any) -> Any:
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
        first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), first)

    type_callable(pointer)(lambda context: lambda a, i: floats)
    type_callable(load)(lambda context: lambda p, i: vector)
    type_callable(store)(lambda context: lambda p, i, v: types.none)
    type_callable(broadcast)(lambda context: lambda x: vector)
    type_callable(multiply_tile)(lambda context: lambda a, am, ak, b, bk, c, cm, K, add: types.none)

    def emit_pointer(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])

    def emit_load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return load_vector(builder, builder.gep(args[0], [args[1]]))

    def emit_store(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        store_vector(builder, builder.gep(args[0], [args[1]]), args[2])
        return context.get_dummy_value()

    def emit_broadcast(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return spread(builder, context.cast(builder, args[0], sig.args[0], types.float32))

    def emit_tile(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # As many rows at once as have room in the registers beside a row of b: 32 of 512 bits, or 16 of 256.
        rows = TILE_ROWS if "+avx512f" in context.codegen().magic_tuple()[2] else TILE_ROWS // 2
        # fmuladd: fused where the machine can, and the same for all rows, so that no result depends on its place.
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(lanes, [lanes] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        a, am, ak, b, bk, c, cm, K, add = (
            context.cast(builder, v, kind, types.intp) if isinstance(kind, types.Integer) else v
            for v, kind in zip(args, sig.args, strict=True)
        )
        for first in range(0, TILE_ROWS, rows):
            numbers = [ir.Constant(K.type, first + m) for m in range(rows)]
            lines = [builder.gep(a, [builder.mul(m, am)]) for m in numbers]
            sums = [cgutils.alloca_once(builder, lanes) for _ in numbers]  # which LLVM makes registers
            for total in sums:
                builder.store(ir.Constant(lanes, [0.0] * LANES), total)
            with cgutils.for_range(builder, K) as loop:
                v = load_vector(builder, builder.gep(b, [builder.mul(loop.index, bk)]))
                at = builder.mul(loop.index, ak)
                for line, total in zip(lines, sums, strict=True):
                    x = spread(builder, builder.load(builder.gep(line, [at])))
                    builder.store(builder.call(fused, [x, v, builder.load(total)]), total)
            places = [builder.gep(c, [builder.mul(m, cm)]) for m in numbers]
            with builder.if_then(add):
                for place, total in zip(places, sums, strict=True):
                    builder.store(builder.fadd(load_vector(builder, place), builder.load(total)), total)
            for place, total in zip(places, sums, strict=True):
                store_vector(builder, place, builder.load(total))
        return context.get_dummy_value()

    integer = types.Integer
    lower_builtin(pointer, types.Array, integer)(emit_pointer)
    lower_builtin(load, floats, integer)(emit_load)
    lower_builtin(store, floats, integer, Vector)(emit_store)
    lower_builtin(broadcast, types.Float)(emit_broadcast)
    matrices = (floats, integer, integer, floats, integer, floats, integer)
    lower_builtin(multiply_tile, *matrices, integer, types.Boolean)(emit_tile)

    def define_operator(function: Any, instruction: str) -> None:
        class Typing(AbstractTemplate):
            def generic(self, args: Any, kws: Any) -> Any:
                return signature(vector, vector, vector) if args == (vector, vector) else None

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        infer_global(function)(Typing)
        lower_builtin(function, Vector, Vector)(emit)

    define_operator(operator.add, "fadd")
    define_operator(operator.sub, "fsub")
    define_operator(operator.mul, "fmul")
