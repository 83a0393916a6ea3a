"""The methods of Tensor, one mixin per family of functions: a method is the function with the tensor first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.functions import (
    activation,
    common,
    compare,
    join,
    linalg,
    norm,
    random_in_place,
    rearrange,
    scan,
    search,
)
from disttrain.functions import arithmetic as a
from disttrain.functions import decompositions as de
from disttrain.functions import diagonals as d
from disttrain.functions import elementwise as e
from disttrain.functions import in_place as n
from disttrain.functions import index as i
from disttrain.functions import random as random_functions
from disttrain.functions import reduce as r
from disttrain.functions import scatter as sc
from disttrain.functions import shape as s
from disttrain.functions import sort as so

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


class ElementwiseMethods:
    neg, negative, positive, abs, absolute = e.neg, e.negative, e.positive, e.abs, e.absolute
    reciprocal, square, deg2rad, rad2deg, exp = e.reciprocal, e.square, e.deg2rad, e.rad2deg, e.exp
    exp2, expm1, log, log2, log10, log1p, sqrt = e.exp2, e.expm1, e.log, e.log2, e.log10, e.log1p, e.sqrt
    rsqrt, sigmoid, logit, sin, cos, tan, asin = e.rsqrt, e.sigmoid, e.logit, e.sin, e.cos, e.tan, e.asin
    acos, atan, arcsin, arccos, arctan, sinh = e.acos, e.atan, e.arcsin, e.arccos, e.arctan, e.sinh
    cosh, tanh, asinh, acosh, atanh, arcsinh = e.cosh, e.tanh, e.asinh, e.acosh, e.atanh, e.arcsinh
    arccosh, arctanh, sinc, erf, erfc, erfinv = e.arccosh, e.arctanh, e.sinc, e.erf, e.erfc, e.erfinv
    mvlgamma, mvlgamma_, apply_, map_ = e.mvlgamma, n.mvlgamma_, n.apply_, n.map_
    lgamma, digamma, relu, floor, ceil, trunc = e.lgamma, e.digamma, e.relu, e.floor, e.ceil, e.trunc
    fix, round, frac, sign, sgn, signbit = e.fix, e.round, e.frac, e.sign, e.sgn, e.signbit
    nan_to_num, logical_not, bitwise_not, isnan = e.nan_to_num, e.logical_not, e.bitwise_not, e.isnan
    isinf, isfinite, isposinf, isneginf, isreal = e.isinf, e.isfinite, e.isposinf, e.isneginf, e.isreal
    conj, conj_physical, resolve_conj, resolve_neg = e.conj, e.conj_physical, e.resolve_conj, e.resolve_neg

    add, sub, mul, div, true_divide, multiply = a.add, a.sub, a.mul, a.div, a.true_divide, a.multiply
    subtract, divide, pow, floor_divide = a.subtract, a.divide, a.pow, a.floor_divide
    remainder, fmod, float_power, atan2, arctan2 = a.remainder, a.fmod, a.float_power, a.atan2, a.arctan2
    hypot, logaddexp, logaddexp2, xlogy, copysign = a.hypot, a.logaddexp, a.logaddexp2, a.xlogy, a.copysign
    maximum, minimum, fmax, fmin, heaviside = a.maximum, a.minimum, a.fmax, a.fmin, a.heaviside
    clamp, clip, clamp_min, clamp_max = a.clamp, a.clip, a.clamp_min, a.clamp_max
    ldexp, gcd, lcm, angle = a.ldexp, a.gcd, a.lcm, a.angle
    masked_fill, lerp, addcmul, addcdiv = a.masked_fill, a.lerp, a.addcmul, a.addcdiv

    eq, ne, lt, le, gt, ge = compare.eq, compare.ne, compare.lt, compare.le, compare.gt, compare.ge
    greater, greater_equal, less = compare.greater, compare.greater_equal, compare.less
    less_equal, not_equal, logical_and = compare.less_equal, compare.not_equal, compare.logical_and
    logical_or, logical_xor, bitwise_and = compare.logical_or, compare.logical_xor, compare.bitwise_and
    bitwise_or, bitwise_xor = compare.bitwise_or, compare.bitwise_xor
    bitwise_left_shift, bitwise_right_shift = compare.bitwise_left_shift, compare.bitwise_right_shift
    equal, isclose, allclose = compare.equal, compare.isclose, compare.allclose
    is_nonzero, is_same_size, is_signed = compare.is_nonzero, compare.is_same_size, compare.is_signed
    is_complex = compare.is_complex

    __neg__, __pos__, __abs__ = e.neg, e.positive, e.abs
    __add__, __mul__ = a.add, a.mul
    __sub__, __truediv__, __floordiv__, __mod__, __pow__ = a.sub, a.div, a.floor_divide, a.remainder, a.pow
    __and__, __or__, __xor__ = compare.bitwise_and, compare.bitwise_or, compare.bitwise_xor
    __lshift__, __rshift__ = compare.bitwise_left_shift, compare.bitwise_right_shift
    __lt__, __le__, __gt__, __ge__ = compare.lt, compare.le, compare.gt, compare.ge

    def polygamma(self: Any, n: int) -> Tensor:
        """:func:`disttrain.polygamma`, whose first argument is ``n``."""
        return e.polygamma(n, self)

    def polygamma_(self: Any, n: int) -> Tensor:
        """:meth:`polygamma` in place."""
        return common.overwrite(self, lambda x: e.polygamma(n, x))

    def __invert__(self: Any) -> Tensor:
        if self.dtype.is_floating_point:
            raise TypeError(f"~ needs a tensor of integers or booleans, got {self.dtype}")
        return self.bitwise_not()  # type: ignore[no-any-return]

    def __radd__(self: Any, other: Any) -> Tensor:
        return self.add(other)  # type: ignore[no-any-return]

    def __rmul__(self: Any, other: Any) -> Tensor:
        return self.mul(other)  # type: ignore[no-any-return]

    def __rand__(self: Any, other: Any) -> Tensor:
        return self.bitwise_and(other)  # type: ignore[no-any-return]

    def __ror__(self: Any, other: Any) -> Tensor:
        return self.bitwise_or(other)  # type: ignore[no-any-return]

    def __rxor__(self: Any, other: Any) -> Tensor:
        return self.bitwise_xor(other)  # type: ignore[no-any-return]

    def __rsub__(self, other: Any) -> Tensor:
        return a.sub(other, self)

    def __rtruediv__(self, other: Any) -> Tensor:
        return a.number_over(self, other)

    __rdiv__ = __rtruediv__

    def __rfloordiv__(self, other: Any) -> Tensor:
        return a.floor_divide(other, self)

    def __rmod__(self, other: Any) -> Tensor:
        return a.remainder(other, self)

    def __rpow__(self, other: Any) -> Tensor:
        return a.pow(other, self)

    def __rlshift__(self, other: Any) -> Tensor:
        return compare.bitwise_left_shift(other, self)

    def __rrshift__(self, other: Any) -> Tensor:
        return compare.bitwise_right_shift(other, self)

    def where(self: Any, condition: Tensor, other: Any) -> Tensor:
        """``self`` where ``condition`` holds, else ``other``."""
        return a.where(condition, self, other)  # type: ignore[no-any-return]


class InPlaceMethods:
    abs_, absolute_, acos_, acosh_, add_ = n.abs_, n.absolute_, n.acos_, n.acosh_, n.add_
    addcdiv_, addcmul_, arccos_, arccosh_ = n.addcdiv_, n.addcmul_, n.arccos_, n.arccosh_
    arcsin_, arcsinh_, arctan2_, arctan_ = n.arcsin_, n.arcsinh_, n.arctan2_, n.arctan_
    arctanh_, asin_, asinh_, atan2_, atan_ = n.arctanh_, n.asin_, n.asinh_, n.atan2_, n.atan_
    atanh_, bitwise_and_, bitwise_left_shift_ = n.atanh_, n.bitwise_and_, n.bitwise_left_shift_
    bitwise_not_, bitwise_or_, bitwise_right_shift_ = n.bitwise_not_, n.bitwise_or_, n.bitwise_right_shift_
    bitwise_xor_, ceil_, clamp_, clamp_max_ = n.bitwise_xor_, n.ceil_, n.clamp_, n.clamp_max_
    clamp_min_, clip_, copysign_, cos_, cosh_ = n.clamp_min_, n.clip_, n.copysign_, n.cos_, n.cosh_
    deg2rad_, digamma_, div_, divide_, eq_, erf_ = n.deg2rad_, n.digamma_, n.div_, n.divide_, n.eq_, n.erf_
    erfc_, erfinv_, exp2_, exp_, expm1_, fill_ = n.erfc_, n.erfinv_, n.exp2_, n.exp_, n.expm1_, n.fill_
    fix_, float_power_, floor_, floor_divide_ = n.fix_, n.float_power_, n.floor_, n.floor_divide_
    fmod_, frac_, ge_, greater_, greater_equal_ = n.fmod_, n.frac_, n.ge_, n.greater_, n.greater_equal_
    gt_, heaviside_, hypot_, le_, lerp_, less_ = n.gt_, n.heaviside_, n.hypot_, n.le_, n.lerp_, n.less_
    less_equal_, lgamma_, log10_, log1p_, log2_ = n.less_equal_, n.lgamma_, n.log10_, n.log1p_, n.log2_
    log_, logical_and_, logical_not_, logical_or_ = n.log_, n.logical_and_, n.logical_not_, n.logical_or_
    logical_xor_, logit_, lt_, masked_fill_, mul_ = n.logical_xor_, n.logit_, n.lt_, n.masked_fill_, n.mul_
    multiply_, nan_to_num_, ne_, neg_, negative_ = n.multiply_, n.nan_to_num_, n.ne_, n.neg_, n.negative_
    not_equal_, pow_, rad2deg_, reciprocal_ = n.not_equal_, n.pow_, n.rad2deg_, n.reciprocal_
    relu_, remainder_, round_, rsqrt_, sgn_ = n.relu_, n.remainder_, n.round_, n.rsqrt_, n.sgn_
    sigmoid_, sign_, sin_, sinc_, sinh_, sqrt_ = n.sigmoid_, n.sign_, n.sin_, n.sinc_, n.sinh_, n.sqrt_
    square_, sub_, subtract_, tan_, tanh_ = n.square_, n.sub_, n.subtract_, n.tan_, n.tanh_
    true_divide_, trunc_, xlogy_, zero_ = n.true_divide_, n.trunc_, n.xlogy_, n.zero_
    cumsum_, cumprod_, copy_ = n.cumsum_, n.cumprod_, common.copy_
    conj_physical_, fill_diagonal_ = n.conj_physical_, d.fill_diagonal_
    ldexp_, gcd_, lcm_ = n.ldexp_, n.gcd_, n.lcm_

    __iadd__, __isub__, __imul__, __itruediv__, __ipow__ = n.add_, n.sub_, n.mul_, n.div_, n.pow_
    __ifloordiv__, __imod__ = n.floor_divide_, n.remainder_
    __iand__, __ior__, __ixor__ = n.bitwise_and_, n.bitwise_or_, n.bitwise_xor_
    __ilshift__, __irshift__ = n.bitwise_left_shift_, n.bitwise_right_shift_


class ReduceMethods:
    sum, nansum, mean, nanmean, var, std, prod = r.sum, r.nansum, r.mean, r.nanmean, r.var, r.std, r.prod
    max, min, amax, amin, aminmax, argmax, argmin = (
        r.max,
        r.min,
        r.amax,
        r.amin,
        r.aminmax,
        r.argmax,
        r.argmin,
    )
    all, any, logsumexp, count_nonzero = r.all, r.any, r.logsumexp, r.count_nonzero
    cumsum, cumprod, logcumsumexp = scan.cumsum, scan.cumprod, scan.logcumsumexp
    cummax, cummin, diff = scan.cummax, scan.cummin, scan.diff
    renorm, renorm_, norm, dist = norm.renorm, norm.renorm_, norm.norm, norm.dist
    cov, corrcoef = linalg.cov, linalg.corrcoef
    softmax, log_softmax = activation.softmax, activation.log_softmax
    prelu, hardshrink = activation.prelu, activation.hardshrink


class SortMethods:
    sort, argsort, msort, topk, kthvalue, mode = so.sort, so.argsort, so.msort, so.topk, so.kthvalue, so.mode
    median, nanmedian, quantile, nanquantile = so.median, so.nanmedian, so.quantile, so.nanquantile
    unique, unique_consecutive = search.unique, search.unique_consecutive
    bincount, histc = search.bincount, search.histc


class ShapeMethods:
    sum_to_size = s.sum_to_size
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

    unsafe_split, unsafe_chunk = join.unsafe_split, join.unsafe_chunk
    unsafe_split_with_sizes = join.unsafe_split_with_sizes
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
        random_in_place.uniform_,
        random_in_place.normal_,
        random_in_place.bernoulli_,
    )
    random_, exponential_ = random_in_place.random_, random_in_place.exponential_
    geometric_, log_normal_ = random_in_place.geometric_, random_in_place.log_normal_
    cauchy_ = random_in_place.cauchy_
