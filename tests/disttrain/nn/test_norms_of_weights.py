"""Weight and spectral normalisation and parametrizations against PyTorch."""

from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
rng = np.random.default_rng(0)
X = rng.standard_normal((4, 5)).astype(np.float32)


def copy_state(ours: Any, theirs: Any) -> None:
    """Give our module PyTorch's values; the names must agree."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({k: dt.from_numpy(v.numpy().copy()) for k, v in theirs.state_dict().items()})


def compare(ours: Any, theirs: Any, x: Any = X) -> None:
    """Compare two steps: outputs, gradients and the state afterwards."""
    for _ in range(2):
        a, b = ours(dt.from_numpy(x.copy())), theirs(torch.from_numpy(x.copy()))
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), 1e-4, 1e-5)
        (a * a).sum().backward()
        (b * b).sum().backward()
    for (n, p), (m, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert n == m
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-3, 1e-4, err_msg=n)
    for (n, p), q in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), 1e-4, 1e-5, err_msg=n)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None, -1])
def test_weight_norm_by_a_hook(dim):
    ours = nn.utils.weight_norm(nn.Linear(5, 3), dim=dim)
    theirs = torch.nn.utils.weight_norm(torch.nn.Linear(5, 3), dim=dim)
    copy_state(ours, theirs)

    compare(ours, theirs)

    nn.utils.remove_weight_norm(ours)
    torch.nn.utils.remove_weight_norm(theirs)
    ours.zero_grad()
    theirs.zero_grad()
    compare(ours, theirs)
    with pytest.raises(ValueError, match="has no weight_norm of 'weight'"):
        nn.utils.remove_weight_norm(ours)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_parameter_is_normalised_once():
    layer = nn.utils.weight_norm(nn.Linear(5, 3))
    with pytest.raises(RuntimeError, match="weight_norm: weight has been split so already"):
        nn.utils.weight_norm(layer)
    layer = nn.utils.spectral_norm(nn.Linear(5, 3))
    with pytest.raises(RuntimeError, match="spectral_norm: weight has been normalised so already"):
        nn.utils.spectral_norm(layer)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        nn.utils.spectral_norm(nn.Linear(5, 3), n_power_iterations=0)
    with pytest.warns(FutureWarning, match="is the old way"):
        nn.utils.weight_norm(nn.Linear(5, 3))


def test_spectral_norm_by_a_hook():
    ours, theirs = (
        nn.utils.spectral_norm(nn.Linear(5, 3)),
        torch.nn.utils.spectral_norm(torch.nn.Linear(5, 3)),
    )
    copy_state(ours, theirs)

    compare(ours, theirs)

    ours.eval(), theirs.eval()
    ours.zero_grad()
    theirs.zero_grad()
    compare(ours, theirs)
    for _ in range(100):
        ours.train()(dt.from_numpy(X))
    assert abs(np.linalg.svd(ours.weight.detach().numpy())[1][0] - 1) < 1e-4
    nn.utils.remove_spectral_norm(ours)
    assert [n for n, _ in ours.named_parameters()] == ["bias", "weight"]
    with pytest.raises(ValueError, match="has no spectral_norm of 'weight'"):
        nn.utils.remove_spectral_norm(ours)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_by_parametrization(dim):
    ours = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3), dim=dim)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3), dim=dim)
    copy_state(ours, theirs)

    compare(ours, theirs)


@pytest.mark.parametrize("dim", [None, 1])
def test_spectral_norm_by_parametrization(dim):
    ours = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3), dim=dim)
    theirs = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(5, 3), dim=dim)
    copy_state(ours, theirs)

    compare(ours, theirs)

    assert abs(np.linalg.svd(ours.weight.detach().numpy())[1][0] - 1) < 0.1
    with pytest.raises(ValueError, match="no parameter or buffer 'w' in Linear"):
        nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2), "w")


@pytest.fixture(params=["torch", "disttrain"])
def lib(request: Any) -> Any:
    """PyTorch and disttrain in turn: what holds for the one must hold for the other."""
    return dt if request.param == "disttrain" else torch


def test_parametrizations_in_a_row(lib):
    P = lib.nn.utils.parametrize

    class Double(lib.nn.Module):
        def forward(self, w):
            return 2 * w

        def right_inverse(self, w):
            return w / 2

    class Shift(lib.nn.Module):
        def forward(self, w):
            return w + 1

        def right_inverse(self, w):
            return w - 1

    layer = lib.nn.Linear(2, 3)
    before = layer.weight.detach().clone()
    parameter = layer.weight
    assert not P.is_parametrized(layer)

    assert P.register_parametrization(layer, "weight", Double()) is layer
    P.register_parametrization(layer, "weight", Shift())

    assert type(layer).__name__ == "ParametrizedLinear"
    assert isinstance(layer, lib.nn.Linear)
    assert P.is_parametrized(layer)
    assert P.is_parametrized(layer, "weight")
    assert not P.is_parametrized(layer, "bias")
    assert layer.parametrizations.weight.original is parameter
    assert lib.allclose(layer.weight, before + 1)  # only the first is undone when it is registered
    assert "parametrizations.weight.original" in layer.state_dict()
    layer.weight = lib.full((3, 2), 7.0)
    assert lib.allclose(layer.weight, lib.full((3, 2), 7.0))
    assert lib.allclose(layer.parametrizations.weight.original, lib.full((3, 2), 3.0))
    with P.cached():
        assert layer.weight is layer.weight
    assert layer.weight is not layer.weight
    layer(lib.ones(1, 2)).sum().backward()
    assert lib.allclose(parameter.grad, lib.full((3, 2), 2.0))
    assert P.remove_parametrizations(layer, "weight") is layer
    assert type(layer) is lib.nn.Linear
    assert layer.weight is parameter
    assert lib.allclose(layer.weight, lib.full((3, 2), 7.0))
    with pytest.raises(ValueError):
        P.remove_parametrizations(layer, "weight")
    with pytest.raises(ValueError):
        P.register_parametrization(layer, "nothing", Double())

    class Narrow(lib.nn.Module):
        def forward(self, w):
            return w[:, :1]

    with pytest.raises(ValueError):
        P.register_parametrization(layer, "weight", Narrow())
    P.register_parametrization(layer, "weight", Narrow(), unsafe=True)
    assert tuple(layer.weight.shape) == (3, 1)
    P.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert tuple(layer.weight.shape) == (3, 2)


def test_a_state_of_the_older_weight_norm_loads():
    torch_layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3))
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    old = {"bias": np.ones(3), "weight_g": np.full((3, 1), 2.0), "weight_v": rng.standard_normal((3, 5))}

    for lib, one in ((torch, torch_layer), (dt, layer)):
        one.load_state_dict({k: lib.tensor(v) for k, v in old.items()})

    np.testing.assert_allclose(layer.weight.detach().numpy(), torch_layer.weight.detach().numpy(), 1e-5)
    assert nn.utils.parametrize.type_before_parametrizations(layer) is nn.Linear
    assert nn.utils.parametrize.type_before_parametrizations(layer.parametrizations) is nn.ModuleDict
