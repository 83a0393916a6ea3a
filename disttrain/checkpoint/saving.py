"""Saving: a snapshot of what each rank has, written by a thread while the training goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import secrets
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from disttrain import collectives, context
from disttrain.checkpoint import files, folder
from disttrain.checkpoint.manifest import (
    FORMAT,
    Manifest,
    Piece,
    Stored,
    check_cover,
    name_in_file,
    part_name,
)
from disttrain.checkpoint.memory import Arena, padded
from disttrain.checkpoint.states import OWN, Item, make_parts
from disttrain.checkpoint.tensorfile import TensorFile, encode_hashed, layout
from disttrain.collectives.env import current_env
from disttrain.distributed.objects import all_gather_object
from disttrain.errors import CheckpointBusy, CheckpointError
from disttrain.kernels.arrays import Array, to_host
from disttrain.random import Generator, current_generator

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator

_logger = logging.getLogger("disttrain")
_PATIENCE: Final = 30.0
"""Seconds that a script which has ended waits for other ranks' parts that do not grow."""
_WRITING: Final = ".writing"
_FAILED: Final = ".failed"
_active: set[str] = set()
"""Temporary folders that threads of this process write into."""


def save(
    dir: str | os.PathLike[str],
    *,
    step: int,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    loader: Any = None,
    random: bool | Generator = True,
    metric: Any = None,
    mode: Literal["min", "max"] = "min",
    keep_last: int | None = 3,
    keep_best: int = 0,
    background: bool = True,
    on_failure: Literal["raise", "log"] = "raise",
    **others: Any,
) -> None:
    """Write a checkpoint of a run into a folder of them; all ranks call it after the same step.

    It returns once a copy of the state is in memory; a thread writes it while the training goes on. A checkpoint can be
    seen when all of it is on the disk, and not before; whatever stops a save, the ones before it stay whole. Each rank
    writes what it alone has (its part of sharded parameters and of optimizers' states) and an equal share of what all
    have. The folder is locked for this job until it ends.

    Args:
        dir: the folder, on a disk that all ranks see; made if it is not there.
        step: how many steps the run has made; any number that is not negative.
        model: a module, in any parallel wrapper; one of several goes by a name of its own: ``generator=``.
        optimizer: also a :class:`.ZeroOptimizer`, whose state need not be consolidated.
        scheduler: anything with ``state_dict()`` and ``load_state_dict()``.
        loader: a :class:`.DataLoader`: which samples are left of the epoch.
        random: the state of each rank's generator; or of another one, or not at all.
        metric: one number that says how good the model is; rank 0's counts.
        mode: whether less or more of it is better.
        keep_last: how many checkpoints stay; ``None`` for all. Older ones are removed after this one is safe.
        keep_best: how many of those with the best ``metric`` stay beside these.
        background: ``False`` returns when the checkpoint is on the disk.
        on_failure: what happens if it cannot be written, beside a line on stderr at once: the next call here raises,
            or the run goes on with that line.
        others: more modules, optimizers, objects with a state, or plain values, by names without ``/``.

    Raises:
        CheckpointError: the save before this one failed (with ``background=False``: this one), on all ranks.
        CheckpointBusy: another job writes into the folder.
        TypeError, ValueError: an argument is wrong, or something holds what no file can.
        OSError: the folder cannot be made.
    """
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 10**18:
        raise ValueError(f"step must be an integer that is not negative, got {step!r}")
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
    if on_failure not in ("raise", "log"):
        raise ValueError(f"on_failure must be 'raise' or 'log', got {on_failure!r}")
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last must be positive, or None for all, got {keep_last}")
    if keep_best < 0:
        raise ValueError(f"keep_best must not be negative, got {keep_best}")
    standard = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    things = {name: thing for name, thing in standard.items() if thing is not None} | others
    keep = (keep_last, keep_best)
    score = None if metric is None else float(metric)
    writer = _writer(os.fspath(dir))
    writer.wait()
    writer.save(step, things, random, score, mode, keep, background, on_failure)
    if not background:
        writer.wait()


def wait(dir: str | os.PathLike[str] | None = None) -> None:
    """Return when the last :func:`save` into a folder, or into all, is on the disk; all ranks call it.

    Raises:
        CheckpointError: it failed, on all ranks.
    """
    for writer in _writers(dir):
        writer.wait()


def close(dir: str | os.PathLike[str] | None = None) -> None:
    """:func:`wait`, then let other jobs write into the folder, or into all; all ranks call it.

    The end of the process does the same.

    Raises:
        CheckpointError: as :func:`wait`.
    """
    for writer in _writers(dir):
        try:
            writer.wait()
        finally:
            writer.close()
            context.current().checkpoints.pop(writer.key)


def spare_memory(dir: str | os.PathLike[str]) -> Arena:
    """Return the memory of this rank's snapshots for a folder, free: nobody uses it before the next one.

    There may be none. For whoever has called :func:`wait`.
    """
    writers = _writers(dir)
    arena = writers[0].arena if writers else Arena()
    arena.make_room(0)
    return arena


def _writer(path: str) -> _Writer:
    known = context.current().checkpoints
    key = os.path.realpath(path)
    if key not in known:
        known[key] = _Writer(path, key, collectives.connect())
    found: _Writer = known[key]
    return found


def _writers(dir: str | os.PathLike[str] | None) -> list[_Writer]:
    known = context.current().checkpoints
    if dir is None:
        return list(known.values())
    key = os.path.realpath(os.fspath(dir))
    return [known[key]] if key in known else []


def exchange(comm: Communicator, told: Any) -> list[Any]:
    """Return what each rank tells."""
    if comm.size == 1:
        return [told]
    heard: list[Any] = [None] * comm.size
    all_gather_object(heard, told, comm)  # type: ignore[arg-type]
    return heard


@dataclass
class _Job:
    """One save, as this rank has to write it."""

    temporary: str
    final: str
    arrays: dict[str, Array]
    """By the names in the file."""
    manifest: Manifest
    """On rank 0 it is completed."""
    began: float
    pieces: dict[str, tuple[str, tuple[int, ...], int, int]]
    """Of each array the tensor that it is of, the shape of that, and from which element to which."""
    nbytes: int
    """Of all ranks."""
    keep: tuple[int | None, int]
    on_failure: str


class _Writer:
    """Writes checkpoints of one rank into one folder, one at a time."""

    def __init__(self, path: str, key: str, comm: Communicator) -> None:
        self.key = key
        self._path = path
        self._comm = comm
        self._lock: files.Lock | None = None
        self.arena = Arena()
        """Memory of snapshots, kept from one to the next."""
        self._job: _Job | None = None
        """The save that has not been waited for."""
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._stop = threading.Event()
        """Set when another rank has failed, so that there is nothing to wait for."""

    # ------------------------------------------------------------------------------------ in the script's thread

    def save(
        self,
        step: int,
        things: Mapping[str, Any],
        random: bool | Generator,
        metric: float | None,
        mode: str,
        keep: tuple[int | None, int],
        background: bool,
        on_failure: str,
    ) -> None:
        """Begin to write; in this thread unless ``background``."""
        began = time.perf_counter()
        items: dict[str, Item] = {}
        parts: dict[str, Any] = {}
        for part in make_parts(things):
            found, said = part.save()
            items |= found
            parts[part.name] = {"kind": part.kind, **said}
        names, aliases = _find_aliases(items)
        mine, crc = _share_out(items, names, self._comm.rank, self._comm.size)
        told = {
            "crc": crc,
            "own": {n: {k: said[k] for k in OWN if said.get(k)} for n, said in parts.items()},
            "random": _state_of(random),
            "nbytes": sum(items[n].array.nbytes for n in mine),
            **(self._begin(step) if self._comm.rank == 0 else {}),
        }
        heard = exchange(self._comm, told)
        if "refused" in heard[0]:
            kind = CheckpointBusy if heard[0]["busy"] else CheckpointError
            raise kind(heard[0]["refused"])
        odd = [r for r, h in enumerate(heard) if h["crc"] != crc]
        if odd:
            raise CheckpointError(
                f"checkpoint of step {step} failed: what all ranks should have alike differs on ranks {odd} and "
                f"{self._comm.rank} in names, types or shapes of tensors"
            )
        for h in heard:
            for n, own in h["own"].items():
                for key, value in own.items():
                    parts[n][key].update(value)
        manifest = Manifest(
            id=heard[0]["id"],
            step=step,
            time=heard[0]["time"],
            world_size=self._comm.size,
            generation=current_env().generation,
            metric=metric,
            mode=mode,
            stall=0.0,
            seconds=0.0,
            parts=parts,
            random=[h["random"] for h in heard if h["random"] is not None],
            aliases=aliases,
        )
        in_file = {_name_of(n, items[n]): n for n in mine}
        self._job = _Job(
            temporary=heard[0]["temporary"],
            final=heard[0]["final"],
            arrays={},
            manifest=manifest,
            began=began,
            pieces={name: (n, items[n].shape, *_span(items[n])) for name, n in in_file.items()},
            nbytes=sum(h["nbytes"] for h in heard),
            keep=keep,
            on_failure=on_failure,
        )
        arrays = {name: _as_stored(items[n]) for name, n in in_file.items()}
        self._stop.clear()
        self._error = None
        if not background:
            self._job.arrays = {
                n: np.ascontiguousarray(to_host(a)).reshape(a.shape) for n, a in arrays.items()
            }
            manifest.stall = time.perf_counter() - began
            self._write(self._job)
            return
        self._job.arrays = self._snapshot(arrays)
        manifest.stall = time.perf_counter() - began
        # No daemon: the process ends when the checkpoint is on the disk.
        self._thread = threading.Thread(target=self._write, args=(self._job,), name="checkpoint")
        self._thread.start()

    def _begin(self, step: int) -> dict[str, Any]:
        """Make the temporary folder, and return what the other ranks must know of it; or why it cannot be."""
        env = current_env()
        try:
            os.makedirs(self._path, exist_ok=True)
            self._lock = files.Lock.take(self._path, {"run": env.run_id, "generation": env.generation})
            folder.clean(self._path, _active)
            temporary, final = folder.begin(self._path, step)
        except (OSError, CheckpointBusy) as error:
            return {
                "refused": str(error)
                if isinstance(error, CheckpointBusy)
                else f"checkpoint of step {step} failed: {error}; {_last_good(self._path)}",
                "busy": isinstance(error, CheckpointBusy),
            }
        _active.add(temporary)
        return {"temporary": temporary, "final": final, "id": secrets.token_hex(8), "time": time.time()}

    def _snapshot(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Copy the arrays to memory of our own, laid out as the file will be."""
        self.arena.make_room(sum(padded(a.nbytes) for a in arrays.values()))
        taken: dict[str, Array] = {}
        for name in layout(arrays):
            a = arrays[name]
            taken[name] = self.arena.take(a.nbytes).view(a.dtype).reshape(a.shape)
            np.copyto(taken[name], to_host(a))
        return taken

    def wait(self) -> None:
        """Return when the last save is on the disk; all ranks call it.

        Raises:
            CheckpointError: it failed.
        """
        job = self._job
        if job is None:
            return
        if self._comm.rank:
            self._join()
        # Rank 0's thread waits for the parts of the others, and so must be told first if one of them will not come.
        heard = exchange(self._comm, self._error if self._comm.rank else None)
        if self._comm.rank == 0:
            if any(heard):
                self._stop.set()
            self._join()
        heard[0] = exchange(self._comm, self._error if self._comm.rank == 0 else None)[0]
        self._job = None
        errors = [text for text in heard if text]
        if errors and job.on_failure == "raise":
            raise CheckpointError(errors[0])

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Let the folder and the memory go."""
        self.arena = Arena()
        if self._lock is not None:
            self._lock.release()

    # ------------------------------------------------------------------------------------ in the thread that writes

    def _write(self, job: _Job) -> None:
        try:
            write_part(
                os.path.join(job.temporary, part_name(self._comm.rank)),
                job.manifest.id,
                job.arrays,
                job.pieces,
            )
            if self._comm.rank == 0:
                self._finish(job)
        except Exception as error:
            self._error = self._failed(job, error)
            if self._comm.rank == 0:
                _logger.error("%s", self._error)
        finally:
            job.arrays = {}
            _active.discard(job.temporary)

    def _finish(self, job: _Job) -> None:
        self._await_parts(job)
        complete(job.manifest, job.temporary, self._comm.size)
        job.manifest.seconds = time.perf_counter() - job.began
        folder.publish(job.temporary, job.final, job.manifest)
        folder.prune(self._path, *job.keep)

    def _await_parts(self, job: _Job) -> None:
        """Return when the parts of all ranks are there.

        Raises:
            CheckpointError: one will not come.
        """
        expected = {part_name(rank) for rank in range(self._comm.size)}
        pause, seen, since = 0.001, -1, time.monotonic()
        while True:
            there = set(os.listdir(job.temporary))
            if expected <= there:
                return
            for name in sorted(there):
                if name.endswith(_FAILED):
                    with open(os.path.join(job.temporary, name), encoding="utf-8") as file:
                        raise _PeerFailed(file.read())
            missing = sorted(int(name[5:10]) for name in expected - there)
            if self._stop.wait(pause):
                raise _PeerFailed(f"ranks {missing} did not write their parts")
            pause = min(pause * 1.5, 0.05)
            size = sum(_size(os.path.join(job.temporary, name)) for name in there)
            if size != seen or threading.main_thread().is_alive():
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                raise _PeerFailed(
                    f"the script has ended, and the parts of ranks {missing} did not come for {_PATIENCE:.0f} s"
                )

    def _failed(self, job: _Job, error: Exception) -> str:
        """Clean up after a failure, and return what to say of it."""
        path = os.path.join(job.temporary, part_name(self._comm.rank))
        if self._comm.rank:
            for name in (path, path + _WRITING):
                with contextlib.suppress(OSError):
                    os.unlink(name)
            why = f"rank {self._comm.rank}: {_reason(error)}"
            with contextlib.suppress(OSError), open(path + _FAILED, "x", encoding="utf-8") as file:
                file.write(why)
        else:
            with contextlib.suppress(OSError):
                files.remove_folder(job.temporary)
            why = _reason(error)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in why:
            with contextlib.suppress(OSError):
                disk = os.statvfs(self._path)
                free = disk.f_bavail * disk.f_frsize / 1e6
                why += f" (needs {job.nbytes / 1e6:.1f} MB, {free:.1f} MB free)"
        return f"checkpoint of step {job.manifest.step} failed: {why}; {_last_good(self._path)}"


def write_part(path: str, id: str, arrays: Mapping[str, Array], pieces: Mapping[str, Any]) -> None:
    """Write the tensors of one rank; the file is there when all of it is on the disk.

    Args:
        path: of the file.
        id: of the save.
        arrays: by the names that they have in the file.
        pieces: of each the tensor that it is of, the shape of that, and from which element to which.
    """

    def metadata(sums: Mapping[str, str]) -> dict[str, str]:
        told = {name: [*pieces[name], checksum] for name, checksum in sums.items()}
        return {"format": FORMAT, "id": id, "pieces": json.dumps(told)}

    files.write_file(path + _WRITING, *encode_hashed(arrays, metadata))
    files.rename(path + _WRITING, path)


class _PeerFailed(Exception):
    """Another rank will not write its part; the text says why."""


def _reason(error: Exception) -> str:
    if isinstance(error, _PeerFailed | CheckpointError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}" + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}"


def _last_good(path: str) -> str:
    try:
        known = folder.places(path)
    except OSError as error:
        return f"the folder cannot be read: {error}"
    return f"the last good one is {known[-1].path}" if known else "there is none before it"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _state_of(random: bool | Generator) -> list[int] | None:
    if random is False:
        return None
    generator = current_generator() if random is True else random
    if not isinstance(generator, Generator):
        raise TypeError(f"random must be a bool or a Generator, got {type(generator).__name__}")
    return [generator._seed, generator._stream, generator._draw]


def _find_aliases(items: dict[str, Item]) -> tuple[list[str], dict[str, str]]:
    """Return the names of tensors that are to be written, and other names of those."""
    names: list[str] = []
    aliases: dict[str, str] = {}
    known: dict[Any, str] = {}
    for name, item in items.items():
        a = item.array
        memory = getattr(a, "__array_interface__", None) or a.__cuda_array_interface__
        # An empty part of a tied parameter has no memory, but it is one object.
        place = memory["data"][0] if a.size else id(a)
        first = known.setdefault((place, a.dtype, a.shape, a.strides, item.shape, item.span), name)
        if first == name:
            names.append(name)
        else:
            aliases[name] = first
    return names, aliases


def _share_out(items: dict[str, Item], names: list[str], rank: int, size: int) -> tuple[list[str], int]:
    """Return what this rank writes, and a checksum of what all ranks must have alike."""
    shared = [n for n in names if items[n].alike]
    mine = [n for n in names if _alone_writes(items[n], rank)]
    load = [0] * size
    for name in sorted(shared, key=lambda n: (-items[n].array.nbytes, n)):
        writer = min(range(size), key=load.__getitem__)
        load[writer] += items[name].array.nbytes
        if writer == rank:
            mine.append(name)
    told = repr(sorted((n, str(items[n].array.dtype), items[n].shape) for n in shared))
    return mine, zlib.crc32(told.encode())


def _alone_writes(item: Item, rank: int) -> bool:
    """Return whether it is for this rank to write what it has of something that is not alike on all."""
    if item.span is None:
        return item.own or (rank == 0 and not item.alike)
    begin, end = item.span
    return begin < end or (rank == 0 and 0 in item.shape)


def _as_stored(item: Item) -> Array:
    """Return the elements in the shape that they have in the file: that of the tensor, if they are all of it."""
    return item.array.reshape(item.shape) if item.array.size == math.prod(item.shape) else item.array


def _span(item: Item) -> tuple[int, int]:
    return (0, math.prod(item.shape)) if item.span is None else item.span


def _name_of(name: str, item: Item) -> str:
    return name_in_file(name, *_span(item), math.prod(item.shape))


def complete(manifest: Manifest, path: str, parts: int) -> None:
    """Enter into a manifest what the headers of its files say.

    Args:
        manifest: without tensors and files so far.
        path: of the folder that the files are in.
        parts: how many there are.

    Raises:
        CheckpointError: they are not all of a checkpoint.
        FileDamaged: one is not as it was written.
    """
    pieces: dict[str, list[tuple[Any, tuple[int, ...], Piece]]] = {}
    for rank in range(parts):
        file = part_name(rank)
        with TensorFile(os.path.join(path, file)) as opened:
            manifest.files[file] = opened.size
            if opened.metadata.get("id") != manifest.id:
                raise CheckpointError(f"{file} is of another save")
            for stored, (name, shape, begin, end, checksum) in json.loads(opened.metadata["pieces"]).items():
                piece = Piece(file, begin, end, checksum)
                pieces.setdefault(name, []).append((opened.entries[stored].dtype, tuple(shape), piece))
    for name, found_pieces in sorted(pieces.items()):
        kinds = {(kind, shape) for kind, shape, _ in found_pieces}
        if len(kinds) > 1:
            raise CheckpointError(f"the ranks have {name} in different types or shapes: {kinds}")
        ((kind, shape),) = kinds
        tensor = Stored(kind, shape, tuple(sorted((p for _, _, p in found_pieces), key=lambda p: p.begin)))
        try:
            check_cover(name, tensor)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        manifest.tensors[name] = tensor
