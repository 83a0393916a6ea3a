"""Batch normalisation folded into the layer before it, and layers without first values."""

import pytest

import disttrain as dt


@pytest.fixture(params=["torch", "disttrain"])
def lib(request):
    """PyTorch and disttrain in turn: what holds for the one must hold for the other."""
    return pytest.importorskip(request.param, reason="PyTorch is the reference")


def pairs(nn):
    return [
        (nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), (3, 2, 5, 5), "fuse_conv_bn_eval", {}),
        (nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4, eps=0.1), (3, 2, 5), "fuse_conv_bn_eval", {}),
        (
            nn.ConvTranspose2d(2, 4, 3),
            nn.BatchNorm2d(4),
            (3, 2, 5, 5),
            "fuse_conv_bn_eval",
            {"transpose": True},
        ),
        (nn.Linear(2, 4), nn.BatchNorm1d(4), (3, 2), "fuse_linear_bn_eval", {}),
        (nn.Linear(2, 4, bias=False), nn.BatchNorm1d(4), (3, 2), "fuse_linear_bn_eval", {}),
    ]


@pytest.mark.parametrize("case", range(5))
def test_a_fused_layer_gives_what_both_give(lib, case):
    lib.manual_seed(0)
    layer, norm, shape, name, options = pairs(lib.nn)[case]
    for _ in range(3):
        norm(layer(lib.randn(*shape)))
    both = lib.nn.Sequential(layer, norm).eval()
    weight = layer.weight.clone()

    fused = getattr(lib.nn.utils.fusion, name)(layer, norm, **options)

    x = lib.randn(*shape)
    assert bool((fused(x) - both(x)).abs().max() < 1e-5)
    assert type(fused) is type(layer)
    assert isinstance(fused.bias, lib.nn.Parameter)
    assert fused.weight.requires_grad
    assert fused.bias.requires_grad is (layer.bias is not None)
    assert bool((layer.weight == weight).all())


def test_layers_that_cannot_be_fused(lib):
    fuse = lib.nn.utils.fusion
    layer, norm = lib.nn.Linear(2, 4).eval(), lib.nn.BatchNorm1d(4).eval()

    with pytest.raises(Exception, match=r"eval|fusing"):
        fuse.fuse_linear_bn_eval(layer, lib.nn.BatchNorm1d(4))
    with pytest.raises(Exception, match=r"eval|fusing"):
        fuse.fuse_conv_bn_eval(lib.nn.Conv1d(2, 4, 1), norm)
    with pytest.raises((ValueError, AssertionError)):
        fuse.fuse_linear_bn_eval(layer, lib.nn.BatchNorm1d(3).eval())


def test_skipped_first_values_use_up_no_random_numbers(lib):
    lib.manual_seed(0)
    want = lib.rand(3).tolist()
    lib.manual_seed(0)

    layer = lib.nn.utils.skip_init(lib.nn.Linear, 2, 3, bias=False)

    assert layer.weight.shape == (3, 2)
    assert layer.weight.requires_grad
    assert layer.bias is None
    assert lib.rand(3).tolist() == want
    for wrong in (lib.nn.ReLU, lib.ones, 3):
        with pytest.raises((RuntimeError, TypeError)):
            lib.nn.utils.skip_init(wrong)


def test_a_normalisation_without_scale_and_one_for_all_features():
    layer, norm = dt.nn.Linear(2, 4), dt.nn.BatchNorm1d(4, affine=False)
    norm(layer(dt.randn(9, 2)))
    x = dt.randn(3, 2)

    fused = dt.nn.utils.fuse_linear_bn_eval(layer.eval(), norm.eval())

    assert bool((fused(x) - norm(layer(x))).abs().max() < 1e-5)
    with pytest.raises(RuntimeError, match="has no running values"):
        dt.nn.utils.fuse_linear_bn_eval(layer, dt.nn.BatchNorm1d(4, track_running_stats=False).eval())
