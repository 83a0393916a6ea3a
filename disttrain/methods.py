"""The methods of Tensor, one mixin per family of functions: a method is the function with the tensor first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.functions import activation, common, compare, join, linalg, rearrange, sort
from disttrain.functions import decompositions as de
from disttrain.functions import diagonals as d
from disttrain.functions import elementwise as e
from disttrain.functions import index as i
from disttrain.functions import random as random_functions
from disttrain.functions import reduce as r
from disttrain.functions import scatter as sc
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
    prelu, hardshrink = activation.prelu, activation.hardshrink


class SortMethods:
    sort, argsort, topk = sort.sort, sort.argsort, sort.topk


class ShapeMethods:
    reshape, view, view_as, reshape_as = s.reshape, s.view, s.view_as, s.reshape_as
    flatten, ravel, unflatten, squeeze, unsqueeze = s.flatten, s.ravel, s.unflatten, s.squeeze, s.unsqueeze
    permute, transpose, swapaxes, swapdims, t = s.permute, s.transpose, s.swapaxes, s.swapdims, s.t
    adjoint, movedim, moveaxis = s.adjoint, s.movedim, s.moveaxis
    expand, expand_as, broadcast_to = s.expand, s.expand_as, s.broadcast_to
    narrow, narrow_copy, select, unfold, as_strided = (
        s.narrow,
        s.narrow_copy,
        s.select,
        s.unfold,
        s.as_strided,
    )
    clone, contiguous, is_contiguous = s.clone, s.contiguous, s.is_contiguous
    squeeze_, unsqueeze_, transpose_, t_ = s.squeeze_, s.unsqueeze_, s.transpose_, s.t_
    swapaxes_, swapdims_, as_strided_ = s.swapaxes_, s.swapdims_, s.as_strided_
    resize_, resize_as_ = s.resize_, s.resize_as_

    split_with_sizes, chunk, unbind = join.split_with_sizes, join.chunk, join.unbind

    def split(self, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
        """See :func:`disttrain.split`."""
        return join.split(self, split_size, dim)  # type: ignore[arg-type]

    tensor_split, hsplit, vsplit, dsplit = join.tensor_split, join.hsplit, join.vsplit, join.dsplit

    repeat, tile, repeat_interleave = rearrange.repeat, rearrange.tile, rearrange.repeat_interleave
    flip, fliplr, flipud = rearrange.flip, rearrange.fliplr, rearrange.flipud
    rot90, roll = rearrange.rot90, rearrange.roll

    diagonal, diag, diag_embed, diagflat = d.diagonal, d.diag, d.diag_embed, d.diagflat
    trace, tril, triu, tril_, triu_ = d.trace, d.tril, d.triu, d.tril_, d.triu_
    diagonal_scatter, select_scatter = d.diagonal_scatter, d.select_scatter
    slice_scatter = d.slice_scatter


class LinalgMethods:
    matmul, mm, mv, dot, vdot, inner = (
        linalg.matmul,
        linalg.mm,
        linalg.mv,
        linalg.dot,
        linalg.vdot,
        linalg.inner,
    )
    bmm, outer, ger, kron, cross = linalg.bmm, linalg.outer, linalg.ger, linalg.kron, linalg.cross
    addmm, addmv, addr = linalg.addmm, linalg.addmv, linalg.addr
    baddbmm, addbmm = linalg.baddbmm, linalg.addbmm
    addmm_, addmv_, addr_ = linalg.addmm_, linalg.addmv_, linalg.addr_
    baddbmm_, addbmm_ = linalg.baddbmm_, linalg.addbmm_
    det, logdet, slogdet, inverse, pinverse = de.det, de.logdet, de.slogdet, de.inverse, de.pinverse
    matrix_power, matrix_exp = de.matrix_power, de.matrix_exp
    svd, qr, cholesky = de.top_svd, de.top_qr, de.top_cholesky
    cholesky_solve, cholesky_inverse = de.cholesky_solve, de.cholesky_inverse
    triangular_solve = de.triangular_solve
    __matmul__ = linalg.matmul

    def __rmatmul__(self, other: Any) -> Tensor:
        return linalg.matmul(common.as_operand(other), self)  # type: ignore[arg-type]


class IndexMethods:
    __getitem__, __setitem__ = i.getitem, i.setitem
    index_put, index_put_, index_select = i.index_put, i.index_put_, i.index_select
    take, put, put_, nonzero, argwhere = i.take, i.put, i.put_, i.nonzero, i.argwhere
    masked_select, masked_scatter, masked_scatter_ = i.masked_select, i.masked_scatter, i.masked_scatter_
    gather, take_along_dim = sc.gather, sc.take_along_dim
    scatter, scatter_add, scatter_reduce = sc.scatter, sc.scatter_add, sc.scatter_reduce
    scatter_, scatter_add_, scatter_reduce_ = sc.scatter_, sc.scatter_add_, sc.scatter_reduce_
    index_add, index_copy, index_fill = sc.index_add, sc.index_copy, sc.index_fill
    index_add_, index_copy_, index_fill_ = sc.index_add_, sc.index_copy_, sc.index_fill_


class RandomMethods:
    bernoulli, multinomial = random_functions.bernoulli, random_functions.multinomial
    uniform_, normal_, bernoulli_ = (
        random_functions.uniform_,
        random_functions.normal_,
        random_functions.bernoulli_,
    )
    random_, exponential_ = random_functions.random_, random_functions.exponential_
    geometric_, log_normal_ = random_functions.geometric_, random_functions.log_normal_
    cauchy_ = random_functions.cauchy_
