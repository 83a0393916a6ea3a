"""A folder of checkpoints: their names, which are there, how one is published and old ones go.

A checkpoint is a folder ``00007-step-200``: the number of the save, then the step. It is made under a name that begins
with ``.tmp-`` and renamed when all of it is on the disk; an old one is renamed to ``.old-`` before its files go. So
whatever stops a save, every folder with the name of a checkpoint is one, whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from disttrain.checkpoint import files
from disttrain.checkpoint.manifest import NAME, Manifest, part_name
from disttrain.errors import FileDamaged

_logger = logging.getLogger("disttrain")
_CHECKPOINT: Final = re.compile(r"(\d{5,18})-step-(\d{1,18})")
_LEFT_OVER: Final = re.compile(r"\.(?:tmp|old)-\d{5,18}-step-\d{1,18}-[0-9a-f]{8}")


@dataclass(frozen=True, order=True)
class Place:
    """A checkpoint in a folder of them; the later the greater."""

    number: int
    """Of the save, counted from 1 and never given twice."""
    step: int
    path: str


def places(folder: str) -> list[Place]:
    """Return the checkpoints in a folder, the latest last; none if it is not there."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            match = _CHECKPOINT.fullmatch(name)
            if match is not None:
                found.append(Place(int(match[1]), int(match[2]), os.path.join(folder, name)))
    return sorted(found)


def is_checkpoint(path: str) -> bool:
    """Return whether this is a checkpoint itself, and no folder of them."""
    return any(os.path.lexists(os.path.join(path, name)) for name in (NAME, part_name(0)))


def clean(folder: str, active: Collection[str]) -> None:
    """Remove what saves that were cut short have left, but for ``active`` paths. For whoever has the lock."""
    for name in os.listdir(folder):
        if _LEFT_OVER.fullmatch(name) and os.path.join(folder, name) not in active:
            files.remove_folder(os.path.join(folder, name))


def begin(folder: str, step: int) -> tuple[str, str]:
    """Make the folder of a new checkpoint; return its temporary and its final path. For whoever has the lock."""
    number = max((p.number for p in places(folder)), default=0) + 1
    name = f"{number:05}-step-{step}"
    temporary = os.path.join(folder, f".tmp-{name}-{secrets.token_hex(4)}")
    files.make_folder(temporary)
    return temporary, os.path.join(folder, name)


def publish(temporary: str, final: str, manifest: Manifest) -> None:
    """Let a checkpoint be seen, once all of it is on the disk. The files of its tensors are there, synced."""
    files.write_file(os.path.join(temporary, NAME), [manifest.encode()])
    files.sync_folder(temporary)
    files.rename(temporary, final)
    files.sync_folder(os.path.dirname(final))


def prune(folder: str, keep_last: int | None, keep_best: int) -> None:
    """Remove all checkpoints but the latest ones and the best ones. The latest is on the disk for good.

    What cannot be removed stays, with a line that says why: it is in nobody's way.

    Args:
        folder: of checkpoints, with the lock held.
        keep_last: how many of the latest stay; ``None`` for all.
        keep_best: how many of those with the best metric stay beside.
    """
    known = places(folder)
    if keep_last is None or len(known) <= keep_last:
        return
    keep = set(known[-keep_last:]) | {place for place, _ in ranking(known)[:keep_best]}
    for place in known:
        if place in keep:
            continue
        name = os.path.basename(place.path)
        hidden = os.path.join(folder, f".old-{name}-{secrets.token_hex(4)}")
        try:
            files.rename(place.path, hidden)
            files.sync_folder(folder)
            files.remove_folder(hidden)
        except OSError as error:
            _logger.warning("%s could not be removed: %s", place.path, error)


def ranking(known: list[Place]) -> list[tuple[Place, float]]:
    """Return the checkpoints that have a metric, and what is good about it (more is better), the best first.

    Of equal ones the later first.
    """
    found = []
    for place in known:
        try:
            manifest = Manifest.read(place.path)
        except (OSError, FileDamaged):
            continue
        if manifest.metric is not None and manifest.metric == manifest.metric:
            found.append((place, manifest.metric if manifest.mode == "max" else -manifest.metric))
    return sorted(found, key=lambda each: (each[1], each[0]), reverse=True)
