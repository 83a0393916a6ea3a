"""The adaptive softmax against PyTorch."""

import numpy as np
import pytest

import disttrain as dt

rng = np.random.default_rng(0)
X = rng.standard_normal((6, 8))


@pytest.fixture(params=["torch", "disttrain"])
def lib(request):
    """PyTorch and disttrain in turn: what holds for the one must hold for the other."""
    return pytest.importorskip(request.param, reason="PyTorch is the reference")


def twins(**options):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(8, 12, [3, 6], div_value=2.0, dtype=torch.float64, **options)
    ours = dt.nn.AdaptiveLogSoftmaxWithLoss(8, 12, [3, 6], div_value=2.0, dtype=dt.float64, **options)
    ours.load_state_dict({k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    return torch, theirs, ours


@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("target", [[0, 11, 3, 5, 6, 2], [0, 1, 2, 0, 0, 1], [7, 8, 6, 11, 9, 6], 4])
def test_it_gives_what_torch_gives(target, head_bias):
    torch, theirs, ours = twins(head_bias=head_bias)
    seen = []
    for lib, layer in ((torch, theirs), (dt, ours)):
        x = lib.tensor(X if isinstance(target, list) else X[0], requires_grad=True)
        result = layer(x, lib.tensor(target))
        (result.loss + result.output.sin().sum()).backward()
        grads = [x.grad, *(p.grad for p in layer.parameters())]
        seen.append([*result, *grads])

    for a, b in zip(*seen, strict=True):
        assert (a is None) == (b is None)  # a tail that no target needs has no gradient
        if a is not None:
            np.testing.assert_allclose(b.detach().numpy(), a.detach().numpy(), 1e-10, 1e-12)
    assert repr(ours) == repr(theirs)


def test_all_log_probabilities_and_the_likeliest_class():
    torch, theirs, ours = twins()
    x = np.concatenate([X * 9, X * 0.1])

    np.testing.assert_allclose(
        ours.log_prob(dt.tensor(x)).detach().numpy(), theirs.log_prob(torch.tensor(x)).detach().numpy(), 1e-10
    )
    assert ours.predict(dt.tensor(x)).tolist() == theirs.predict(torch.tensor(x)).tolist()
    assert ours.cutoffs == [3, 6, 12]
    ours.reset_parameters()
    assert not bool((ours.head.weight == dt.tensor(theirs.head.weight.detach().numpy())).any())


@pytest.mark.parametrize("cutoffs", [[], [0, 3], [3, 3], [6, 3], [3, 12], [2.5]])
def test_cutoffs_that_do_not_rise_are_refused(lib, cutoffs):
    with pytest.raises(ValueError):
        lib.nn.AdaptiveLogSoftmaxWithLoss(16, 12, cutoffs)


@pytest.mark.parametrize("target", [[0] * 5, [[0]] * 6, [0, 0, 0, 0, 0, 12], [0, 0, 0, 0, 0, -1], [1.0] * 6])
def test_targets_that_do_not_fit_are_refused(lib, target):
    layer = lib.nn.AdaptiveLogSoftmaxWithLoss(16, 12, [3, 6])

    with pytest.raises(RuntimeError):
        layer(lib.ones(6, 16), lib.tensor(target))
