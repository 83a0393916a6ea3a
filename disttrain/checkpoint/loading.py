"""Loading: everything is read and compared first, on all ranks; then everything is changed, or nothing."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal

from disttrain import collectives
from disttrain.checkpoint import folder
from disttrain.checkpoint.manifest import Manifest
from disttrain.checkpoint.memory import Arena
from disttrain.checkpoint.reading import Reader
from disttrain.checkpoint.saving import exchange, spare_memory, wait
from disttrain.checkpoint.states import ModulePart, ObjectPart, Part, ValuePart, Wanted, make_parts
from disttrain.data.ledger import Account, Use
from disttrain.errors import CheckpointMismatch, FileDamaged
from disttrain.kernels.arrays import Array
from disttrain.random import Generator, current_generator
from disttrain.serialization import rebuild
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator

_logger = logging.getLogger("disttrain")
_TRIES: Final = 10
"""How often a checkpoint may go while it is read, because a job that writes has newer ones."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been loaded; ``checkpoint["name"]`` is a plain value that was saved under that name."""

    path: str
    step: int
    metric: float | None
    time: float
    """When it was saved, in seconds since 1970."""
    world_size: int
    """How many ranks have saved it."""
    values: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def load(
    dir: str | os.PathLike[str],
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    loader: Any = None,
    random: bool | Generator | None = None,
    step: int | Literal["best"] | None = None,
    fallback: bool = False,
    **others: Any,
) -> Checkpoint | None:
    """Continue from a checkpoint that :func:`save` has written; all ranks call it.

    It may have been written by any number of ranks, from a model in any parallel wrapper. Every tensor is verified. A
    load that is refused changes nothing on any rank, and says everything that does not fit at once.

    Args:
        dir: a folder of checkpoints, or one of them.
        model, optimizer, scheduler, loader, others: what continues; the same names as in :func:`save`. Parts of the
            checkpoint that are not asked for are left alone.
        random: whether the ranks' generators continue too; by default if an optimizer does. A rank that the
            checkpoint does not know begins its own stream of the same seed.
        step: which one: the latest by default, the latest of a step, or the one with the ``"best"`` metric.
        fallback: take the one before, and say so on stderr, if a checkpoint is damaged.

    Returns:
        What was loaded, with its plain values; ``None`` if there is no checkpoint yet.

    Raises:
        FileDamaged: it is not what was written; names the file and the tensor.
        CheckpointMismatch: it does not fit; lists all that does not.
        FileNotFoundError: there are checkpoints, but not this one.
        TypeError: something that cannot take a state.
    """
    standard = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    things = {name: thing for name, thing in standard.items() if thing is not None} | others
    parts = make_parts(things)
    for part in parts:
        if isinstance(part, ValuePart):
            raise TypeError(
                f"load({part.name}=...) needs an object with load_state_dict(), got {type(part.thing).__name__}; "
                f"plain values are in what load() returns"
            )
    if random is None:
        random = any(part.kind == "optimizer" for part in parts)
    comm = collectives.connect()
    wait(dir)  # for what this job is writing there
    passed: set[str] = set()
    for _ in range(_TRIES):
        heard = exchange(comm, _choose(os.fspath(dir), step, passed) if comm.rank == 0 else None)[0]
        if heard is None:
            return None
        if "error" in heard:
            raise FileNotFoundError(heard["error"])
        attempt = _Attempt(heard["path"], parts, random, spare_memory(dir), comm)
        found = attempt.run()
        if found is not None:
            return found
        if not fallback and not attempt.gone:
            raise FileDamaged(attempt.damage)
        if comm.rank == 0 and not attempt.gone:
            _logger.warning("%s; loading the checkpoint before it", attempt.damage)
        passed.add(heard["path"])
    raise FileDamaged(attempt.damage)


def _choose(path: str, step: int | str | None, passed: set[str]) -> dict[str, str] | None:
    """Return which checkpoint is loaded; none if there is none yet, the first time."""
    if folder.is_checkpoint(path):
        return {"path": path} if path not in passed else {"error": f"{path} is damaged, and alone"}
    known = folder.places(path)
    left = [place for place in known if place.path not in passed]
    if step == "best":
        ranked = [place for place, _ in folder.ranking(left)]
        left = ranked[:1]
    elif step is not None:
        left = [place for place in left if place.step == step]
    if left:
        return {"path": left[-1].path}
    if not known and step is None:
        return None
    steps = ", ".join(str(place.step) for place in known) or "none"
    wanted = (
        {"best": "with a metric"}.get(str(step), f"of step {step}") if step is not None else "that is whole"
    )
    return {"error": f"{path} has no checkpoint {wanted}; there are those of the steps {steps}"}


class _Attempt:
    """Loading one checkpoint on this rank, in step with the others."""

    def __init__(
        self, path: str, parts: list[Part], random: bool | Generator, memory: Arena, comm: Communicator
    ) -> None:
        self.damage = ""
        """What is wrong with the files, on some rank."""
        self.gone = False
        """Whether it has been removed meanwhile."""
        self._path = path
        self._parts = parts
        self._random = random
        self._memory = memory
        self._comm = comm

    def run(self) -> Checkpoint | None:
        """Return what was loaded; none if the files are damaged or gone.

        Raises:
            CheckpointMismatch: it does not fit.
        """
        problems: list[str] = []
        damage = ""
        try:
            with Reader(self._path, self._memory) as reader:
                manifest, arrays, values = self._read(reader, problems)
        except FileDamaged as error:
            damage = str(error)
        except OSError as error:
            damage = f"{self._path} cannot be read: {error}"
        heard = exchange(
            self._comm, {"damage": damage, "gone": not os.path.isdir(self._path), "problems": problems}
        )
        self.damage = next((h["damage"] for h in heard if h["damage"]), "")
        self.gone = any(h["gone"] for h in heard)
        if self.damage:
            return None
        self._refuse([problem for h in heard for problem in h["problems"]])
        self._apply(manifest, arrays)
        if self._random is not False:
            _restore(self._random, manifest, self._comm.rank)
        return Checkpoint(
            self._path, manifest.step, manifest.metric, manifest.time, manifest.world_size, values
        )

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise CheckpointMismatch(
                f"{self._path} does not fit, and nothing was changed:\n  "
                + "\n  ".join(dict.fromkeys(problems))
            )

    def _read(
        self, reader: Reader, problems: list[str]
    ) -> tuple[Manifest, dict[str, dict[str, Array]], dict[str, Any]]:
        """Return what each part takes, and the plain values."""
        manifest = reader.manifest
        wanted: dict[str, list[Wanted]] = {}
        with _understanding(self._path):
            for part in self._parts:
                said = manifest.parts.get(part.name)
                if said is None:
                    here = ", ".join(manifest.parts) or "no parts"
                    problems.append(f"{part.name}: not in the checkpoint, which has {here}")
                elif said["kind"] != part.kind:
                    problems.append(f"{part.name}: {said['kind']} in the checkpoint, {part.kind} here")
                else:
                    wanted[part.name] = part.plan(manifest, said, problems)
        if self._random is not False and not manifest.random:
            problems.append("random: the checkpoint has no state of the generators; load(random=False)")
        values: dict[str, Any] = {}
        if not problems:
            values = {
                n: read_object(reader, n) for n, said in manifest.parts.items() if said["kind"] == "value"
            }
        return manifest, {n: reader.read(w) for n, w in wanted.items() if not problems}, values

    def _apply(self, manifest: Manifest, arrays: Mapping[str, Mapping[str, Array]]) -> None:
        done: list[Part] = []
        problems: list[str] = []
        failure: Exception | None = None
        refused_by: Part | None = None
        modules = [part for part in self._parts if isinstance(part, ModulePart)]
        for part in self._parts:
            if part in modules:
                continue
            try:
                with _understanding(self._path):
                    part.apply(manifest.parts[part.name], arrays[part.name], self._path)
            except Exception as error:
                failure, refused_by = error, part
                problems = [f"{part.name}: {error}"]
                break
            done.append(part)
        heard = exchange(self._comm, problems)
        if any(heard):
            if refused_by is not None:
                with contextlib.suppress(Exception):  # it may have changed something, and may refuse again
                    refused_by.undo()
            for part in reversed(done):
                part.undo()
            try:
                self._refuse([problem for h in heard for problem in h])
            except CheckpointMismatch as refused:
                raise refused from failure
        for part in modules:  # which have been compared with all that they take
            part.apply(manifest.parts[part.name], arrays[part.name], self._path)


class _understanding:
    """Turns what goes wrong with a manifest that says anything at all into :class:`FileDamaged`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, AttributeError | LookupError | RecursionError):
            raise FileDamaged(
                f"{self._path} is damaged: its manifest makes no sense ({type(error).__name__}: {error!s:.200})"
            ) from error


def _restore(random: bool | Generator, manifest: Manifest, rank: int) -> None:
    """Let this rank's generator, or the given one, be as it was saved."""
    generator = random if isinstance(random, Generator) else current_generator()
    known = rank < len(manifest.random)
    seed, stream, draw = manifest.random[rank if known else 0]
    generator._seed = seed
    generator._stream, generator._draw = (stream, draw) if known else (rank, 0)


def read_object(reader: Reader, name: str) -> Any:
    """Return a part that was saved as a value, or the state of one that has its own.

    Raises:
        FileDamaged: it is not what was written.
    """
    with _understanding(reader.path):
        description = reader.manifest.parts[name]["state"]
    part = ObjectPart(name, None)
    arrays = reader.read(part._wanted(reader.manifest, description))
    return rebuild(description, arrays, reader.path)


def read(path: str | os.PathLike[str], parts: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the content of one checkpoint, whole, by the names of its parts: of a module its state dict.

    For other programs, and to look at. No process group is needed.

    Args:
        path: of a checkpoint, or of a folder of them, of which it is the latest.
        parts: only these.

    Returns:
        Of an optimizer ``{"state": {parameter: …}, "param_groups": […]}``, by the names of the parameters.

    Raises:
        FileDamaged: it is not what was written.
        FileNotFoundError: there is none.
        KeyError: it has no such part.
    """
    place = find(os.fspath(path))
    with Reader(place) as reader:
        names = list(reader.manifest.parts) if parts is None else list(parts)
        return {name: _read_part(reader, name) for name in names}


def ledgers(path: str | os.PathLike[str]) -> dict[str, Account]:
    """Return what the sample ledgers of the loaders in a checkpoint say: of all ranks, and all restarts before it.

    Args:
        path: of a checkpoint, or of a folder of them, of which it is the latest.

    Returns:
        By the names of the loaders.

    Raises:
        FileDamaged: it is not what was written.
        FileNotFoundError: there is none.
    """
    place = find(os.fspath(path))
    with Reader(place) as reader:
        loaders = [name for name, said in reader.manifest.parts.items() if "ledger" in said]
        return {name: _account(reader, name) for name in loaders}


def _account(reader: Reader, name: str) -> Account:
    state = read_object(reader, name)
    try:
        with _understanding(reader.path):
            said = reader.manifest.parts[name]
            given, shuffled = said["order"] == "given", said["order"] == "shuffled"
            return Account(
                said["samples"],
                state["epoch"],
                [Use.decode(told, said["samples"]) for told in chain.from_iterable(said["ledger"].values())],
                None if given else state["position"],
                state["seed"] if shuffled else None,
            )
    except (TypeError, ValueError, OverflowError) as error:
        raise FileDamaged(
            f"{reader.path} is damaged: the ledger of {name} makes no sense ({error!s:.200})"
        ) from None


def find(path: str) -> str:
    """Return the path of a checkpoint: itself, or the latest one in a folder of them.

    Raises:
        FileNotFoundError: there is none.
    """
    if folder.is_checkpoint(path):
        return path
    known = folder.places(path)
    if not known:
        raise FileNotFoundError(f"{path} is no checkpoint, and has none")
    return known[-1].path


def _read_part(reader: Reader, name: str) -> Any:
    said = reader.manifest.parts[name]
    if said["kind"] in ("object", "value"):
        return read_object(reader, name)
    prefix = f"{name}/"
    plain = ObjectPart(name, None)
    with _understanding(reader.path):
        keys = ("extra",) if said["kind"] == "module" else ("groups", "values")
        others = {key: plain._wanted(reader.manifest, said[key]) for key in keys}
        apart = {w.name for found in others.values() for w in found}
        built = {key: rebuild(said[key], reader.read(found), reader.path) for key, found in others.items()}
        tensors = {
            n: Tensor._of(reader.read([Wanted(prefix + n)])[prefix + n])
            for n in reader.manifest.names(prefix)
            if prefix + n not in apart
        }
        if said["kind"] == "module":
            return tensors | built["extra"]
        state: dict[str, dict[str, Any]] = {n: dict(v) for n, v in built["values"].items()}
        for n, v in said["owned"].items():
            state.setdefault(n, {}).update(v)
        for n, tensor in tensors.items():
            parameter, _, key = n.rpartition("/")
            state.setdefault(parameter, {})[key] = tensor
        return {"state": state, "param_groups": built["groups"]}
