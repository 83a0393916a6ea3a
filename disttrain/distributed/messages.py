"""From one rank to another, by PyTorch's names, on Tensors.

Messages of one rank to another arrive in the order sent; a receive with another ``tag``, shape or dtype than the send
that it meets is a ``CollectiveMismatch`` on both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from disttrain.collectives.call import NO_TAG, Tag
from disttrain.distributed.groups import ProcessGroup, communicator_of, get_global_rank, group_rank
from disttrain.distributed.verbs import flat, stays_out, write
from disttrain.distributed.work import Work
from disttrain.modes import current_tape, replayed
from disttrain.tensors import Tensor


def isend(
    tensor: Tensor,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> Work | None:
    """Start :func:`send`."""
    _need_no_tape("isend")
    if stays_out(group, "isend"):
        return None
    target = group_rank(group, "dst", dst, group_dst)
    call = communicator_of(group).start_send(flat(tensor), target, tag=_tag(tag))
    return Work([call], lambda: None, [tensor])


def irecv(
    tensor: Tensor,
    src: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    group_src: int | None = None,
) -> Work | None:
    """Start :func:`recv`."""
    _need_no_tape("irecv")
    if stays_out(group, "irecv"):
        return None
    if src is None and group_src is None:
        raise ValueError(
            "recv() needs src: to receive from whichever rank comes first is not in disttrain, "
            "since what a rank gets would differ from run to run"
        )
    x, source = flat(tensor), group_rank(group, "src", src, group_src)
    call = communicator_of(group).start_recv(x, source, tag=_tag(tag))
    return Work([call], lambda: write(tensor, x), [tensor], get_global_rank(group, source))


@replayed
def send(
    tensor: Tensor,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> None:
    """Send ``tensor`` to rank ``dst``; returns once it has been received."""
    work = isend(tensor, dst, group, tag, group_dst)
    if work is not None:
        work.wait()


@replayed
def recv(
    tensor: Tensor,
    src: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    group_src: int | None = None,
) -> int:
    """Receive into ``tensor`` what rank ``src`` sends; return its number in the world, -1 outside of ``group``.

    Raises:
        ValueError: no ``src``.
    """
    work = irecv(tensor, src, group, tag, group_src)
    if work is None:
        return -1
    work.wait()
    return work.source_rank()


def _need_no_tape(name: str) -> None:
    tape = current_tape()
    if tape is not None:
        tape.refuse(f"{name}() is waited for later; call the form that waits")


def _tag(tag: int) -> Tag:
    """Return the tag that a header carries.

    Raises:
        RuntimeError: it is negative, as in PyTorch.
    """
    if tag < 0:
        raise RuntimeError(f"the tag of a message must not be negative, got {tag}")
    return (tag, *NO_TAG[1:]) if tag else NO_TAG


class P2POp:
    """A send or a receive, for :func:`batch_isend_irecv`.

    Args:
        op: :func:`isend` or :func:`irecv`.
        peer: the other rank, by its number in the world; ``group_peer``: by its number in the group.
    """

    def __init__(
        self,
        op: Callable[..., Any],
        tensor: Tensor,
        peer: int | None = None,
        group: ProcessGroup | None = None,
        tag: int = 0,
        group_peer: int | None = None,
    ) -> None:
        if op not in (isend, irecv):
            raise ValueError(f"op must be isend or irecv, got {op!r}")
        self.op = op
        self.tensor = tensor
        self.group = group
        self.tag = tag
        self.group_peer = group_rank(group, "peer", peer, group_peer)
        self.peer = get_global_rank(group, self.group_peer)

    def __repr__(self) -> str:
        return f"P2POp({self.op.__name__}, peer {self.peer}, {list(self.tensor.shape)}, {self.tensor.dtype})"


def batch_isend_irecv(p2p_op_list: Sequence[P2POp]) -> list[Work]:
    """Start sends and receives, in any order; return the work of each.

    Raises:
        ValueError: no operation, or operations of different groups.
    """
    if not p2p_op_list or not all(isinstance(op, P2POp) for op in p2p_op_list):
        raise ValueError(f"p2p_op_list must be a list of at least one P2POp, got {p2p_op_list!r}")
    if any(op.group is not p2p_op_list[0].group for op in p2p_op_list):
        raise ValueError("all operations of p2p_op_list must be in one group")
    works = []
    for op in p2p_op_list:
        peer = {"group_dst" if op.op is isend else "group_src": op.group_peer}
        works.append(op.op(op.tensor, group=op.group, tag=op.tag, **peer))
    return works
