"""DataLoader: batches of a data set, dealt to the ranks of a job."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from disttrain import context
from disttrain.collectives.env import current_env, hosted_env
from disttrain.data.collate import default_collate, default_convert
from disttrain.data.dataset import IterableDataset
from disttrain.data.fetch import EndOfStream, Fetch, make_fetch
from disttrain.data.ledger import SampleLedger, Use
from disttrain.data.sampler import (
    BatchSampler,
    EpochSampler,
    NoShare,
    RandomSampler,
    SequentialSampler,
    ShardedBatchSampler,
    ShardedSampler,
)
from disttrain.data.sharding import share, steps
from disttrain.data.workers import Job, WorkerPool
from disttrain.devices import device as Device
from disttrain.devices import is_available
from disttrain.random import ORDER, philox
from disttrain.steering import meter

if TYPE_CHECKING:
    from disttrain.random import Generator

_log = logging.getLogger("disttrain")
_FIXED = frozenset({"batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers"})
_announced: set[str] = set()


class DataLoader:
    """An iterable over the batches of ``dataset``, as ``torch.utils.data.DataLoader``; each ``iter()`` is an
    epoch.

    Without ``sampler`` and ``batch_sampler`` the loader deals the samples to the ranks of the job by itself:
    ``batch_size`` is that of a rank, each sample is used exactly once in an epoch, and all ranks make the
    same number of steps. The last step may be uneven: the first ranks get one sample more, and a rank may get
    an empty batch (first dimension 0). The order of an epoch is a function of (seed, epoch, position),
    whatever the number of ranks and workers; a new epoch is shuffled anew without ``set_epoch()``.

    With a sampler of the user's it does what PyTorch's does. The number of samples in each batch that is
    handed out becomes the default weight of the rank's gradient.

    Args:
        dataset: a map from indices (``__getitem__``, ``__len__``), or an :class:`IterableDataset`, of which
            every rank reads the whole stream unless it splits itself.
        batch_size: samples in a rank's batch; ``None`` hands out single samples.
        shuffle: another random order in each epoch.
        sampler: which indices this rank reads.
        batch_sampler: lists of indices instead.
        num_workers: processes that read ahead; 0 reads in the rank's own. Ranks that are threads of one
            process always read by themselves, since a process of threads cannot be forked safely.
        collate_fn: makes a batch of a list of samples.
        pin_memory: hand out batches in page-locked memory, from which copies to a GPU are fast. Without a GPU: a
            warning, as PyTorch's. :meth:`to` does the copies too.
        drop_last: drop the last step if it is uneven, on all ranks.
        timeout: seconds that a batch of a worker may take; 0 for as long as it needs.
        worker_init_fn: called in each worker with its number.
        multiprocessing_context: only ``"fork"``.
        generator: its seed decides the order, in place of the default generator's.
        prefetch_factor: batches that a worker reads ahead; 2 by default.
        persistent_workers: keep the workers from epoch to epoch.
        pin_memory_device: not used, as in PyTorch, where it is deprecated: memory is pinned for the current GPU.
        in_order: ``False`` allows batches to come as workers have them; they come in order all the same, as the state
            of the loader is one position.
        seed: decides the order; the same on all ranks. By default that of ``generator`` or of the default
            generator (``disttrain.manual_seed``, with the same number on all ranks) when the first epoch
            begins. If nobody has set a seed: rank 0's where a model was wrapped, else 0 in a job of several
            ranks and any in a world of one.

    Where the loader deals the samples itself, disttrain's random numbers that a sample draws while it is read, as
    transforms do, are those of (seed, epoch, index of the sample): augmentation depends on neither ranks nor workers.
    Otherwise, in a worker, and those of NumPy and ``random`` always, they are seeded from (base seed + worker number),
    where the base seed follows from (seed, epoch); disttrain's then also depend on the rank.

    Raises:
        TypeError, ValueError: arguments are wrong, or exclude each other.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        seed: int | None = None,
    ) -> None:
        _check_workers(num_workers, timeout, prefetch_factor, persistent_workers, multiprocessing_context)
        streams = isinstance(dataset, IterableDataset)
        _check_sampling(streams, batch_size, shuffle, sampler, batch_sampler, drop_last)
        self.dataset = dataset
        self.num_workers = num_workers
        self.prefetch_factor = 2 if num_workers > 0 and prefetch_factor is None else prefetch_factor
        self.pin_memory = pin_memory
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context
        self.generator = generator
        self.persistent_workers = persistent_workers
        self.pin_memory_device = pin_memory_device
        self.in_order = in_order
        self.drop_last = drop_last
        self.batch_size = None if batch_sampler is not None else batch_size
        self._epochs = EpochSampler(() if streams else dataset, bool(shuffle), seed, generator)
        self._user_order = streams or sampler is not None or batch_sampler is not None
        if sampler is None and batch_sampler is None and not streams:
            if shuffle:
                RandomSampler(dataset)  # refuses an empty data set, as PyTorch does
            if batch_size is None:
                sampler = ShardedSampler(self._epochs)
            else:
                sampler, batch_sampler = (
                    self._epochs,
                    ShardedBatchSampler(self._epochs, batch_size, drop_last),
                )
        elif sampler is not None and batch_size is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.collate_fn = collate_fn or (default_collate if self._auto_collation else default_convert)
        self._pool: WorkerPool | None = None
        self._running: weakref.ref[_Epoch] | None = None
        """The epoch that was begun last."""
        self._skip = 0
        """How many batches of the next epoch a run that was interrupted has used, in an order of the user's."""
        self.ledger = SampleLedger()
        """What this rank has used, to be compared with what it should have: see ``disttrain data ledger``."""
        self._reported_length: int | None = None
        self._device: Device | None = None
        """Where batches are handed out, if not on the host."""
        if streams and current_env().world_size > 1:
            _announce(
                "a DataLoader cannot deal out an IterableDataset: every rank reads the whole stream unless "
                "its __iter__ takes the rank's part"
            )
        if num_workers and hosted_env() is not None:
            _announce(
                f"num_workers={num_workers} is not used: ranks that are threads of one process read their "
                f"batches by themselves"
            )

    def __setattr__(self, name: str, value: object) -> None:
        if name in _FIXED and "_reported_length" in self.__dict__:  # the last one that __init__ sets
            raise ValueError(f"{name} of a DataLoader cannot be changed; make another one")
        object.__setattr__(self, name, value)

    @property
    def _auto_collation(self) -> bool:
        return self.batch_size is not None or self.batch_sampler is not None

    def to(self, device: Any) -> DataLoader:
        """Let the epochs that begin from now on hand out their batches on a device; return the loader.

        On a GPU each batch is copied there through page-locked memory, on a stream of its own, while the one before it
        is used: it is read one batch ahead. On the CPU batches are as they were made.

        Raises:
            RuntimeError: there is no such GPU.
            ValueError: this is no device.
        """
        where = Device(device)
        if where.type != "cpu" and not is_available():
            raise RuntimeError(f"device {where}: no GPU can be used; ask disttrain.cuda.is_available() first")
        self._device = None if where.type == "cpu" else where
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration read ``epoch``, as when a run is resumed."""
        self._epochs.set_epoch(epoch)

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next iteration reads, from 0; once a state is loaded the one to go on with."""
        return self._epochs.epoch

    def state_dict(self) -> dict[str, int]:
        """Return where the run is in its data: what every rank needs to go on after the last batch that was handed out.

        While an epoch runs (also in the body of the loop after its last batch) it is that epoch and the number of
        samples that all ranks have been given; after it, the beginning of the next. It does not depend on the numbers
        of ranks and workers, unless the order is a sampler's of the user: then it counts the rank's batches.

        Returns:
            ``seed``, ``epoch``, ``position`` and ``samples``, the size of the data set; or ``epoch``, ``batches`` and
            ``ranks``.

        Raises:
            ValueError: in the middle of an epoch whose order is not known to be the same when it is begun again.
        """
        running = self._running() if self._running is not None else None
        inside = running is not None and not running.ended
        epoch = running.epoch if inside and running is not None else self._epochs.epoch
        used = running.used if inside and running is not None else 0
        if self._user_order:
            batches = used if inside else self._skip
            if batches and not _repeats(self.dataset, self.batch_sampler, self.sampler):
                raise ValueError(
                    "the state of this DataLoader in the middle of an epoch is not known: its data set or sampler may "
                    "give another order when it begins again. Save between epochs, leave the order to the loader "
                    "(shuffle=True), or use a DistributedSampler"
                )
            return {"epoch": epoch, "batches": batches, "ranks": current_env().world_size}
        n = len(self.dataset)
        if inside:
            each = 1 if self.batch_size is None else self.batch_size
            position = min(n, running.start + used * each * current_env().world_size) if running else 0
        else:
            position = self._epochs.start
        return {"seed": self._epochs.seed, "epoch": epoch, "position": position, "samples": n}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Make the next iteration read what was left when :meth:`state_dict` was taken: by any number of ranks.

        ``len()`` stays that of a whole epoch.

        Raises:
            ValueError: the state is of a data set of another size, of another kind of order, or, where a sampler of
                the user's deals to the ranks, of another number of them. Nothing is changed.
        """
        kind = {"epoch", "batches", "ranks"} if self._user_order else {"seed", "epoch", "position", "samples"}
        if set(state_dict) != kind:
            raise ValueError(
                f"this DataLoader needs a state with {', '.join(sorted(kind))}, got {', '.join(sorted(state_dict))}; "
                f"was it saved by one with another kind of data set or sampler?"
            )
        if self._user_order:
            ranks = current_env().world_size
            if state_dict["batches"] and state_dict["ranks"] != ranks:
                raise ValueError(
                    f"the state is of the middle of an epoch that a sampler dealt to {state_dict['ranks']} ranks, and "
                    f"there are {ranks}; leave the order to the loader, and it is dealt anew"
                )
            self._epochs.set_epoch(state_dict["epoch"])
            self._skip = state_dict["batches"]
        else:
            n = len(self.dataset)
            if state_dict["samples"] != n:
                raise ValueError(
                    f"the state is of a data set of {state_dict['samples']} samples, and this one has {n}; what is "
                    f"left of epoch {state_dict['epoch']} cannot be told"
                )
            self._epochs.resume(state_dict["seed"], state_dict["epoch"], state_dict["position"])
        self._running = None

    def __len__(self) -> int:
        if isinstance(self.dataset, IterableDataset):
            n = self._reported_length = len(self.dataset)  # type: ignore[arg-type]
            if self.batch_size is None:
                return n
            return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return len(self._indices())  # type: ignore[arg-type]

    def _indices(self) -> Iterable[Any]:
        """Return what gives the index, or list of indices, of each batch."""
        if isinstance(self.dataset, IterableDataset):
            return itertools.repeat(self.batch_size)
        if self.batch_sampler is not None:
            return self.batch_sampler
        assert self.sampler is not None
        return self.sampler

    def __iter__(self) -> Iterator[Any]:
        epoch, start, skip = self._epochs.epoch, self._epochs.start, self._skip
        key = None if self._user_order else (self._epochs.seed, epoch)
        indices = _Drawn(itertools.islice(iter(self._indices()), skip, None))
        self._epochs.set_epoch(epoch + 1)
        self._skip = 0
        begun = _Epoch(
            self._handed_over(self._batches(indices, epoch, key)),
            indices,
            epoch,
            key,
            self._reported_length,
            start,
            skip,
            None if self._user_order else self._places(start),
            None if isinstance(self.dataset, IterableDataset) else self.ledger,
        )
        self._running = weakref.ref(begun)
        return begun

    def _handed_over(self, batches: Iterator[tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
        """Return the same batches where the user wants them."""
        if self._device is not None:
            from disttrain.data.staging import Staged

            return Staged(batches, self._device.index or 0)
        if not self.pin_memory:
            return batches
        if not is_available():
            warnings.warn(
                "pin_memory=True has no effect, since no GPU can be used: batches are in ordinary host memory",
                stacklevel=3,
            )
            return batches
        from disttrain.data.staging import Pinned

        return Pinned(batches)

    def _places(self, start: int) -> _Places:
        """Return where in an epoch of which ``start`` samples are used this rank's batches are."""
        env, size = current_env(), 1 if self.batch_size is None else self.batch_size
        return _Places(start, len(self.dataset) - start, size, env.world_size, env.rank, self.drop_last)

    def _batches(self, indices: _Drawn, epoch: int, key: tuple[int, int] | None) -> Iterator[tuple[Any, int]]:
        """Return what reads the batches of an epoch."""
        if self.num_workers == 0 or hosted_env() is not None:
            fetch = make_fetch(self.dataset, self.collate_fn, self._auto_collation, self.drop_last, key)
            return _InLine(fetch, indices)
        pool = self._pool
        if pool is None or not pool.alive:
            pool = WorkerPool(
                Job(
                    self.dataset,
                    self.collate_fn,
                    self._auto_collation,
                    self.drop_last,
                    self.worker_init_fn,
                    self._base_seed(epoch),
                ),
                self.num_workers,
            )
        if self.persistent_workers:
            self._pool = pool
        return pool.run(indices, key, self.prefetch_factor or 1, self.timeout, self.persistent_workers)

    def _base_seed(self, epoch: int) -> int:
        """Return the seed of the workers: a function of (seed, epoch), so that it costs no draw."""
        return int(philox((self._epochs.seed, epoch), 1, (1, 0, ORDER))[0] >> 1)


class _InLine:
    """Batches read when they are asked for: an iterator of (batch, number of samples)."""

    def __init__(self, fetch: Fetch, indices: Iterator[Any]) -> None:
        self._fetch = fetch
        self._indices = indices

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return self

    def __next__(self) -> tuple[Any, int]:
        index = next(self._indices)
        try:
            return self._fetch(index)
        except EndOfStream:
            self._indices = iter(())
            raise StopIteration from None
        except StopIteration as error:  # it would end the epoch without a word
            raise RuntimeError(
                "reading a batch raised StopIteration; a data set must not let it slip"
            ) from error


class _Drawn:
    """The indices of batches as they are asked for, kept until the batch is handed out."""

    def __init__(self, indices: Iterator[Any]) -> None:
        self._indices = indices
        self.waiting: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        index = next(self._indices)
        self.waiting.append(index)
        return index


class _Places(NamedTuple):
    """Where in the order of an epoch a rank's batches are."""

    start: int
    """Positions that were used before the epoch was resumed."""
    left: int
    batch_size: int
    ranks: int
    rank: int
    drop_last: bool

    def first(self, batch: int) -> int:
        """Return the first position of a batch, counted from ``start``."""
        return self.start + share(self.left, self.batch_size, self.ranks, self.rank, batch).start

    @property
    def dropped(self) -> int:
        """How many positions at the end no rank gets."""
        size = self.batch_size * self.ranks
        return max(0, self.left - steps(self.left, self.batch_size, self.ranks, self.drop_last) * size)


class _Epoch:
    """What ``iter(loader)`` is: hands out batches, and notes in the rank's context what it dealt.

    No generator, so that a program can go on with the next batch after an error, as with PyTorch.

    Args:
        batches: in order, with their numbers of samples.
        drawn: their indices.
        epoch: which one it is.
        key: (seed, epoch) if the order is the loader's own.
        reported_length: what the data set says, if it is a stream.
        start: how many samples of it all ranks had used before it was resumed.
        skipped: how many batches of it this rank had used then, if the order is not the loader's.
        places: of the batches, if the order is the loader's.
        ledger: in which the samples are noted, if the data set is a map.
    """

    def __init__(
        self,
        batches: Iterator[tuple[Any, int]],
        drawn: _Drawn,
        epoch: int,
        key: tuple[int, int] | None,
        reported_length: int | None,
        start: int,
        skipped: int,
        places: _Places | None,
        ledger: SampleLedger | None,
    ) -> None:
        self._batches = batches
        self._drawn = drawn
        self.epoch = epoch
        self.start = start
        self.ended = False
        """Whether there is no batch left, and the loop has been told."""
        self._key = key
        self._skipped = skipped
        self._reported_length = reported_length
        self._places = places
        self._ledger = ledger
        self._use: Use | None = None
        """What the ledger says of this epoch, once there is anything to say."""
        self._handed_out = 0
        self._failed = 0
        """Batches that raised in place of being handed out: their samples are not dealt again."""
        self._dealt: context.Dealt | None = None
        self._around: weakref.ref[_Epoch] | None = None
        """The loop over another loader in whose body this one runs."""

    def __iter__(self) -> Iterator[Any]:
        return self

    @property
    def used(self) -> int:
        """How many batches of the epoch this rank is through with; of the loader's own order those since ``start``."""
        return self._skipped + self._handed_out + self._failed

    def __next__(self) -> Any:
        rank = context.current()
        if not self._handed_out and rank.loop is not None:
            self._around = rank.loop
        counter = meter()
        since = counter.begin_reading()
        samples = 0
        try:
            batch, samples = next(self._batches)
        except StopIteration:
            if not self.ended:
                self._close()
            self.ended = True
            outer = self._around() if self._around is not None else None
            rank.loop = self._around if outer is not None else None
            rank.dealt = outer._dealt if outer is not None else None  # what comes now is not of this loader
            raise
        except Exception:
            if self._drawn.waiting:
                self._drawn.waiting.popleft()
                self._failed += 1
            raise
        finally:
            counter.end_reading(since, samples)
        length = self._reported_length
        if length is not None and self._handed_out >= length:
            self._reported_length = None  # say it once
            warnings.warn(
                f"the IterableDataset said that it has {length} samples, but batch {self._handed_out + 1} was read; "
                f"does each worker take its own part of the stream?",
                stacklevel=2,
            )
        indices = self._drawn.waiting.popleft() if self._drawn.waiting else None
        position = (self.epoch, self._handed_out) if self._key is not None else None
        known = isinstance(indices, Sequence) and not isinstance(indices, NoShare)
        self._note(indices, samples)
        self._dealt = rank.dealt = context.Dealt(samples, indices if known else None, position, self._key)
        rank.loop = weakref.ref(self)
        self._handed_out += 1
        return batch

    def _note(self, indices: Any, samples: int) -> None:
        """Enter the batch that is handed out into the ledger."""
        if self._ledger is None or isinstance(indices, NoShare):
            return
        used = indices if isinstance(indices, list | tuple) else (indices,)
        first = None
        if self._places is not None:
            first = self._places.first(self._handed_out + self._failed)
        elif not all(isinstance(index, int | np.integer) for index in used):
            return  # a sampler of the user's may give anything
        if self._use is None:
            self._use = self._ledger.open(self.epoch)
        self._use.add(first, used, samples)

    def _close(self) -> None:
        """Tell the ledger that the epoch has ended."""
        if self._ledger is None:
            return
        dropped = self._places.dropped if self._places is not None else 0
        if self._use is None and dropped:
            self._use = self._ledger.open(self.epoch)
        if self._use is not None:
            self._use.dropped = dropped
            self._ledger.close(self._use)
            self._use = None


def _check_workers(
    num_workers: int,
    timeout: float,
    prefetch_factor: int | None,
    persistent_workers: bool,
    multiprocessing_context: Any,
) -> None:
    if num_workers < 0:
        raise ValueError(f"num_workers must not be negative, got {num_workers}; 0 reads without processes")
    if timeout < 0:
        raise ValueError(f"timeout must not be negative, got {timeout}")
    if prefetch_factor is not None and num_workers == 0:
        raise ValueError("prefetch_factor needs num_workers > 0")
    if prefetch_factor is not None and prefetch_factor < 1:
        raise ValueError(f"prefetch_factor must be positive, got {prefetch_factor}")
    if persistent_workers and num_workers == 0:
        raise ValueError("persistent_workers needs num_workers > 0")
    if multiprocessing_context is not None:
        if num_workers == 0:
            raise ValueError("multiprocessing_context needs num_workers > 0")
        method = getattr(multiprocessing_context, "get_start_method", lambda: multiprocessing_context)()
        if method != "fork":
            raise ValueError(f"multiprocessing_context must be 'fork', got {multiprocessing_context!r}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers > cores:
        warnings.warn(
            f"{num_workers} workers on {cores} processor cores: more than {cores} make reading slower",
            stacklevel=3,
        )


def _check_sampling(
    streams: bool,
    batch_size: int | None,
    shuffle: bool | None,
    sampler: Any,
    batch_sampler: Any,
    drop_last: bool,
) -> None:
    if streams and (shuffle or sampler is not None or batch_sampler is not None):
        raise ValueError(
            f"an IterableDataset has its own order: shuffle, sampler and batch_sampler must not be "
            f"given, got shuffle={shuffle}, sampler={sampler}, batch_sampler={batch_sampler}"
        )
    if sampler is not None and shuffle:
        raise ValueError("sampler and shuffle exclude each other")
    if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
        raise ValueError("batch_sampler excludes batch_size, shuffle, sampler and drop_last")
    if batch_sampler is None and batch_size is None and drop_last:
        raise ValueError(
            "batch_size=None hands out single samples, so there is no last batch to drop; "
            "drop_last must be False"
        )
    if batch_size is not None and (
        not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
    ):
        raise ValueError(f"batch_size must be a positive integer or None, got {batch_size!r}")


def _repeats(dataset: Any, batch_sampler: Any, sampler: Any) -> bool:
    """Return whether an order of the user's is the same when the epoch is begun again, as far as can be told."""
    if isinstance(dataset, IterableDataset):
        return False
    last = getattr(batch_sampler, "sampler", sampler) if sampler is None else sampler
    return isinstance(last, SequentialSampler) or hasattr(last, "set_epoch")


def _announce(line: str) -> None:
    """Log a line that the user should know, once."""
    if line not in _announced:
        _announced.add(line)
        _log.warning(line)
