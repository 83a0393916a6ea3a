"""A thread of each process that names the ranks for which others wait, and ends calls that have waited too long.

It answers the same question for processes of other nodes, which cannot look for themselves.
"""

import logging
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from disttrain.collectives.call import AT_THE_END, Call, name_ranks
from disttrain.collectives.control import VERSION, BadMessage, Message, decode, encode
from disttrain.collectives.errors import CollectiveTimeout
from disttrain.collectives.peers import Peers, Question, Where, by_process, unknown
from disttrain.collectives.progress import Operation

if TYPE_CHECKING:
    from disttrain.collectives.host import Group, Host

NOTICE_S = 6.5
"""A rank that stays away as long is looked for, so that it is named within 10 s; again when the time has doubled."""
_TICK_S = 0.1
_PATIENCE_S = 1.5
"""How long another node may take to answer; longer than a process of its own may take to answer it."""
_SPOKESMEN = 8
"""Of a larger group only so many processes ask the others at first, lest thousands ask thousands."""
_MOST_NAMED = 8
_logger = logging.getLogger("disttrain")


class Watch:
    """Looks after the calls that the ranks of this process wait for. All processes make this together."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self._peers = Peers(host.transport.world, host.ledger)
        self._mailbox = None if self._peers.all_near else host.transport.open_mailbox()
        self._notices: dict[int, tuple[weakref.ref[Call], float]] = {}
        """Rank → the call that it waited for at the last look, but not the arrays of that call, and after how long to
        say so next."""
        self._answers: dict[int, list[Where]] = {}
        self._asked = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="disttrain watch", daemon=True)
        self._thread.start()

    @property
    def near(self) -> list[tuple[int, int, int]]:
        """The processes that can be looked at from here: number, pid, and descriptor of the ledger."""
        return [(p, *self._peers.address_of(p)) for p in self._peers.near]

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
        if self._mailbox is not None:
            with self._host.progress.lock:
                self._mailbox.close()

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            try:
                self._serve()
                self._end_what_is_late()
                self._name_who_stays_away()
            except Exception:
                if not self._stop.is_set():
                    _logger.exception("cannot look after the calls that ranks wait for")

    # -- what is late --------------------------------------------------------------------------------------

    def _end_what_is_late(self) -> None:
        progress = self._host.progress
        for operation in progress.heads():
            call, since = operation.calls[0], operation.since
            waited = time.monotonic() - since
            if waited <= call.group.timeout:
                continue
            wheres = self._ask(call)
            if call.awaited is not None:
                if not _prepares(wheres, call.group.ranks[0]):
                    call.awaited = None  # rank 0 is through, or cannot go on: from now on as any other call
                operation.since = time.monotonic()
                continue
            if call.source is AT_THE_END and any(map(_computes, wheres)):
                operation.since = time.monotonic()  # it may evaluate for hours what the others have trained
                continue
            error = self._timed_out(operation, waited, wheres)
            if progress.abandon(operation, since, error):
                call.group.broken = error

    def _timed_out(self, operation: Operation, waited: float, wheres: Sequence[Where]) -> CollectiveTimeout:
        call = operation.calls[0]
        group: Group = call.group
        away = _missing(wheres) or [w for w in wheres if w.rank not in group.ranks_here]
        return CollectiveTimeout(
            f"{_name_calls(operation.calls)} waited {waited:.1f} s in {call.name} for {_name_places(away)}; "
            f"look for a rank that stopped, left early or skipped the call. "
            f"If it only computes that long, raise --timeout, or that of the group.\n{_describe(away)}"
        )

    # -- who stays away ------------------------------------------------------------------------------------

    def _name_who_stays_away(self) -> None:
        moved = self._moved()
        now = time.monotonic()
        told: list[Call] = []
        waits = dict(self._host.waits)
        for rank in self._notices.keys() - waits.keys():
            del self._notices[rank]
        for rank, (call, began) in sorted(waits.items()):
            if call.awaited is None and call.source is not AT_THE_END:
                began = max(began, moved.get(id(call), began))
            waited = now - began
            known, due = self._notices.get(rank, (None, NOTICE_S))
            if known is None or known() is not call:
                due = NOTICE_S
                self._notices[rank] = (weakref.ref(call), due)
            if waited < due:
                continue
            self._notices[rank] = (weakref.ref(call), 2 * waited)
            if not any(_is_same(call, other) for other in told):
                told.append(call)
                self._notice(call, waited)

    def _notice(self, call: Call, waited: float) -> None:
        """Say which ranks a call waits for, and where they are; one process of those that wait does."""
        group: Group = call.group
        if call.pair is None and group.channel.index >= _SPOKESMEN and waited < 2 * NOTICE_S:
            return
        wheres = self._ask(call, stacks=False)
        waiting = [w.rank for w in wheres if w.waits_here]
        if call.finished or not waiting or min(waiting) not in group.ranks_here:
            return
        answering = [w.rank for w in _missing(wheres) if w.lines]
        stacks = {w.rank: w for w in self._ask(call, answering)}
        wheres = [stacks.get(w.rank, w) for w in wheres]
        missing = _missing(wheres)
        if call.finished:
            return
        if call.awaited is not None and (rank0 := _prepares(wheres, group.ranks[0])):
            _logger.info(
                "rank %d: %s, %.0f s so far\n%s", rank0.rank, call.awaited, waited, _describe([rank0])
            )
            return
        who = name_ranks(waiting)
        text = f"{who} {'has' if len(waiting) == 1 else 'have'} waited {waited:.1f} s in {call.name}"
        if not missing:
            if self._stands_still(call):
                _logger.warning("%s: all ranks have come, but their data has not", text)
            return
        if any(_is_debugged(w) for w in missing):
            return
        text += f" for {_name_places(missing)}\n{_describe(missing)}"
        if all(w.waits for w in wheres):
            text += "\n  Each of them waits, and none computes: they do not make the same calls in the same order."
        _logger.warning(text)

    def _stands_still(self, call: Call) -> bool:
        """Return whether nothing becomes of ``call`` for a moment."""
        before = self._moved().get(id(call))
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and not self._stop.wait(0.02):
            self._serve()
        return not call.finished and self._moved().get(id(call)) == before

    def _moved(self) -> dict[int, float]:
        """Return since when each call stands still, by its ``id()``."""
        return {id(call): o.since for o in self._host.progress.heads() for call in o.calls}

    # -- asking --------------------------------------------------------------------------------------------

    def _ask(self, call: Call, ranks: Sequence[int] | None = None, *, stacks: bool = True) -> list[Where]:
        """Return where ``ranks`` are (by default those that take part in ``call``), in their order."""
        group: Group = call.group
        if ranks is None:
            ranks = group.ranks if call.pair is None else [group.ranks[i] for i in call.pair]
        found: dict[int, Where] = {}
        pending: dict[int, Question] = {}
        for process, theirs in by_process(ranks, self._host.world.process_of).items():
            question = Question(process, tuple(theirs), group.name, call.number, call.pair, stacks)
            if process in self._peers.near:
                found |= {w.rank: w for w in self._peers.look(question)}
            else:
                pending[self._send_question(question)] = question
        deadline = time.monotonic() + _PATIENCE_S
        while pending and time.monotonic() < deadline and not self._stop.wait(0.02):
            self._serve()
            for number in pending.keys() & self._answers.keys():
                found |= {w.rank: w for w in self._answers[number]}
                del pending[number]
        self._answers.clear()
        for question in pending.values():
            why = (
                f"does not answer: on {self._peers.host_of(question.process)} the process is stopped, or native code "
                f"holds its interpreter, or the network is cut"
            )
            found |= {rank: unknown(rank, why) for rank in question.ranks}
        return [found[rank] for rank in sorted(ranks)]

    def _send_question(self, question: Question) -> int:
        """Ask the process itself, and one beside it, which can say where it is if it is stopped or busy."""
        self._asked += 1
        host = self._peers.host_of(question.process)
        beside = [
            p
            for p in range(self._host.transport.world.size)
            if p != question.process and p not in self._peers.near and self._peers.host_of(p) == host
        ]
        for process in [question.process, *beside[:1]]:
            self._send(
                process,
                kind="where",
                number=self._asked,
                asked=question.process,
                ranks=list(question.ranks),
                group=question.group,
                call=question.number,
                pair=list(question.pair or ()),
                stacks=question.stacks,
            )
        return self._asked

    def _send(self, process: int, **fields: Any) -> None:
        env = self._host.env
        data = encode(
            {"v": VERSION, "run": env.run_id, "generation": env.generation, "process": env.process, **fields}
        )
        assert self._mailbox is not None
        with self._host.progress.lock:
            self._mailbox.send(process, data)

    def _serve(self) -> None:
        """Answer what has been asked, and keep what has been answered."""
        if self._mailbox is None:
            return
        while True:
            with self._host.progress.lock:
                data = self._mailbox.receive()
            if data is None:
                return
            try:
                message = decode(data)
                if message["kind"] == "where":
                    self._answer(message)
                elif message["kind"] == "there":
                    wheres = [Where.from_json(fields) for fields in message["ranks"]]
                    self._answers.setdefault(message["number"], wheres)
            except (BadMessage, ValueError) as error:
                _logger.warning("ignored a message of another process: %s", error)

    def _answer(self, message: Message) -> None:
        process, ranks, pair = message["asked"], message["ranks"], message["pair"]
        if process not in self._peers.near or not set(ranks) <= set(self._host.transport.hosts[process]):
            return  # it cannot be seen from here either: whoever asked took us to be beside it
        question = Question(
            process,
            tuple(ranks),
            message["group"],
            message["call"],
            (pair[0], pair[1]) if len(pair) == 2 else None,
            message["stacks"],
        )
        found = [where.to_json() for where in self._peers.look(question)]
        self._send(message["process"], kind="there", number=message["number"], ranks=found)


def _missing(wheres: Sequence[Where]) -> list[Where]:
    """Return the ranks that have not come; if all have, those that cannot go on."""
    return [w for w in wheres if not w.came] or [w for w in wheres if w.trouble]


def _prepares(wheres: Sequence[Where], rank0: int) -> Where | None:
    """Return where rank 0 is, if it works in the block that the others wait for."""
    return next((w for w in wheres if w.rank == rank0 and _computes(w)), None)


def _computes(where: Where) -> bool:
    """Return whether the rank is alive, and on its way to the call."""
    return not (where.came or where.waits or where.trouble)


def _is_debugged(where: Where) -> bool:
    """Return whether somebody looks at the rank in the debugger, and knows that the others wait."""
    return any("pdb.py:" in line for line in where.lines)


def _is_same(call: Call, other: Call) -> bool:
    return (call.group, call.number, call.pair) == (other.group, other.number, other.pair)


def _name_calls(calls: Sequence[Call]) -> str:
    return name_ranks(call.group.ranks[call.index] for call in calls)


def _name_places(wheres: Sequence[Where]) -> str:
    return name_ranks(where.rank for where in wheres)


def _describe(wheres: Sequence[Where]) -> str:
    lines = []
    for where in wheres[:_MOST_NAMED]:
        what, *frames = where.lines or ("",)
        lines.append(f"  rank {where.rank}: " + " and ".join(word for word in (where.trouble, what) if word))
        lines += [f"    {frame}" for frame in frames]
    if len(wheres) > _MOST_NAMED:
        lines.append(f"  and {len(wheres) - _MOST_NAMED} more")
    return "\n".join(lines)
