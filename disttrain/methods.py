"""The methods of Tensor, one mixin per family of functions: a method is the function with the tensor first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.functions import activation, common, compare, linalg, sort
from disttrain.functions import elementwise as e
from disttrain.functions import index as i
from disttrain.functions import reduce as r
from disttrain.functions import shape as s

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


class ElementwiseMethods:
    add, sub, mul, div, pow = e.add, e.sub, e.mul, e.div, e.pow
    true_divide, multiply, subtract, divide = e.div, e.mul, e.sub, e.div
    floor_divide, remainder, fmod = e.floor_divide, e.remainder, e.fmod
    neg, negative, abs, absolute, reciprocal, square = e.neg, e.neg, e.abs, e.abs, e.reciprocal, e.square
    exp, exp2, expm1, log, log2, log10, log1p = e.exp, e.exp2, e.expm1, e.log, e.log2, e.log10, e.log1p
    sqrt, rsqrt, sin, cos, tan, atan, sinh, cosh = (
        e.sqrt,
        e.rsqrt,
        e.sin,
        e.cos,
        e.tan,
        e.atan,
        e.sinh,
        e.cosh,
    )
    tanh, sigmoid, relu = e.tanh, e.sigmoid, e.relu
    sign, floor, ceil, trunc, round = e.sign, e.floor, e.ceil, e.trunc, e.round
    maximum, minimum, clamp, clip, masked_fill = e.maximum, e.minimum, e.clamp, e.clamp, e.masked_fill
    lerp, addcmul, addcdiv = e.lerp, e.addcmul, e.addcdiv
    eq, ne, lt, le, gt, ge = e.eq, e.ne, e.lt, e.le, e.gt, e.ge
    logical_and, logical_or, logical_xor, logical_not = (
        e.logical_and,
        e.logical_or,
        e.logical_xor,
        e.logical_not,
    )
    bitwise_and, bitwise_or, bitwise_xor, bitwise_not = (
        e.bitwise_and,
        e.bitwise_or,
        e.bitwise_xor,
        e.bitwise_not,
    )
    equal, isclose, allclose = compare.equal, compare.isclose, compare.allclose
    isnan, isinf, isfinite = e.isnan, e.isinf, e.isfinite

    add_, sub_, mul_, div_, pow_ = e.add_, e.sub_, e.mul_, e.div_, e.pow_
    neg_, abs_, exp_, log_, sqrt_ = e.neg_, e.abs_, e.exp_, e.log_, e.sqrt_
    relu_, sigmoid_, tanh_, clamp_, clip_ = e.relu_, e.sigmoid_, e.tanh_, e.clamp_, e.clamp_
    fill_, zero_, masked_fill_, copy_ = e.fill_, e.zero_, e.masked_fill_, common.copy_
    addcmul_, addcdiv_, lerp_ = e.addcmul_, e.addcdiv_, e.lerp_

    __neg__, __abs__, __invert__ = e.neg, e.abs, e.bitwise_not
    __add__ = __radd__ = e.add
    __mul__ = __rmul__ = e.mul
    __sub__, __truediv__, __floordiv__, __mod__, __pow__ = e.sub, e.div, e.floor_divide, e.remainder, e.pow
    __and__, __or__, __xor__ = e.bitwise_and, e.bitwise_or, e.bitwise_xor
    __rand__, __ror__, __rxor__ = e.bitwise_and, e.bitwise_or, e.bitwise_xor
    __iadd__, __isub__, __imul__, __itruediv__, __ipow__ = e.add_, e.sub_, e.mul_, e.div_, e.pow_
    __lt__, __le__, __gt__, __ge__ = e.lt, e.le, e.gt, e.ge

    def __rsub__(self, other: Any) -> Tensor:
        return e.sub(other, self)

    def __rtruediv__(self, other: Any) -> Tensor:
        return e.div(other, self)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return e.floor_divide(other, self)

    def __rmod__(self, other: Any) -> Tensor:
        return e.remainder(other, self)

    def __rpow__(self, other: Any) -> Tensor:
        return e.pow(other, self)

    def where(self: Any, condition: Tensor, other: Any) -> Tensor:
        """``self`` where ``condition`` holds, else ``other``."""
        return e.where(condition, self, other)  # type: ignore[no-any-return]


class ReduceMethods:
    sum, mean, var, std, prod, norm = r.sum, r.mean, r.var, r.std, r.prod, r.norm
    max, min, amax, amin, argmax, argmin = r.max, r.min, r.amax, r.amin, r.argmax, r.argmin
    all, any, logsumexp, cumsum = r.all, r.any, r.logsumexp, r.cumsum
    softmax, log_softmax = activation.softmax, activation.log_softmax


class SortMethods:
    sort, argsort, topk = sort.sort, sort.argsort, sort.topk


class ShapeMethods:
    reshape, view, view_as, reshape_as, flatten, ravel = (
        s.reshape,
        s.view,
        s.view_as,
        s.reshape_as,
        s.flatten,
        s.ravel,
    )
    unflatten, permute, transpose, swapaxes, t, movedim = (
        s.unflatten,
        s.permute,
        s.transpose,
        s.swapaxes,
        s.t,
        s.movedim,
    )
    squeeze, unsqueeze, expand, expand_as, broadcast_to = (
        s.squeeze,
        s.unsqueeze,
        s.expand,
        s.expand_as,
        s.broadcast_to,
    )
    repeat, tile, narrow, select, split, chunk = s.repeat, s.tile, s.narrow, s.select, s.split, s.chunk
    unbind, flip, roll, diagonal, clone, contiguous = (
        s.unbind,
        s.flip,
        s.roll,
        s.diagonal,
        s.clone,
        s.contiguous,
    )


class LinalgMethods:
    matmul, mm, mv, dot, bmm, outer, addmm = (
        linalg.matmul,
        linalg.mm,
        linalg.mv,
        linalg.dot,
        linalg.bmm,
        linalg.outer,
        linalg.addmm,
    )
    __matmul__ = linalg.matmul

    def __rmatmul__(self, other: Any) -> Tensor:
        return linalg.matmul(common.as_operand(other), self)  # type: ignore[arg-type]


class IndexMethods:
    gather, take_along_dim, index_select = i.gather, i.take_along_dim, i.index_select
    scatter, scatter_add, scatter_, scatter_add_ = i.scatter, i.scatter_add, i.scatter_, i.scatter_add_
    masked_select, nonzero = i.masked_select, i.nonzero
    tril, triu = i.tril, i.triu
    __getitem__, __setitem__ = i.getitem, i.setitem
