"""``disttrain ckpt``: look at checkpoints, verify and compare them, and write them in another way."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
import numpy as np

from disttrain.checkpoint import files, folder
from disttrain.checkpoint.cost import interval
from disttrain.checkpoint.foreign import read_foreign
from disttrain.checkpoint.loading import find, read
from disttrain.checkpoint.manifest import Manifest, Stored, part_name
from disttrain.checkpoint.reading import Reader
from disttrain.checkpoint.saving import complete, write_part
from disttrain.checkpoint.states import Wanted
from disttrain.checkpoint.tensorfile import encode
from disttrain.errors import CheckpointError, FileDamaged
from disttrain.kernels.arrays import Array
from disttrain.tensors import Tensor

_PATH = click.Path(exists=True)


class _Command(click.Command):
    """A command for whose user a damaged or missing file is a line, and not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (CheckpointError, FileDamaged, OSError) as error:
            raise click.ClickException(str(error)) from None


@click.group()
def ckpt() -> None:
    """Look at checkpoints, verify, compare, reshard and export them.

    PATH is a checkpoint, or a folder of them, of which the latest is meant.
    """


def _mtbf_option(command: Any) -> Any:
    return click.option(
        "--mtbf", default=24.0, show_default=True, type=click.FloatRange(0, min_open=True), metavar="HOURS",
        help="Time between two failures, for the interval that is advised.",
    )(command)  # fmt: skip


@ckpt.command(cls=_Command)
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@_mtbf_option
def ls(directory: str, mtbf: float) -> None:
    """List a folder, and say how often to save."""
    known = folder.places(directory)
    if not known:
        raise click.ClickException(f"{directory} has no checkpoints")
    best = [place for place, _ in folder.ranking(known)[:1]]
    rows = [("CHECKPOINT", "STEP", "SAVED", "SIZE", "RANKS", "METRIC")]
    latest = None
    for place in known:
        name = os.path.basename(place.path)
        try:
            manifest = Manifest.read(place.path)
        except (FileDamaged, OSError) as error:
            rows.append((name, str(place.step), f"cannot be read: {error}", "", "", ""))
            continue
        latest = manifest
        metric = "-" if manifest.metric is None else f"{manifest.metric:g}" + " best" * (place in best)
        ranks = str(manifest.world_size)
        rows.append((name, str(place.step), _when(manifest.time), _bytes(manifest.nbytes), ranks, metric))
    widths = [max(len(row[i]) for row in rows if not row[2].startswith("cannot")) for i in range(6)]
    for row in rows:
        click.echo("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())
    if latest is not None:
        click.echo(_advice(latest, mtbf))


@ckpt.command(cls=_Command)
@click.argument("path", type=_PATH)
@_mtbf_option
def show(path: str, mtbf: float) -> None:
    """Say what is in a checkpoint."""
    place = find(path)
    manifest = Manifest.read(place)
    click.echo(
        f"{place}: step {manifest.step}, saved {_when(manifest.time)} by {manifest.world_size} "
        f"rank{'s' * (manifest.world_size != 1)} in generation {manifest.generation}, "
        f"{_bytes(manifest.nbytes)} in {len(manifest.files)} file{'s' * (len(manifest.files) != 1)}"
    )
    if manifest.metric is not None:
        click.echo(f"metric: {manifest.metric:g} ({'less' if manifest.mode == 'min' else 'more'} is better)")
    for name, said in manifest.parts.items():
        click.echo(f"{name}: {said['kind']}")
        if said["kind"] in ("object", "value"):
            click.echo(f"  {_short(read(place, [name])[name])}")
    click.echo(f"random: states of {len(manifest.random)} ranks")
    for name, t in manifest.tensors.items():
        pieces = f"  in {len(t.pieces)} pieces" if len(t.pieces) > 1 else ""
        click.echo(f"  {name}  {t.dtype.name}  {list(t.shape)}  {_bytes(t.nbytes)}{pieces}")
    for alias, name in manifest.aliases.items():
        click.echo(f"  {alias}  is {name}")
    click.echo(_advice(manifest, mtbf))


@ckpt.command(cls=_Command)
@click.argument("path", type=_PATH)
def verify(path: str) -> None:
    """Compare every checksum.

    Of a checkpoint, or of all in a folder. The exit code is 1 if one is damaged.
    """
    found = [path] if folder.is_checkpoint(path) else [place.path for place in folder.places(path)]
    if not found:
        raise click.ClickException(f"{path} is no checkpoint, and has none")
    damaged = 0
    for place in found:
        try:
            with Reader(place) as reader:
                for file in reader.manifest.files:
                    reader.file(file)
                for name in reader.manifest.tensors:
                    reader.read([Wanted(name)])
        except (FileDamaged, OSError) as error:
            damaged += 1
            click.echo(str(error), err=True)
        else:
            click.echo(
                f"{place}: whole, {len(reader.manifest.tensors)} tensors, {_bytes(reader.manifest.nbytes)}"
            )
    sys.exit(1 if damaged else 0)


@ckpt.command(cls=_Command)
@click.argument("a", type=_PATH)
@click.argument("b", type=_PATH)
def diff(a: str, b: str) -> None:
    """Name the first tensor that differs.

    The exit code is 1 if something does.
    """
    with Reader(find(a)) as first, Reader(find(b)) as second:
        lines = list(_differences(first, second))
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("equal")
    sys.exit(1 if lines else 0)


def _differences(a: Reader, b: Reader) -> Iterator[str]:
    ma, mb = a.manifest, b.manifest
    names = [*ma.tensors, *ma.aliases]
    theirs = {*mb.tensors, *mb.aliases}
    for where, only in (
        ("first", [n for n in names if n not in theirs]),
        ("second", sorted(theirs - set(names))),
    ):
        if only:
            yield f"only in the {where}: {', '.join(only)}"
    both = [n for n in names if n in theirs]
    differing: list[str] = []
    for name in both:
        (_, ta), (_, tb) = _found(ma, name), _found(mb, name)
        if (ta.dtype, ta.shape) != (tb.dtype, tb.shape):
            yield (
                f"{name}: {ta.dtype.name} {list(ta.shape)} in the first, {tb.dtype.name} {list(tb.shape)} in the second"
            )
        elif _sums(ta) != _sums(tb):
            x, y = a.read([Wanted(name)])[name], b.read([Wanted(name)])[name]
            if x.tobytes() != y.tobytes():
                if not differing:
                    yield _first_difference(name, x, y)
                differing.append(name)
    if len(differing) > 1:
        yield f"{len(differing)} of {len(both)} tensors differ: {', '.join(differing)}"
    for name in {**ma.parts, **mb.parts}:
        if _without_ledger(ma.parts.get(name)) != _without_ledger(mb.parts.get(name)):
            yield f"{name}: what is no tensor differs"
    if ma.random != mb.random:
        yield "random: the states of the generators differ"


def _without_ledger(said: Any) -> Any:
    """Return what is said of a part, but which rank has read what: a run on other ranks has done the same."""
    return {key: value for key, value in said.items() if key != "ledger"} if isinstance(said, dict) else said


def _found(manifest: Manifest, name: str) -> tuple[str, Stored]:
    found = manifest.find(name)
    assert found is not None
    return found


def _sums(t: Stored) -> list[tuple[int, int, str]]:
    return [(p.begin, p.end, p.checksum) for p in t.pieces]


def _first_difference(name: str, x: Array, y: Array) -> str:
    bits = f"u{x.dtype.itemsize}"
    other = np.ascontiguousarray(x).reshape(-1).view(bits) != np.ascontiguousarray(y).reshape(-1).view(bits)
    at = int(other.argmax())
    index = [int(i) for i in np.unravel_index(at, x.shape)]
    first, second = x.reshape(-1)[at], y.reshape(-1)[at]
    return (
        f"the first tensor that differs is {name}: {int(other.sum())} of {x.size} elements, the first at {index}: "
        f"{first!s} and {second!s}"
    )


@ckpt.command(cls=_Command)
@click.argument("path", type=_PATH)
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--ranks", required=True, type=click.IntRange(1), help="How many files of tensors to write.")
def reshard(path: str, directory: str, ranks: int) -> None:
    """Write it anew, in another number of files.

    The copy goes into the folder DIRECTORY, its tensors whole and spread evenly. Any number of ranks loads any
    checkpoint; this is for disks that are read faster from more files or fewer.
    """
    with Reader(find(path)) as reader:
        manifest = copy.copy(reader.manifest)
        manifest.tensors, manifest.files = {}, {}
        os.makedirs(directory, exist_ok=True)
        lock = files.Lock.take(directory, {"run": "disttrain ckpt reshard", "generation": 0})
        folder.clean(directory, ())
        temporary, final = folder.begin(directory, manifest.step)
        load = [0] * ranks
        shares: list[list[str]] = [[] for _ in range(ranks)]
        tensors = reader.manifest.tensors
        for name in sorted(tensors, key=lambda n: (-tensors[n].nbytes, n)):
            rank = min(range(ranks), key=load.__getitem__)
            load[rank] += tensors[name].nbytes
            shares[rank].append(name)
        for rank, names in enumerate(shares):
            arrays = reader.read(Wanted(name) for name in names)
            pieces = {n: (n, tensors[n].shape, 0, tensors[n].size) for n in names}
            write_part(os.path.join(temporary, part_name(rank)), manifest.id, arrays, pieces)
        complete(manifest, temporary, ranks)
        folder.publish(temporary, final, manifest)
        lock.release()
    click.echo(final)


@ckpt.command(cls=_Command)
@click.argument("path", type=_PATH)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--part", default="model", show_default=True, help="Which part: the name that it was saved under."
)
def export(path: str, file: str, part: str) -> None:
    """Write tensors for other programs.

    FILE is a .safetensors or .npz, which must not be there yet.
    """
    if not file.endswith((".safetensors", ".npz")):
        raise click.UsageError(f"FILE must end with .safetensors or .npz, got {file}")
    manifest = Manifest.read(find(path))
    if part not in manifest.parts:
        raise click.ClickException(f"{path} has no part {part!r}; it has {', '.join(manifest.parts)}")
    content = read(path, [part])[part]
    tensors = {name: t._array for name, t in content.items() if isinstance(t, Tensor)}
    arrays: dict[str, Any] = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
    if not arrays:
        raise click.ClickException(f"the part {part!r} has no tensors of its own by name; export a module")
    if os.path.exists(file):
        raise click.ClickException(f"{file} is there already")
    temporary = f"{file}.{os.getpid()}.tmp"
    try:
        if file.endswith(".npz"):
            odd = [name for name, a in arrays.items() if a.dtype.kind == "V"]
            if odd:
                raise click.ClickException(
                    f"NumPy's files have no bfloat16 ({odd[0]}, ...); export to .safetensors"
                )
            with open(temporary, "xb") as out:
                np.savez(out, **arrays)
                out.flush()
                os.fsync(out.fileno())
        else:
            files.write_file(temporary, encode(arrays, {"format": "pt"}))
        read_foreign(temporary)
        files.rename(temporary, file)
        files.sync_folder(os.path.dirname(os.path.abspath(file)))
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    click.echo(f"{file}: {len(arrays)} tensors, {_bytes(os.stat(file).st_size)}")


# ------------------------------------------------------------------------------------------- words


def _advice(manifest: Manifest, mtbf: float) -> str:
    seconds = max(interval(max(manifest.stall, 1e-6), 3600 * mtbf), manifest.seconds)
    return (
        f"a save holds the training up for {_duration(manifest.stall)} and is on the disk after "
        f"{_duration(manifest.seconds)}; if something fails every {mtbf:g} h, save every {_duration(seconds)}"
    )


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 200 else text[:197] + "..."
