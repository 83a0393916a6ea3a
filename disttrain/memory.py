"""What recorded graphs keep in memory, as ``dt.memory``.

Nothing is counted while a program runs: the graphs are found and walked when somebody asks, through the garbage
collector's list of live objects or from the tensors given, so an operation costs nothing more.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from disttrain import engine
from disttrain.kernels.arrays import Array, is_array, owner
from disttrain.nodes import Node, Packed, PackedTensor

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["Saved", "SavedTensors", "live_tensor_bytes", "resident_bytes", "saved", "summary"]


@dataclass(frozen=True)
class Saved:
    """One stretch of memory that some graph keeps for backward."""

    op: str
    """The first operation that saved it."""
    bytes: int
    """All of it, also where only a view was saved."""
    shape: tuple[int, ...]
    """Of the array that was saved."""
    dtype: str
    is_leaf: bool
    """Whether it belongs to a leaf that requires a gradient, a parameter say: it is there anyway."""


@dataclass
class SavedTensors:
    """What graphs keep for backward; each stretch of memory counts once."""

    nodes: int = 0
    """Recorded operations."""
    entries: list[Saved] = field(default_factory=list)
    """The largest first."""
    packed: int = 0
    """Values in the hands of ``saved_tensors_hooks``, ``checkpoint`` among them, whose size only they know."""

    @property
    def bytes(self) -> int:
        """What is kept only for backward: all but the memory of leaves."""
        return sum(e.bytes for e in self.entries if not e.is_leaf)

    @property
    def leaf_bytes(self) -> int:
        """What belongs to leaves that require a gradient."""
        return sum(e.bytes for e in self.entries if e.is_leaf)

    def by_op(self) -> dict[str, int]:
        """Return the bytes of each operation, the largest first, without those of leaves."""
        total: Counter[str] = Counter()
        for e in self.entries:
            if not e.is_leaf:
                total[e.op] += e.bytes
        return dict(total.most_common())


def saved(*roots: Tensor) -> SavedTensors:
    """Return what the graphs behind ``roots`` keep for backward; those of all live graphs if none are given.

    Raises:
        TypeError: a root is no Tensor.
    """
    nodes = list(_below(roots) if roots else _alive())
    leaves = {
        id(owner(e[0]._array)) for n in nodes for e in n.edges if e is not None and not isinstance(e[0], Node)
    }
    found: dict[int, Saved] = {}
    packed = 0
    for node in sorted(nodes, key=lambda n: n.sequence):
        for value in _kept(node):
            if isinstance(value, PackedTensor):
                packed += 1
                continue
            memory = owner(value)
            if id(memory) not in found:
                name = node.op.__name__
                found[id(memory)] = Saved(
                    name, int(memory.nbytes), tuple(value.shape), str(value.dtype), id(memory) in leaves
                )
    return SavedTensors(len(nodes), sorted(found.values(), key=lambda e: -e.bytes), packed)


def _alive() -> Iterator[Node]:
    # By type(): isinstance() would ask foreign objects for their __class__, and some answer with a warning.
    return (o for o in gc.get_objects() if issubclass(type(o), Node) and hasattr(o, "edges"))


def _below(roots: tuple[Any, ...]) -> Iterator[Node]:
    stack, seen = [], set()
    for t in roots:
        if not isinstance(t, engine.Tensor_):
            raise TypeError(f"memory is asked of Tensors, got {type(t).__name__}: {t!r:.80}")
        edge = t._edge()
        if edge is not None:
            stack.append(edge[0])
    while stack:
        node = stack.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        yield node
        stack += [e[0] for e in node.edges if e is not None]


def _kept(node: Node) -> Iterator[Any]:
    """Return the arrays and packed values of a node."""
    values: Any = node.saved
    if values is None:  # a user's Function
        for s in getattr(node, "_saved", None) or ():
            if s is not None and s.lent is None:
                yield s.packed if s.packed is not None else (s.array if s.kept is None else s.kept._array)
        return
    for value in values:
        if isinstance(value, PackedTensor if type(values) is Packed else ()) or is_array(value):
            yield value


def live_tensor_bytes() -> int:
    """Return the bytes of all Tensors that are alive, each stretch of memory once; saved arrays are not Tensors."""
    owners = {id(memory): int(memory.nbytes) for memory in (owner(t._array) for t in _live_tensors())}
    return sum(owners.values())


def _live_tensors() -> Iterator[Tensor]:
    return (o for o in gc.get_objects() if issubclass(type(o), engine.Tensor_) and hasattr(o, "_array"))


def holders(counts: Callable[[Array], bool]) -> dict[str, int]:
    """Return the bytes of who keeps arrays alive, in words, each stretch of memory at the first of them.

    Args:
        counts: whether the memory of an array is asked about.
    """
    found: Counter[str] = Counter()
    seen = set()

    def note(who: str, array: Array) -> None:
        memory = owner(array)
        if id(memory) not in seen and counts(memory):
            seen.add(id(memory))
            found[who] += int(memory.nbytes)

    tensors = list(_live_tensors())
    for t in tensors:
        if t.requires_grad and t.is_leaf:
            note("parameters", t._array)
    for t in tensors:
        if t._grad is not None:
            note("gradients", t._grad._array)
    for node in sorted(_alive(), key=lambda n: n.sequence):
        for value in _kept(node):
            if not isinstance(value, PackedTensor):
                note(f"saved for backward by {node.op.__name__}", value)
    for t in tensors:
        note("other tensors", t._array)
    return dict(found)


def resident_bytes() -> int | None:
    """Return the memory that the process has in use as the system counts it; ``None`` where ``/proc`` does not tell."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def summary(*roots: Tensor, largest: int = 5) -> str:
    """Return a table of what graphs keep for backward: bytes by operation, and the largest pieces.

    Args:
        roots: whose graphs; all live ones if none are given.
        largest: how many pieces to list.
    """
    what = saved(*roots)
    lines = [f"saved for backward: {in_units(what.bytes)} in {what.nodes} operations"]
    if what.leaf_bytes:
        lines[0] += f", and {in_units(what.leaf_bytes)} of leaves that are there anyway"
    if what.packed:
        lines.append(f"  packed by hooks or checkpoint(): {what.packed} tensors")
    for op, size in what.by_op().items():
        count = sum(e.op == op and not e.is_leaf for e in what.entries)
        lines.append(f"  {op:<24} {in_units(size):>12}  in {count}")
    pieces = [e for e in what.entries if not e.is_leaf][:largest]
    if pieces:
        lines.append("largest:")
        lines += [f"  {e.op:<24} {in_units(e.bytes):>12}  {e.dtype} {list(e.shape)}" for e in pieces]
    if not roots:
        lines.append(f"live tensors: {in_units(live_tensor_bytes())}")
        resident = resident_bytes()
        if resident is not None:
            lines.append(f"process: {in_units(resident)} resident")
    return "\n".join(lines)


def in_units(n: float) -> str:
    """Return a number of bytes in words: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            break
        n /= 1024
    return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
