"""An optimizer whose state, or state and gradients, are spread over the ranks: ZeRO (Rajbhandari et al., 2020)."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.distributed.groups import communicator_of
from disttrain.errors import UnwrappedModel
from disttrain.kernels.arrays import Array
from disttrain.modes import enable_grad
from disttrain.optim.fused import FusedOptimizer
from disttrain.optim.lbfgs import LBFGS
from disttrain.optim.optimizer import Optimizer
from disttrain.parallel.data_parallel import DistributedDataParallel
from disttrain.parallel.spread import is_spread, part_of_state
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator, Work
    from disttrain.distributed.groups import ProcessGroup
    from disttrain.optim.optimizer import Params
    from disttrain.parallel.spread import SpreadBucket

__all__ = ["ZeroOptimizer", "ZeroRedundancyOptimizer"]


class ZeroOptimizer(Optimizer):
    """Step a share of the parameters on each rank, and take the others from their ranks.

    As ``torch.distributed.optim.ZeroRedundancyOptimizer``. A rank keeps the optimizer's state of its share of the
    parameters, about ``1 / ranks`` of it, so Adam needs 8 / ranks instead of 8 bytes for each float32 parameter. Wrap
    the model in ``DistributedDataParallel`` as usual: gradients are averaged there. The parameters after a step are
    those of the plain optimizer, to the last bit.

    With ``stage=2`` gradients are spread as well: summed so that each rank keeps its part of the average, while the
    memory of whole ones is free as soon as they are sent. Of every parameter a rank steps a part, so ``grad`` is, after
    backward, that part on one axis. ``clip_grad_norm_`` sees all of it. The optimizer must treat every element alike.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them; the same on all ranks.
        optimizer_class: what steps the parameters of a rank, say ``Adam``.
        process_group: the ranks that share; all by default.
        parameters_as_bucket_view: accepted as PyTorch's; it changes nothing.
        overlap_with_ddp: must be False.
        stage: 1 or 2.
        defaults: options of ``optimizer_class``.

    Raises:
        ValueError: ``optimizer_class`` looks at more than a rank has: at all parameters at once (LBFGS), or with
            stage 2 at whole ones (LAMB, LARS). The parameters are sharded already; or, with stage 2, one is of no
            ``DistributedDataParallel`` over the same ranks.
        NotImplementedError: ``overlap_with_ddp``.
        CollectiveMismatch: the ranks' parameters differ in number, shape or type.
        UnwrappedModel: from :meth:`step`, if nothing averages the gradients.
    """

    def __init__(
        self,
        params: Params,
        optimizer_class: type[Optimizer],
        process_group: ProcessGroup | None = None,
        parameters_as_bucket_view: bool = False,
        overlap_with_ddp: bool = False,
        *,
        stage: int = 1,
        **defaults: Any,
    ) -> None:
        if overlap_with_ddp:
            raise NotImplementedError(
                "ZeroOptimizer(overlap_with_ddp=True) is not in disttrain: the step begins when all gradients are there"
            )
        if issubclass(optimizer_class, LBFGS):
            raise ValueError(
                f"{optimizer_class.__name__} looks at all parameters at once and cannot be spread over ranks"
            )
        if stage not in (1, 2):
            raise ValueError(
                f"stage must be 1 or 2, got {stage!r}; the third, spread parameters, is FullyShardedDataParallel"
            )
        self.optim: Optimizer | None = None
        """What steps this rank's parameters; ``None`` if it has none."""
        self._class = optimizer_class
        self._options = defaults
        self._comm = communicator_of(process_group)
        self._shares: _Owners | _Parts = (
            _Parts(self._comm) if stage == 2 and self._comm.size > 1 else _Owners(self._comm)
        )
        self._whole: dict[int, Any] | None = None
        super().__init__(params, dict(self._probe().defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As :meth:`.Optimizer.add_param_group`; called on all ranks."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if any(p._shard is not None for p in group["params"]):
            raise ValueError(
                "ZeroOptimizer was given sharded parameters, whose optimizer is spread by itself; use a plain one"
            )
        self._shares.add(group["params"])
        mine = self._mine(group)
        if mine:
            local = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            local["params"] = mine
            if self.optim is None:
                self.optim = self._class([local], **self._options)
                self.optim._world_size = 1  # this one sees to it that the ranks do not train apart
                if isinstance(self.optim, FusedOptimizer):
                    self.optim._rounding_stream = self._comm.rank
            else:
                self.optim.add_param_group(local)
        told = repr([(tuple(p.shape), p._array.dtype.name) for p in group["params"]])
        self._comm.barrier(tag=(len(self.param_groups), len(group["params"]), zlib.crc32(told.encode())))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of this rank's parameters, and take the others from their ranks.

        All ranks call it. See :meth:`.Optimizer.step`.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        params = list(self._numbered())
        self._shares.before_step(params)
        if self.optim is not None:
            for mine, group in zip(self.optim.param_groups, self._my_groups(), strict=True):
                mine.update({k: v for k, v in group.items() if k not in ("params", "param_names")})
            self.optim.step()
        for group in self.param_groups:
            if "rounded_steps" in group:
                group["rounded_steps"] += 1
        self._shares.after_step(params)
        self._whole = None
        return loss

    def keep_masters(self) -> None:
        """Keep parameters in half precision in float32 too, each on the rank that steps it.

        See :meth:`.FusedOptimizer.keep_masters`; called on all ranks.

        Raises:
            TypeError: ``optimizer_class`` cannot.
        """
        self._configure("keep_masters")

    def round_randomly(self, seed: int = 0) -> None:
        """Round parameters in half precision up or down at random from now on.

        See :meth:`.FusedOptimizer.round_randomly`; called on all ranks. What is drawn depends on the number of ranks:
        it is not what the plain optimizer draws. All ranks have the same parameters after a step.

        Args:
            seed: of 64 bits, not negative; the same on all ranks.

        Raises:
            TypeError: ``optimizer_class`` cannot.
            ValueError: another seed.
        """
        self._configure("round_randomly", seed)

    def _configure(self, name: str, *args: Any) -> None:
        """Call a method of the optimizer that steps this rank's parameters, and take on the options that it sets."""
        if not issubclass(self._class, FusedOptimizer):
            raise TypeError(
                f"{self._class.__name__} has no {name}(); the optimizers over flat buffers have, as Adam"
            )
        probe = self._probe()
        getattr(probe, name)(*args)  # raises on ranks without parameters too
        if self.optim is not None:
            getattr(self.optim, name)(*args)
        known = {"params", "param_names", *probe.defaults}
        options = {k: v for k, v in probe.param_groups[0].items() if k not in known}
        for group in self.param_groups:
            group.update(options)

    def _probe(self) -> Optimizer:
        """Return an optimizer that knows all options, of no parameter that matters."""
        return self._class([Tensor._of(np.zeros(1, np.float32))], **self._options)

    def _own_states(self) -> Iterator[tuple[Tensor, Tensor | None, dict[str, Any], bool]]:
        local: Any = {} if self.optim is None else self.optim.state
        for p in self._numbered():
            mine = self._shares.of(p)
            yield p, mine, {} if mine is None else local.get(mine, {}), self._shares.alone

    def _mine(self, group: dict[str, Any]) -> list[Tensor]:
        """Return what this rank steps of a group."""
        found = [self._shares.of(p) for p in group["params"]]
        return [t for t in found if t is not None]

    def _my_groups(self) -> Iterator[dict[str, Any]]:
        return (group for group in self.param_groups if self._mine(group))

    # ---------------------------------------------------------------------------------------- state

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Bring the state of all parameters to one rank, where :meth:`state_dict` then works. All ranks call it.

        Args:
            to: that rank, in the group.
        """
        local: Any = {} if self.optim is None else self.optim.state
        state = {i: self._shares.bring(p, local, to) for i, p in enumerate(self._numbered())}
        self._whole = {i: s for i, s in state.items() if s} if self._comm.rank == to else None

    def state_dict(self) -> dict[str, Any]:
        """Return what the plain optimizer's ``state_dict()`` would, on the rank that has consolidated it.

        Raises:
            RuntimeError: :meth:`consolidate_state_dict` has not brought the state here since the last step.
        """
        if self._whole is None:
            raise RuntimeError(
                f"ZeroOptimizer: the state is spread over {self._comm.size} ranks; call "
                f"consolidate_state_dict(to=RANK) on all of them, then state_dict() on rank RANK"
            )
        params = list(self._numbered())
        self.state = defaultdict(dict, {params[i]: s for i, s in self._whole.items()})
        try:
            return super().state_dict()
        finally:
            self.state = defaultdict(dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a plain or of a spread optimizer; each rank keeps what is its own of it.

        All ranks call it with the whole state. See :meth:`.Optimizer.load_state_dict`.
        """
        number = {id(self._shares.of(p)): i for i, p in enumerate(self._numbered())}
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        self._whole = None
        if self.optim is None:
            return
        state = {
            number[id(t)]: self._shares.cut(t, state_dict["state"][number[id(t)]])
            for group in self.optim.param_groups
            for t in group["params"]
            if number[id(t)] in state_dict["state"]
        }
        groups = [
            {
                **{k: v for k, v in group.items() if k not in ("params", "param_names")},
                "params": [number[id(t)] for t in local["params"]],
            }
            for local, group in zip(self.optim.param_groups, self._my_groups(), strict=True)
        ]
        self.optim.load_state_dict({"state": state, "param_groups": groups})

    def _numbered(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]


class _Owners:
    """Stage 1: each parameter is stepped by one rank."""

    alone = True
    """Whether what a rank steps of a parameter is all of it, and on no other rank."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._owner: dict[int, int] = {}
        """The rank that steps a parameter, by its ``id``."""
        self._load = [0] * comm.size

    def add(self, params: list[Tensor]) -> None:
        """Share out new parameters."""
        for p in sorted(params, key=lambda p: -p.nbytes):
            if id(p) not in self._owner:
                owner = min(range(self._comm.size), key=self._load.__getitem__)
                self._owner[id(p)] = owner
                self._load[owner] += p.nbytes

    def of(self, p: Tensor) -> Tensor | None:
        """Return what this rank steps of ``p``."""
        return p if self._owner[id(p)] == self._comm.rank else None

    def before_step(self, params: list[Tensor]) -> None:
        """Nothing: what the rank steps are parameters."""

    def after_step(self, params: list[Tensor]) -> None:
        """Let every rank have the parameters that another one has stepped."""
        if self._comm.size == 1:
            return
        shares: defaultdict[tuple[int, Any], list[Tensor]] = defaultdict(list)
        for p in params:
            shares[self._owner[id(p)], p._array.dtype].append(p)
        arriving: tuple[int, list[Tensor], Array, Work] | None = None
        for (owner, kind), same in shares.items():
            buffer = self._comm.empty(sum(p.numel() for p in same), kind, like=same[0]._array)
            if owner == self._comm.rank:
                for p, part in _places(same, buffer):
                    part[...] = p._array
            coming = owner, same, buffer, self._comm.start_broadcast(buffer, owner)
            if arriving is not None:
                self._take(*arriving)
            arriving = coming
        if arriving is not None:
            self._take(*arriving)

    def _take(self, owner: int, params: list[Tensor], buffer: Array, work: Work) -> None:
        work.wait()
        if owner != self._comm.rank:
            for p, part in _places(params, buffer):
                p._array[...] = part
                p._version_counter[0] += 1

    def bring(self, p: Tensor, local: Any, to: int) -> dict[str, Any]:
        """Return the state of ``p`` on rank ``to``, from the ``local`` state of its owner."""
        owner = self._owner[id(p)]
        if owner == self._comm.rank:
            state: dict[str, Any] = local.get(p, {})
            if owner == to:
                return state
            _send(self._comm, state, to)
        elif self._comm.rank == to:
            return _receive(self._comm, owner)
        return {}

    def cut(self, t: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """Return what this rank keeps of the state of what it steps."""
        return state


class _Parts:
    """Stage 2: each rank steps a part of every parameter, the one of which it has the averaged gradient."""

    alone = False

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._places: dict[int, tuple[SpreadBucket, int]] = {}
        """By ``id`` of a parameter its bucket, and its number there."""
        self._parts: dict[int, Tensor] = {}
        """By ``id`` of a parameter this rank's part of it, in memory of its own."""

    def add(self, params: list[Tensor]) -> None:
        """Share out new parameters.

        Raises:
            ValueError: one is of no ``DistributedDataParallel`` over the same ranks.
            NotImplementedError: one is on a GPU.
        """
        for p in params:
            if not p._requires_grad:
                continue
            if not isinstance(p._array, np.ndarray):
                raise NotImplementedError(
                    f"ZeroOptimizer(stage=2) keeps gradients in host memory only, and a parameter of shape "
                    f"{list(p.shape)} is on a GPU; use stage=1"
                )
            if id(p) not in self._places:
                wrapper = p._synchronized
                if (
                    not isinstance(wrapper, DistributedDataParallel)
                    or wrapper._comm.ranks != self._comm.ranks
                ):
                    raise ValueError(
                        f"ZeroOptimizer(stage=2) spreads gradients that a DistributedDataParallel over the same ranks "
                        f"averages, and one of shape {list(p.shape)} has no such; wrap the model before"
                    )
                for bucket in wrapper.spread_gradients():
                    self._places.update((id(q), (bucket, i)) for i, q in enumerate(bucket.params))
            bucket, i = self._places[id(p)]
            part = self._parts[id(p)] = Tensor._of(bucket.shards[i].part(p._array))
            part._slot = bucket.part_slots[i]
            part._shard = bucket.shards[i]

    def of(self, p: Tensor) -> Tensor | None:
        """Return what this rank steps of ``p``; nothing of a frozen one."""
        return self._parts.get(id(p))

    def before_step(self, params: list[Tensor]) -> None:
        """Let the parts be those of the parameters, and have their gradients.

        Raises:
            UnwrappedModel: a gradient is not this rank's part of the average.
        """
        for p in params:
            part = self._parts.get(id(p))
            if part is None:
                continue
            bucket, i = self._places[id(p)]
            part._array[...] = p._array.reshape(-1)[bucket.shards[i].here]
            part._slot = bucket.part_slots[i]
            part._grad = p._grad
            if p._grad is not None and p._grad._array.shape != part._array.shape:
                raise UnwrappedModel(
                    f"a gradient of shape {list(p._grad.shape)} is not this rank's part of the average, which has "
                    f"{part.numel()} elements; make the last backward before a step outside no_sync(), and put no "
                    f"other tensors in grad"
                )

    def after_step(self, params: list[Tensor]) -> None:
        """Let every rank have the parts that the others have stepped."""
        stepped = {id(p): p for p in params if id(p) in self._parts}
        arriving: tuple[SpreadBucket, Array, Work] | None = None
        for bucket in dict.fromkeys(self._places[key][0] for key in stepped):
            rows = self._comm.empty(
                (self._comm.size, bucket.length), bucket.kind, like=bucket.params[0]._array
            )
            mine = rows[self._comm.rank]
            mine[max(place.stop for place in bucket.places) :] = 0
            for p, place in zip(bucket.params, bucket.places, strict=True):
                if id(p) in stepped:
                    mine[place] = self._parts[id(p)]._array
                    self._parts[id(p)]._grad = None
            coming = bucket, rows, self._comm.start_all_gather(mine, rows)
            if arriving is not None:
                self._take(stepped, *arriving)
            arriving = coming
        if arriving is not None:
            self._take(stepped, *arriving)

    def _take(self, stepped: dict[int, Tensor], bucket: SpreadBucket, rows: Array, work: Work) -> None:
        work.wait()
        for p, (begin, end) in zip(bucket.params, pairwise(bucket.begins), strict=True):
            if id(p) in stepped:
                p._array[...] = rows.reshape(-1)[begin:end].reshape(p._array.shape)
                p._version_counter[0] += 1

    def bring(self, p: Tensor, local: Any, to: int) -> dict[str, Any]:
        """Return the state of ``p`` on rank ``to``, from the ``local`` states of all ranks."""
        part = self._parts.get(id(p))
        state = {
            k: Tensor._of(part._shard.gather(v._array)) if is_spread(v) else v
            for k, v in local.get(part, {}).items()
            if part is not None
        }
        return state if self._comm.rank == to else {}

    def cut(self, t: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """Return what this rank keeps of the state of what it steps."""
        return {k: part_of_state(t, v) for k, v in state.items()}


ZeroRedundancyOptimizer = ZeroOptimizer


def _places(params: list[Tensor], buffer: Array) -> Iterator[tuple[Tensor, Array]]:
    """Yield each parameter with its place in ``buffer``."""
    begin = 0
    for p in params:
        yield p, buffer[begin : begin + p.numel()].reshape(p._array.shape)
        begin += p.numel()


def _send(comm: Communicator, state: dict[str, Any], to: int) -> None:
    """Send a parameter's state: what it holds as JSON, then its tensors."""
    tensors = {k: v.detach()._array for k, v in state.items() if isinstance(v, Tensor)}
    told = {
        k: [tensors[k].dtype.name, list(v.shape)] if isinstance(v, Tensor) else v for k, v in state.items()
    }
    text = np.frombuffer(json.dumps([told, list(tensors)]).encode(), np.uint8)
    comm.send(np.array([text.size]), to)
    comm.send(text, to)
    for array in tensors.values():
        comm.send(array if array.flags.c_contiguous else array.copy(), to)


def _receive(comm: Communicator, source: int) -> dict[str, Any]:
    """Receive what :func:`_send` sent."""
    size = np.empty(1, np.int64)
    comm.recv(size, source)
    text = np.empty(int(size[0]), np.uint8)
    comm.recv(text, source)
    state, tensors = json.loads(text.tobytes())
    for name in tensors:
        kind, shape = state[name]
        array = np.empty(shape, np.dtype(kind))
        comm.recv(array, source)
        state[name] = Tensor._of(array)
    found: dict[str, Any] = state
    return found
