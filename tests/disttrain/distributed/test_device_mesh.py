"""Ranks laid out as an array: coordinates, groups, parts, and training over one dimension."""

import pytest

import disttrain as dt
import disttrain.distributed as dist
from disttrain import nn
from disttrain.distributed.fsdp import FullyShardedDataParallel, fully_shard
from disttrain.nn.parallel import DistributedDataParallel


def test_each_rank_has_a_place_and_a_group_along_each_dimension(world):
    def body(rank):
        mesh = dist.init_device_mesh("cpu", (2, 3), mesh_dim_names=("replica", "shard"))
        total = dt.tensor([rank])
        dist.all_reduce(total, group=mesh.get_group("shard"))
        assert mesh.mesh.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert (mesh.ndim, mesh.shape, mesh.size(), mesh.size(1)) == (2, (2, 3), 6, 3)
        assert mesh.device_type == "cpu"
        assert repr(mesh) == "DeviceMesh((replica=2, shard=3), 'cpu')"
        assert mesh.get_rank() == rank
        return (
            mesh.get_coordinate(),
            [dist.get_process_group_ranks(g) for g in mesh.get_all_groups()],
            [mesh.get_local_rank("replica"), mesh.get_local_rank(1)],
            total.item(),
        )

    assert world(body, 6) == [
        ((r, c), [[c, c + 3], [3 * r, 3 * r + 1, 3 * r + 2]], [r, c], 9 * r + 3)
        for r in range(2)
        for c in range(3)
    ]


def test_parts_of_a_mesh_share_its_groups(world):
    def body(rank):
        mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        turned = mesh["b", "a"]
        assert turned.get_group("a") is mesh.get_group("a") is mesh["a"].get_group()
        assert turned.mesh.tolist() == [[0, 2], [1, 3]]
        assert turned["a"] == mesh["a"]
        assert hash(turned["a"]) == hash(mesh["a"])
        assert mesh["a"] != mesh["b"]
        return mesh["a"].mesh.tolist(), mesh["b"].mesh.tolist(), mesh["a"].get_coordinate()

    assert world(body, 4) == [([r % 2, r % 2 + 2], [r - r % 2, r - r % 2 + 1], (r // 2,)) for r in range(4)]


def test_a_mesh_of_all_ranks_is_the_world_and_others_may_stay_out(world):
    def body(rank):
        assert dist.init_device_mesh("cpu", (3,)).get_group() is dist.group.WORLD
        pair = dist.DeviceMesh("cpu", [2, 0])
        if rank == 1:
            with pytest.raises(RuntimeError, match=r"rank 1 is not in the mesh of ranks \[2, 0\]"):
                pair.get_group()
        else:
            assert dist.get_process_group_ranks(pair.get_group()) == [0, 2]
        return pair.get_coordinate()

    assert world(body, 3) == [(1,), None, (0,)]


def data_parallel(model, mesh):
    return DistributedDataParallel(model, device_mesh=mesh)


def sharded(model, mesh):
    return FullyShardedDataParallel(model, device_mesh=mesh)


def sharded_in_place(model, mesh):
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("wrap", [data_parallel, sharded, sharded_in_place])
def test_gradients_are_averaged_along_one_dimension(world, wrap):
    def body(rank):
        mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("apart", "together"))
        dt.manual_seed(0)
        model = wrap(nn.Linear(1, 1, bias=False), mesh["together"])
        before = next(iter(model.state_dict().values())).item()
        optimizer = dt.optim.SGD(model.parameters(), lr=1.0)
        model(dt.full((1, 1), float(rank))).sum().backward()
        optimizer.step()
        return round(before - next(iter(model.state_dict().values())).item(), 5)

    assert world(body, 4) == [0.5, 0.5, 2.5, 2.5]


def test_what_is_refused(world):
    def body(rank):
        mesh = dist.init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b"))
        model = nn.Linear(1, 1)
        shown = r"DeviceMesh\(\(a=2, b=1\), 'cpu'\) has 2 dimensions.*mesh\['NAME'\]"
        with pytest.raises(NotImplementedError, match=shown):
            DistributedDataParallel(model, device_mesh=mesh)
        with pytest.raises(NotImplementedError, match="several groups of ranks hold alike"):
            fully_shard(model, mesh=mesh)
        with pytest.raises(RuntimeError, match="by process_group or by device_mesh, not by both"):
            DistributedDataParallel(model, process_group=dist.group.WORLD, device_mesh=mesh["a"])
        with pytest.raises(ValueError, match="by process_group or by device_mesh, not by both"):
            FullyShardedDataParallel(model, process_group=dist.group.WORLD, device_mesh=mesh["a"])
        with pytest.raises(RuntimeError, match="has 2 dimensions; say which one"):
            mesh.get_group()
        with pytest.raises(KeyError, match="none is called 'c'"):
            mesh.get_group("c")
        with pytest.raises(RuntimeError, match="give mesh_dim_names"):
            dist.init_device_mesh("cpu", (2,))["a"]
        with pytest.raises(RuntimeError, match="must be without a number, 'cpu' or 'cuda', got 'cuda:0'"):
            dist.init_device_mesh("cuda:0", (2,))
        with pytest.raises(RuntimeError, match=r"of 0 to 1, got \[0, 1, 2\]; start more .* launch -n 3`"):
            dist.init_device_mesh("cpu", (3,))
        with pytest.raises(RuntimeError, match="must be 2 different names"):
            dist.init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "a"))
        with pytest.raises(RuntimeError, match=r"positive number for each dimension, got \(2, 0\)"):
            dist.init_device_mesh("cpu", (2, 0))
        with pytest.raises(NotImplementedError, match="--transport"):
            dist.init_device_mesh("cpu", (2,), backend_override={0: "gloo"})

    world(body, 2)
