"""``einsum``: sums of products written with letters, as products of matrices."""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING, Any

from disttrain.dtypes import int64
from disttrain.functions.common import need_tensors
from disttrain.functions.diagonals import diagonal
from disttrain.functions.linalg import matmul
from disttrain.functions.shape import movedim, permute, reshape
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

Label = int
"""Of a dimension: 0 to 51 for the letters A-Z and a-z, in PyTorch's order; negative for those of an ellipsis."""

_LETTERS = string.ascii_uppercase + string.ascii_lowercase
_DOTS = None


@autocasts
def einsum(equation: Any, *operands: Any) -> Tensor:
    """Sums of products over the dimensions whose letters are not in the output.

    ``einsum("bij,bjk->bik", x, y)``: one letter names one dimension of each operand; a letter that appears twice in
    an operand takes the diagonal; ``...`` stands for any dimensions, which broadcast; without ``->`` the output has
    the letters that appear once, in alphabetical order. Also ``einsum(x, [0, 1], y, [1, 2], [0, 2])``.

    Operands are combined two by two from the left, each pair by one (batched) product of matrices.

    Args:
        equation: the letters.
        operands: tensors of one type, or one list of them.

    Raises:
        RuntimeError: the equation is wrong, or does not fit the operands.
    """
    inputs, output, tensors = _read(equation, operands)
    need_tensors("einsum", *tensors)
    if len(inputs) != len(tensors):
        raise RuntimeError(f"einsum(): the equation has {len(inputs)} operands, {len(tensors)} were given")
    dots = max(x.ndim - sum(k is not _DOTS for k in ks) for x, ks in zip(tensors, inputs, strict=True))
    parts = [_label(x, ks, i) for i, (x, ks) in enumerate(zip(tensors, inputs, strict=True))]
    wanted = _output(inputs, output, max(dots, 0))
    sizes = _sizes(parts)
    for k in wanted:
        if k >= 0 and k not in sizes:
            raise RuntimeError(f"einsum(): the output has the letter {_LETTERS[k]!r}, which no operand has")
    wanted = [k for k in wanted if k in sizes]
    pending = [_drop_ones(x, ks, sizes) for x, ks in parts]
    here, labels = pending[0]
    for i, (x, ks) in enumerate(pending[1:], 2):
        later = {k for _, more in pending[i:] for k in more}.union(wanted)
        if i == len(pending) and _goes_before(ks, labels, wanted):
            here, labels, x, ks = x, ks, here, labels
        here, labels = _multiply(here, labels, x, ks, later, wanted)
    if len(pending) == 1 and not set(sizes) <= set(wanted):
        here = (
            here.sum([i for i, k in enumerate(labels) if k not in wanted])
            if set(labels) - set(wanted)
            else here.clone()  # a sum, if of one number each: no view
        )
        labels = [k for k in labels if k in wanted]
        if not here.dtype.is_floating_point:
            here = here.to(int64)  # as every sum of integers
    missing = [k for k in wanted if k not in labels]  # of size 1 in all operands
    for k in missing:
        here, labels = here.unsqueeze(0), [k, *labels]
    order = [labels.index(k) for k in wanted]
    if order == sorted(order) and here is not tensors[0]:
        return here
    return permute(here, order)


def _goes_before(ys: list[Label], xs: list[Label], wanted: list[Label]) -> bool:
    """Return whether of the labels that two operands do not share the second's come first in the output."""
    own = [k in ys for k in wanted if (k in ys) != (k in xs)]
    return bool(own) and own[0]


def _read(equation: Any, operands: tuple[Any, ...]) -> tuple[list[list[Any]], list[Any] | None, list[Tensor]]:
    """Return the labels of each operand and of the output (``None`` if it is not given), and the operands."""
    if not isinstance(equation, str):
        everything = [equation, *operands]
        if len(everything) < 2:
            raise ValueError(
                "einsum() needs an equation and operands, or operands each with a list of labels"
            )
        output = _sublist(everything.pop()) if len(everything) % 2 else None
        return [_sublist(k) for k in everything[1::2]], output, list(everything[::2])
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not operands:
        raise RuntimeError("einsum() needs at least one operand, got none")
    left, arrow, right = equation.replace(" ", "").partition("->")
    if "->" in right:
        raise RuntimeError(f"einsum(): more than one -> in {equation!r}")
    output = _letters(right, equation) if arrow else None
    return [_letters(part, equation) for part in left.split(",")], output, list(operands)


def _letters(part: str, equation: str) -> list[Any]:
    before, dots, behind = part.partition("...")
    out: list[Any] = []
    for piece in (before, dots, behind):
        if piece == "..." and dots:
            out.append(_DOTS)
            continue
        for letter in piece:
            if letter not in _LETTERS:
                raise RuntimeError(
                    f"einsum(): {letter!r} in {equation!r}; it may hold letters, commas, one ... for each operand "
                    f"and one ->"
                )
            out.append(_LETTERS.index(letter))
    return out


def _sublist(labels: Any) -> list[Any]:
    out: list[Any] = []
    if not isinstance(labels, list | tuple):
        raise TypeError(f"einsum(): an operand must be followed by a list of its labels, got {labels!r:.80}")
    for k in labels:
        if k is not Ellipsis and not (isinstance(k, int) and 0 <= k < len(_LETTERS)):
            raise ValueError(f"einsum(): labels must be integers in [0, {len(_LETTERS)}) or ..., got {k!r}")
        out.append(_DOTS if k is Ellipsis else k)
    if out.count(_DOTS) > 1:
        raise RuntimeError("einsum(): an operand may have one ...")
    return out


def _label(x: Tensor, labels: list[Any], number: int) -> tuple[Tensor, list[Label]]:
    """Return an operand with one dimension for each of its labels: of dimensions with the same one, the diagonal."""
    named = sum(k is not _DOTS for k in labels)
    rest = x.ndim - named
    if rest < 0 or (rest and _DOTS not in labels):
        raise RuntimeError(
            f"einsum(): operand {number} has shape {list(x.shape)}, but {named} letters"
            + (" and ..." if _DOTS in labels else "")
        )
    full: list[Label] = []
    for k in labels:
        full += range(-rest, 0) if k is _DOTS else [k]
    unique: list[Label] = []
    for k in full:
        if k not in unique:
            unique.append(k)
            continue
        a, b = unique.index(k), len(unique)
        if x.shape[a] != x.shape[b]:
            raise RuntimeError(
                f"einsum(): the letter {_LETTERS[k]!r} stands for sizes {x.shape[a]} and {x.shape[b]} in "
                f"operand {number}"
            )
        x = movedim(diagonal(x, 0, a, b), -1, a)
    return x, unique


def _output(inputs: list[list[Any]], output: list[Any] | None, dots: int) -> list[Label]:
    ellipsis = list(range(-dots, 0))
    if output is None:
        every = [k for ks in inputs for k in ks if k is not _DOTS]
        return ellipsis + sorted(k for k in set(every) if every.count(k) == 1)
    out: list[Label] = []
    for k in output:
        if k is _DOTS:
            out += ellipsis
        elif k in out:
            raise RuntimeError(f"einsum(): the letter {_LETTERS[k]!r} appears twice in the output")
        else:
            out.append(k)
    return out


def _sizes(parts: list[tuple[Tensor, list[Label]]]) -> dict[Label, int]:
    sizes: dict[Label, int] = {}
    for i, (x, labels) in enumerate(parts):
        for k, n in zip(labels, x._array.shape, strict=True):
            known = sizes.get(k, 1)
            if n != 1 and known not in (1, n):
                name = repr(_LETTERS[k]) if k >= 0 else "..."
                raise RuntimeError(f"einsum(): {name} has size {n} in operand {i}, and {known} before")
            sizes[k] = n if known == 1 else known
    return sizes


def _drop_ones(x: Tensor, labels: list[Label], sizes: dict[Label, int]) -> tuple[Tensor, list[Label]]:
    """Return an operand without its dimensions of size 1, which broadcast and so add nothing."""
    kept = [k for k, n in zip(labels, x._array.shape, strict=True) if n != 1]
    if len(kept) == len(labels):
        return x, labels
    return reshape(x, [n for n in x._array.shape if n != 1]), kept


def _sum_out(x: Tensor, labels: list[Label], keep: set[Label]) -> tuple[Tensor, list[Label]]:
    out = [i for i, k in enumerate(labels) if k not in keep]
    if out:
        x = x.sum(out, dtype=x.dtype)
    return x, [k for k in labels if k in keep]


def _multiply(
    x: Tensor, xs: list[Label], y: Tensor, ys: list[Label], later: set[Label], wanted: list[Label]
) -> tuple[Tensor, list[Label]]:
    """Return the product of two operands, summed over the labels that nothing later needs.

    Its labels are those of both, of the first, of the second, each in the order of the output: row-major if that is.
    """
    x, xs = _sum_out(x, xs, later.union(ys))
    y, ys = _sum_out(y, ys, later.union(xs))
    both = [k for k in xs if k in ys]
    summed = [k for k in both if k not in later]
    batch = [k for k in both if k in later]
    only_x, only_y = [k for k in xs if k not in ys], [k for k in ys if k not in xs]
    for group in (batch, only_x, only_y):
        group.sort(key=lambda k: wanted.index(k) if k in wanted else -1)
    size = dict(zip(xs, x._array.shape, strict=True)) | dict(zip(ys, y._array.shape, strict=True))

    def shaped(t: Tensor, labels: list[Label], *groups: list[Label]) -> Tensor:
        order = [labels.index(k) for g in groups for k in g]
        t = t if order == sorted(order) else permute(t, order)
        return reshape(t, [math.prod(size[k] for k in g) for g in groups])

    labels = batch + only_x + only_y
    if not summed and x.dtype.category != 0:
        left = permute(x, [xs.index(k) for k in batch + only_x])
        right = permute(y, [ys.index(k) for k in batch + only_y])
        left = reshape(left, [size[k] for k in batch + only_x] + [1] * len(only_y))
        right = reshape(right, [size[k] for k in batch] + [1] * len(only_x) + [size[k] for k in only_y])
        return left * right, labels
    if batch:
        out = matmul(shaped(x, xs, batch, only_x, summed), shaped(y, ys, batch, summed, only_y))
    else:
        out = matmul(shaped(x, xs, only_x, summed), shaped(y, ys, summed, only_y))
    return reshape(out, [size[k] for k in labels]), labels
