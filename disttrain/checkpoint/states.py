"""What a checkpoint takes from the objects of a training run, and how it is put back.

A part is one object under the name it was given: a module, an optimizer, anything with ``state_dict()`` and
``load_state_dict()``, or a plain value. Names of tensors do not depend on how the model was parallel: those of a module
are ``part/name``, those of an optimizer ``part/parameter/what``, so that what one kind of parallel training has saved
another one loads.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from disttrain import dtypes
from disttrain.checkpoint.manifest import Manifest
from disttrain.collectives.env import current_env
from disttrain.data.dataset import IterableDataset
from disttrain.data.ledger import SampleLedger
from disttrain.data.loader import DataLoader
from disttrain.kernels.arrays import Array
from disttrain.nn.module import Module
from disttrain.optim.optimizer import Optimizer
from disttrain.parallel.data_parallel import DistributedDataParallel
from disttrain.parallel.fully_sharded import FullyShardedDataParallel
from disttrain.parallel.sharding_options import StateDictType
from disttrain.parallel.spread import is_spread
from disttrain.serialization import describe, rebuild
from disttrain.tensors import Tensor

Span = tuple[int, int]
OWN: Final = ("owned", "ledger")
"""What parts say that each rank has something of: dicts, of which a checkpoint has the union."""


@dataclass(frozen=True)
class Item:
    """A tensor as this rank has it."""

    array: Array
    """All of it in its shape, or the elements of ``span``."""
    shape: tuple[int, ...]
    """Of all of it."""
    span: Span | None = None
    """Which elements, in the order of memory, this rank has; ``None`` for all."""
    own: bool = False
    """Whether no other rank has it."""
    alike: bool = False
    """Whether all ranks have the same, so that any of them can write it; else rank 0's is the one that counts."""


@dataclass(frozen=True)
class Wanted:
    """A tensor of a checkpoint that this rank needs, or the elements ``span`` of it."""

    name: str
    span: Span | None = None
    copied: bool = False
    """Whether whoever wants it copies it and keeps nothing: it may lie in memory that others use afterwards."""


class Part:
    """One object of a run.

    Args:
        name: under which it is in the checkpoint.
        thing: the object.
    """

    kind = ""

    def __init__(self, name: str, thing: Any) -> None:
        self.name = name
        self.thing = thing

    def save(self) -> tuple[dict[str, Item], dict[str, Any]]:
        """Return its tensors, sharing the memory of the object, and what else there is to say of it, for JSON.

        Raises:
            TypeError: it holds something that no file can.
        """
        raise NotImplementedError

    def plan(self, manifest: Manifest, said: Mapping[str, Any], problems: list[str]) -> list[Wanted]:
        """Return the tensors that it needs, and add to ``problems`` all that does not fit. Changes nothing."""
        raise NotImplementedError

    def apply(self, said: Mapping[str, Any], arrays: Mapping[str, Array], source: str) -> None:
        """Take the state; ``arrays`` are the wanted ones, by name, and may be kept unless they were to be copied."""
        raise NotImplementedError

    def undo(self) -> None:
        """Be as before :meth:`apply`, whether that has ended or raised. Modules are applied when nothing can fail."""

    def _described(self, obj: Any, what: str) -> tuple[dict[str, Item], dict[str, Any]]:
        try:
            description, arrays = describe(obj, f"{self.name}/{what}")
        except TypeError as error:
            raise TypeError(f"{self.name} of a checkpoint: {error}") from None
        return {name: Item(a, a.shape) for name, a in arrays.items()}, description

    def _wanted(self, manifest: Manifest, description: Any) -> list[Wanted]:
        """Return the tensors that a description names."""
        names: list[str] = []
        _find_names(description, names)
        return [Wanted(name) for name in names if manifest.find(name) is not None]


def _find_names(described: Any, names: list[str]) -> None:
    """Collect what a description calls its tensors."""
    if isinstance(described, dict):
        for key, value in described.items():
            if key in ("tensor", "array", "scalar") and isinstance(value, str):
                names.append(value)
            else:
                _find_names(value, names)
    elif isinstance(described, list):
        for value in described:
            _find_names(value, names)


class ModulePart(Part):
    """A module: parameters and buffers by name, of sharded ones this rank's part."""

    kind = "module"

    def __init__(self, name: str, thing: Module) -> None:
        while isinstance(thing, DistributedDataParallel):
            thing = thing.module
        super().__init__(name, thing)

    @contextlib.contextmanager
    def _parts_of_sharded(self) -> Iterator[None]:
        """Let state dicts hold what this rank has."""
        units = [m for m in self.thing.modules() if "_unit" in m.__dict__]
        if not units:
            yield
            return
        with FullyShardedDataParallel.state_dict_type(self.thing, StateDictType.SHARDED_STATE_DICT):
            yield

    def _state(self) -> tuple[dict[str, Item], dict[str, Any]]:
        """Return the tensors by name, and what else the state holds."""
        with self._parts_of_sharded():
            state = self.thing.state_dict()
        shards = {n: p._shard for n, p in self.thing.named_parameters(remove_duplicate=False)}
        items: dict[str, Item] = {}
        extra: dict[str, Any] = {}
        for name, value in state.items():
            if not isinstance(value, Tensor):
                extra[name] = value
                continue
            shard = shards.get(name)
            if shard is None:
                # Of buffers (running averages, say) each rank has its own until it takes those of rank 0.
                items[name] = Item(value._array, tuple(value.shape), alike=name in shards)
            else:
                items[name] = Item(value._array, shard.shape, shard.bounds[shard.comm.rank])
        return items, extra

    def save(self) -> tuple[dict[str, Item], dict[str, Any]]:
        items, extra = self._state()
        found, description = self._described(extra, "")
        return {f"{self.name}/{n}": item for n, item in items.items()} | found, {"extra": description}

    def plan(self, manifest: Manifest, said: Mapping[str, Any], problems: list[str]) -> list[Wanted]:
        items, extra = self._state()
        others = self._wanted(manifest, said["extra"])
        prefix = f"{self.name}/"
        apart = {w.name for w in others}
        theirs = {n for n in manifest.names(prefix) if prefix + n not in apart}
        _compare_names(self.name, "tensors", list(items), theirs, problems)
        known = {key for key, _ in _pairs(said["extra"])}
        _compare_names(self.name, "extra states", list(extra), known, problems)
        wanted = []
        copied = self._copies()
        for name, item in items.items():
            found = manifest.find(prefix + name)
            if found is None:
                continue
            stored = found[1]
            kind = dtypes.of(item.array)
            if stored.shape != item.shape:
                problems.append(
                    f"{self.name}: {name} has shape {list(stored.shape)} in the checkpoint, the module has "
                    f"{list(item.shape)}"
                )
            elif stored.dtype is not kind:
                problems.append(
                    f"{self.name}: {name} is {stored.dtype.name} in the checkpoint, the module has {kind.name}; "
                    f"convert the module after it is loaded"
                )
            else:
                wanted.append(Wanted(prefix + name, item.span, copied))
        return wanted + others

    def _copies(self) -> bool:
        """Return whether nobody but ``Module.load_state_dict()``, which copies, is given the tensors."""
        hooked = any(m._state_hooks is not None for m in self.thing.modules())
        return type(self.thing).load_state_dict is Module.load_state_dict and not hooked

    def apply(self, said: Mapping[str, Any], arrays: Mapping[str, Array], source: str) -> None:
        items, _ = self._state()
        state: dict[str, Any] = {n: Tensor._of(arrays[f"{self.name}/{n}"]) for n in items}
        state |= rebuild(said["extra"], arrays, source)
        with self._parts_of_sharded():
            self.thing.load_state_dict(state)


class OptimizerPart(Part):
    """An optimizer: of each parameter, by its name, the state that this rank has.

    Args:
        name: under which it is in the checkpoint.
        thing: the optimizer.
        modules: of the same checkpoint, which name the parameters; if they do not have all of them, these are numbered.
    """

    kind = "optimizer"

    def __init__(self, name: str, thing: Optimizer, modules: list[ModulePart]) -> None:
        super().__init__(name, thing)
        params = [p for group in thing.param_groups for p in group["params"]]
        by_id: dict[int, str] = {}
        for module in modules:
            for n, p in module.thing.named_parameters():
                by_id.setdefault(id(p), f"{module.name}.{n}")
        named = all(id(p) in by_id for p in params)
        self._names = {id(p): by_id[id(p)] if named else str(i) for i, p in enumerate(params)}
        self._numbers = {id(p): i for i, p in enumerate(params)}
        self._before: list[tuple[Optimizer, dict[str, Any]]] = []

    def save(self) -> tuple[dict[str, Item], dict[str, Any]]:
        groups = [
            {**group, "params": [self._names[id(p)] for p in group["params"]]}
            for group in self.thing.param_groups
        ]
        items: dict[str, Item] = {}
        values: dict[str, dict[str, Any]] = defaultdict(dict)
        owned: dict[str, dict[str, Any]] = defaultdict(dict)
        for p, mine, state, alone in self.thing._own_states():
            for key, value in state.items():
                name = self._names[id(p)]
                if isinstance(value, Tensor):
                    shard = mine._shard if is_spread(value) else None
                    items[f"{self.name}/{name}/{key}"] = (
                        Item(value._array, tuple(value.shape), None, alone, not alone)
                        if shard is None
                        else Item(value._array, shard.shape, shard.bounds[shard.comm.rank])
                    )
                elif alone:
                    if not isinstance(value, bool | int | float | str | None):
                        raise TypeError(
                            f"{self.name} of a checkpoint: {key!r} of parameter {name} is of type "
                            f"{type(value).__name__}; what one rank alone has must be tensors, numbers or texts"
                        )
                    owned[name][key] = value
                else:
                    values[name][key] = value
        found, described = self._described(groups, "param_groups.")
        more, others = self._described(dict(values), "values.")
        return items | found | more, {"groups": described, "values": others, "owned": dict(owned)}

    def plan(self, manifest: Manifest, said: Mapping[str, Any], problems: list[str]) -> list[Wanted]:
        others = self._wanted(manifest, said["groups"]) + self._wanted(manifest, said["values"])
        ours = [[self._names[id(p)] for p in group["params"]] for group in self.thing.param_groups]
        theirs = _names_of_groups(said["groups"])
        if len(ours) != len(theirs):
            problems.append(
                f"{self.name}: the checkpoint has {len(theirs)} groups of parameters, the optimizer {len(ours)}"
            )
        else:
            for i, (here, there) in enumerate(zip(ours, theirs, strict=True)):
                where = f"parameters in group {i}"
                _compare_names(self.name, where, here, set(there), problems)
                if set(here) == set(there) and here != there:
                    problems.append(f"{self.name}: the {where} are in another order")
        prefix = f"{self.name}/"
        apart = {w.name for w in others}
        keys: dict[str, list[str]] = defaultdict(list)
        for n in manifest.names(prefix):
            if prefix + n not in apart:
                name, _, key = n.rpartition("/")
                keys[name].append(key)
        wanted = []
        for p, mine, _, _ in self.thing._own_states():
            if mine is None:
                continue
            name = self._names[id(p)]
            shard = mine._shard
            whole = tuple(p.shape) if shard is None else shard.shape
            for key in keys.get(name, ()):
                full = f"{prefix}{name}/{key}"
                found = manifest.find(full)
                assert found is not None
                stored = found[1]
                if shard is not None and stored.shape:
                    if stored.shape != whole:
                        problems.append(
                            f"{self.name}: {key} of {name} has shape {list(stored.shape)} in the checkpoint, the "
                            f"parameter has {list(whole)}"
                        )
                        continue
                    wanted.append(Wanted(full, shard.bounds[shard.comm.rank]))
                else:
                    wanted.append(Wanted(full))
        return wanted + others

    def apply(self, said: Mapping[str, Any], arrays: Mapping[str, Array], source: str) -> None:
        self._before = [(o, dict(vars(o))) for o in (self.thing, getattr(self.thing, "optim", None)) if o]
        values = rebuild(said["values"], arrays, source)
        state: dict[int, dict[str, Any]] = {}
        tensors: dict[str, dict[str, Any]] = defaultdict(dict)
        for n, array in arrays.items():
            part, _, rest = n.partition("/")
            if part == self.name:
                name, _, key = rest.rpartition("/")
                tensors[name][key] = Tensor._of(array)
        for p, mine, _, _ in self.thing._own_states():
            name = self._names[id(p)]
            found = tensors.get(name, {}) | values.get(name, {}) | said["owned"].get(name, {})
            if mine is not None and found:
                state[self._numbers[id(p)]] = found
        number = {name: self._numbers[key] for key, name in self._names.items()}
        groups = [
            {**group, "params": [number[n] for n in group["params"]]}
            for group in rebuild(said["groups"], arrays, source)
        ]
        self.thing.load_state_dict({"state": state, "param_groups": groups})

    def undo(self) -> None:
        for optimizer, content in self._before:
            vars(optimizer).clear()
            vars(optimizer).update(content)


class ObjectPart(Part):
    """Anything with ``state_dict()`` and ``load_state_dict()``: schedulers, loaders, gradient scalers."""

    kind = "object"

    def __init__(self, name: str, thing: Any) -> None:
        super().__init__(name, thing)
        self._before: Any = None

    def save(self) -> tuple[dict[str, Item], dict[str, Any]]:
        items, description = self._described(self.thing.state_dict(), "")
        return items, {"state": description}

    def plan(self, manifest: Manifest, said: Mapping[str, Any], problems: list[str]) -> list[Wanted]:
        return self._wanted(manifest, said["state"])

    def apply(self, said: Mapping[str, Any], arrays: Mapping[str, Array], source: str) -> None:
        self._before = copy.deepcopy(self.thing.state_dict())
        self.thing.load_state_dict(rebuild(said["state"], arrays, source))

    def undo(self) -> None:
        if self._before is not None:
            self.thing.load_state_dict(self._before)


class LoaderPart(ObjectPart):
    """A DataLoader: its state, which all ranks have alike, and what each of them has used."""

    def __init__(self, name: str, thing: DataLoader) -> None:
        super().__init__(name, thing)
        self._ledger = thing.ledger

    def save(self) -> tuple[dict[str, Item], dict[str, Any]]:
        items, said = super().save()
        uses = self.thing.ledger.state_dict()
        order = (
            "given" if self.thing._user_order else "shuffled" if self.thing._epochs.shuffle else "by index"
        )
        mine = {"ledger": {str(current_env().rank): uses}}
        return items, said | {"order": order, "samples": _size(self.thing.dataset)} | mine

    def apply(self, said: Mapping[str, Any], arrays: Mapping[str, Array], source: str) -> None:
        super().apply(said, arrays, source)
        self.thing.ledger = ledger = SampleLedger()
        if current_env().rank == 0:  # so that the sum over the ranks is that of the checkpoint
            ledger.load_state_dict(
                chain.from_iterable(said.get("ledger", {}).values()), _size(self.thing.dataset)
            )

    def undo(self) -> None:
        super().undo()
        self.thing.ledger = self._ledger


def _size(dataset: Any) -> int:
    return 0 if isinstance(dataset, IterableDataset) else len(dataset)


class ValuePart(Part):
    """A number, a text, a tensor, or dicts and lists of those; a load returns it."""

    kind = "value"

    def save(self) -> tuple[dict[str, Item], dict[str, Any]]:
        items, description = self._described(self.thing, "")
        return items, {"state": description}


def make_parts(things: Mapping[str, Any]) -> list[Part]:
    """Return the parts of a run.

    Raises:
        ValueError: a name that a checkpoint cannot have.
    """
    for name in things:
        if "/" in name:
            raise ValueError(f"a part of a checkpoint cannot be called {name!r}: give a name without '/'")
    modules = [ModulePart(n, t) for n, t in things.items() if isinstance(t, Module)]
    optimizers: list[Part] = [
        OptimizerPart(n, t, modules) for n, t in things.items() if isinstance(t, Optimizer)
    ]
    rest: list[Part] = []
    for name, thing in things.items():
        if not isinstance(thing, Module | Optimizer):
            stateful = hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")
            of_object = LoaderPart if isinstance(thing, DataLoader) else ObjectPart
            rest.append((of_object if stateful else ValuePart)(name, thing))
    return rest + optimizers + list[Part](modules)


def _compare_names(part: str, what: str, here: list[str], there: set[str], problems: list[str]) -> None:
    for text, names in (
        ("missing in the checkpoint", [n for n in here if n not in there]),
        ("only in the checkpoint", sorted(there - set(here))),
    ):
        if names:
            problems.append(f"{part}: {what} {text}: {', '.join(names)}")


def _pairs(description: Any) -> list[tuple[str, Any]]:
    """Return the keys of a described dict, with what they stand for."""
    return [(key, value) for key, value in description["root"]["dict"]]


def _names_of_groups(description: Any) -> list[list[str]]:
    return [dict(group["dict"])["params"] for group in description["root"]]
