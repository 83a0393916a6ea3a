"""Worker processes that read batches ahead of the rank.

Each worker has its own pipe for both directions, so that a worker that is killed in the middle of a message
harms nobody else. It reads its tasks in order and answers in order; the rank asks the workers in turn, and so
gets the batches in the order of the sampler. Workers are forked, as PyTorch's on Linux: data set and
functions need not be picklable. They run nothing but the data set and the functions they were given: no MPI
and no sockets.

What comes through the pipe is unpickled; it is this process's own child that sent it. Large arrays do not go through
it: see ``disttrain.data.segments``.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import math
import mmap
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import random as python_random
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np

from disttrain import random
from disttrain.collectives import stacks
from disttrain.data import collate
from disttrain.data.fetch import EndOfStream, Fetch, make_fetch
from disttrain.data.segments import Mappings, Segments, send

_log = logging.getLogger("disttrain")
_FRAMES = 3
"""Of a worker's stack as many are told, the innermost."""
_GRACE = 2.0
"""Seconds that a worker has to finish its sample when the loader stops."""
_NOTICE = 10.0
"""Seconds after which the rank says which worker it waits for, and where that is; again when they have doubled."""
_LOOK = 1.0
"""Seconds between two looks of an idle worker at whether its rank still lives."""
_STOPPED = -1
_PR_SET_PDEATHSIG = 1


class Job(NamedTuple):
    """What workers do."""

    dataset: Any
    collate: Callable[[Any], Any]
    auto_collation: bool
    drop_last: bool
    init: Callable[[int], None] | None
    base_seed: int


@dataclass(frozen=True)
class WorkerInfo:
    """Which worker this process is, as ``torch.utils.data.get_worker_info()`` tells."""

    id: int
    """Number of the worker, from 0."""
    num_workers: int
    seed: int
    """What the random generators of this worker were seeded with: the base seed plus ``id``."""
    dataset: Any
    """This process's copy of the data set."""


_info: WorkerInfo | None = None


def get_worker_info() -> WorkerInfo | None:
    """Return which worker this process is; ``None`` in the process of a rank."""
    return _info


class WorkerPool:
    """Some workers of one loader.

    Args:
        job: what they do.
        count: how many.
    """

    def __init__(self, job: Job, count: int) -> None:
        self._run = 0
        self._flag = mmap.mmap(-1, 8)  # shared with the workers: number of the run that goes on, or _STOPPED
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop, os.getpid(), self._flag, self._workers)
        try:
            for number in range(count):
                self._workers.append(self._start(job, number, count))
        except BaseException:
            self.close()
            raise

    def _start(self, job: Job, number: int, count: int) -> _Worker:
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        descriptors, sends = socket.socketpair()
        answers = stacks.new_file()
        # The signal comes when the *thread* that forked ends, so only the main thread may ask for it.
        signalled = threading.current_thread() is threading.main_thread()
        others = [ours, descriptors, *(end for w in self._workers for end in (w.pipe, w.descriptors))]
        process = fork.Process(
            target=_work,
            args=(job, number, count, theirs, sends, answers, others, self._flag, signalled),
            name=f"DataLoader worker {number}",
            daemon=True,
        )
        with theirs, sends, warnings.catch_warnings():
            # Python 3.12 warns of any fork of several threads. The child calls only the data set's code.
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            try:
                process.start()
            except BaseException:
                ours.close()
                descriptors.close()
                raise
            finally:
                if answers >= 0:
                    os.close(answers)
        return _Worker(number, process, ours, descriptors, answers)

    @property
    def alive(self) -> bool:
        """Whether all workers can work."""
        return self._finalizer.alive and all(w.process.is_alive() for w in self._workers)

    def close(self, kill: bool = False) -> None:
        """Stop the workers; those that do not stop in time are killed, or all at once."""
        if kill:
            for w in self._workers:
                w.process.kill()
        self._finalizer()

    def run(
        self, indices: Iterator[Any], key: tuple[int, int] | None, prefetch: int, timeout: float, keep: bool
    ) -> Run:
        """Begin to read the batches of ``indices``; a run that still goes on is given up.

        Args:
            indices: for each batch what the sampler gave.
            key: see :func:`.make_fetch`.
            prefetch: batches that each worker reads ahead.
            timeout: seconds that a batch may take; 0 for any.
            keep: do not stop the workers at the end.
        """
        self._run += 1
        _write(self._flag, self._run)
        return Run(self, self._run, indices, key, prefetch, timeout, keep)


class Run:
    """The batches of one epoch, in order: an iterator of (batch, number of samples)."""

    def __init__(
        self,
        pool: WorkerPool,
        number: int,
        indices: Iterator[Any],
        key: tuple[int, int] | None,
        prefetch: int,
        timeout: float,
        keep: bool,
    ) -> None:
        self._pool = pool
        self._number = number
        self._indices = indices
        self._key = key
        self._timeout = timeout
        self._keep = keep
        self._turns = itertools.cycle(pool._workers)
        self._ended: set[int] = set()
        self._asked: deque[_Worker] = deque()
        for _ in range(prefetch * len(pool._workers)):
            self._ask()

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> tuple[Any, int]:
        while self._asked:
            if self._number != self._pool._run:
                raise RuntimeError(
                    "a newer iteration over this DataLoader has begun; with persistent_workers only the "
                    "newest can go on"
                )
            worker = self._asked.popleft()
            if worker.number in self._ended:
                continue
            reply = self._receive(worker)
            if isinstance(reply, _End):
                self._ended.add(worker.number)
            self._ask()
            if isinstance(reply, _Failure):
                reply.reraise()
            if not isinstance(reply, _End):
                batch: tuple[Any, int] = reply
                return batch
        if not self._keep:
            self._pool.close()
        raise StopIteration

    def _ask(self) -> None:
        """Send the next task to the worker whose turn it is."""
        workers = self._pool._workers
        if len(self._ended) == len(workers):
            return
        try:
            index = next(self._indices)
        except StopIteration:
            return
        worker = next(w for w in self._turns if w.number not in self._ended)
        try:
            worker.pipe.send((self._number, self._key, index, worker.mappings.freed()))
        except OSError:
            raise self._dead(worker) from None
        self._asked.append(worker)

    def _receive(self, worker: _Worker) -> Any:
        begun = time.monotonic()
        deadline = begun + self._timeout if self._timeout else math.inf
        notice = _NOTICE
        sentinels = {w.process.sentinel: w for w in self._pool._workers}
        while True:
            until = min(deadline, begun + notice)
            ready = multiprocessing.connection.wait(
                [worker.pipe, *sentinels], max(0.0, until - time.monotonic())
            )
            if not ready and until < deadline:
                _log.warning("waiting for %.0f s for a batch of %s", notice, worker.where)
                notice *= 2
                continue
            if not ready:
                where = worker.where
                self._pool.close(kill=True)
                raise RuntimeError(
                    f"DataLoader: timed out, {self._timeout} seconds are over for a batch of {where}"
                )
            for object_ in ready:
                if isinstance(object_, int):
                    raise self._dead(sentinels[object_])
            try:
                data = worker.pipe.recv_bytes()
            except (EOFError, OSError):
                raise self._dead(worker) from None
            try:
                reply = worker.mappings.unpack(data, worker.descriptors, self._number)
            except (EOFError, ConnectionError):
                raise self._dead(worker) from None
            except OSError:  # it is this process that cannot take the batch
                self._pool.close(kill=True)
                raise
            if reply is not None:
                return reply

    def _dead(self, worker: _Worker) -> RuntimeError:
        """Stop all workers, and return the error that names the dead one."""
        worker.process.join(_GRACE)
        code = worker.process.exitcode
        self._pool.close(kill=True)
        if code is None or code >= 0:
            how = f"exited unexpectedly with code {code}"
        elif -code == signal.SIGKILL:
            how = "was killed by SIGKILL; if nobody did that, the kernel did for want of memory"
        else:
            how = f"was killed by {signal.Signals(-code).name}"
        return RuntimeError(f"DataLoader worker {worker.number} (pid {worker.pid}) {how}")


class _Worker:
    """A worker as the rank sees it."""

    def __init__(
        self,
        number: int,
        process: BaseProcess,
        pipe: Connection[Any, Any],
        descriptors: socket.socket,
        answers: int,
    ) -> None:
        self.number = number
        self.process = process
        self.pid = process.pid
        self.pipe = pipe
        self.descriptors = descriptors
        """Through which those of its segments come."""
        self.mappings = Mappings()
        self._answers = answers

    @property
    def where(self) -> str:
        """The worker in words: which it is, and where in its Python code, as far as that is known."""
        words = f"worker {self.number} (pid {self.pid})"
        assert self.pid is not None
        trouble = stacks.trouble(self.pid)
        frames = [] if trouble else stacks.ask(self.pid, self._answers, most=_FRAMES)
        if frames:
            trouble = "is at " + ", called from ".join(reversed(frames))
        return f"{words}, which {trouble}" if trouble else words


class _End(NamedTuple):
    """The reply of a worker whose stream has ended."""


class _Failure:
    """An exception of a worker, as text: tracebacks cannot travel."""

    def __init__(self, error: BaseException, worker: int) -> None:
        kind = type(error)
        text = "".join(traceback.format_exception(error))
        self.text = f"Caught {kind.__name__} in DataLoader worker process {worker}; what it ran:\n{text}"
        self.kind: type[BaseException] = RuntimeError if kind is StopIteration else kind
        try:
            pickle.dumps(kind)
        except Exception:  # a class that only the worker knows, by whatever error its module makes of it
            self.kind = RuntimeError

    def reraise(self) -> None:
        """Raise an exception of the same type with the worker's traceback as its message."""
        message = _Verbatim(self.text) if self.kind is KeyError else self.text
        try:
            error = self.kind(message)
        except Exception:  # its constructor wants other arguments
            error = RuntimeError(self.text)
        raise error


class _Verbatim(str):
    """A string that prints as it is, since KeyError prints the ``repr`` of its argument."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _stop(owner: int, flag: mmap.mmap, workers: list[_Worker]) -> None:
    if os.getpid() != owner:  # a fork of the owner that drops its copy of the pool
        return
    _write(flag, _STOPPED)
    for w in workers:
        try:
            if select.select([], [w.pipe], [], 0)[1]:  # never wait for a worker that does not read
                w.pipe.send(None)
        except OSError:
            pass  # it is gone already
        w.pipe.close()
        w.descriptors.close()
    deadline = time.monotonic() + _GRACE
    for w in workers:
        w.process.join(max(0.0, deadline - time.monotonic()))
    for w in workers:
        if w.process.is_alive():
            w.process.kill()
    for w in workers:
        w.process.join()


# ------------------------------------------------------------------------------------------ in the worker


def _work(
    job: Job,
    number: int,
    count: int,
    pipe: Connection[Any, Any],
    descriptors: socket.socket,
    answers: int,
    others: list[Connection[Any, Any] | socket.socket],
    flag: mmap.mmap,
    signalled: bool,
) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    if signalled and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it died before that
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rank gets it too, and stops its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    if answers >= 0:
        stacks.answer_into(answers)
    failure = _prepare(job, number, count)
    segments = Segments()
    collate.new_array = segments.empty
    outbox: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    threading.Thread(target=_send_all, args=(pipe, descriptors, outbox), daemon=True).start()
    fetch: Fetch | None = None
    run = 0
    ended = False
    while True:
        while not pipe.poll(_LOOK):
            if os.getppid() != parent.pid:
                return
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        if task is None:
            return
        number_of_run, key, index, freed = task
        segments.release(freed)
        segments.begin()
        if number_of_run != run:
            run, fetch, ended = number_of_run, None, False
        if ended or run != _read(flag):  # nobody waits for it any more
            continue
        reply: Any
        try:
            if failure is not None:
                reply, failure = failure, None
            else:
                if fetch is None:
                    fetch = make_fetch(job.dataset, job.collate, job.auto_collation, job.drop_last, key)
                reply = fetch(index)
            payload = segments.pack(run, reply)
        except EndOfStream:
            ended, payload = True, segments.pack(run, _End())
        except Exception as error:
            payload = segments.pack(run, _Failure(error, number))
        reply = None  # its memory may be used again as soon as the rank is through with it
        outbox.put(payload)


def _prepare(job: Job, number: int, count: int) -> _Failure | None:
    """Seed the random generators and call ``worker_init_fn``; return how that failed."""
    global _info
    seed = job.base_seed + number
    random.manual_seed(seed)
    python_random.seed(seed)
    np.random.seed(np.random.SeedSequence([job.base_seed, number]).generate_state(4))
    _info = WorkerInfo(number, count, seed, job.dataset)
    try:
        if job.init is not None:
            job.init(number)
    except Exception as error:
        return _Failure(error, number)
    return None


def _send_all(
    pipe: Connection[Any, Any], descriptors: socket.socket, outbox: queue.SimpleQueue[tuple[int, bytes]]
) -> None:
    """Send what is in ``outbox``, in a thread of its own, so that the worker can read ahead."""
    try:
        while True:
            send(pipe, descriptors, *outbox.get())
    except OSError:
        pass  # the rank has closed its end; the worker finds out by itself


def _write(flag: mmap.mmap, number: int) -> None:
    struct.pack_into("q", flag, 0, number)


def _read(flag: mmap.mmap) -> int:
    return int(struct.unpack_from("q", flag, 0)[0])
