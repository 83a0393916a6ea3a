"""``disttrain data``: pack, index and verify data sets of tar shards; which samples a run has used."""

from __future__ import annotations

from pathlib import Path

import click

from disttrain.data.shards import Index, TarDataset, build_index
from disttrain.data.shards import pack as pack_folder
from disttrain.errors import FileDamaged

_MOST_NAMED = 20


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Data sets of tar shards in the layout of WebDataset, and which samples of any data set a run has used."""


@data.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--shard-mb", type=click.IntRange(min=1), default=256, show_default=True, help="Size of a shard, in MiB."
)
@click.option("--shuffle", type=int, metavar="SEED", help="Pack the samples in a random order.")
def pack(source: Path, target: Path, shard_mb: int, shuffle: int | None) -> None:
    """Pack the files of SOURCE into shards in the new folder TARGET.

    Files of one name and different endings are a sample: a/7.jpg and a/7.json are the fields jpg and json of a/7. If
    SOURCE holds only folders, each is a class, and samples get a field cls with its number.
    """
    try:
        index = pack_folder(source, target, shard_bytes=shard_mb << 20, shuffle=shuffle)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _print(target, index)


@data.command(name="index")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def index_(folder: Path) -> None:
    """Index the tar shards of FOLDER, so that samples can be read in any order."""
    try:
        index = build_index(folder)
    except (FileDamaged, OSError) as error:
        raise click.ClickException(str(error)) from error
    _print(folder, index)


@data.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def verify(folder: Path) -> None:
    """Read all of FOLDER, and name what is damaged; exit code 1 if anything is."""
    try:
        dataset = TarDataset(folder, decode=False)
    except (FileDamaged, OSError) as error:
        raise click.ClickException(str(error)) from error
    count = 0
    for damaged in dataset.verify():
        count += 1
        if count <= _MOST_NAMED:
            click.echo(damaged)
    if count:
        raise click.ClickException(f"{count} fields of {len(dataset)} samples are damaged")
    click.echo(f"{len(dataset)} samples, all as they were indexed")


@data.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False))
def ledger(path: str) -> None:
    """Prove that a run has used each sample once in every epoch, or list those it has not.

    PATH is a checkpoint, or a folder of them, of which the latest is meant; it has the ledger of the DataLoader that
    was saved with it, of all ranks and all restarts before. The exit code is 1 if a sample was used again or never.
    """
    from disttrain.checkpoint.loading import ledgers

    try:
        accounts = ledgers(path)
    except (FileDamaged, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not accounts:
        raise click.ClickException(f"{path} has no DataLoader; give it to dt.checkpoint.save(loader=...)")
    for name, account in accounts.items():
        for line in account.lines(_MOST_NAMED):
            click.echo(f"{name}: {line}")
    if not all(account.whole for account in accounts.values()):
        raise click.ClickException("not every sample was used once")


def _print(folder: Path, index: Index) -> None:
    click.echo(
        f"{len(index.keys)} samples ({', '.join(index.fields)}) in {len(index.shards)} shards, "
        f"{int(index.shard_bytes.sum()) / 2**20:.1f} MiB, in {folder}"
    )
