"""Sequences of different lengths: padded to one tensor, or packed without padding (``torch.nn.utils.rnn``).

Packed, the sequences lie sorted by length, longest first, time step after time step in one tensor:
``batch_sizes[t]`` of them have a step t.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from disttrain import engine, missing
from disttrain.functions.common import cast
from disttrain.functions.join import stack
from disttrain.kernels.arrays import Array
from disttrain.modes import reads_values
from disttrain.ops import rnn as ops
from disttrain.tensors import Tensor

__all__ = [
    "PackedSequence",
    "invert_permutation",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "unpack_sequence",
    "unpad_sequence",
]


class _Fields(NamedTuple):
    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None


class PackedSequence(_Fields):
    """Sequences without padding, as :func:`pack_padded_sequence` makes them.

    Args:
        data: the elements of all sequences, time step after time step.
        batch_sizes: how many sequences have each step, int64 on the CPU.
        sorted_indices: where each of the sorted sequences was before it was sorted.
        unsorted_indices: the inverse; computed if it is missing.

    Raises:
        ValueError: ``batch_sizes`` is not on the CPU, or is missing.
    """

    __slots__ = ()

    def __new__(
        cls,
        data: Any,
        batch_sizes: Tensor | None = None,
        sorted_indices: Tensor | None = None,
        unsorted_indices: Tensor | None = None,
    ) -> PackedSequence:
        if batch_sizes is None:  # both in one sequence
            if not isinstance(data, list | tuple) or len(data) != 2:
                raise ValueError(
                    f"PackedSequence: expected data and batch_sizes, got only one {type(data).__name__}; make it "
                    f"with pack_padded_sequence() or pack_sequence()"
                )
            data, batch_sizes = data
        if batch_sizes.device.type != "cpu":
            raise ValueError(
                f"PackedSequence: batch_sizes must lie in host memory, got {batch_sizes.device}; move it with .cpu()"
            )
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """Return it with ``data.to(*args, **kwargs)``, indices on the same device; itself if nothing changes."""
        data = self.data.to(*args, **kwargs)
        if data is self.data:
            return self
        indices = [None if i is None else i.to(data.device) for i in self[2:]]
        return type(self)(data, self.batch_sizes, *indices)

    def cpu(self) -> PackedSequence:
        """Return it in host memory."""
        return self.to("cpu")

    def cuda(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """Return it on a GPU."""
        return self.to(args[0] if args else kwargs.get("device", "cuda"))

    def double(self) -> PackedSequence:
        """Return it in float64."""
        return self.to(np.float64)

    def float(self) -> PackedSequence:
        """Return it in float32."""
        return self.to(np.float32)

    def half(self) -> PackedSequence:
        """Return it in float16."""
        return self.to(np.float16)

    def long(self) -> PackedSequence:
        """Return it in int64."""
        return self.to(np.int64)

    def int(self) -> PackedSequence:
        """Return it in int32."""
        return self.to(np.int32)

    def short(self) -> PackedSequence:
        """Return it in int16."""
        return self.to(np.int16)

    def char(self) -> PackedSequence:
        """Return it in int8."""
        return self.to(np.int8)

    def byte(self) -> PackedSequence:
        """Return it in uint8."""
        return self.to(np.uint8)

    @property
    def is_cuda(self) -> bool:
        """Whether the data is on a GPU."""
        return self.data.device.type == "cuda"

    def is_pinned(self) -> bool:
        """Return whether the data is in pinned memory."""
        return bool(self.data.is_pinned())


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """Return the permutation that undoes ``permutation``; ``None`` for ``None``."""
    if permutation is None:
        return None
    inverse = np.empty_like(permutation._array)
    inverse[permutation._array] = np.arange(len(inverse))
    return Tensor._of(inverse)


def pack_padded_sequence(
    input: Tensor, lengths: Tensor | Sequence[int], batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Pack padded sequences.

    Args:
        input: ``(T, B, *)``, or ``(B, T, *)`` if ``batch_first``; what lies beyond a sequence's length is left out.
        lengths: of each sequence.
        batch_first: the batch is the first dimension of ``input``.
        enforce_sorted: the sequences must come longest first; else they are sorted here.

    Raises:
        RuntimeError: nothing to pack; not one length per sequence; lengths that are not positive, beyond ``T``, or
            not sorted where that is asked for.
        IndexError: ``input`` has less than two dimensions.
    """
    reads_values("packing sequences, which looks at their lengths,")
    sizes = lengths._array if isinstance(lengths, Tensor) else np.asarray(lengths)
    if sizes.ndim != 1:
        raise RuntimeError(f"'lengths' must have one dimension, a length per sequence, got {sizes.ndim}")
    sizes = sizes.astype(np.int64)
    shape = input._array.shape
    if len(shape) < 2:
        raise IndexError(
            f"pack_padded_sequence: expected (T, B, *) or, with batch_first, (B, T, *), got shape {shape}"
        )
    steps, batch = (shape[1], shape[0]) if batch_first else shape[:2]
    if len(sizes) != batch:
        raise RuntimeError(
            f"pack_padded_sequence: each of {batch} sequences needs its length, got {len(sizes)}"
        )
    if 0 in shape:
        raise RuntimeError(f"pack_padded_sequence: there is nothing to pack in a tensor of shape {shape}")
    order = None
    if not enforce_sorted:
        order = np.argsort(-sizes, kind="stable")
        sizes = sizes[order]
    if (sizes <= 0).any():
        raise RuntimeError(f"pack_padded_sequence: lengths must be positive, got {sizes.min()}")
    if (np.diff(sizes) > 0).any():
        raise RuntimeError(
            "pack_padded_sequence: the longest sequence must come first and the shortest last; "
            "enforce_sorted=False sorts them"
        )
    if sizes[0] > steps:
        raise RuntimeError(f"'lengths' has {sizes[0]}, but the padded sequences have {steps} steps")
    batch_sizes = _batch_sizes(sizes)
    rows = _rows(batch_sizes, order, len(sizes), steps, batch_first)
    flat = input.reshape(shape[0] * shape[1], *shape[2:])
    data = engine.apply(ops.take_rows, flat, rows=rows)
    device = input.device
    return PackedSequence(
        data, Tensor._of(batch_sizes), None if order is None else Tensor._of(order).to(device)
    )


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Undo :func:`pack_padded_sequence`.

    Args:
        sequence: what was packed.
        batch_first: put the batch first.
        padding_value: what to put after the end of shorter sequences.
        total_length: number of steps of the result, by default that of the longest sequence.

    Returns:
        ``(T, B, *)`` or ``(B, T, *)``, in the order before packing, and the lengths, int64 on the CPU.

    Raises:
        ValueError: ``total_length`` is shorter than a sequence.
    """
    reads_values("padding packed sequences, which looks at their lengths,")
    batch_sizes = sequence.batch_sizes._array
    steps, batch = len(batch_sizes), int(batch_sizes[0])
    if total_length is not None:
        if total_length < steps:
            raise ValueError(
                f"pad_packed_sequence: total_length={total_length} is too short for a sequence of {steps} steps"
            )
        steps = total_length
    lengths = (np.arange(batch) < batch_sizes[:, None]).sum(0)
    order = None if sequence.unsorted_indices is None else np.argsort(sequence.unsorted_indices._array)
    if sequence.unsorted_indices is not None:
        lengths = lengths[sequence.unsorted_indices._array]
    rows = _rows(batch_sizes, order, batch, steps, batch_first)
    padded: Tensor = engine.apply(
        ops.put_rows, sequence.data, rows=rows, size=steps * batch, fill=padding_value
    )
    first, second = (batch, steps) if batch_first else (steps, batch)
    return padded.reshape(first, second, *padded.shape[1:]), Tensor._of(lengths)


def _batch_sizes(lengths: Array) -> Array:
    """Return how many sequences of these lengths, longest first, have each step."""
    return (lengths > np.arange(lengths[0])[:, None]).sum(1)


def _rows(
    batch_sizes: Array,
    order: Array | None,
    batch: int,
    steps: int,
    batch_first: bool,
) -> Array:
    """Return where each packed element is among all elements of the padded tensor."""
    t = np.repeat(np.arange(len(batch_sizes)), batch_sizes)
    b = np.arange(len(t)) - np.repeat(np.cumsum(batch_sizes) - batch_sizes, batch_sizes)
    if order is not None:
        b = order[b]
    return b * steps + t if batch_first else t * batch + b


def pad_sequence(
    sequences: Tensor | Iterable[Tensor],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:
    """Make one tensor of sequences of different lengths.

    Args:
        sequences: each ``(length, *)``, alike but for the length.
        batch_first: return ``(B, T, *)`` instead of ``(T, B, *)``, where T is the longest length.
        padding_value: what to put before or after shorter sequences.
        padding_side: ``"right"`` (after) or ``"left"``.

    Raises:
        RuntimeError: no sequences; not tensors; shapes that differ in more than the length; another side.
    """
    if not isinstance(sequences, Iterable):
        raise RuntimeError(
            f"pad_sequence: expected an iterable of tensors for sequences, got {type(sequences).__name__}"
        )
    parts = list(sequences.unbind(0) if isinstance(sequences, Tensor) else sequences)
    if padding_side not in ("left", "right"):
        raise RuntimeError(f"pad_sequence: padding_side is 'left' or 'right', got {padding_side!r}")
    if not parts:
        raise RuntimeError("pad_sequence: there are no sequences to pad")
    for part in parts:
        if not isinstance(part, Tensor) or not part.ndim or part.shape[1:] != parts[0].shape[1:]:
            got = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise RuntimeError(
                f"pad_sequence: the sequences must be tensors (length, *) that differ in length only, got {got} "
                f"beside {list(getattr(parts[0], 'shape', ()))}"
            )
    kind = parts[0]._array.dtype
    longest = max(len(p) for p in parts)
    padded = []
    for part in parts:
        n = len(part)
        begin = longest - n if padding_side == "left" else 0
        rows = np.arange(begin, begin + n)
        whole = n == longest
        part = cast(part, kind)
        padded.append(
            part if whole else engine.apply(ops.put_rows, part, rows=rows, size=longest, fill=padding_value)
        )
    return stack(padded, 0 if batch_first else 1)


def unpad_sequence(padded_sequences: Tensor, lengths: Tensor, batch_first: bool = False) -> list[Tensor]:
    """Return the sequences of a padded tensor, each cut to its length; undoes :func:`pad_sequence`.

    Raises:
        ValueError: not one length per sequence.
    """
    batch = padded_sequences.shape[0 if batch_first else 1]
    if len(lengths) != batch:
        raise ValueError(f"unpad_sequence: expected {batch} lengths, one per sequence, got {len(lengths)}")
    sequences = padded_sequences.unbind(0 if batch_first else 1)
    return [s[: int(n)] for s, n in zip(sequences, lengths, strict=True)]


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Pack sequences of different lengths, each ``(length, *)``; see :func:`pack_padded_sequence`."""
    lengths = [len(s) for s in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """Return the sequences that :func:`pack_sequence` packed."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
