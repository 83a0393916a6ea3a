"""The file operations of a save, each durable or atomic by itself, and the lock of a folder.

Everything that a save does to the disk is here, so that a test can stop it at every operation.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from disttrain.checkpoint.memory import new_block
from disttrain.errors import CheckpointBusy

_logger = logging.getLogger("disttrain")
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_LOCK: Final = ".lock"
_MAX_LOCK: Final = 4096
_BLOCK: Final = 16 << 20
"""Bytes that are written at a time. Many, as after each time the writing thread waits for Python's lock, which the
training may keep for 5 ms."""


def write_file(path: str, chunks: Iterable[Any], head: Callable[[], bytes] | None = None) -> None:
    """Write a file that is not there yet, and return when its content is on the disk.

    Args:
        path: of the file.
        chunks: buffers, written one after the other.
        head: called at the end; what it returns takes the place of as many bytes at the beginning.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write_all(file, chunks)
        if head is not None:
            beginning, at = memoryview(head()), 0
            while at < len(beginning):
                at += os.pwrite(file, beginning[at:], at)
        os.fsync(file)
    finally:
        os.close(file)


def _write_all(file: int, chunks: Iterable[Any]) -> None:
    """Write buffers to a file: whole blocks past the page cache, which is for others, as the processor's time is."""
    # One is filled while the other is written.
    block, other = new_block(_BLOCK), new_block(_BLOCK)
    used = 0
    with ThreadPoolExecutor(1, "writing") as pool:
        written: Future[None] | None = None
        for chunk in chunks:
            rest = np.frombuffer(chunk, np.uint8)
            while len(rest):
                part = rest[: _BLOCK - used]
                np.copyto(block[used : used + len(part)], part)
                used, rest = used + len(part), rest[len(part) :]
                if used == _BLOCK:
                    if written is None:
                        set_direct(file, True)
                    else:
                        written.result()
                    written = pool.submit(_write, file, block.data)
                    block, other, used = other, block, 0
        if written is not None:
            written.result()
    set_direct(file, False)
    _write(file, block.data[:used])


def _write(file: int, data: memoryview) -> None:
    while data:
        try:
            data = data[os.write(file, data) :]
        except OSError as error:
            # A file system with other wishes, or a part of a block that was the last to find room: the usual way writes
            # it, or says why not.
            if error.errno != errno.EINVAL or not set_direct(file, False):
                raise


def set_direct(file: int, direct: bool) -> bool:
    """Let reads and writes go past the page cache, or not; return whether that is a change.

    Some file systems always use it.
    """
    if not hasattr(os, "O_DIRECT"):
        return False
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    if bool(flags & os.O_DIRECT) == direct:
        return False
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags ^ os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def make_folder(path: str) -> None:
    """Make a folder that is not there yet."""
    os.mkdir(path)


def sync_folder(path: str) -> None:
    """Return when the names in a folder are on the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def rename(old: str, new: str) -> None:
    """Give a file or folder a new name, at once."""
    os.rename(old, new)


def remove_folder(path: str) -> None:
    """Remove a folder and the files in it. It holds no folders; a link, also in its place, is removed, not followed."""
    if os.path.islink(path):
        os.unlink(path)
        return
    for name in sorted(os.listdir(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, name))
    os.rmdir(path)


def open_to_read(path: str) -> int:
    """Return a descriptor of a regular file; a link is not followed, and nothing waits for a pipe.

    Raises:
        OSError: there is none; ``ELOOP`` for a link.
        ValueError: it is no regular file.
    """
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ValueError(f"{path} is not a regular file")
    return file


_held: dict[str, Lock] = {}
"""The locks of this process, by real path. They are the process's: a file is opened once, as closing it unlocks it."""


class Lock:
    """The right to write into a folder, held by one process until it ends, however it ends.

    A POSIX record lock on ``.lock`` in the folder: the kernel gives it back when the process is gone, children do not
    inherit it, and it holds between hosts where the file system has locks. The file says who holds it.
    """

    def __init__(self, file: int, path: str) -> None:
        self._file = file
        self._path = path

    @classmethod
    def take(cls, folder: str, holder: dict[str, Any]) -> Lock:
        """Return the lock of a folder; the one that this process has, if it has.

        Args:
            folder: is there.
            holder: what else to tell whoever is refused: ``run``, ``generation``.

        Raises:
            CheckpointBusy: another process has it.
        """
        path = os.path.join(os.path.realpath(folder), _LOCK)
        if path in _held and _held[path]._stands():
            return _held[path]
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                told = _read_holder(file)
                os.close(file)
                raise CheckpointBusy(
                    f"{folder} is written by another job: {told}; give this one another folder, or end that one"
                ) from None
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
            _logger.warning("the file system of %s has no locks: a second job there is not noticed", folder)
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), **holder}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(about).encode(), 0)
        lock = _held[path] = cls(file, path)
        return lock

    def _stands(self) -> bool:
        """Return whether the file that is locked is still the one at its path: somebody may have removed the folder."""
        try:
            there, ours = os.stat(self._path, follow_symlinks=False), os.fstat(self._file)
        except OSError:
            there = None
        if there is not None and (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            return True
        self.release()
        return False

    def release(self) -> None:
        """Let another process write."""
        if _held.pop(self._path, None) is not None:
            os.close(self._file)


def _read_holder(file: int) -> str:
    try:
        about = json.loads(os.pread(file, _MAX_LOCK, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(about["since"]))
        run = f", run {about['run']}" if about.get("run") else ""
        return (
            f"host {about['host']}, pid {about['pid']}, generation {about['generation']}{run}, since {since}"
        )
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return "its name is not in the lock yet"
