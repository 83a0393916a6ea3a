"""Layers of lines, images and volumes against PyTorch: convolution, pooling, normalisation, padding, resizing."""

from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn

rng = np.random.default_rng(6)


def floats(*shape: int) -> Any:
    return rng.standard_normal(shape)


X = floats(4, 6)
LINES = floats(3, 4, 11)
IMAGES = floats(3, 4, 7, 6)
IMAGE = floats(4, 7, 6)
VOLUMES = floats(2, 4, 5, 6, 4)
BY_SIZE = {1: LINES, 2: IMAGES, 3: VOLUMES}


def places(count: int, *shape: int) -> Any:
    """Return different places for each channel."""
    each = int(np.prod(shape[2:]))
    return np.stack([rng.permutation(count)[:each] for _ in range(shape[0] * shape[1])]).reshape(shape)


Case = tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]

# name: [(arguments of the constructor, its options, inputs)]
CASES: dict[str, list[Case]] = {
    "Conv1d": [
        ((4, 6, 3), {}, (LINES,)),
        ((4, 6, 3), {"stride": 2, "padding": 1, "groups": 2, "bias": False}, (LINES,)),
        ((4, 2, 4), {"padding": "same", "padding_mode": "circular"}, (LINES[0],)),
    ],
    "Conv2d": [
        ((4, 6, 3), {}, (IMAGES,)),
        ((4, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "bias": False}, (IMAGES,)),
        ((4, 6, 3), {"padding": "same", "dilation": 2, "groups": 2}, (IMAGES,)),
        ((4, 6, (2, 4)), {"padding": "same"}, (IMAGES,)),
        ((4, 8, 3), {"padding": "valid", "groups": 4}, (IMAGES,)),
        ((4, 6, 3), {"padding": 1}, (IMAGE,)),
        *(
            ((4, 6, 3), {"padding": (2, 1), "padding_mode": mode}, (IMAGES,))
            for mode in ("reflect", "replicate", "circular")
        ),
        ((4, 6, 3), {"padding": "valid", "padding_mode": "reflect"}, (IMAGES,)),
    ],
    "Conv3d": [
        ((4, 6, 3), {}, (VOLUMES,)),
        ((4, 4, (3, 2, 1)), {"stride": (2, 1, 1), "padding": (1, 0, 2), "groups": 2}, (VOLUMES,)),
        ((4, 2, 2), {"padding": "same", "padding_mode": "replicate"}, (VOLUMES[0],)),
    ],
    "ConvTranspose1d": [
        ((4, 6, 3), {}, (LINES,)),
        ((4, 6, 3, 2, 1, 1), {"groups": 2, "dilation": 2}, (LINES,)),
    ],
    "ConvTranspose2d": [
        ((4, 6, 3), {}, (IMAGES,)),
        ((4, 6, (3, 2)), {"stride": 2, "padding": 1, "output_padding": (1, 0), "bias": False}, (IMAGE,)),
    ],
    "ConvTranspose3d": [((4, 2, 3), {"stride": (1, 2, 2), "output_padding": (0, 1, 0)}, (VOLUMES,))],
    "MaxPool1d": [((2,), {}, (LINES,)), ((3, 2, 1), {"return_indices": True}, (LINES,))],
    "MaxPool2d": [
        ((2,), {}, (IMAGES,)),
        ((3,), {"stride": 2, "padding": 1, "return_indices": True}, (IMAGES,)),
        (((2, 3),), {"dilation": (1, 2), "ceil_mode": True, "stride": 2}, (IMAGES,)),
        ((2,), {}, (IMAGE,)),
    ],
    "MaxPool3d": [((2,), {}, (VOLUMES,)), ((3, 2, 1), {"ceil_mode": True}, (VOLUMES,))],
    "MaxUnpool1d": [((2,), {}, (LINES, places(22, *LINES.shape)))],
    "MaxUnpool2d": [(((2, 3), (2, 1)), {}, (IMAGES, places(14 * 8, *IMAGES.shape)))],
    "MaxUnpool3d": [((2,), {}, (VOLUMES, places(10 * 12 * 8, *VOLUMES.shape)))],
    "AvgPool1d": [((2,), {}, (LINES,)), ((3, 2, 1), {"count_include_pad": False}, (LINES,))],
    "AvgPool2d": [
        ((2,), {}, (IMAGES,)),
        ((3,), {"stride": 2, "padding": 1, "count_include_pad": False}, (IMAGES,)),
        (((2, 3), (2, 2)), {"ceil_mode": True, "divisor_override": 5}, (IMAGE,)),
    ],
    "AvgPool3d": [((2,), {}, (VOLUMES,)), ((3, 2, 1), {"ceil_mode": True}, (VOLUMES,))],
    "LPPool1d": [((2, 3), {"stride": 2}, (LINES,))],
    "LPPool2d": [((2, 3), {}, (IMAGES,)), ((3.0, (2, 3)), {"ceil_mode": True}, (np.abs(IMAGES),))],
    "LPPool3d": [((2, 2), {}, (VOLUMES,))],
    "AdaptiveAvgPool1d": [((3,), {}, (LINES,))],
    "AdaptiveAvgPool2d": [
        ((1,), {}, (IMAGES,)),
        (((3, None),), {}, (IMAGES,)),
        (((2, 3),), {}, (IMAGE,)),
    ],
    "AdaptiveAvgPool3d": [(((3, None, 2),), {}, (VOLUMES,))],
    "AdaptiveMaxPool1d": [((3,), {"return_indices": True}, (LINES,))],
    "AdaptiveMaxPool2d": [((3,), {}, (IMAGES,)), (((2, None),), {"return_indices": True}, (IMAGE,))],
    "AdaptiveMaxPool3d": [(((2, 3, 3),), {"return_indices": True}, (VOLUMES,))],
    "FractionalMaxPool2d": [
        ((2,), {"output_size": (3, 4), "_random_samples": rng.random((3, 4, 2))}, (IMAGES,)),
        (((2, 1),), {"output_ratio": 0.5, "_random_samples": rng.random((3, 4, 2))}, (IMAGES,)),
    ],
    "FractionalMaxPool3d": [
        ((2,), {"output_size": (3, 4, 2), "_random_samples": rng.random((2, 4, 3))}, (VOLUMES,)),
    ],
    "BatchNorm1d": [
        ((6,), {}, (X,)),
        ((4,), {"momentum": None}, (floats(3, 4, 5),)),
        ((6,), {"affine": False, "eps": 1e-3}, (X,)),
        ((6,), {"track_running_stats": False}, (X,)),
    ],
    "BatchNorm2d": [
        ((7,), {"affine": False, "track_running_stats": False}, (IMAGES,)),
        ((4,), {}, (IMAGES,)),
        ((4,), {"momentum": None, "affine": False}, (IMAGES,)),
        ((4,), {"bias": False}, (IMAGES,)),
        ((4,), {"track_running_stats": False}, (IMAGES,)),
    ],
    "BatchNorm3d": [((4,), {}, (VOLUMES,))],
    "SyncBatchNorm": [((4,), {}, (IMAGES,)), ((6,), {"momentum": None, "bias": False}, (X,))],
    "InstanceNorm1d": [
        ((4,), {}, (LINES,)),
        ((4,), {"affine": True, "track_running_stats": True}, (LINES[0],)),
    ],
    "InstanceNorm2d": [
        ((4,), {"affine": True}, (IMAGES,)),
        ((4,), {"track_running_stats": True, "momentum": 0.3}, (IMAGES,)),
    ],
    "InstanceNorm3d": [((4,), {"eps": 1e-3}, (VOLUMES,))],
    "GroupNorm": [
        ((2, 4), {}, (IMAGES,)),
        ((4, 4), {"affine": False}, (LINES,)),
        ((1, 6), {"bias": False}, (X,)),
    ],
    "LayerNorm": [
        ((6,), {}, (X,)),
        (((5, 6),), {"eps": 1e-2}, (floats(3, 5, 6),)),
        (((6,),), {"bias": False}, (X,)),
        ((6,), {"elementwise_affine": False}, (X,)),
    ],
    "RMSNorm": [
        ((6,), {}, (X,)),
        (((7, 6),), {"eps": 1e-2}, (IMAGES,)),
        ((6,), {"elementwise_affine": False}, (X,)),
    ],
    "LocalResponseNorm": [((2,), {}, (IMAGES,)), ((3, 0.1, 0.5, 2.0), {}, (LINES,))],
    "PixelShuffle": [((2,), {}, (IMAGES,))],
    "PixelUnshuffle": [((2,), {}, (floats(2, 3, 4, 6),))],
    "ChannelShuffle": [((2,), {}, (IMAGES,))],
    "Upsample": [
        ((), {"scale_factor": 2}, (LINES,)),
        (((3, 9),), {"mode": "bicubic", "align_corners": True}, (IMAGES,)),
        ((), {"scale_factor": (1.5, 1.5, 0.5), "mode": "trilinear"}, (VOLUMES,)),
        ((), {"scale_factor": 0.6, "mode": "area", "recompute_scale_factor": True}, (IMAGES,)),
    ],
    "UpsamplingNearest2d": [((5,), {}, (IMAGES,)), ((), {"scale_factor": 1.7}, (IMAGES,))],
    "UpsamplingBilinear2d": [(((5, 9),), {}, (IMAGES,)), ((), {"scale_factor": 2}, (IMAGES,))],
    "Unfold": [((2,), {"padding": 1, "stride": (2, 1), "dilation": (1, 2)}, (IMAGES,))],
    "Fold": [(((5, 4), (2, 3)), {"stride": (1, 2), "padding": (0, 1)}, (floats(2, 12, 8),))],
    **{
        f"ConstantPad{n}d": [((1, 2.5), {}, (x,)), (((*(0, 2) * (n - 1), -1, 1), -1), {}, (x,))]
        for n, x in BY_SIZE.items()
    },
    **{f"ZeroPad{n}d": [((1,), {}, (x,)), (((2, 0) * n,), {}, (x[0],))] for n, x in BY_SIZE.items()},
    **{
        f"{mode}Pad{n}d": [((1,), {}, (x,)), (((1, 2, 2, 0, 3, 1)[: 2 * n],), {}, (x[0],))]
        for mode in ("Reflection", "Replication", "Circular")
        for n, x in BY_SIZE.items()
    },
}
ALL = [
    pytest.param(name, case, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, case in enumerate(cases)
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "case"), ALL)
def test_layer_is_that_of_torch(name, case, dtype, layer_like_torch):
    layer_like_torch(name, case, dtype)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_gradients_are_those_of_differences(name, case, layer_differences):
    layer_differences(name, case)


@pytest.mark.parametrize("output_size", [(14, 11), (3, 6, 14, 12), None])
def test_a_transposed_convolution_gives_the_size_that_is_asked_for(output_size):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    theirs, ours = torch.nn.ConvTranspose2d(4, 6, 3, 2, 1), nn.ConvTranspose2d(4, 6, 3, 2, 1)
    ours.load_state_dict({k: dt.tensor(v.numpy()) for k, v in theirs.state_dict().items()})

    out = ours(dt.tensor(IMAGES).float(), output_size)
    wanted = theirs(torch.tensor(IMAGES).float(), output_size).detach().numpy()

    np.testing.assert_allclose(out.detach().numpy(), wanted, 1e-4, 1e-5)


def test_max_unpool_puts_back_what_was_pooled_from_a_larger_image():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x, size = rng.permutation(2 * 3 * 35).reshape(2, 3, 5, 7) / 7, (2, 3, 5, 7)

    back = nn.MaxUnpool2d(2)(*nn.MaxPool2d(2, return_indices=True)(dt.tensor(x)), output_size=size)
    wanted = torch.nn.MaxUnpool2d(2)(
        *torch.nn.MaxPool2d(2, return_indices=True)(torch.tensor(x)), output_size=size
    )

    np.testing.assert_array_equal(back.numpy(), wanted.numpy())


@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
def test_filters_begin_evenly_within_the_bound_of_their_fan_in(cls):
    layer = cls(16, 32, 3)
    bound = layer.weight[0].numel() ** -0.5

    for values in (layer.weight, layer.bias):
        assert bool((values.abs() <= bound).all())
        assert float(values.abs().max()) > 0.8 * bound


def test_conversion_keeps_parameters_and_buffers():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.BatchNorm1d(2, affine=False)
    )
    model.eval()

    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)

    assert [type(m).__name__ for m in converted] == ["Conv2d", "SyncBatchNorm", "SyncBatchNorm"]
    assert converted[1].weight is model[1].weight
    assert converted[1].momentum is None
    assert converted[2].weight is None
    assert not converted[1].training


def test_instance_norm_warns_of_channels_that_it_does_not_use():
    with pytest.warns(UserWarning, match=r"InstanceNorm2d\(5\): got an input of 4 channels"):
        nn.InstanceNorm2d(5)(dt.tensor(IMAGES))


WRONG = [
    (
        lambda x: nn.Conv2d(3, 8, 3)(x),
        (2, 1, 9, 9),
        RuntimeError,
        r"take 3 channels, got shape \(2, 1, 9, 9\)",
    ),
    (
        lambda x: nn.Conv2d(3, 8, 3)(x),
        (2, 9),
        RuntimeError,
        r"expected input of shape \(N, 3, H, W\) .* got \(2, 9\)",
    ),
    (
        lambda x: nn.Conv2d(3, 8, 5)(x),
        (2, 3, 4, 4),
        RuntimeError,
        r"\(5, 5\) pixels .* do not fit into \(4, 4\)",
    ),
    (
        lambda x: nn.Conv2d(3, 8, 3)(x.double()),
        (2, 3, 4, 4),
        RuntimeError,
        r"input disttrain\.float64 and weight",
    ),
    (
        lambda x: nn.Conv2d(3, 8, 3)(x.numpy()),
        (2, 3, 4, 4),
        TypeError,
        "needs a Tensor as input, got ndarray",
    ),
    (
        lambda x: nn.ConvTranspose2d(3, 8, 3)(x, (9, 9)),
        (2, 3, 4, 4),
        ValueError,
        r"from \(6, 6\) to \(6, 6\), got",
    ),
    (
        lambda x: nn.MaxPool2d(2)(x),
        (2, 3),
        RuntimeError,
        r"max_pool2d: expected input of shape \(N, C, H, W\)",
    ),
    (
        lambda x: nn.MaxPool2d(9)(x),
        (1, 1, 4, 4),
        RuntimeError,
        r"\(9, 9\) pixels do not fit into images of \(4, 4\)",
    ),
    (
        lambda x: nn.MaxPool2d(2)(x.bool()),
        (1, 1, 4, 4),
        NotImplementedError,
        r"got disttrain\.bool; convert it with",
    ),
    (
        lambda x: nn.BatchNorm2d(8)(x),
        (2, 8),
        ValueError,
        r"expected input of shape \(N, 8, H, W\), got \(2, 8\)",
    ),
    (
        lambda x: nn.BatchNorm1d(8)(x),
        (1, 8),
        ValueError,
        r"more than one value per channel, got shape \(1, 8\)",
    ),
    (
        lambda x: nn.BatchNorm1d(8)(x),
        (2, 8, 1, 1),
        ValueError,
        r"\(N, 8\) or \(N, 8, L\), got \(2, 8, 1, 1\)",
    ),
    (lambda x: nn.BatchNorm1d(8, eps=0)(x), (2, 8), ValueError, "eps must be positive, got 0"),
    (
        lambda x: nn.InstanceNorm2d(3)(x),
        (3, 4),
        ValueError,
        r"expected input of shape \(N, 3, H, W\) .* got \(3, 4\)",
    ),
    (lambda x: nn.InstanceNorm1d(3)(x), (2, 3, 1), ValueError, "more than one value per channel"),
    (lambda x: nn.GroupNorm(2, 4)(x), (2, 3, 4), RuntimeError, "num_groups=2 must divide the 3 channels"),
    (
        lambda x: nn.LayerNorm((5, 6))(x),
        (2, 6),
        RuntimeError,
        r"end with normalized_shape \(5, 6\), got \(2, 6\)",
    ),
    (lambda x: nn.RMSNorm(5)(x), (2, 6), RuntimeError, r"end with normalized_shape \(5,\), got \(2, 6\)"),
    (
        lambda x: nn.LocalResponseNorm(2)(x),
        (2, 6),
        ValueError,
        r"expected input \(N, C, \*\), got shape \(2, 6\)",
    ),
    (lambda x: nn.PixelShuffle(2)(x), (3, 4, 4), RuntimeError, "needs a multiple of 4 channels"),
    (lambda x: nn.PixelUnshuffle(2)(x), (3, 5, 4), RuntimeError, "must divide height and width"),
    (lambda x: nn.ChannelShuffle(2)(x), (1, 3, 4), RuntimeError, "groups=2 must divide the channels"),
    (lambda x: nn.ReflectionPad1d(4)(x), (1, 2, 4), RuntimeError, "can add at most 3 elements to 4"),
    (lambda x: nn.CircularPad2d(1)(x), (4, 4), NotImplementedError, r"behind \(N, C\) or \(C\)"),
    (lambda x: nn.Upsample(3)(x), (4, 4), NotImplementedError, r"does not take an input of shape \(4, 4\)"),
    (lambda x: nn.Upsample()(x), (1, 1, 4), ValueError, "give one of size and scale_factor"),
    (lambda x: nn.Fold((4, 4), 2)(x), (1, 4, 8), RuntimeError, "make 9 columns of a multiple of 4"),
    (
        lambda x: nn.Unfold(5)(x),
        (1, 1, 4, 4),
        RuntimeError,
        r"\(5, 5\) pixels .* do not fit into images of \(4, 4\)",
    ),
    (
        lambda x: nn.MaxUnpool1d(2)(x, x.long() + 8),
        (1, 1, 4),
        RuntimeError,
        r"must be in \[0, 8\) .* got one of 8",
    ),
]


@pytest.mark.parametrize(("call", "shape", "error", "message"), WRONG)
def test_what_a_layer_does_not_take_is_an_error_that_says_what_fits(call, shape, error, message):
    with pytest.raises(error, match=message):
        call(dt.zeros(*shape))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.Conv2d(3, 4, 3, groups=2),
            ValueError,
            "must divide in_channels and out_channels, got 3 and 4",
        ),
        (lambda: nn.Conv2d(3, 4, 3, groups=0), ValueError, "groups must be positive, got 0"),
        (lambda: nn.Conv2d(3, 4, 3, padding_mode="mirror"), ValueError, "got 'mirror'"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, padding_mode="reflect"), ValueError, "must be 'zeros'"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, "got 'full'"),
        (lambda: nn.Conv2d(3, 4, 3, padding="same", stride=2), ValueError, "needs stride 1"),
        (
            lambda: nn.Conv2d(3, 4, (1, 2, 3)),
            RuntimeError,
            r"must be an integer or 2 of them, got \(1, 2, 3\)",
        ),
        (lambda: nn.Conv2d(3, 4, "3"), TypeError, "kernel_size must be an integer or 2 of them, got '3'"),
        (lambda: nn.GroupNorm(3, 4), ValueError, "num_groups=3 must divide num_channels, got 4"),
        (lambda: nn.FractionalMaxPool2d(2), ValueError, "give one of output_size and output_ratio"),
        (lambda: nn.FractionalMaxPool2d(2, output_ratio=1.5), ValueError, r"in \(0, 1\), got 1.5"),
    ],
)
def test_wrong_options_are_refused_when_the_layer_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()
