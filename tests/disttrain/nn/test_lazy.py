"""Layers that learn the size of their input from the first batch, against PyTorch's."""

import copy
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.nn.lazy import LazyModuleMixin
from disttrain.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

rng = np.random.default_rng(8)
X, LINES, IMAGES = (rng.standard_normal(s) for s in ((3, 4), (3, 4, 9), (2, 4, 6, 5)))
VOLUMES = rng.standard_normal((2, 4, 3, 5, 4))

# (layer, arguments, options, input)
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("LazyLinear", (3,), {}, X),
    ("LazyLinear", (3,), {"bias": False}, LINES),
    ("LazyConv1d", (4, 3, 2), {"groups": 2, "padding_mode": "circular", "padding": 1}, LINES),
    ("LazyConv2d", (4, (3, 2)), {"padding": (1, 0), "bias": False}, IMAGES),
    ("LazyConv2d", (4, 3), {}, IMAGES[0]),
    ("LazyConv3d", (2, 2), {"dilation": 2}, VOLUMES),
    ("LazyConvTranspose1d", (6, 3, 2, 1, 1), {"groups": 2}, LINES),
    ("LazyConvTranspose2d", (4, 3), {"bias": False}, IMAGES),
    ("LazyConvTranspose3d", (2, 2), {}, VOLUMES[0]),
    ("LazyBatchNorm1d", (), {}, X),
    ("LazyBatchNorm2d", (1e-3, None), {"bias": False}, IMAGES),
    ("LazyBatchNorm3d", (), {"affine": False}, VOLUMES),
    ("LazyInstanceNorm1d", (), {}, LINES),
    ("LazyInstanceNorm2d", (), {"track_running_stats": False}, IMAGES),
    ("LazyInstanceNorm3d", (1e-3, 0.2, False), {}, VOLUMES),
]


def layer(lib: Any, case: Any) -> Any:
    name, args, options, _ = case
    return getattr(lib.nn, name)(*args, **options, dtype=lib.float64)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def test_a_lazy_layer_becomes_the_layer_that_fits_its_first_input(case: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    theirs, ours = layer(torch, case), layer(dt, case)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [type(v).__name__ for v in ours.state_dict().values()] == [
        type(v).__name__ for v in theirs.state_dict().values()
    ]
    kept = dict(ours.named_parameters())

    ours(dt.tensor(case[3])), theirs(torch.tensor(case[3]))

    assert type(ours).__name__ == type(theirs).__name__ == case[0].removeprefix("Lazy")
    assert repr(ours) == repr(theirs)
    assert not vars(ours)["_pre_hooks"]
    for name, p in ours.named_parameters():
        assert p is kept[name]
        assert type(p) is nn.Parameter
        assert p.dtype is dt.float64
    ours.load_state_dict({k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    x, t = dt.tensor(case[3]).requires_grad_(), torch.tensor(case[3]).requires_grad_()
    y, want = ours(x), theirs(t)
    np.testing.assert_allclose(y.detach().numpy(), want.detach().numpy(), 1e-11, 1e-11)
    y.square().sum().backward(), want.square().sum().backward()
    for a, b in zip([x, *ours.parameters()], [t, *theirs.parameters()], strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), 1e-9, 1e-9)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), 1e-11, 1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def test_a_lazy_layer_takes_the_shapes_of_a_state(case: Any) -> None:
    made, fresh, x = layer(dt, case), layer(dt, case), dt.tensor(case[3])
    made(x)

    keys = fresh.load_state_dict(made.state_dict())

    assert not keys.missing_keys
    assert not fresh.has_uninitialized_params()
    assert type(fresh).__name__ == case[0]
    fresh.eval(), made.eval()
    np.testing.assert_array_equal(fresh(x).detach().numpy(), made(x).detach().numpy())
    assert type(fresh) is type(made)
    assert repr(fresh) == repr(made)


def test_parameters_draw_as_in_a_layer_that_is_not_lazy() -> None:
    dt.manual_seed(0)
    lazy = nn.LazyConv2d(4, 3)
    lazy(dt.tensor(IMAGES, dtype=dt.float32))
    dt.manual_seed(0)

    assert dt.equal(lazy.weight, nn.Conv2d(4, 4, 3).weight)


def test_a_state_without_shapes() -> None:
    lazy, other = nn.LazyLinear(3), nn.LazyLinear(3)

    assert other.load_state_dict(lazy.state_dict()) == ([], [])
    assert other.load_state_dict({}, strict=False).missing_keys == ["weight", "bias"]
    assert is_lazy(other.weight)
    with pytest.raises(RuntimeError, match="has no shape yet"):
        nn.Linear(4, 3).load_state_dict(lazy.state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        other.load_state_dict({"weight": dt.ones(3, 2)})


def test_an_uninitialized_parameter_refuses_what_needs_values() -> None:
    p = UninitializedParameter(dtype=dt.float64)

    assert (repr(p), p.dtype, p.requires_grad, p.is_leaf) == (
        "<UninitializedParameter>",
        dt.float64,
        True,
        True,
    )
    assert p.size() == (0,)
    for use in (
        lambda: p + 1,
        lambda: dt.empty_like(p),
        lambda: p.numel(),
        lambda: p.sum(),
        lambda: nn.init.zeros_(p),
        lambda: dt.ones(2).mul(p),
    ):
        with pytest.raises(ValueError, match="uninitialized parameter"):
            use()
    with pytest.raises(RuntimeError, match="has no shape yet"):
        p.shape
    with pytest.raises(RuntimeError, match="has no memory yet"):
        p.share_memory_()

    copied = copy.deepcopy(p)
    copied.materialize((2, 3), dtype=dt.float32)

    assert (type(copied), copied.shape, copied.dtype) == (nn.Parameter, (2, 3), dt.float32)
    assert is_lazy(p)
    buffer = UninitializedBuffer()
    buffer.materialize(4)
    assert (type(buffer), buffer.shape, buffer.requires_grad) == (dt.Tensor, (4,), False)


def test_conversion_before_the_first_call() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()).double()

    net(dt.tensor(IMAGES))

    assert {t.dtype for t in net.parameters()} == {dt.float64}
    assert net[1].running_mean.dtype is dt.float64


def test_copies_do_not_share_their_first_call() -> None:
    lazy = nn.LazyLinear(3)
    copied = copy.deepcopy(lazy)

    copied(dt.ones(1, 2))

    assert type(copied) is nn.Linear
    assert type(lazy) is nn.LazyLinear
    assert lazy.has_uninitialized_params()
    lazy(dt.ones(1, 5))
    assert lazy.weight.shape == (3, 5)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Rprop", "Adagrad"])
def test_an_optimizer_keeps_the_parameters_through_the_first_call(name: str) -> None:
    net = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(1))
    optimizer = getattr(dt.optim, name)(net.parameters(), lr=0.1)
    optimizer.step()
    assert is_lazy(optimizer.param_groups[0]["params"][0])

    net(dt.ones(2, 4)).sum().backward()
    before = net[2].bias.detach().clone()
    optimizer.step()

    assert optimizer.param_groups[0]["params"][0] is net[0].weight
    assert not dt.equal(net[2].bias, before)


def test_lazy_modules_of_ones_own() -> None:
    class Scale(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(dt.ones(size))

        def forward(self, x: dt.Tensor) -> dt.Tensor:
            return x * self.scale

    class LazyScale(LazyModuleMixin, Scale):
        cls_to_become = Scale

        def __init__(self) -> None:
            super().__init__(0)
            self.scale = UninitializedParameter()

        def initialize_parameters(self, x: dt.Tensor) -> None:
            if isinstance(self.scale, UninitializedParameter):
                self.scale.materialize(x.shape[-1])
                nn.init.constant_(self.scale, 2)

    class Forgets(LazyScale):
        def initialize_parameters(self, x: dt.Tensor) -> None:
            pass

    lazy = LazyScale()

    assert nn.modules.lazy.LazyModuleMixin is LazyModuleMixin
    assert lazy(dt.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert type(lazy) is Scale
    with pytest.raises(RuntimeError, match=r"Forgets: .* left without a shape scale"):
        Forgets()(dt.ones(3))
    with pytest.raises(NotImplementedError, match="initialize_parameters"):
        LazyModuleMixin()(dt.ones(3))


def test_errors_of_the_first_call() -> None:
    with pytest.raises(RuntimeError, match="4 dimensions, or 3 without a batch"):
        nn.LazyConv2d(4, 3)(dt.ones(2, 3))
    with pytest.raises(ValueError, match="groups=2 must divide the channels of input, got 3"):
        nn.LazyConv1d(4, 3, groups=2)(dt.ones(1, 3, 8))
    with pytest.raises(RuntimeError, match="uninitialized parameters"):
        nn.parallel.DistributedDataParallel(nn.LazyLinear(2))
