"""Options of sharding, as in ``torch.distributed.fsdp``: what is spread, and what states hold."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from disttrain import dtypes


class ShardingStrategy(enum.Enum):
    """What is spread over the ranks, and when: the first two are here."""

    FULL_SHARD = enum.auto()
    """Parameters, gradients and the optimizer's state; parameters are whole only while their module needs them."""
    SHARD_GRAD_OP = enum.auto()
    """The same, but parameters stay whole from forward to backward."""
    NO_SHARD = enum.auto()
    HYBRID_SHARD = enum.auto()
    _HYBRID_SHARD_ZERO2 = enum.auto()


class BackwardPrefetch(enum.Enum):
    """When backward lets the unit that it comes to next come: both mean as soon as it begins with a unit."""

    BACKWARD_PRE = enum.auto()
    BACKWARD_POST = enum.auto()


class StateDictType(enum.Enum):
    """What ``state_dict()`` of a sharded model holds."""

    FULL_STATE_DICT = enum.auto()
    """Whole parameters, as before sharding."""
    LOCAL_STATE_DICT = enum.auto()
    """As the next one."""
    SHARDED_STATE_DICT = enum.auto()
    """This rank's part of each parameter, on one axis: for as many ranks as have saved it."""


@dataclass
class MixedPrecision:
    """Types to compute and to sum in. They are those of the parameters here: all must be left out."""

    param_dtype: dtypes.dtype | None = None
    reduce_dtype: dtypes.dtype | None = None
    buffer_dtype: dtypes.dtype | None = None
    keep_low_precision_grads: bool = False
    cast_forward_inputs: bool = False
    cast_root_forward_inputs: bool = True


@dataclass(frozen=True)
class MixedPrecisionPolicy:
    """:class:`MixedPrecision` for :func:`fully_shard`."""

    param_dtype: dtypes.dtype | None = None
    reduce_dtype: dtypes.dtype | None = None
    output_dtype: dtypes.dtype | None = None
    cast_forward_inputs: bool = True


@dataclass
class CPUOffload:
    """Whether to keep parameters in host memory, where they are here in any case."""

    offload_params: bool = False


@dataclass
class OffloadPolicy:
    """Where :func:`fully_shard` keeps parameters: on their device."""


@dataclass
class CPUOffloadPolicy(OffloadPolicy):
    """In host memory, where they are here in any case."""

    pin_memory: bool = True


@dataclass
class StateDictConfig:
    """How a state dict is made. ``offload_to_cpu`` changes nothing: it is in host memory."""

    offload_to_cpu: bool = False


@dataclass
class FullStateDictConfig(StateDictConfig):
    """Of ``FULL_STATE_DICT``; with ``rank0_only`` the others' dict is empty."""

    rank0_only: bool = False


@dataclass
class LocalStateDictConfig(StateDictConfig):
    """Of ``LOCAL_STATE_DICT``."""


@dataclass
class ShardedStateDictConfig(StateDictConfig):
    """Of ``SHARDED_STATE_DICT``."""


@dataclass
class OptimStateDictConfig:
    """How an optimizer's state dict is made."""

    offload_to_cpu: bool = True


@dataclass
class FullOptimStateDictConfig(OptimStateDictConfig):
    """Of whole state; with ``rank0_only`` the others' dict is empty."""

    rank0_only: bool = False


@dataclass
class LocalOptimStateDictConfig(OptimStateDictConfig):
    """Of ``LOCAL_STATE_DICT``."""


@dataclass
class ShardedOptimStateDictConfig(OptimStateDictConfig):
    """Of this rank's part of the state."""


@dataclass
class StateDictSettings:
    """What :meth:`FullyShardedDataParallel.set_state_dict_type` has set."""

    state_dict_type: StateDictType = StateDictType.FULL_STATE_DICT
    state_dict_config: StateDictConfig | None = None
    optim_state_dict_config: OptimStateDictConfig | None = None

    def __post_init__(self) -> None:
        of_model, of_optimizer = _CONFIGS[self.state_dict_type]
        if self.state_dict_config is None:
            self.state_dict_config = of_model()
        if self.optim_state_dict_config is None:
            self.optim_state_dict_config = of_optimizer()
        for config, needed in (
            (self.state_dict_config, of_model),
            (self.optim_state_dict_config, of_optimizer),
        ):
            if not isinstance(config, needed):
                raise RuntimeError(
                    f"{self.state_dict_type.name} needs a {needed.__name__}, got {type(config).__name__}"
                )


_CONFIGS: Final[dict[StateDictType, tuple[type[StateDictConfig], type[OptimStateDictConfig]]]] = {
    StateDictType.FULL_STATE_DICT: (FullStateDictConfig, FullOptimStateDictConfig),
    StateDictType.LOCAL_STATE_DICT: (LocalStateDictConfig, LocalOptimStateDictConfig),
    StateDictType.SHARDED_STATE_DICT: (ShardedStateDictConfig, ShardedOptimStateDictConfig),
}


class OptimStateKeyType(enum.Enum):
    """How an optimizer's state dict names parameters."""

    PARAM_NAME = enum.auto()
    PARAM_ID = enum.auto()
