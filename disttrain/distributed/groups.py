"""The world and groups of ranks, by PyTorch's names."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from disttrain import collectives, context, devices
from disttrain.collectives.communicator import Communicator
from disttrain.collectives.env import current_env
from disttrain.collectives.errors import TransportUnavailable

default_pg_timeout: Final = timedelta(minutes=30)
"""How long a rank waits in a collective, unless the launcher's ``--timeout`` or the group says otherwise."""

NON_GROUP_MEMBER: Final = -100
"""What a rank gets for a group that it is not in; calls on it do nothing."""


class Backend(str):
    """A name of a backend, in lower case."""

    UNDEFINED = "undefined"
    GLOO = "gloo"
    NCCL = "nccl"
    MPI = "mpi"

    def __new__(cls, name: str) -> Backend:
        return super().__new__(cls, name.lower())


class ProcessGroup:
    """A group of ranks. ``communicator`` is what exchanges NumPy arrays between them."""

    def __init__(self, communicator: Communicator, description: str = "") -> None:
        self.communicator = communicator
        self.group_desc = description

    def rank(self) -> int:
        """Return the number of this rank within the group."""
        return self.communicator.rank

    def size(self) -> int:
        """Return the number of ranks."""
        return self.communicator.size

    def name(self) -> str:
        """Return the name of the transport that connects the ranks."""
        return self.communicator.transport

    def __repr__(self) -> str:
        return f"<ProcessGroup {self.group_desc or 'of'} ranks {list(self.communicator.ranks)}>"


class _HasWorld(type):
    @property
    def WORLD(cls) -> ProcessGroup:
        """The group of all ranks."""
        return world()


class GroupMember(metaclass=_HasWorld):
    """``WORLD``, the group of all ranks, and what a rank gets for a group that it is not in."""

    NON_GROUP_MEMBER = NON_GROUP_MEMBER


class group(metaclass=_HasWorld):  # PyTorch's name
    """``group.WORLD``: the group of all ranks."""


def world() -> ProcessGroup:
    """Return the group of all ranks, the same object at every call."""
    communicator = collectives.connect()
    known: ProcessGroup | None = context.current().world
    if known is None or known.communicator is not communicator:
        known = context.current().world = ProcessGroup(communicator, "world")
    return known


def communicator_of(group: Any) -> Communicator:
    """Return the communicator of a process group (``None``: the world), or the communicator itself.

    Raises:
        ValueError: this rank is not in the group.
        TypeError: something else.
    """
    if group is None:
        return collectives.connect()
    if isinstance(group, ProcessGroup):
        return group.communicator
    if isinstance(group, Communicator):
        return group
    if group == NON_GROUP_MEMBER:
        raise ValueError(f"rank {current_env().rank} is not in the group")
    raise TypeError(f"group must be a process group or None, got {type(group).__name__}")


def outside(group: Any) -> bool:
    """Return whether this rank is not in ``group``."""
    return not isinstance(group, (ProcessGroup, Communicator)) and group == NON_GROUP_MEMBER


def group_rank(
    group: Any, name: str, rank: int | None, in_group: int | None, default: int | None = None
) -> int:
    """Return the number within ``group`` of the rank that a caller named by its number in the world, or in the group.

    Args:
        name: how the argument is called, for errors.
        default: the rank in the world if neither is given.
    """
    if rank is not None and in_group is not None:
        raise ValueError(f"give {name} (number in the world) or group_{name} (number in the group), not both")
    if in_group is not None:
        get_global_rank(group, in_group)
        return in_group
    if rank is None:
        rank = default
    if rank is None:
        raise ValueError(f"{name} (number in the world) or group_{name} (number in the group) is needed")
    return get_group_rank(group, rank)


_BACKENDS = (None, "auto", "gloo", "shm", "mpi", "local", "nccl")


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: timedelta | None = None,
    world_size: int = -1,
    rank: int = -1,
    store: Any = None,
    group_name: str = "",
    pg_options: Any = None,
    device_id: Any = None,
) -> None:
    """Connect the ranks of the job. All that is needed to find them comes from the launcher.

    Args:
        backend: ``None``, ``"auto"`` and ``"gloo"`` take the transport that the launcher chose; ``"shm"``,
            ``"mpi"`` and ``"local"`` insist on that one, ``"nccl"`` on NCCL for arrays on GPUs (others have their own
            way).
        timeout: how long a rank waits in a collective; by default what the launcher says.
        world_size: if given, must be the number of ranks that the launcher started; so must ``rank``.

    Raises:
        ValueError: an unknown backend, or a world size or rank that is not the launcher's.
        TransportUnavailable: ranks are connected by another transport than the one insisted on.
    """
    backend = None if backend is None else Backend(backend)
    _check_backend(backend)
    env = current_env()
    if world_size not in (-1, env.world_size) or rank not in (-1, env.rank):
        raise ValueError(
            f"the launcher started rank {env.rank} of {env.world_size}, not rank {rank} of {world_size}; "
            f"start the script with `disttrain launch -n {max(world_size, 1)}`"
        )
    communicator = collectives.connect()
    if backend == "nccl" and communicator.size > 1:
        communicator.require_nccl()
    elif backend in ("shm", "mpi", "local") and communicator.transport != backend and communicator.size > 1:
        raise TransportUnavailable(
            f"the ranks are connected by {communicator.transport}, not by {backend}; "
            f"use `disttrain launch --transport {backend}`"
        )
    if timeout is not None:
        communicator.timeout = seconds(timeout)
    context.current().initialized = True


def _check_backend(backend: str | None) -> None:
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {_BACKENDS}, got {backend!r}")


def seconds(timeout: timedelta | float) -> float:
    """Return a time in seconds.

    Raises:
        ValueError: it is not positive.
    """
    length = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if length <= 0:
        raise ValueError(f"timeout must be positive, got {timeout}")
    return length


def destroy_process_group(group: ProcessGroup | None = None) -> None:
    """End the use of a group, on all its ranks; of the default group at the end of the script."""
    if group is None or group is context.current().world:
        context.current().initialized = False
    elif not outside(group):
        communicator_of(group).close()


def is_available() -> bool:
    """Return True: collectives are always there, in a world of one at least."""
    return True


def is_gloo_available() -> bool:
    """Return True: ``"gloo"`` takes whatever connects ranks on the CPU."""
    return True


def is_mpi_available() -> bool:
    """Return whether mpi4py is installed."""
    return importlib.util.find_spec("mpi4py") is not None


def is_nccl_available() -> bool:
    """Return whether a GPU can be used."""
    return devices.is_available()


def is_ucc_available() -> bool:
    """Return False."""
    return False


def is_xccl_available() -> bool:
    """Return False."""
    return False


def is_backend_available(backend: str) -> bool:
    """Return whether ranks can be connected by ``backend``."""
    here = {"gloo": True, "local": True, "mpi": is_mpi_available(), "nccl": is_nccl_available()}
    return here.get(backend.lower(), False)


def is_initialized() -> bool:
    """Return whether ``init_process_group`` has run on this rank."""
    return context.current().initialized


def is_torchelastic_launched() -> bool:
    """Return whether a launcher started this process."""
    return bool(current_env().run_id)


def get_rank(group: ProcessGroup | None = None) -> int:
    """Return the number of this rank in the group (the world by default), -1 outside of it."""
    if outside(group):
        return -1
    return current_env().rank if group is None else communicator_of(group).rank


def get_world_size(group: ProcessGroup | None = None) -> int:
    """Return the number of ranks of the group (the world by default), -1 outside of it."""
    if outside(group):
        return -1
    return current_env().world_size if group is None else communicator_of(group).size


def get_node_local_rank(fallback_rank: int | None = None) -> int:
    """Return the number of this rank on its node. ``fallback_rank`` has no use: it is always known."""
    return current_env().local_rank


def get_backend(group: ProcessGroup | None = None) -> Backend:
    """Return the name of the transport that connects the ranks."""
    return Backend(communicator_of(group).transport)


def get_default_backend_for_device(device: Any) -> str:
    """Return the backend that PyTorch would take: ``"nccl"`` for GPUs, else ``"gloo"``."""
    return Backend.NCCL if devices.device(device).type == "cuda" else Backend.GLOO


def get_process_group_ranks(group: ProcessGroup | None) -> list[int]:
    """Return the rank in the world of each rank of the group."""
    return list(communicator_of(group).ranks)


def get_global_rank(group: ProcessGroup | None, group_rank: int) -> int:
    """Return the number in the world of a rank of a group.

    Raises:
        ValueError: the group has no such rank.
    """
    ranks = communicator_of(group).ranks
    if not 0 <= group_rank < len(ranks):
        raise ValueError(f"the group has ranks 0 to {len(ranks) - 1}, got {group_rank}")
    return ranks[group_rank]


def get_group_rank(group: ProcessGroup | None, global_rank: int) -> int:
    """Return the number in a group of a rank of the world.

    Raises:
        ValueError: it is not in the group.
    """
    ranks = communicator_of(group).ranks
    if global_rank not in ranks:
        raise ValueError(
            f"rank {global_rank} of the world is not in the group, which has ranks {list(ranks)}"
        )
    return ranks.index(global_rank)


def new_group(
    ranks: Sequence[int] | None = None,
    timeout: timedelta | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    use_local_synchronization: bool = False,
    group_desc: str | None = None,
    device_id: Any = None,
    sort_ranks: bool = True,
) -> Any:
    """Return the group of ``ranks`` (all by default). All ranks of the world must call it.

    Args:
        sort_ranks: number the ranks of the group in ascending order, else as ``ranks`` has them.

    Returns:
        A :class:`ProcessGroup`, or ``GroupMember.NON_GROUP_MEMBER`` for ranks that are not in it.

    Raises:
        ValueError: a rank twice, or one that the world does not have.
        CollectiveMismatch: on all ranks alike, if they name other members.
        NotImplementedError: ``use_local_synchronization``.
    """
    if use_local_synchronization:
        raise NotImplementedError(
            "new_group(use_local_synchronization=True) is not in disttrain: let all ranks of the world call it"
        )
    members = list(range(get_world_size()) if ranks is None else ranks)
    options = {"timeout": timeout, "backend": backend, "group_desc": group_desc}
    return _split(None, [sorted(members) if sort_ranks else members], **options)[0]


def new_subgroups(
    group_size: int | None = None,
    group: ProcessGroup | None = None,
    timeout: timedelta | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
) -> tuple[Any, list[Any]]:
    """Cut the ranks of ``group`` into groups of ``group_size`` (by default: the ranks of a node) neighbours.

    All ranks of the world must call it.

    Returns:
        The group of this rank, and all of them, with ``GroupMember.NON_GROUP_MEMBER`` for those of others.

    Raises:
        ValueError: ``group_size`` does not divide the number of ranks.
    """
    ranks = get_process_group_ranks(group)
    size = current_env().local_world_size if group_size is None else group_size
    if not 1 <= size <= len(ranks) or len(ranks) % size:
        raise ValueError(f"group_size must divide the number of ranks, {len(ranks)}, got {size}")
    cut = [ranks[i : i + size] for i in range(0, len(ranks), size)]
    return new_subgroups_by_enumeration(cut, timeout, backend, pg_options, group_desc)


def new_subgroups_by_enumeration(
    ranks_per_subgroup_list: Sequence[Sequence[int]],
    timeout: timedelta | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
) -> tuple[Any, list[Any]]:
    """Make several groups that have no rank in common. All ranks of the world must call it.

    Returns:
        The group of this rank (``None`` if it is in none), and all of them, with ``GroupMember.NON_GROUP_MEMBER`` for
        those of others.

    Raises:
        ValueError: no group, or a rank in two of them.
    """
    options = {"timeout": timeout, "backend": backend, "group_desc": group_desc}
    made = _split(None, [sorted(ranks) for ranks in ranks_per_subgroup_list], **options)
    return next((g for g in made if not outside(g)), None), made


def split_group(
    parent_pg: ProcessGroup | None = None,
    split_ranks: Sequence[Sequence[int]] | None = None,
    timeout: timedelta | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
    backend: str | None = None,
) -> ProcessGroup | None:
    """Split ``parent_pg`` into groups that have no rank in common. All its ranks must call it.

    Args:
        split_ranks: the ranks of each, by their numbers in ``parent_pg``.

    Returns:
        The group of this rank; ``None`` if it is in none.
    """
    options = {"timeout": timeout, "backend": backend, "group_desc": group_desc}
    made = _split(parent_pg, split_ranks or [], **options)
    return next((g for g in made if not outside(g)), None)


def _split(
    parent: ProcessGroup | None,
    groups: Sequence[Sequence[int]],
    *,
    timeout: Any,
    backend: Any,
    group_desc: Any,
) -> list[Any]:
    """Return a group for each list of ranks of ``parent``, or ``NON_GROUP_MEMBER`` where this rank is not in it."""
    whole = communicator_of(parent)
    _check_backend(None if backend is None else Backend(backend))
    if backend not in (None, "auto", "gloo", whole.transport):
        raise TransportUnavailable(f"the ranks are connected by {whole.transport}, not by {backend}")
    all_of_them = [rank for ranks in groups for rank in ranks]
    twice = sorted({rank for rank in all_of_them if all_of_them.count(rank) > 1})
    if not groups or twice or not all(0 <= rank < whole.size for rank in all_of_them):
        what = f"rank {twice[0]} twice" if twice else f"{list(map(list, groups))}"
        raise ValueError(f"groups must have ranks 0 to {whole.size - 1}, each at most once, got {what}")
    made = whole.split_into(groups)
    if made is not None and timeout is not None:
        made.timeout = seconds(timeout)
    mine = NON_GROUP_MEMBER if made is None else ProcessGroup(made, group_desc or "")
    return [mine if whole.rank in ranks else NON_GROUP_MEMBER for ranks in groups]
