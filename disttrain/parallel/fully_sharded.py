"""Fully sharded data parallelism, as ``torch.distributed.fsdp``: for models that are too large for one rank."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from disttrain import context, missing
from disttrain.amp import GradScaler
from disttrain.collectives.env import current_env
from disttrain.distributed.device_mesh import data_parallel_group
from disttrain.distributed.groups import communicator_of
from disttrain.nn.module import IncompatibleKeys, Module
from disttrain.nn.parameter import is_lazy
from disttrain.nn.utils.clip_grad import clip_grad_norm_
from disttrain.parallel import sharded_states, wrap
from disttrain.parallel.data_parallel import DistributedDataParallel
from disttrain.parallel.replicas import take_from
from disttrain.parallel.sharding import Unit, _Loan, units_of
from disttrain.parallel.sharding_options import (
    BackwardPrefetch,
    CPUOffload,
    CPUOffloadPolicy,
    FullOptimStateDictConfig,
    FullStateDictConfig,
    LocalOptimStateDictConfig,
    LocalStateDictConfig,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    OptimStateDictConfig,
    OptimStateKeyType,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    ShardingStrategy,
    StateDictConfig,
    StateDictSettings,
    StateDictType,
)
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.optim.optimizer import Optimizer

__all__ = [
    "BackwardPrefetch",
    "CPUOffload",
    "CPUOffloadPolicy",
    "FSDPModule",
    "FullOptimStateDictConfig",
    "FullStateDictConfig",
    "FullyShardedDataParallel",
    "LocalOptimStateDictConfig",
    "LocalStateDictConfig",
    "MixedPrecision",
    "MixedPrecisionPolicy",
    "OffloadPolicy",
    "OptimStateDictConfig",
    "OptimStateKeyType",
    "ShardedGradScaler",
    "ShardedOptimStateDictConfig",
    "ShardedStateDictConfig",
    "ShardingStrategy",
    "StateDictConfig",
    "StateDictSettings",
    "StateDictType",
    "UnshardHandle",
    "fully_shard",
]

_HYBRID: Final = (
    "parts that several groups of ranks hold alike are not in disttrain; give mesh['NAME'] of one of them"
)
ShardedGradScaler = GradScaler
"""What scales gradients also of sharded parameters: a step is skipped on all ranks if it is on one."""


def fully_shard(
    module: Any,
    *,
    mesh: Any = None,
    reshard_after_forward: bool | int | None = None,
    shard_placement_fn: Any = None,
    mp_policy: MixedPrecisionPolicy = MixedPrecisionPolicy(),  # noqa: B008  frozen
    offload_policy: OffloadPolicy = OffloadPolicy(),  # noqa: B008  without content
    ignored_params: set[Tensor] | None = None,
    dp_mesh_dims: Any = None,
    nonfinite: str = "keep",
) -> Any:
    """Spread the parameters of ``module`` that no module inside it has spread over the ranks, in place.

    As ``torch.distributed.fsdp.fully_shard``: called from the inside out, on each layer and last on the model. What
    it does is what :class:`FullyShardedDataParallel` does; the module stays what it is and gets the methods of
    :class:`FSDPModule`.

    Args:
        module: whose parameters come and go together.
        mesh: the ranks, a mesh of one dimension or a process group; all by default.
        reshard_after_forward: let the parameters go between forward and backward. By default yes; the outermost
            module's stay in any case, because backward begins with it.
        ignored_params: parameters that stay whole, and that nobody averages.
        nonfinite: as of :class:`FullyShardedDataParallel`.

    Returns:
        ``module``.

    Raises:
        ValueError: a module without a forward of its own (a ``ModuleList``), one that is sharded already, or an
            unknown ``nonfinite``.
        NotImplementedError: an option that is not here.
        CollectiveMismatch: the ranks' modules differ in structure.
    """
    for name, given in (("shard_placement_fn", shard_placement_fn), ("dp_mesh_dims", dp_mesh_dims)):
        if given is not None:
            _refuse("fully_shard", name, "parameters are laid end to end and cut into equal parts")
    if isinstance(module, list | tuple):
        _refuse("fully_shard", "a list of modules", "put them into one module, and shard that")
    if reshard_after_forward is not None and not isinstance(reshard_after_forward, bool):
        _refuse("fully_shard", f"reshard_after_forward={reshard_after_forward!r}", "give True or False")
    _check_types("fully_shard(mp_policy)", mp_policy)
    _shard(module, mesh, reshard_after_forward is False, {id(p) for p in ignored_params or ()}, nonfinite)
    made = type(f"FSDP{type(module).__name__}", (FSDPModule, type(module)), {})
    module.__class__ = made
    return module


def _refuse(where: str, what: str, instead: str) -> NoReturn:
    raise NotImplementedError(f"{where}: {what} is not in disttrain; {instead}")


def _check_types(where: str, given: Any) -> None:
    for name in ("param_dtype", "reduce_dtype", "buffer_dtype", "output_dtype"):
        if getattr(given, name, None) is not None:
            _refuse(
                where,
                name,
                "convert the module before, with .to(dtype); sums of half precision are in float32",
            )


def _shard(module: Module, group: Any, keep: bool, ignored: set[int], nonfinite: str) -> Unit:
    """Make a unit of the parameters of ``module`` that are in none."""
    if type(module).forward is Module.forward:
        raise ValueError(
            f"{type(module).__name__} has no forward() of its own, before which its parameters could be gathered; "
            f"shard the modules in it, or the one around it"
        )
    if "_unit" in module.__dict__:
        raise ValueError(f"this {type(module).__name__} is sharded already")
    if any(isinstance(p._synchronized, DistributedDataParallel) for p in module.parameters()):
        raise ValueError(
            "a DistributedDataParallel averages parameters of the module; shard the module before, or instead"
        )
    if any(is_lazy(t) for t in (*module.parameters(), *module.buffers())):
        raise RuntimeError(
            "uninitialized parameters cannot be sharded; call the module with a batch first, so that its lazy modules "
            "take their shapes"
        )
    if current_env().audit:
        importlib.import_module("disttrain.audit").watch(module)
    comm = communicator_of(data_parallel_group(group, _HYBRID))
    if any(not isinstance(p._array, np.ndarray) for p in module.parameters()):
        _refuse(
            "sharding",
            "parameters on a GPU",
            "shard the module while it is in host memory, or use DistributedDataParallel",
        )
    named = [(n, p) for n, p in module.named_parameters() if p._shard is None and id(p) not in ignored]
    borrowed = list(dict.fromkeys(_borrowed(module)))
    unit = Unit(module, named, comm, keep, context.current().units, nonfinite)
    context.current().units += 1
    unit.borrowed = borrowed
    module.__dict__["_unit"] = unit
    module.__dict__["_settings"] = StateDictSettings()
    if comm.size > 1 or unit.flats:
        take_from(comm, 0, list(module.buffers()))
        module.register_state_dict_pre_hook(_before_state)
        module.register_state_dict_post_hook(_after_state)
        module.register_load_state_dict_pre_hook(_before_load)
    return unit


def _borrowed(module: Module) -> Iterator[Unit]:
    """Yield the units whose parameters ``module`` uses outside the modules inside it that have units."""
    for p in module._parameters.values():
        if p is not None and isinstance(p._version_counter, _Loan):
            yield p._version_counter.flat.unit
    for child in module.children():
        if "_unit" not in child.__dict__:
            yield from _borrowed(child)


# ---------------------------------------------------------------------------------------------- state


def _whole(module: Module) -> bool:
    settings: StateDictSettings = module.__dict__["_settings"]
    return settings.state_dict_type is StateDictType.FULL_STATE_DICT


def _before_state(module: Module, prefix: str, keep_vars: bool) -> None:
    if _whole(module):
        _hold(module)


def _after_state(module: Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    if not _whole(module):
        return
    _release(module)
    config = module.__dict__["_settings"].state_dict_config
    if config.rank0_only and module.__dict__["_unit"].comm.rank:
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]


def _before_load(
    module: Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    problems: list[str],
) -> None:
    """Put in the place of whole parameters this rank's part of them."""
    for name, p in module.named_parameters(remove_duplicate=False):
        given, shard = state.get(prefix + name), p._shard
        if shard is None or not isinstance(given, Tensor) or given.shape == p.shape:
            continue
        if given.shape == shard.shape:
            state[prefix + name] = Tensor._of(shard.part(given._array))
        else:
            problems.append(
                f"size mismatch for {prefix + name}: given {tuple(given.shape)}, the module has {shard.shape}, of "
                f"which {p.numel()} elements are on this rank."
            )
            state[prefix + name] = p


def _hold(module: Module) -> None:
    unit: Unit = module.__dict__["_unit"]
    for u in (unit, *unit.borrowed):
        u.hold()


def _release(module: Module, write: bool = False) -> None:
    unit: Unit = module.__dict__["_unit"]
    for u in (unit, *unit.borrowed):
        u.release(False, write)


class FSDPModule(Module):
    """What :func:`fully_shard` adds to a module, as ``torch.distributed.fsdp.FSDPModule``."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """As :meth:`.Module.load_state_dict`; every rank takes its part of whole parameters.

        Raises:
            NotImplementedError: ``assign``.
        """
        if assign:
            _refuse("load_state_dict", "assign=True", "sharded parameters keep their memory; leave it out")
        return super().load_state_dict(state_dict, strict)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(
            "a sharded module belongs to the ranks that made it together and cannot be copied by one; copy the module "
            "before it is sharded, or load its state_dict() into another"
        )

    def _own_units(self, recurse: bool) -> list[Unit]:
        return units_of(self) if recurse else [self.__dict__["_unit"]]

    def unshard(self, async_op: bool = False) -> UnshardHandle | None:
        """Let the parameters come before they are needed; all ranks call it."""
        for unit in self._own_units(False):
            unit.start_gather()
        handle = UnshardHandle(self)
        if async_op:
            return handle
        handle.wait()
        return None

    def reshard(self) -> None:
        """Let whole parameters go."""
        for unit in self._own_units(False):
            unit.drop()

    def set_requires_gradient_sync(self, requires_gradient_sync: bool, *, recurse: bool = True) -> None:
        """Say whether the backwards of the forwards that follow average gradients, or only accumulate them."""
        for unit in self._own_units(recurse):
            unit.synchronize = requires_gradient_sync

    def set_reshard_after_forward(self, reshard_after_forward: bool, recurse: bool = True) -> None:
        """Say whether parameters go between forward and backward."""
        for unit in self._own_units(recurse):
            unit.keep = not reshard_after_forward

    def set_is_last_backward(self, is_last_backward: bool) -> None:
        """Do nothing: a backward is over when it has returned."""


_NOT_HERE: Final = {
    "set_all_reduce_hook": "all ranks of the group shard; there is no second all-reduce",
    "set_allocate_memory_from_process_group_for_comm": "memory is shared between the processes of a node already",
    "set_custom_all_gather": "collectives are those of the group",
    "set_custom_reduce_scatter": "collectives are those of the group",
    "set_force_sum_reduction_for_comms": "gradients are summed, and divided after",
    "set_gradient_divide_factor": "gradients are divided by the ranks' weights; scale the loss, or give "
    "loss.backward(weight=n)",
    "set_modules_to_backward_prefetch": "the unit that comes next in backward comes early by itself",
    "set_modules_to_forward_prefetch": "the unit that came next in the last forward comes early by itself",
    "set_post_optim_event": "a step is over when it has returned",
    "set_reduce_scatter_divide_factor": "gradients are divided by the ranks' weights; scale the loss, or give "
    "loss.backward(weight=n)",
    "set_requires_all_reduce": "all ranks of the group shard; use set_requires_gradient_sync()",
    "set_reshard_after_backward": "parameters go after backward; call unshard() to have them again early",
    "set_unshard_in_backward": "parameters come when backward needs them",
}
for _name, _why in _NOT_HERE.items():
    setattr(FSDPModule, _name, missing.refused(f"FSDPModule.{_name}", _why))


class UnshardHandle:
    """What :meth:`FSDPModule.unshard` returns."""

    def __init__(self, module: FSDPModule) -> None:
        self._module = module

    def wait(self) -> None:
        """Return once the parameters are here."""
        for flat in self._module.__dict__["_unit"].flats:
            flat.gathered()


class FullyShardedDataParallel(Module):
    """Train a model whose parameters, gradients and optimizer state are spread over the ranks.

    As ``torch.distributed.fsdp.FullyShardedDataParallel`` with ``use_orig_params=True``: parameters keep their names
    and objects, and between two uses each holds this rank's part of it, on one axis. The parameters of this module
    that no such wrapper inside has are gathered before it runs, let go after, gathered again in backward, and their
    gradients are summed over the ranks, each part on the rank that keeps it. Losses and parameters are those of
    ``DistributedDataParallel``, to the last bit.

    Make the optimizer after wrapping. It must treat every element alike; one that looks at whole parameters (LAMB,
    LARS, LBFGS) refuses sharded ones. All ranks run the same modules in the same order.

    Args:
        module: the model, or a part of it; parameters and buffers become those of rank 0.
        process_group: the ranks; all by default.
        sharding_strategy: ``FULL_SHARD`` (the default) or ``SHARD_GRAD_OP``.
        cpu_offload: accepted as PyTorch's; parameters are in host memory.
        auto_wrap_policy: which modules inside are wrapped too: see :mod:`disttrain.parallel.wrap`.
        backward_prefetch: ``None`` gathers in backward only what is needed now.
        mixed_precision: must not name a type.
        ignored_modules: modules whose parameters stay whole, and that nobody averages.
        param_init_fn: must be None.
        device_id: accepted as PyTorch's; the device is where the parameters are.
        sync_module_states: accepted as PyTorch's; rank 0's are always taken.
        forward_prefetch: accepted as PyTorch's; the unit that came next in the last forward always comes early.
        limit_all_gathers: accepted as PyTorch's; one unit at a time comes early.
        use_orig_params: accepted as PyTorch's; it is so.
        ignored_states: parameters or modules, as ``ignored_modules``.
        device_mesh: the ranks, in place of ``process_group``: a mesh of one dimension.
        nonfinite: what becomes of a step in which a rank's gradient, before it is averaged, has a nan or an infinity:
            ``"keep"``, ``"skip"`` or ``"raise"``, as of ``DistributedDataParallel``. That of the outermost wrapper
            counts.

    Raises:
        NotImplementedError: an option that is not here.
        ValueError: the module is sharded already, or is a container without a forward; an unknown ``nonfinite``.
        CollectiveMismatch: the ranks' modules differ in structure.
        AnomalyError: from backward on all ranks, see ``nonfinite``.
        PeerFailed: from backward: another rank has raised in this step, which is like the last one.
    """

    def __init__(
        self,
        module: Module,
        process_group: Any = None,
        sharding_strategy: ShardingStrategy | None = None,
        cpu_offload: CPUOffload | None = None,
        auto_wrap_policy: Any = None,
        backward_prefetch: BackwardPrefetch | None = BackwardPrefetch.BACKWARD_PRE,
        mixed_precision: MixedPrecision | None = None,
        ignored_modules: Iterable[Module] | None = None,
        param_init_fn: Any = None,
        device_id: Any = None,
        sync_module_states: bool = False,
        forward_prefetch: bool = False,
        limit_all_gathers: bool = True,
        use_orig_params: bool = False,
        ignored_states: Iterable[Any] | None = None,
        device_mesh: Any = None,
        *,
        nonfinite: str = "keep",
    ) -> None:
        super().__init__()
        if sharding_strategy not in (None, ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
            _refuse(
                "FullyShardedDataParallel", str(sharding_strategy),
                "use FULL_SHARD or SHARD_GRAD_OP, or DistributedDataParallel, which shards nothing",
            )  # fmt: skip
        _check_types("FullyShardedDataParallel(mixed_precision)", mixed_precision)
        if param_init_fn is not None:
            _refuse("FullyShardedDataParallel", "param_init_fn", "initialise the module before it is wrapped")
        if process_group is not None and device_mesh is not None:
            raise ValueError("give the ranks by process_group or by device_mesh, not by both")
        given = [*(ignored_modules or ()), *(ignored_states or ())]
        apart = {m for g in given if isinstance(g, Module) for m in g.modules()}
        ignored = {id(g) for g in given if isinstance(g, Tensor)} | {
            id(p) for m in apart for p in m.parameters()
        }
        comm = communicator_of(data_parallel_group(device_mesh, _HYBRID) or process_group)
        keep = sharding_strategy is ShardingStrategy.SHARD_GRAD_OP
        if auto_wrap_policy is not None:
            options = {
                "process_group": comm,
                "sharding_strategy": sharding_strategy,
                "backward_prefetch": backward_prefetch,
                "ignored_states": given,
                "nonfinite": nonfinite,
            }
            chosen = wrap.choose(module, auto_wrap_policy, apart)
            made: dict[Module, Module] = {}
            for inner, own in chosen.items():
                made[inner] = FullyShardedDataParallel(inner, **{**options, **own})
                for around in list(module.modules()):
                    if around is not made[inner]:
                        for name, child in list(around._modules.items()):
                            if child is inner:
                                around._modules[name] = made[inner]
        self._fsdp_wrapped_module = module
        unit = _shard(module, comm, keep, ignored, nonfinite)
        unit.prefetch = backward_prefetch is not None

    @property
    def module(self) -> Module:
        """The model inside."""
        inner = self._modules["_fsdp_wrapped_module"]
        assert inner is not None
        return inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; the backward of what it returns will average the gradients."""
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_fsdp_wrapped_module" or "_modules" not in self.__dict__:
                raise
            return getattr(self.module, name)

    def __getitem__(self, key: Any) -> Any:
        return self.module[key]  # type: ignore[index]

    def __deepcopy__(self, memo: dict[int, Any]) -> FullyShardedDataParallel:
        raise TypeError(
            "a FullyShardedDataParallel belongs to the ranks that made it together and cannot be copied by one; copy "
            "the module before it is wrapped, or load its state_dict() into another"
        )

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """As :meth:`.Module.named_modules`; the wrapper adds nothing to names."""
        memo = set() if memo is None else memo
        if remove_duplicate and self in memo:
            return
        memo.add(self)
        yield prefix, self
        yield from self.module.named_modules(memo, prefix, remove_duplicate)

    def _unwrapped(self) -> Module:
        return self.module._unwrapped()

    def apply(self: Any, fn: Any) -> Any:
        """As :meth:`.Module.apply`, with whole parameters."""
        with FullyShardedDataParallel.summon_full_params(self):
            self.module.apply(fn)
            fn(self)
        return self

    def state_dict(
        self,
        *args: Any,
        destination: dict[str, Tensor] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Tensor]:
        """Return the state of the module, with the names that it has without wrappers. All ranks call it.

        :meth:`state_dict_type` says whether it holds whole parameters (the default), and on which ranks.
        """
        return self.module.state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """As :meth:`.Module.load_state_dict`; every rank takes its part of whole parameters.

        Raises:
            NotImplementedError: ``assign``.
        """
        if assign:
            _refuse("load_state_dict", "assign=True", "sharded parameters keep their memory; leave it out")
        return self.module.load_state_dict(state_dict, strict)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only accumulate on each rank in the backwards of forwards inside; the next one outside averages the sum.

        Until then every rank holds whole gradients.
        """
        units = units_of(self)
        before = [unit.synchronize for unit in units]
        for unit in units:
            unit.synchronize = False
        try:
            yield
        finally:
            for unit, value in zip(units, before, strict=True):
                unit.synchronize = value

    register_comm_hook = missing.refused(
        "FullyShardedDataParallel.register_comm_hook",
        "gradients are summed part by part; DistributedDataParallel takes communication hooks",
    )

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip the gradients by their norm over all ranks: :func:`.clip_grad_norm_`. All ranks call it."""
        return clip_grad_norm_(self.parameters(), max_norm, norm_type)

    @staticmethod
    def fsdp_modules(module: Module, root_only: bool = False) -> list[FullyShardedDataParallel]:
        """Return the wrappers in ``module``, itself included; with ``root_only`` those that are in no other."""
        found = [m for m in module.modules() if isinstance(m, FullyShardedDataParallel)]
        inner = {m for f in found for m in f.module.modules()}
        return [f for f in found if not (root_only and f in inner)]

    @staticmethod
    @contextmanager
    def summon_full_params(
        module: Module,
        recurse: bool = True,
        writeback: bool = True,
        rank0_only: bool = False,
        offload_to_cpu: bool = False,
        with_grads: bool = False,
    ) -> Iterator[None]:
        """Let parameters be whole in a ``with`` block. All ranks enter it, outside of forward and backward.

        Args:
            module: whose parameters.
            recurse: those of wrapped modules inside, too.
            writeback: keep what the block changes: of each parameter this rank's part.
            rank0_only: accepted without ``writeback``; they are whole on all ranks.
            offload_to_cpu: accepted as PyTorch's.
            with_grads: let the gradients be whole too.

        Raises:
            NotImplementedError: ``rank0_only`` with ``writeback``, as in PyTorch.
        """
        if rank0_only and writeback:
            raise NotImplementedError(
                "summon_full_params(rank0_only=True, writeback=True) would leave the other ranks' parts as they are; "
                "give writeback=False"
            )
        units = units_of(module)
        if not recurse:
            units = units[:1]
        params = [p for unit in units for flat in unit.flats for p in flat.params]
        grads = {p: p._grad for p in params if with_grads and p._grad is not None}
        for unit in units:
            unit.hold()
        for p, g in grads.items():
            p._grad = Tensor._of(p._shard.gather(g._array))
        try:
            yield
        finally:
            for p, g in grads.items():
                if writeback and p._grad is not None:
                    g._array[...] = p._shard.part(p._grad._array)
                p._grad = g
            for unit in units:
                unit.release(False, writeback)

    # ------------------------------------------------------------------------------------- state dicts

    @staticmethod
    def set_state_dict_type(
        module: Module,
        state_dict_type: StateDictType,
        state_dict_config: StateDictConfig | None = None,
        optim_state_dict_config: OptimStateDictConfig | None = None,
    ) -> StateDictSettings:
        """Say what the state dicts of the wrapped modules in ``module`` hold; return what was said before.

        Raises:
            RuntimeError: a configuration of another kind of state dict.
        """
        before = FullyShardedDataParallel.get_state_dict_type(module)
        for m in module.modules():
            if "_unit" in m.__dict__:
                m.__dict__["_settings"] = StateDictSettings(
                    state_dict_type, state_dict_config, optim_state_dict_config
                )
        return before

    @staticmethod
    def get_state_dict_type(module: Module) -> StateDictSettings:
        """Return what :meth:`set_state_dict_type` has said of the wrapped modules in ``module``."""
        return sharded_states.settings_of(module)

    @staticmethod
    @contextmanager
    def state_dict_type(
        module: Module,
        state_dict_type: StateDictType,
        state_dict_config: StateDictConfig | None = None,
        optim_state_dict_config: OptimStateDictConfig | None = None,
    ) -> Iterator[None]:
        """:meth:`set_state_dict_type` for a ``with`` block."""
        before = FullyShardedDataParallel.set_state_dict_type(
            module, state_dict_type, state_dict_config, optim_state_dict_config
        )
        try:
            yield
        finally:
            FullyShardedDataParallel.set_state_dict_type(
                module, before.state_dict_type, before.state_dict_config, before.optim_state_dict_config
            )

    @staticmethod
    def full_optim_state_dict(
        model: Module, optim: Optimizer, optim_input: Any = None, rank0_only: bool = True, group: Any = None
    ) -> dict[str, Any]:
        """:meth:`optim_state_dict` with ``FULL_STATE_DICT``, by its old name."""
        with FullyShardedDataParallel.state_dict_type(
            model, StateDictType.FULL_STATE_DICT, None, FullOptimStateDictConfig(rank0_only=rank0_only)
        ):
            return sharded_states.optim_state_dict(model, optim)

    optim_state_dict = staticmethod(sharded_states.optim_state_dict)
    optim_state_dict_to_load = staticmethod(sharded_states.optim_state_dict_to_load)
    rekey_optim_state_dict = staticmethod(sharded_states.rekey_optim_state_dict)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
