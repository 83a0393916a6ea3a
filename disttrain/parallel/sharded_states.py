"""The states of optimizers of sharded parameters: to whole ones, by the names of the parameters, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.parallel.sharding import units_of
from disttrain.parallel.sharding_options import OptimStateKeyType, StateDictSettings, StateDictType
from disttrain.parallel.spread import is_spread, part_of_state
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.nn.module import Module
    from disttrain.optim.optimizer import Optimizer


def settings_of(module: Module) -> StateDictSettings:
    """Return what was said of the states of the sharded modules in ``module``."""
    found = [m.__dict__["_settings"] for m in module.modules() if "_unit" in m.__dict__]
    return found[0] if found else StateDictSettings()


def optim_state_dict(
    model: Module, optim: Optimizer, optim_state_dict: dict[str, Any] | None = None, group: Any = None
) -> dict[str, Any]:
    """Return the optimizer's state by the names of the parameters, each as large as its parameter.

    All ranks call it. With ``SHARDED_STATE_DICT`` it holds the parts of this rank: see
    :meth:`.FullyShardedDataParallel.state_dict_type`.

    Args:
        model: that has the parameters.
        optim: whose state.
        optim_state_dict: what ``optim.state_dict()`` returned, if not what it returns now.
        group: accepted as PyTorch's.
    """
    given = optim.state_dict() if optim_state_dict is None else optim_state_dict
    settings = settings_of(model)
    gathers = settings.state_dict_type is StateDictType.FULL_STATE_DICT
    names = _names(model)
    params = [p for g in optim.param_groups for p in g["params"]]
    state: dict[str, Any] = {}
    for i, p in enumerate(params):
        if i in given["state"]:
            spread = p._shard if gathers else None
            state[_name_of(names, p)] = {
                k: Tensor._of(spread.gather(v._array)) if spread is not None and is_spread(v) else v
                for k, v in given["state"][i].items()
            }
    groups = [
        {**g, "params": [_name_of(names, params[i]) for i in g["params"]]} for g in given["param_groups"]
    ]
    if getattr(settings.optim_state_dict_config, "rank0_only", False) and _rank(model):
        return {}
    return {"state": state, "param_groups": groups}


def optim_state_dict_to_load(
    model: Module,
    optim: Optimizer,
    optim_state_dict: dict[str, Any],
    is_named_optimizer: bool = False,
    load_directly: bool = False,
    group: Any = None,
) -> dict[str, Any]:
    """Return what ``optim.load_state_dict()`` takes on this rank.

    Args:
        model: that has the parameters.
        optim: that will load it.
        optim_state_dict: what :func:`optim_state_dict` returned, or ``state_dict()`` of a plain optimizer with
            the same groups; the same on all ranks.
        is_named_optimizer: must be False.
        load_directly: load it, too.
        group: accepted as PyTorch's.

    Raises:
        ValueError: the groups differ in number or length.
        KeyError: a parameter is in no group.
    """
    if is_named_optimizer:
        raise NotImplementedError(
            "optim_state_dict_to_load: is_named_optimizer=True is not in disttrain; give an optimizer of "
            "disttrain.optim"
        )
    names = _names(model)
    params = [p for g in optim.param_groups for p in g["params"]]
    theirs = [len(g["params"]) for g in optim_state_dict["param_groups"]]
    ours = [len(g["params"]) for g in optim.param_groups]
    if theirs != ours:
        raise ValueError(f"the state has groups of {theirs} parameters, the optimizer of {ours}")
    keys = [key for g in optim_state_dict["param_groups"] for key in g["params"]]
    by_name = any(isinstance(key, str) for key in keys)
    state = {}
    for i, p in enumerate(params):
        found = optim_state_dict["state"].get(_name_of(names, p) if by_name else keys[i])
        if found is not None:
            state[i] = {k: part_of_state(p, v) for k, v in found.items()}
    groups, begin = [], 0
    of_name = {_name_of(names, p): i for i, p in enumerate(params)} if by_name else {}
    for n, g in zip(ours, optim_state_dict["param_groups"], strict=True):
        order = [of_name[key] for key in g["params"]] if by_name else list(range(begin, begin + n))
        if sorted(order) != list(range(begin, begin + n)):
            raise ValueError(
                f"the state has the parameters {g['params']} in a group where the optimizer has others"
            )
        groups.append({**g, "params": list(range(begin, begin + n))})
        begin += n
    made = {"state": state, "param_groups": groups}
    if load_directly:
        optim.load_state_dict(made)
    return made


def rekey_optim_state_dict(
    optim_state_dict: dict[str, Any],
    optim_state_key_type: OptimStateKeyType,
    model: Module,
    optim_input: Any = None,
    optim: Optimizer | None = None,
) -> dict[str, Any]:
    """Return a whole optimizer state with numbers for names, as a plain optimizer loads it, or the other way round.

    Args:
        optim_state_dict: the state.
        optim_state_key_type: what it shall have.
        model: whose parameters are meant, sharded or not.
        optim_input: accepted as PyTorch's.
        optim: whose order of parameters counts; the model's by default.
    """
    names = _names(model)
    params = (
        list(model.parameters()) if optim is None else [p for g in optim.param_groups for p in g["params"]]
    )
    by_number = {i: _name_of(names, p) for i, p in enumerate(params)}
    of: dict[Any, Any] = by_number
    if optim_state_key_type is OptimStateKeyType.PARAM_ID:
        of = {name: i for i, name in by_number.items()}
    return {
        "state": {of.get(k, k): v for k, v in optim_state_dict["state"].items()},
        "param_groups": [
            {**g, "params": [of.get(k, k) for k in g["params"]]} for g in optim_state_dict["param_groups"]
        ],
    }


def _names(model: Module) -> dict[int, str]:
    return {id(p): name for name, p in model.named_parameters()}


def _name_of(names: dict[int, str], p: Tensor) -> str:
    name = names.get(id(p))
    if name is None:
        raise KeyError(f"the optimizer has a parameter of shape {list(p.shape)} that the model has not")
    return name


def _rank(model: Module) -> int:
    units = units_of(model)
    return units[0].comm.rank if units else 0
