"""Vectors of 16 float32 in compiled kernels, for what LLVM does not vectorise by itself.

A vector is a value like a number: it lives in registers (one of AVX-512, two of AVX, four of 128 bits), and ``+``,
``-`` and ``*`` work lane by lane. The functions below exist in kernels only. They take pointers, not arrays, for which
Numba would count references in the innermost loop; indices count elements, and are not checked.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

from disttrain.kernels.arrays import Array

LANES = 16
"""float32 elements of a vector."""
TILE_ROWS = 8
"""Rows of what :func:`multiply_tile` computes; it has :data:`LANES` columns."""


def pointer(a: Array, i: int) -> Any:
    """Return where element ``i``, row by row, of a contiguous float32 array is. The array must outlive the pointer."""
    raise NotImplementedError("pointer() exists in compiled kernels only")


def shift(p: Any, i: int) -> Any:
    """Return the pointer to ``p[i]``."""
    raise NotImplementedError("shift() exists in compiled kernels only")


def load(p: Any, i: int) -> Any:
    """Return ``p[i : i + 16]``."""
    raise NotImplementedError("load() exists in compiled kernels only")


def store(p: Any, i: int, v: Any) -> None:
    """Set ``p[i : i + 16]``."""
    raise NotImplementedError("store() exists in compiled kernels only")


def load_part(p: Any, i: int, count: int) -> Any:
    """Return ``p[i : i + count]`` and zeros, or 16 elements if ``count`` is larger; what is beyond is not touched."""
    raise NotImplementedError("load_part() exists in compiled kernels only")


def store_part(p: Any, i: int, v: Any, count: int) -> None:
    """Set ``p[i : i + count]``, at most 16 elements, and touch nothing beyond."""
    raise NotImplementedError("store_part() exists in compiled kernels only")


def broadcast(x: Any) -> Any:
    """Return a vector of one float32 number."""
    raise NotImplementedError("broadcast() exists in compiled kernels only")


def fused(u: Any, v: Any, w: Any) -> Any:
    """Return ``u * v + w`` for vectors, rounded once where the machine can."""
    raise NotImplementedError("fused() exists in compiled kernels only")


def twist(v: Any, k: int) -> Any:
    """Return what has the element of lane c ^ k in lane c; of each vector, given a tuple. ``k`` is a literal."""
    raise NotImplementedError("twist() exists in compiled kernels only")


def maximum(v: Any, w: Any) -> Any:
    """Return the larger of the elements of two vectors, lane by lane; that of ``v`` where one of them is NaN."""
    raise NotImplementedError("maximum() exists in compiled kernels only")


def highest(v: Any) -> Any:
    """Return the largest element of a vector; if one is NaN, it or some other element."""
    raise NotImplementedError("highest() exists in compiled kernels only")


def add_up(v: Any) -> Any:
    """Return the sum of the elements of a vector: its halves are added, then the halves of that, and so on."""
    raise NotImplementedError("add_up() exists in compiled kernels only")


def multiply_tile(a: Any, am: int, ak: int, b: Any, bk: int, c: Any, cm: int, K: int, add: bool) -> None:
    """Multiply an 8 x K matrix with a K x 16 one into (or, with ``add``, onto) 8 rows of 16 elements.

    ``c[m * cm + n] = sum of a[m * am + k * ak] * b[k * bk + n] over k``, for m < 8 and n < 16, summed in the order of
    k: the inner part of a matrix product, at the peak of the core where its operands are in cache.
    """
    raise NotImplementedError("multiply_tile() exists in compiled kernels only")


def multiply(
    rows: int,
    vectors: int,
    a: Any,
    am: int,
    ak: int,
    b: Any,
    bk: int,
    K: int,
    start: Any,
    sm: int,
    out: Any,
    om: int,
) -> None:
    """Write a tile of a product of matrices, ``out[m, n] = start[m, n] + sum of a[m, k] * b[k, n]`` in the order of k.

    Fastest are 6 rows of 4 vectors: with AVX-512 their sums fill the registers, and 6 rows a power of two apart stay
    together in a cache of 8 ways.

    Args:
        rows: rows of the tile, a literal.
        vectors: its columns, in vectors; a literal.
        a: the left factor.
        am: distance of its rows, in elements.
        ak: distance of the elements of a row.
        b: the right factor.
        bk: distance of its rows, whose elements are side by side.
        K: terms of the sum, 1 or more.
        start: what to begin with; may be ``out``.
        sm: distance of its rows; 0 for the same in each row.
        out: where the tile goes.
        om: distance of its rows.
    """
    raise NotImplementedError("multiply() exists in compiled kernels only")


def transpose(a: Any, am: int, out: Any, om: int) -> None:
    """Write the rows of a square of 16 x 16 elements as columns; ``am`` and ``om`` are distances of rows."""
    raise NotImplementedError("transpose() exists in compiled kernels only")


@functools.cache
def define() -> None:
    """Tell Numba what the functions above are. Needed once, before a kernel that uses them is compiled."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.core.typing.templates import AbstractTemplate, infer_global, signature
    from numba.extending import intrinsic, lower_builtin, models, overload, register_model, type_callable

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
    type_callable(shift)(lambda context: lambda p, i: floats)
    type_callable(load)(lambda context: lambda p, i: vector)
    type_callable(store)(lambda context: lambda p, i, v: types.none)
    type_callable(fused)(lambda context: lambda u, v, w: vector)
    type_callable(maximum)(lambda context: lambda v, w: vector)
    type_callable(highest)(lambda context: lambda v: types.float32)
    type_callable(add_up)(lambda context: lambda v: types.float32)
    type_callable(load_part)(lambda context: lambda p, i, count: vector)
    type_callable(store_part)(lambda context: lambda p, i, v, count: types.none)
    type_callable(broadcast)(lambda context: lambda x: vector)
    type_callable(multiply_tile)(lambda context: lambda a, am, ak, b, bk, c, cm, K, add: types.none)

    def emit_pointer(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])

    def emit_shift(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    def emit_load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return load_vector(builder, builder.gep(args[0], [args[1]]))

    def emit_store(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        store_vector(builder, builder.gep(args[0], [args[1]]), args[2])
        return context.get_dummy_value()

    def first(builder: Any, count: Any) -> Any:
        """Return which lanes are among the first ``count``."""
        lane = ir.VectorType(count.type, LANES)
        one = builder.insert_element(ir.Constant(lane, ir.Undefined), count, ir.Constant(ir.IntType(32), 0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        all_ = builder.shuffle_vector(one, ir.Constant(lane, ir.Undefined), order)
        return builder.icmp_signed("<", ir.Constant(lane, list(range(LANES))), all_)

    def masked(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(result, [a.type for a in arguments])
        full = f"llvm.masked.{name}.v{LANES}f32.p0"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, full), arguments)

    def emit_load_part(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.bitcast(builder.gep(args[0], [args[1]]), lanes.as_pointer())
        zeros, align = ir.Constant(lanes, [0.0] * LANES), ir.Constant(ir.IntType(32), 4)
        return masked(builder, "load", lanes, [at, align, first(builder, args[2]), zeros])

    def emit_store_part(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.bitcast(builder.gep(args[0], [args[1]]), lanes.as_pointer())
        align = ir.Constant(ir.IntType(32), 4)
        masked(builder, "store", ir.VoidType(), [args[2], at, align, first(builder, args[3])])
        return context.get_dummy_value()

    def emit_broadcast(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return spread(builder, context.cast(builder, args[0], sig.args[0], types.float32))

    def emit_fused(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(lanes, [lanes] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        return builder.call(function, args)

    def larger(builder: Any, v: Any, w: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", w, v), w, v)

    def emit_maximum(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return larger(builder, *args)

    def emit_fold(combine: Callable[..., Any]) -> Callable[..., Any]:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            (v,) = args
            places, size = ir.VectorType(ir.IntType(32), LANES), LANES // 2
            while size:
                order = ir.Constant(places, [i ^ size for i in range(LANES)])
                v = combine(builder, v, builder.shuffle_vector(v, ir.Constant(lanes, ir.Undefined), order))
                size //= 2
            return builder.extract_element(v, ir.Constant(ir.IntType(32), 0))

        return emit

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
    lower_builtin(shift, floats, integer)(emit_shift)
    lower_builtin(load, floats, integer)(emit_load)
    lower_builtin(store, floats, integer, Vector)(emit_store)
    lower_builtin(load_part, floats, integer, integer)(emit_load_part)
    lower_builtin(store_part, floats, integer, Vector, integer)(emit_store_part)
    lower_builtin(broadcast, types.Float)(emit_broadcast)
    lower_builtin(fused, Vector, Vector, Vector)(emit_fused)
    lower_builtin(maximum, Vector, Vector)(emit_maximum)
    lower_builtin(highest, Vector)(emit_fold(larger))
    lower_builtin(add_up, Vector)(emit_fold(lambda builder, v, w: builder.fadd(v, w)))
    matrices = (floats, integer, integer, floats, integer, floats, integer)
    lower_builtin(multiply_tile, *matrices, integer, types.Boolean)(emit_tile)

    word, places = ir.IntType(64), ir.VectorType(ir.IntType(32), LANES)

    @functools.cache
    def multiply_of(rows: int, vectors: int) -> Any:
        @intrinsic
        def _multiply(typing, a, am, ak, b, bk, K, start, sm, out, om):  # type: ignore[no-untyped-def]
            number = types.int64
            return types.void(a, number, number, b, number, number, start, number, out, number), emit

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            a, am, ak, b, bk, K, start, sm, out, om = args
            # As many columns at once as have room in the registers: 32 of 512 bits, or 16 of 256.
            at_once = 4 if "+avx512f" in context.codegen().magic_tuple()[2] else 1
            fused = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(lanes, [lanes] * 3), f"llvm.fmuladd.v{LANES}f32"
            )

            def place(at: Any, row: Any, m: int, n: int) -> Any:
                return builder.gep(at, [builder.add(builder.mul(row, word(m)), word(n * LANES))])

            for first in range(0, vectors, at_once):
                columns = range(first, min(first + at_once, vectors))
                tile = [(m, n) for m in range(rows) for n in columns]
                lines = [builder.mul(am, word(m)) for m in range(rows)]
                begin = [load_vector(builder, place(start, sm, m, n)) for m, n in tile]
                before, loop = builder.block, builder.append_basic_block("terms")
                after = builder.append_basic_block("sum")
                builder.branch(loop)
                builder.position_at_end(loop)
                k, left, right = builder.phi(word), builder.phi(a.type), builder.phi(b.type)
                totals = [builder.phi(lanes) for _ in tile]
                line = {n: load_vector(builder, builder.gep(right, [word(n * LANES)])) for n in columns}
                each = [spread(builder, builder.load(builder.gep(left, [at]))) for at in lines]
                sums = [
                    builder.call(fused, [each[m], line[n], total])
                    for (m, n), total in zip(tile, totals, strict=True)
                ]
                next_k = builder.add(k, word(1))
                for phi, zeroth, then in (
                    (k, word(0), next_k),
                    (left, a, builder.gep(left, [ak])),
                    (right, b, builder.gep(right, [bk])),
                    *zip(totals, begin, sums, strict=True),
                ):
                    phi.add_incoming(zeroth, before)
                    phi.add_incoming(then, loop)
                builder.cbranch(builder.icmp_signed("<", next_k, K), loop, after)
                builder.position_at_end(after)
                for (m, n), total in zip(tile, sums, strict=True):
                    store_vector(builder, place(out, om, m, n), total)
            return context.get_dummy_value()

        return _multiply

    @overload(multiply, prefer_literal=True)
    def _multiply(rows, vectors, a, am, ak, b, bk, K, start, sm, out, om):  # type: ignore[no-untyped-def]
        if not isinstance(rows, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
            return None
        fixed: Any = multiply_of(rows.literal_value, vectors.literal_value)

        def implementation(rows, vectors, a, am, ak, b, bk, K, start, sm, out, om):  # type: ignore[no-untyped-def]
            fixed(a, am, ak, b, bk, K, start, sm, out, om)

        return implementation

    @functools.cache
    def twist_by(k: int) -> Any:
        @intrinsic
        def _twist(typing, v):  # type: ignore[no-untyped-def]
            return v(v), emit

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            (v,), none = args, ir.Constant(lanes, ir.Undefined)
            order = ir.Constant(places, [lane ^ k for lane in range(LANES)])
            if isinstance(sig.return_type, Vector):
                return builder.shuffle_vector(v, none, order)
            for i in range(sig.return_type.count):
                turned = builder.shuffle_vector(builder.extract_value(v, i), none, order)
                v = builder.insert_value(v, turned, i)
            return v

        return _twist

    @overload(twist, prefer_literal=True)
    def _twist(v, k):  # type: ignore[no-untyped-def]
        if not isinstance(k, types.IntegerLiteral):
            return None
        fixed: Any = twist_by(k.literal_value)

        def implementation(v, k):  # type: ignore[no-untyped-def]
            return fixed(v)

        return implementation

    type_callable(transpose)(lambda context: lambda a, am, out, om: types.none)

    def emit_transpose(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, am, out, om = (
            context.cast(builder, v, kind, types.intp) if isinstance(kind, types.Integer) else v
            for v, kind in zip(args, sig.args, strict=True)
        )
        rows = [load_vector(builder, builder.gep(a, [builder.mul(am, word(m))])) for m in range(LANES)]
        size = LANES // 2
        while size:  # swap the squares of this size off the diagonal
            for m in range(LANES):
                if m & size:
                    continue
                upper, lower = rows[m], rows[m + size]
                left = [p if not p & size else LANES + p - size for p in range(LANES)]
                right = [p + size if not p & size else LANES + p for p in range(LANES)]
                rows[m] = builder.shuffle_vector(upper, lower, places(left))
                rows[m + size] = builder.shuffle_vector(upper, lower, places(right))
            size //= 2
        for m, row in enumerate(rows):
            store_vector(builder, builder.gep(out, [builder.mul(om, word(m))]), row)
        return context.get_dummy_value()

    lower_builtin(transpose, floats, integer, floats, integer)(emit_transpose)

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
