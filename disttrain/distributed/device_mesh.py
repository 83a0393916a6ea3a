"""Ranks laid out as an array, with a group along each of its dimensions: ``torch.distributed.device_mesh``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import missing
from disttrain.collectives.env import current_env
from disttrain.distributed.groups import (
    ProcessGroup,
    get_rank,
    get_world_size,
    new_subgroups_by_enumeration,
    world,
)
from disttrain.tensors import Tensor

__all__ = ["DeviceMesh", "init_device_mesh"]


def init_device_mesh(
    device_type: str,
    mesh_shape: Sequence[int],
    *,
    mesh_dim_names: Sequence[str] | None = None,
    backend_override: Any = None,
) -> DeviceMesh:
    """Lay the first ranks of the world out in row-major order. All ranks of the world must call it.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``, without a number.
        mesh_shape: how many ranks there are along each dimension.
        mesh_dim_names: of the dimensions.
        backend_override: must be None.

    Raises:
        RuntimeError: a device with a number, names that are not one for each dimension, or more places than ranks.
        NotImplementedError: ``backend_override``.
    """
    shape = tuple(mesh_shape)
    if not device_type.isalpha():
        raise RuntimeError(f"device_type must be without a number, 'cpu' or 'cuda', got {device_type!r}")
    if min(shape, default=0) < 1:
        raise RuntimeError(f"mesh_shape must have a positive number for each dimension, got {shape}")
    ranks = np.arange(math.prod(shape)).reshape(shape)
    return DeviceMesh(device_type, ranks, mesh_dim_names=mesh_dim_names, backend_override=backend_override)


class DeviceMesh:
    """Ranks laid out as an array: those that differ in one index only form a group.

    All ranks of the world must make it, also those that are not in it.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
        mesh: the ranks, an array of integers of any shape, or nested lists.
        mesh_dim_names: of the dimensions.
        backend_override: must be None.

    Raises:
        RuntimeError: names that are not one for each dimension; a rank that the world does not have, or one twice.
        NotImplementedError: ``backend_override``.
        CollectiveMismatch: the ranks make other meshes.
    """

    def __init__(
        self,
        device_type: str,
        mesh: Any,
        *,
        mesh_dim_names: Sequence[str] | None = None,
        backend_override: Any = None,
    ) -> None:
        if backend_override is not None:
            raise NotImplementedError(
                "DeviceMesh(backend_override=...) is not in disttrain: all groups go through the launcher's --transport"
            )
        ranks = np.asarray(mesh._array if isinstance(mesh, Tensor) else mesh)
        names = None if mesh_dim_names is None else tuple(mesh_dim_names)
        if names is not None and (len(names) != ranks.ndim or len(set(names)) < len(names)):
            raise RuntimeError(
                f"mesh_dim_names must be {ranks.ndim} different names, one for each dimension, got {names}"
            )
        if len(np.unique(ranks)) < ranks.size or not set(ranks.flat) <= set(range(get_world_size())):
            raise RuntimeError(
                f"a mesh has each rank once, of 0 to {get_world_size() - 1}, got {ranks.tolist()}; start more ranks "
                f"with `disttrain launch -n {ranks.size}`, or make the mesh smaller"
            )
        self._lay_out(device_type, ranks, names, [_group_along(ranks, axis) for axis in range(ranks.ndim)])

    def _lay_out(
        self,
        device_type: str,
        ranks: np.ndarray[Any, Any],
        names: tuple[str, ...] | None,
        groups: list[ProcessGroup | None],
    ) -> None:
        self.device_type = device_type
        self.mesh_dim_names = names
        self._ranks = ranks
        self._groups = groups
        """That of this rank along each dimension."""

    @property
    def mesh(self) -> Tensor:
        """The ranks, int32."""
        return Tensor._of(self._ranks.astype(np.int32))

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self._ranks.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of ranks along each dimension."""
        shape: tuple[int, ...] = self._ranks.shape
        return shape

    def size(self, mesh_dim: int | None = None) -> int:
        """Return the number of ranks, of all or along one dimension."""
        return self._ranks.size if mesh_dim is None else self._ranks.shape[mesh_dim]

    def get_rank(self) -> int:
        """Return the number of this rank in the world."""
        return current_env().rank

    def get_coordinate(self) -> tuple[int, ...] | None:
        """Return where this rank is, ``None`` if it is not in the mesh."""
        where = np.argwhere(self._ranks == self.get_rank())
        return tuple(where[0].tolist()) if len(where) else None

    def get_group(self, mesh_dim: int | str | None = None) -> ProcessGroup:
        """Return the group of the ranks along a dimension through this rank.

        Args:
            mesh_dim: its number or name; it may be left out if there is only one.

        Raises:
            RuntimeError: there are several and none is named, or this rank is not in the mesh.
            KeyError: there is no such name.
            IndexError: there is no such number.
        """
        group = self._groups[self._dim(mesh_dim)]
        if group is None:
            raise RuntimeError(f"rank {self.get_rank()} is not in the mesh of ranks {self._ranks.tolist()}")
        return group

    def get_all_groups(self) -> list[ProcessGroup]:
        """Return the groups through this rank, one for each dimension."""
        return [self.get_group(i) for i in range(self.ndim)]

    def get_local_rank(self, mesh_dim: int | str | None = None) -> int:
        """Return the number of this rank in :meth:`get_group`."""
        return get_rank(self.get_group(mesh_dim))

    def _dim(self, mesh_dim: int | str | None) -> int:
        if mesh_dim is None:
            if self.ndim > 1:
                raise RuntimeError(
                    f"the mesh has {self.ndim} dimensions; say which one: mesh_dim=0, or its name"
                )
            return 0
        if isinstance(mesh_dim, int):
            return mesh_dim
        if self.mesh_dim_names is None or mesh_dim not in self.mesh_dim_names:
            raise KeyError(f"the mesh has dimensions {self.mesh_dim_names}, none is called {mesh_dim!r}")
        return self.mesh_dim_names.index(mesh_dim)

    def __getitem__(self, mesh_dim_names: str | tuple[str, ...]) -> DeviceMesh:
        """Return the part of the mesh along the named dimensions through this rank; it makes no groups.

        Raises:
            RuntimeError: the dimensions have no names, or this rank is not in the mesh.
            KeyError: there is no such name.
        """
        if self.mesh_dim_names is None:
            raise RuntimeError("a mesh can be cut only if its dimensions have names; give mesh_dim_names")
        here = self.get_coordinate()
        if here is None:
            raise RuntimeError(f"rank {self.get_rank()} is not in the mesh of ranks {self._ranks.tolist()}")
        names = (mesh_dim_names,) if isinstance(mesh_dim_names, str) else tuple(mesh_dim_names)
        axes = [self._dim(name) for name in names]
        cut = self._ranks[tuple(slice(None) if i in axes else at for i, at in enumerate(here))]
        part = DeviceMesh.__new__(DeviceMesh)
        order = np.argsort(np.argsort(axes))  # what is left of the axes is in ascending order
        part._lay_out(self.device_type, cut.transpose(order), names, [self._groups[i] for i in axes])
        return part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceMesh) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.device_type, self.mesh_dim_names, self.shape, self._ranks.tobytes()

    def __repr__(self) -> str:
        names = self.mesh_dim_names or [""] * self.ndim
        shape = ", ".join(
            f"{name}={n}" if name else str(n) for name, n in zip(names, self.shape, strict=True)
        )
        return f"DeviceMesh(({shape}), {self.device_type!r})"


def data_parallel_group(mesh: Any, instead: str) -> Any:
    """Return the ranks that a wrapper given ``mesh`` averages over; what is no mesh is a group already.

    Raises:
        NotImplementedError: a mesh of several dimensions; the text says what to do ``instead``.
    """
    if not isinstance(mesh, DeviceMesh):
        return mesh
    if mesh.ndim != 1:
        raise NotImplementedError(
            f"{mesh} has {mesh.ndim} dimensions, and gradients are averaged over one; {instead}"
        )
    return mesh.get_group()


def _group_along(ranks: np.ndarray[Any, Any], axis: int) -> ProcessGroup | None:
    """Return this rank's group along an axis; None if it is in none."""
    lines = np.moveaxis(ranks, axis, -1).reshape(-1, ranks.shape[axis]).tolist()
    if lines == [list(range(get_world_size()))]:
        return world()
    mine: ProcessGroup | None = new_subgroups_by_enumeration(lines)[0]
    return mine


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
