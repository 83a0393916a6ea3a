"""A model of what a disk holds after a crash: the operations of a program, replayed under three models of loss.

``record()`` notes what a program does through ``os`` (:class:`Recorder` stands in for the module). ``states()`` gives,
for every moment between two operations and each model, the tree of files that may be found afterwards:

* ``killed``: the process ends; all that it has done stays.
* ``power``: contents that were not synced are lost, whole or from some byte on; names stay.
* ``names``: names that were not synced (new ones, removals, renames since the last sync of their folder) are lost too.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODELS = ("killed", "power", "names")
PAGE = 4096


def direct(file: int) -> bool:
    """Return whether writes go past the page cache, so that only whole pages can be written."""
    return bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)


class Recorder:
    """Stands in for the module ``os``: does what it does, and notes what changes a disk.

    Args:
        stop: is called with each operation before it is done.
    """

    def __init__(self, stop: Callable[[tuple[Any, ...]], None] = lambda operation: None) -> None:
        self.operations: list[tuple[Any, ...]] = []
        self._stop = stop
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _note(self, *operation: Any) -> None:
        self._stop(operation)
        self.operations.append(operation)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and not os.path.exists(path):
            self._note("create", os.path.abspath(path))
        file = os.open(path, flags, mode)
        self._paths[file] = os.path.abspath(path)
        return file

    def write(self, file: int, data: Any) -> int:
        pages = len(data) // 2 // PAGE * PAGE
        part = data[
            : pages or (len(data) if direct(file) else max(1, len(data) // 2))
        ]  # in pieces, as the kernel may
        self._note("write", self._paths[file], bytes(part))
        return os.write(file, part)

    def pwrite(self, file: int, data: Any, at: int) -> int:
        self._note("pwrite", self._paths[file], (at, bytes(data)))
        return os.pwrite(file, data, at)

    def fsync(self, file: int) -> None:
        self._note("fsync", self._paths[file])
        os.fsync(file)

    def mkdir(self, path: str) -> None:
        self._note("mkdir", os.path.abspath(path))
        os.mkdir(path)

    def rename(self, old: str, new: str) -> None:
        self._note("rename", os.path.abspath(old), os.path.abspath(new))
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        self._note("unlink", os.path.abspath(path))
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        self._note("rmdir", os.path.abspath(path))
        os.rmdir(path)


@dataclass(eq=False)
class Node:
    """A file, with what of it is on the disk; or a folder, with the names in it and those that are on the disk."""

    folder: bool
    content: bytes = b""
    synced: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    synced_names: dict[str, Node] = field(default_factory=dict)


class Disk:
    """A tree of files below ``root``, at first as it is there, all of it synced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.top = self._read(root)

    def _read(self, path: Path) -> Node:
        if path.is_dir():
            names = {p.name: self._read(p) for p in path.iterdir()}
            return Node(True, names=dict(names), synced_names=dict(names))
        content = path.read_bytes()
        return Node(False, content, content)

    def _find(self, path: str) -> tuple[Node, str]:
        """Return the folder of a path and its name there."""
        *folders, name = Path(path).relative_to(self._root).parts or (".",)
        node = self.top
        for folder in folders:
            node = node.names[folder]
        return node, name

    def apply(self, kind: str, path: str, extra: Any = None) -> None:
        parent, name = self._find(path)
        if kind == "create":
            parent.names[name] = Node(False)
        elif kind == "mkdir":
            parent.names[name] = Node(True)
        elif kind == "write":
            parent.names[name].content += extra
        elif kind == "pwrite":
            at, data = extra
            node = parent.names[name]
            node.content = node.content[:at] + data + node.content[at + len(data) :]
        elif kind == "fsync":
            node = self.top if name == "." else parent.names[name]
            node.synced, node.synced_names = node.content, dict(node.names)
        elif kind == "rename":
            home, new = self._find(extra)
            home.names[new] = parent.names.pop(name)
        else:
            del parent.names[name]

    def write(self, to: Path, model: str, lost: str) -> None:
        """Lay down what is found after a crash.

        Args:
            to: a folder that is not there yet.
            model: of loss.
            lost: of contents that were not synced: ``all``, or ``half`` of what is missing.
        """
        self._write(self.top, to, model, lost)

    def _write(self, node: Node, to: Path, model: str, lost: str) -> None:
        if not node.folder:
            content = node.content
            if model != "killed" and node.content != node.synced:
                kept = len(node.synced) + (len(node.content) - len(node.synced)) // 2
                content = node.content[:kept] if lost == "half" else node.synced
            to.write_bytes(content)
            return
        to.mkdir()
        for name, child in (node.synced_names if model == "names" else node.names).items():
            self._write(child, to / name, model, lost)


def states(
    root: Path, before: Disk, operations: list[tuple[Any, ...]], to: Path
) -> Iterator[tuple[Path, str]]:
    """Yield a folder for every state that a crash may leave, and what it is."""
    disk = before
    for n in range(len(operations) + 1):
        for model in MODELS:
            for lost in ("all",) if model == "killed" else ("all", "half"):
                path = to / f"{n:03}-{model}-{lost}"
                disk.write(path, model, lost)
                done = operations[n - 1][:2] if n else "nothing"
                yield path, f"{model} ({lost} lost) after operation {n} of {len(operations)}, {done}"
        if n < len(operations):
            disk.apply(*operations[n])
