"""An optimizer whose state is spread over the ranks: ZeRO, stage 1 (Rajbhandari et al., 2020)."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.distributed.groups import communicator_of
from disttrain.kernels.arrays import Array
from disttrain.modes import enable_grad
from disttrain.optim.lbfgs import LBFGS
from disttrain.optim.optimizer import Optimizer
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator
    from disttrain.distributed.groups import ProcessGroup
    from disttrain.optim.optimizer import Params

__all__ = ["ZeroOptimizer", "ZeroRedundancyOptimizer"]


class ZeroOptimizer(Optimizer):
    """Step each parameter on one rank only, and take it from there on the others.

    As ``torch.distributed.optim.ZeroRedundancyOptimizer``. A rank keeps the optimizer's state of its share of the
    parameters, about ``1 / ranks`` of it, so Adam needs 8 / ranks instead of 8 bytes for each float32 parameter. Wrap
    the model in ``DistributedDataParallel`` as usual: gradients are averaged there. The parameters after a step are
    those of the plain optimizer, to the last bit.

    Args:
        params: parameters, pairs of a name and a parameter, or groups of them; the same on all ranks.
        optimizer_class: what steps the parameters of a rank, say ``Adam``.
        process_group: the ranks that share; all by default.
        parameters_as_bucket_view: accepted as PyTorch's; it changes nothing.
        overlap_with_ddp: must be False.
        defaults: options of ``optimizer_class``.

    Raises:
        ValueError: ``optimizer_class`` looks at all parameters at once (LBFGS).
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
        self.optim: Optimizer | None = None
        """What steps this rank's parameters; ``None`` if it has none."""
        self._class = optimizer_class
        self._options = defaults
        self._comm = communicator_of(process_group)
        self._owner: dict[int, int] = {}
        """The rank that steps a parameter, by its ``id``."""
        self._load = [0] * self._comm.size
        self._buffers: dict[tuple[int, Any], Array] = {}
        self._whole: dict[int, Any] | None = None
        probe = optimizer_class([Tensor._of(np.zeros(1, np.float32))], **defaults)  # knows the other options
        super().__init__(params, dict(probe.defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As :meth:`.Optimizer.add_param_group`; called on all ranks."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in sorted(group["params"], key=lambda p: -p.nbytes):
            if id(p) not in self._owner:
                owner = min(range(self._comm.size), key=self._load.__getitem__)
                self._owner[id(p)] = owner
                self._load[owner] += p.nbytes
        mine = [i for i, p in enumerate(group["params"]) if self._owner[id(p)] == self._comm.rank]
        if mine:
            local = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            local["params"] = [group["params"][i] for i in mine]
            if self.optim is None:
                self.optim = self._class([local], **self._options)
                self.optim._world_size = 1  # this one sees to it that the ranks do not train apart
            else:
                self.optim.add_param_group(local)
        self._buffers.clear()
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
        if self.optim is not None:
            for mine, group in zip(self.optim.param_groups, self._my_groups(), strict=True):
                mine.update({k: v for k, v in group.items() if k not in ("params", "param_names")})
            self.optim.step()
        self._exchange()
        self._whole = None
        return loss

    def _my_groups(self) -> Iterator[dict[str, Any]]:
        for group in self.param_groups:
            if any(self._owner[id(p)] == self._comm.rank for p in group["params"]):
                yield group

    def _exchange(self) -> None:
        """Let every rank have the parameters that another one has stepped."""
        if self._comm.size == 1:
            return
        shares: defaultdict[tuple[int, Any], list[Tensor]] = defaultdict(list)
        for group in self.param_groups:
            for p in group["params"]:
                shares[self._owner[id(p)], p._array.dtype].append(p)
        works = []
        for (owner, kind), params in shares.items():
            buffer = self._buffers.get((owner, kind))
            if buffer is None:
                size = sum(p.numel() for p in params)
                buffer = self._buffers[owner, kind] = self._comm.empty(size, kind)
            if owner == self._comm.rank:
                for p, part in _parts(params, buffer):
                    part[...] = p._array
            works.append(self._comm.start_broadcast(buffer, owner))
        for work, ((owner, kind), params) in zip(works, shares.items(), strict=True):
            work.wait()
            if owner != self._comm.rank:
                for p, part in _parts(params, self._buffers[owner, kind]):
                    p._array[...] = part
                    p._version_counter[0] += 1

    # ---------------------------------------------------------------------------------------- state

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Bring the state of all parameters to one rank, where :meth:`state_dict` then works. All ranks call it.

        Args:
            to: that rank, in the group.
        """
        comm = self._comm
        state: dict[int, Any] = {}
        local = {} if self.optim is None else self.optim.state
        for i, p in enumerate(self._numbered()):
            owner = self._owner[id(p)]
            if owner == to == comm.rank:
                state[i] = local.get(p, {})
            elif comm.rank == owner:
                _send(comm, local.get(p, {}), to)
            elif comm.rank == to:
                state[i] = _receive(comm, owner)
        self._whole = {i: s for i, s in state.items() if s} if comm.rank == to else None

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
        params = list(self._numbered())
        mine = {i for i, p in enumerate(params) if self._owner[id(p)] == self._comm.rank}
        state = {i: s for i, s in state_dict["state"].items() if i in mine}
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        self._whole = None
        if self.optim is None:
            return
        number = {id(p): i for i, p in enumerate(params)}
        groups = [
            {
                **{k: v for k, v in group.items() if k not in ("params", "param_names")},
                "params": [number[id(p)] for p in local["params"]],
            }
            for local, group in zip(self.optim.param_groups, self._my_groups(), strict=True)
        ]
        self.optim.load_state_dict({"state": state, "param_groups": groups})

    def _numbered(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]


ZeroRedundancyOptimizer = ZeroOptimizer


def _parts(params: list[Tensor], buffer: Array) -> Iterator[tuple[Tensor, Array]]:
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
