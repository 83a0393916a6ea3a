"""Ranks in one process: the transport that crosses nothing, and the way to run ranks as threads."""

import contextvars
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from disttrain.collectives.alone import AloneChannel
from disttrain.collectives.env import HostedRank, WorkerEnv, enter_rank
from disttrain.collectives.errors import RankFailed, TransportUnavailable
from disttrain.collectives.memory import NodeMemory
from disttrain.collectives.transport import Channel, Mailbox
from disttrain.collectives.world import close_host, open_host

T = TypeVar("T")


class LocalTransport:
    """The transport of a job of one process."""

    name = "local"
    memory: NodeMemory | None = None

    def __init__(self, env: WorkerEnv) -> None:
        self.world: Channel = AloneChannel()
        self.hosts = [range(env.rank, env.rank + env.hosted)]
        self.nodes = [0]

    def open_mailbox(self) -> Mailbox:
        raise TransportUnavailable("a job of one process has nobody to write to")

    def abort(self, code: int) -> None:
        os._exit(code)

    def close(self) -> None:
        pass


def run_ranks(
    env: WorkerEnv, body: Callable[[int], T], on_switch: Callable[[int], None] | None = None
) -> list[T]:
    """Run ``body(rank)`` for each rank that ``env`` hosts, each in a thread; return what they return.

    One runs at a time. The order is always the same: a rank runs until it waits in a collective, then the
    next one in rank order that can. ``body`` sees its own contract (``current_env()``) and ``connect()``
    gives it its own communicator.

    Args:
        on_switch: called with the rank that is about to run, in its thread, whenever another one ran before.

    Raises:
        RankFailed: a rank raised; the first one; the others got ``PeerFailed``, or never began.
        KeyboardInterrupt: Ctrl-C; it was raised in the rank that was running.
    """
    host = open_host(env, threads=True, on_switch=on_switch)
    baton = host.baton
    assert baton is not None
    ranks = range(env.rank, env.rank + env.hosted)
    results: dict[int, Any] = {}
    main = _MainThread()

    def run(rank: int) -> None:
        error: BaseException | None = None
        enter_rank(HostedRank(env.of_rank(rank), host, main.call))
        host.ledger.pages[rank].set_thread(threading.get_native_id())
        baton.enter(rank)
        try:
            baton.check()  # nothing is begun after another rank has failed
            results[rank] = body(rank)
        except SystemExit as exit:
            error = exit if exit.code else None
            results[rank] = None
        except BaseException as raised:
            error = raised
        try:
            baton.leave(rank, error)
        finally:
            main.end(rank)

    threads = {
        rank: threading.Thread(
            target=contextvars.copy_context().run, args=(run, rank), name=f"rank {rank}", daemon=True
        )
        for rank in ranks
    }
    try:
        for thread in threads.values():
            thread.start()
        baton.start()
        main.wait(len(ranks), lambda: threads[env.rank if baton.running is None else baton.running])
        for thread in threads.values():
            thread.join()
    finally:
        close_host(host, failed=baton.failed is not None)
    if baton.failed is not None:
        rank, error = baton.failed
        if isinstance(error, KeyboardInterrupt):
            raise error
        raise RankFailed(rank, error) from error
    return [results[rank] for rank in ranks]


class _Asked:
    """A function that the main thread is asked to call."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()

    def call(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # Ctrl-C too
            self.error = error
        self.done.set()


class _MainThread:
    """What the main thread does while ranks run: it waits for them, passes on Ctrl-C, and calls what they ask for."""

    def __init__(self) -> None:
        self._wake = threading.Semaphore(0)
        self._asked: deque[_Asked] = deque()
        self._ended: set[int] = set()

    def call(self, function: Callable[[], T]) -> T:
        """Have ``function`` called in the main thread; the caller is another one."""
        asked = _Asked(function)
        self._asked.append(asked)
        self._wake.release()
        asked.done.wait()
        if asked.error is not None:
            raise asked.error
        result: T = asked.result
        return result

    def end(self, rank: int) -> None:
        """``rank`` has come to its end."""
        self._ended.add(rank)
        self._wake.release()

    def wait(self, ranks: int, running: Callable[[], threading.Thread]) -> None:
        """Wait for the ends of so many ranks.

        Ctrl-C is raised in what the main thread does for a rank, else in the rank that runs; a second one ends the
        wait.
        """
        interrupted = False
        while len(self._ended) < ranks:
            try:
                # Not for ever: a Ctrl-C that comes just before the lock is taken would not wake this thread.
                self._wake.acquire(timeout=0.2)
                while self._asked:
                    self._asked[0].call()
                    self._asked.popleft()
            except KeyboardInterrupt as interrupt:
                if self._asked:
                    asked = self._asked.popleft()
                    asked.error = interrupt
                    asked.done.set()
                    continue
                if interrupted:
                    raise
                interrupted = True
                # Python delivers signals to the main thread only; this raises in the other at its next bytecode.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(running().ident or 0), ctypes.py_object(KeyboardInterrupt)
                )
