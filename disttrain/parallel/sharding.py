"""Parameters that are spread over the ranks and are whole only while their module needs them.

ZeRO, stage 3 (Rajbhandari et al., 2020), module by module as in PyTorch's FSDP (Zhao et al., 2023): see
:mod:`disttrain.parallel.fully_sharded` for what users call.

Between steps a rank keeps its part of the parameters, of their gradients and of the optimizer's state. A :class:`Unit`,
the parameters of one module, is gathered before the module runs and let go after; in backward it is gathered again,
and its gradients are summed, each part on the rank that keeps it. While one unit computes the next is on its way.
What an operation saves of a parameter for backward is only a note of where it was (:class:`_Stretch`).
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import context
from disttrain.autograd import accumulates, backward_weight
from disttrain.backward_pass import Pass, queue_callback, running_pass
from disttrain.collectives.errors import CollectiveError
from disttrain.collectives.ledger import bucket_tag
from disttrain.engine import is_grad_enabled
from disttrain.kernels.arrays import Array
from disttrain.modes import Lender
from disttrain.nodes import Lent
from disttrain.parallel.data_parallel import tensors_in
from disttrain.parallel.replicas import agree, take_from
from disttrain.parallel.spread import SpreadBucket
from disttrain.parallel.vote import StepVote
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator, Work
    from disttrain.nn.module import Module
    from disttrain.steering import Agreement


class _Stretch(Lent):
    """Some elements of a unit that an operation will need in backward."""

    __slots__ = ("_dtype", "_flat", "_offset", "_shape", "_strides")

    def __init__(self, flat: Flat, array: Array, offset: int) -> None:
        self._flat = flat
        self._offset = offset
        self._dtype, self._shape, self._strides = array.dtype, array.shape, array.strides

    def unpack(self) -> Array:
        whole = self._flat.gathered()
        return np.ndarray(self._shape, self._dtype, whole.view(np.uint8), self._offset, self._strides)


class _Loan(Lender):
    """The version counter of a parameter in a flat buffer that comes and goes."""

    def __init__(self, version: int, flat: Flat) -> None:
        super().__init__([version])
        self.flat = flat

    def lend(self, array: Array) -> Any:
        whole = self.flat.whole
        if whole is None:
            return array
        offset = _address(array) - _address(whole)
        inside = 0 <= offset < whole.nbytes
        return _Stretch(self.flat, array, offset) if inside else array


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class Flat:
    """Parameters of one type laid end to end, the last one first as backward makes their gradients, in equal parts.

    Args:
        params: with their names in the module.
        unit: that has them; rank 0's values are taken.
        tag: of the call that spreads them.
    """

    def __init__(self, params: Sequence[tuple[str, Tensor]], unit: Unit, tag: tuple[int, int, int]) -> None:
        self.unit = unit
        self.names = [name for name, _ in params][::-1]
        self.params = [p for _, p in params][::-1]
        self.comm = unit.comm
        """The group in which parameters are gathered; a :class:`Tree` gives another."""
        self.tag = tag
        self.kind = self.params[0]._array.dtype
        self.whole: Array | None = None
        """All parameters, while they are here."""
        self._work: Work | None = None
        self._pieces: list[Array] = []
        """What the parameters are between two uses, while they are whole."""
        self._versions: list[int] = []
        for p in self.params:
            p._grad = None
        self.bucket = SpreadBucket(self.params, self.comm, last=True)  # which one is may change
        """Their gradients."""
        self._spread()

    def _spread(self) -> None:
        begins, rank = self.bucket.begins, self.comm.rank
        whole = np.zeros((self.comm.size, self.bucket.length), self.kind) if rank == 0 else None
        if whole is not None:
            for p, (begin, end) in zip(self.params, pairwise(begins), strict=True):
                whole.reshape(-1)[begin:end] = p._array.reshape(-1)
        row = np.empty(self.bucket.length, self.kind)
        self.comm.scatter(whole, row, tag=self.tag)
        for p, shard, place, slot in zip(
            self.params, self.bucket.shards, self.bucket.places, self.bucket.part_slots, strict=True
        ):
            p._shard = shard
            p._array = row[place].copy()
            p._version_counter = _Loan(p._version_counter[0], self)
            p._slot = slot

    @property
    def trained(self) -> bool:
        """Whether some parameter gets a gradient."""
        return any(p._requires_grad or p._grad is not None for p in self.params)

    def start_gather(self) -> None:
        """Let the parameters come, unless they are here or on their way.

        Raises:
            RuntimeError: a parameter is of another type or size than when it was spread.
        """
        if self.whole is not None:
            return
        rows = self.comm.empty((self.comm.size, self.bucket.length), self.kind)
        mine = rows[self.comm.rank]
        mine[max(place.stop for place in self.bucket.places) :] = 0
        for name, p, place in zip(self.names, self.params, self.bucket.places, strict=True):
            if p._array.dtype != self.kind or p._array.size != place.stop - place.start:
                raise RuntimeError(
                    f"this rank's part of parameter {name} was of {place.stop - place.start} elements of {self.kind} "
                    f"when the module was sharded, and is now of {p._array.size} of {p._array.dtype}; convert the "
                    f"module first, then shard it"
                )
            mine[place] = p._array.reshape(-1)
        self._work = self.comm.start_all_gather(mine, rows, tag=self.tag)
        self.whole = rows.reshape(-1)

    def gathered(self) -> Array:
        """Return all parameters, once they are here."""
        self.start_gather()
        if self._work is not None:
            work, self._work = self._work, None
            work.wait()
        assert self.whole is not None
        return self.whole

    def drop(self) -> None:
        """Keep only this rank's part."""
        if self._work is not None:  # nobody has used them: they must still be there for the other ranks
            self.gathered()
        self.whole = None

    def show(self) -> None:
        """Let the parameters be whole."""
        whole = self.gathered()
        self._pieces = [p._array for p in self.params]
        self._versions = [p._version_counter[0] for p in self.params]
        for p, shard, (begin, end) in zip(
            self.params, self.bucket.shards, pairwise(self.bucket.begins), strict=True
        ):
            p._array = whole[begin:end].reshape(shard.shape)

    def hide(self, write: bool = False) -> None:
        """Let the parameters be this rank's part of them again, with what was changed in place (all with ``write``)."""
        assert self.whole is not None
        row = self.whole.reshape(self.comm.size, -1)[self.comm.rank]
        for p, piece, version, place in zip(
            self.params, self._pieces, self._versions, self.bucket.places, strict=True
        ):
            p._array = piece
            if write or p._version_counter[0] != version:
                piece[...] = row[place].reshape(piece.shape)
        self._pieces = []

    def expect(self, running: Pass, averages: bool, first: bool, weight: float, scale: float) -> None:
        """Prepare for the gradients of a backward: see ``DistributedDataParallel``."""
        bucket = self.bucket
        bucket.missing = sum(running.reaches(p) for p in self.params)
        bucket.weighted = averages and first and not bucket.half and all(p._grad is None for p in self.params)
        bucket.scale(weight if bucket.weighted else scale)


class Unit:
    """The parameters of a module that come and go together.

    Args:
        module: that has them.
        named: its parameters that no unit inside has.
        comm: the ranks.
        keep: let them stay from forward to backward.
        number: among the units that this rank has made.
        nonfinite: see :class:`.FullyShardedDataParallel`.
    """

    def __init__(
        self,
        module: Module,
        named: Sequence[tuple[str, Tensor]],
        comm: Communicator,
        keep: bool,
        number: int,
        nonfinite: str,
    ) -> None:
        self.module = module
        self.comm = comm
        self.keep = keep
        self.vote = StepVote(comm, module, nonfinite)
        """That of the outermost unit counts."""
        self.synchronize = True
        """Whether backwards of the forwards that follow average the gradients."""
        self.prefetch = True
        """Whether backward lets the unit that it will come to next come early."""
        self.tree: Tree | None = None
        self.borrowed: list[Unit] = []
        """Other units that have parameters which the module uses too."""
        self._users = 0
        self._watched: set[int] = set()
        self.flats: list[Flat] = []
        self.steps = 0
        """How often an optimizer has stepped the parameters."""
        for _, p in named:
            p._synchronized = self
        if comm.size == 1 and nonfinite == "keep":
            return  # nothing is to be spread, nor to be looked at
        groups: dict[Any, list[tuple[str, Tensor]]] = {}
        for name, p in named:
            groups.setdefault((p._array.dtype, p._requires_grad), []).append((name, p))
        told = repr([(name, p._array.shape, p._array.dtype.name) for name, p in named])
        crc = zlib.crc32(told.encode())
        self.flats = [Flat(group, self, (number, i, crc)) for i, group in enumerate(groups.values())]
        module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
        module.register_forward_hook(self._after, always_call=True)

    def _before(self, module: Module, args: Any, kwargs: Any) -> None:
        if self.tree is None:
            Tree(units_of(module), self)
        assert self.tree is not None
        self.tree.enter(self)

    def _after(self, module: Module, args: Any, out: Any) -> None:
        if self.tree is not None:
            self.tree.leave(self, out)

    def watch(self) -> None:
        """Be told of the gradients of parameters that have come to be trained."""
        assert self.tree is not None
        for flat in self.flats:
            for p in flat.params:
                if p._requires_grad and id(p) not in self._watched:
                    self._watched.add(id(p))
                    flat.bucket.watch(p, partial(_comes, self))
                    p.register_post_accumulate_grad_hook(partial(_came, self, flat))

    @property
    def agreement(self) -> tuple[Agreement, Communicator]:
        """What the ranks have agreed to do after the next step, and the ranks."""
        vote = self.vote if self.tree is None else self.tree.vote
        return vote.agreement, self.comm

    @property
    def here(self) -> bool:
        """Whether the parameters are whole or on their way."""
        return any(flat.whole is not None for flat in self.flats)

    def start_gather(self) -> None:
        """Let the parameters come."""
        for flat in self.flats:
            flat.start_gather()

    def hold(self) -> None:
        """Let the parameters be whole until :meth:`release` has been called as often."""
        if not self._users:
            self.start_gather()
            for flat in self.flats:
                flat.show()
        self._users += 1

    def release(self, keep: bool, write: bool = False) -> None:
        """Undo :meth:`hold`, and with ``keep`` leave the memory for backward."""
        self._users -= 1
        if not self._users:
            for flat in self.flats:
                flat.hide(write)
            if not keep:
                self.drop()

    def drop(self) -> None:
        """Let the whole parameters go, unless their module runs."""
        if not self._users:
            for flat in self.flats:
                flat.drop()


def _comes(unit: Unit) -> None:
    assert unit.tree is not None
    unit.tree.begin_by_itself(unit.synchronize)


def _came(unit: Unit, flat: Flat, _: Tensor) -> None:
    assert unit.tree is not None
    unit.tree.came(flat)


class _Forward:
    """One run of the outermost unit: the units in the order in which they ended."""

    def __init__(self, averages: bool) -> None:
        self.averages = averages
        self.visits: list[tuple[Unit, int]] = []
        """Each unit with the number of units that had ended when it began."""
        self.events: list[tuple[Unit, bool]] = []
        """Units as they began (true) and ended."""
        self.came: list[int] = []
        """The visits in the order in which backward came to them."""
        self.is_simple = True
        """Whether backward has gathered parameters nowhere else: no checkpoint has computed units again."""


class Tree:
    """Units that run in one forward, and what they share: the order of their calls and the weights of a step.

    Parameters are gathered in one group and gradients summed in another, so that neither waits for the other, and
    sums are begun in the same order on all ranks whatever parameters these have used.
    """

    def __init__(self, units: list[Unit], outermost: Unit) -> None:
        for unit in units:
            unit.tree = self
        self._units = units
        self._gathers = _again(outermost.comm)
        self._reduces = _again(outermost.comm)
        self.vote = outermost.vote
        self.vote.use_comm(self._reduces)
        for unit in units:
            for flat in unit.flats:
                flat.comm = self._gathers
                flat.bucket.use_comm(self._reduces)
        self._number = agree(outermost.comm)
        self._order: list[Unit] = []
        """Units of which a recorded forward has used parameters, as they came."""
        self._expected: list[Unit] = []
        """Units as they began in the last forward: what comes next."""
        self._began: list[Unit] = []
        self._stack: list[tuple[Unit, int, BaseException | None]] = []
        """Units whose modules run, with the visits that were over and the error that was handled as they began."""
        self._forward = _Forward(True)
        self._pattern: _Forward | None = None
        """The last run whose backward came through it alone and to its end: what the next one will be like."""
        self._ran: list[_Forward] = []
        """What the running backward has come through."""
        self._pass: Pass | None = None
        """The backward that runs."""
        self._averages = True
        self._weights: list[float] = []
        self._first_weight = 1.0
        self._flats: list[Flat] = []
        """What the running backward averages, in this order."""
        self._started = 0

    # ---------------------------------------------------------------------------------------- forward

    def enter(self, unit: Unit) -> None:
        """The module of ``unit`` begins."""
        again = self._pass is not None  # a checkpoint computes again
        if not self._stack and not again:
            self._begin_forward(unit)
        for u in (unit, *unit.borrowed):
            u.hold()
        self._stack.append((unit, len(self._forward.visits), sys.exc_info()[1]))
        if again:
            self._forward.is_simple = False
            return
        self._forward.events.append((unit, True))
        self._began.append(unit)
        if is_grad_enabled():
            self._order += [u for u in (unit, *unit.borrowed) if u not in self._order]
        n = len(self._began)
        if self._expected[:n][-1:] == [unit] and n < len(self._expected):
            self._expected[n].start_gather()

    def _begin_forward(self, unit: Unit) -> None:
        for u in self._units:
            u.watch()
            u.drop()
        self._forward = _Forward(unit.synchronize)
        self._began = []
        if is_grad_enabled() and unit.synchronize and unit.module.training:
            take_from(self._gathers, 0, list(unit.module.buffers()))

    def leave(self, unit: Unit, out: Any) -> None:
        """The module of ``unit`` has ended, or raised."""
        if not self._stack or self._stack[-1][0] is not unit:
            return  # it has raised before it began
        _, begin, handled = self._stack[-1]
        again = self._pass is not None
        recording = is_grad_enabled()
        error = sys.exc_info()[1]
        raised = error is not handled and not again and _is_own(error)
        if raised:
            self._catch_up()
        self._stack.pop()
        for u in (unit, *unit.borrowed):
            u.release(again or (recording and (u.keep or not self._stack)))
        if again:
            return
        forward = self._forward
        forward.events.append((unit, False))
        if recording:
            forward.visits.append((unit, begin))
            coming = partial(self._coming, forward, len(forward.visits) - 1)
            for t in tensors_in(out):
                if t.requires_grad:
                    t.register_hook(coming)
        if not self._stack:
            self._expected = self._began
            for u in self._units:
                if not (recording and (u.keep or u is unit)):
                    u.drop()  # what was expected and did not come
            if raised and recording and unit.module.training:
                self._follow(forward, forward.averages, error)
                self._finish()

    # ------------------------------------------------------------------------------- without this rank

    def _is_like_the_last(self, forward: _Forward) -> bool:
        """Return whether it is known what the other ranks will call, where this rank cannot go on.

        All ranks run the same units in the same order, so they make a step like the last one.
        """
        last = self._pattern
        return (
            last is not None
            and last.is_simple
            and not any(u.borrowed for u in self._units)
            and last.events[: len(forward.events)] == forward.events
            and last.came[: len(forward.came)] == forward.came
        )

    def _catch_up(self) -> None:
        """After an error in a module: gather what the other ranks gather until that module ends there."""
        if not self._is_like_the_last(self._forward):
            return
        assert self._pattern is not None
        depth = len(self._stack)
        try:
            for unit, begins in self._pattern.events[len(self._forward.events) :]:
                if begins:
                    self.enter(unit)
                elif len(self._stack) > depth:
                    self.leave(unit, None)
                else:
                    return
        except CollectiveError:
            del self._stack[depth:]  # they cannot go on either; what this rank raises is the cause

    def _follow(self, forward: _Forward, averages: bool, error: BaseException | None) -> None:
        """Go through what is left of a backward as the other ranks do, without gradients, and vote against the step."""
        if not self._is_like_the_last(forward):
            return
        assert self._pattern is not None
        if not self._flats:
            self._flats = self._trained()
            self._started = 0
        lowest: dict[Unit, int] = {}
        for index, (unit, _) in enumerate(forward.visits):
            lowest.setdefault(unit, index)
        left = self._pattern.came[len(forward.came) :]
        coming = {unit for unit, index in lowest.items() if index in left}
        try:
            for index in left:
                self._bring(forward, index)
                coming -= {unit for unit in coming if lowest[unit] == index}
                while averages and self._started < len(self._flats):
                    if self._flats[self._started].unit in coming:
                        break
                    self._start_next(without=True)
            if averages:
                while self._started < len(self._flats):
                    self._start_next(without=True)
                for flat in self._flats:
                    flat.bucket.forget(True)
                self._weights.clear()
                self.vote.batches.clear()
                assert isinstance(error, Exception)
                self.vote.withdraw(error)
        except CollectiveError:
            pass  # they cannot go on either; what this rank raises is the cause

    # ---------------------------------------------------------------------------------------- backward

    def _coming(self, forward: _Forward, index: int, _: Tensor) -> None:
        """Backward has come to what a unit returned."""
        if is_grad_enabled():
            raise NotImplementedError(
                "create_graph=True does not go through sharded parameters, which are not whole when the gradient is "
                "differentiated again; use DistributedDataParallel for gradients of gradients"
            )
        if accumulates():
            self.begin(forward.averages)
        else:
            self._come_in()
        if forward not in self._ran:
            self._ran.append(forward)
        forward.came.append(index)
        self._bring(forward, index)

    def _bring(self, forward: _Forward, index: int) -> None:
        """Gather what backward needs of the unit to which it has come, and of the next one."""
        visits = forward.visits
        unit = visits[index][0]
        before = visits[index - 1][0] if index else unit
        for later, begin in visits[index + 1 :]:
            if begin > index and later is not unit and later is not before:
                later.drop()
        unit.start_gather()
        for flat in unit.flats:
            flat.gathered()
        if unit.prefetch:
            before.start_gather()

    def _come_in(self) -> Pass:
        """Return the backward that runs, after seeing to it that its end is heard of."""
        running = running_pass()
        if running is None:
            raise RuntimeError(
                "backward(inputs=...) does not average gradients over the ranks; call backward() without inputs"
            )
        if self._pass is not running:
            self._pass = running
            queue_callback(self._end, self._abandon)
        return running

    def begin_by_itself(self, averages: bool) -> None:
        """Prepare for a backward that has not come through what a unit returned."""
        if not self._flats:
            self.begin(averages)

    def begin(self, averages: bool) -> None:
        """Prepare for the gradients of the backward that is beginning; called more than once in each.

        Raises:
            RuntimeError: it was asked for the gradients of some tensors only.
        """
        running = self._come_in()
        if self._flats:
            self._averages |= averages
            return
        self._averages = averages
        self._flats = self._trained()
        if all(p._grad is None for f in self._flats for p in f.params):
            self._weights.clear()  # whatever was accumulated has been thrown away
            self.vote.batches.clear()
        weight = backward_weight()
        first = not any(self._weights)
        self._weights.append(weight)
        self.vote.batches.append(context.current().dealt)
        if first:
            self._first_weight = weight or 1.0
        self._started = 0
        for flat in self._flats:
            flat.expect(running, averages, first, weight, weight / self._first_weight)

    def _trained(self) -> list[Flat]:
        """Return what a backward averages, in order."""
        return [f for u in reversed(self._order) for f in reversed(u.flats) if f.trained]

    def came(self, flat: Flat) -> None:
        """The gradient of one parameter of ``flat`` is complete."""
        flat.bucket.missing -= 1
        if not self._averages:
            return
        # In the same order on all ranks, whatever the order in which their gradients come.
        while self._started < len(self._flats) and self._flats[self._started].bucket.missing <= 0:
            self._start_next()

    def _start_next(self, *, without: bool = False) -> None:
        """Start to sum the next gradients; ``without`` those of this rank, which votes against the step."""
        index, flat = self._started, self._flats[self._started]
        self._started += 1
        if index:
            self._flats[
                index - 1
            ].bucket.wait()  # two are whole at a time: one that is sent, one that is made
        if without:
            flat.bucket.fill_with_zeros(0, failed=True)
        else:
            flat.bucket.fill(self._first_weight, sum(self._weights) / len(self._weights))
            self.vote.look_at(flat.bucket)
            if self._started == len(self._flats):
                self.vote.cast(flat.bucket)
        dealt = context.current().dealt
        flat.bucket.start(
            bucket_tag(self._number, index, flat.unit.steps, None if dealt is None else dealt.position)
        )

    def _end(self) -> None:
        """Send what is left, and turn sums into averages."""
        if self._flats and self._averages:
            while self._started < len(self._flats):
                self._start_next()
            for flat in self._flats:
                flat.bucket.wait()
                flat.bucket.average(divide=True)
            self._weights.clear()
            flats, self._flats = self._flats, []
            self._note_order()
            self.vote.hear([flat.bucket for flat in flats])
        else:
            for flat in self._flats:
                flat.bucket.rest()
            self._note_order()
        self._finish()

    def _note_order(self) -> None:
        """Remember how this step went, if the next one can be like it."""
        self._pattern = self._ran[0] if len(self._ran) == 1 else None

    def _abandon(self, error: BaseException) -> None:
        """Forget the backward that has raised ``error``."""
        if self._flats:
            if self._ran == [self._forward] and _is_own(error):
                self._follow(self._forward, self._averages, error)
            for flat in self._flats:
                flat.bucket.forget(len(self._weights) > 1)
            self._weights.clear()
            self.vote.batches.clear()
        self._stack.clear()
        self._finish()

    def _finish(self) -> None:
        self._pass = None
        self._flats = []
        self._ran = []
        self.vote.faults.clear()
        for unit in self._units:
            unit.drop()


def units_of(module: Module) -> list[Unit]:
    """Return the units of a module and of those inside it."""
    found = [m.__dict__.get("_unit") for m in module.modules()]
    return [unit for unit in found if unit is not None]


def _is_own(error: BaseException | None) -> bool:
    """Return whether an error is this rank's own, and not one that all ranks of a call have raised."""
    return isinstance(error, Exception) and not isinstance(error, CollectiveError)


def _again(comm: Communicator) -> Communicator:
    """Return another group of the same ranks."""
    made = comm.split(0)
    assert made is not None
    return made
