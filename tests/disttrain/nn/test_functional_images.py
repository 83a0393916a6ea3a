"""Functions of lines, images and volumes against PyTorch: value, gradients and second derivatives."""

from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.nn import functional as F

rng = np.random.default_rng(8)


def floats(*shape: int) -> Any:
    return rng.standard_normal(shape)


X = floats(4, 6)
LINES = floats(2, 4, 9)
IMAGES = floats(2, 4, 6, 5)
VOLUMES = floats(2, 4, 4, 5, 3)
POSITIVE = rng.random(4) + 0.5
PLACES = np.stack([rng.permutation(12 * 10)[:30] for _ in range(8)]).reshape(2, 4, 6, 5)
GRID = rng.uniform(-1.3, 1.3, (2, 3, 4, 2))
GRID3 = rng.uniform(-1.3, 1.3, (2, 3, 4, 2, 3))

# name: [(arguments, options)]; arrays become tensors, those of float64 ask for gradients.
CASES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "adaptive_avg_pool1d": [
        ((LINES, 4), {}),
        ((LINES[0], (2,)), {}),
        ((LINES[:, :0].astype(np.float32), 4), {}),
    ],
    "adaptive_avg_pool2d": [((IMAGES, (2, None)), {}), ((IMAGES[0], 3), {})],
    "adaptive_avg_pool3d": [((VOLUMES, (2, None, 2)), {})],
    "adaptive_max_pool1d": [((LINES, 4), {"return_indices": True})],
    "adaptive_max_pool2d": [((IMAGES, (2, None)), {"return_indices": True}), ((IMAGES[0], 3), {})],
    "adaptive_max_pool3d": [((VOLUMES, (2, None, 2), True), {})],
    "affine_grid": [
        ((floats(2, 2, 3), (2, 1, 3, 4)), {"align_corners": True}),
        ((floats(2, 3, 4), (2, 1, 3, 1, 4)), {"align_corners": False}),
    ],
    "avg_pool1d": [((LINES, 3, 2, 1), {"count_include_pad": False}), ((LINES[0], (2,)), {})],
    "avg_pool2d": [
        ((IMAGES, 2), {"stride": (2, 1), "padding": 1, "count_include_pad": False, "ceil_mode": True})
    ],
    "avg_pool3d": [((VOLUMES, 2), {"divisor_override": 3}), ((VOLUMES[0], (1, 2, 3), []), {})],
    "batch_norm": [
        ((X, None, None, floats(6), floats(6)), {"training": True}),
        ((IMAGES, floats(4), POSITIVE, floats(4), floats(4)), {"eps": 1e-3}),
        ((IMAGES, None, None, None, None, True), {}),
    ],
    "channel_shuffle": [((IMAGES, 2), {})],
    "conv1d": [
        ((LINES, floats(6, 2, 3), floats(6)), {"stride": 2, "padding": 1, "groups": 2}),
        ((LINES[0], floats(6, 4, 4)), {"padding": "same", "dilation": 2}),
    ],
    "conv2d": [
        ((IMAGES, floats(6, 4, 3, 3), floats(6)), {"stride": 2, "padding": (1, 2)}),
        ((IMAGES, floats(6, 2, 2, 3)), {"groups": 2, "dilation": (1, 2), "padding": "valid"}),
        ((IMAGES[0], floats(6, 4, 3, 3), floats(6)), {"padding": "same"}),
    ],
    "conv3d": [
        ((VOLUMES, floats(2, 4, 3, 2, 1), floats(2)), {"stride": (1, 2, 2), "padding": (1, 0, 1)}),
        ((VOLUMES[0], floats(4, 2, 3, 3, 3)), {"padding": "same", "groups": 2}),
    ],
    "conv_transpose1d": [
        ((LINES, floats(4, 3, 3), floats(6)), {"stride": 3, "output_padding": 2, "groups": 2})
    ],
    "conv_transpose2d": [
        ((IMAGES, floats(4, 3, 3, 2), floats(3)), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 3)}),
        # more rows than the windows of the forward convolution cover
        ((IMAGES, floats(4, 3, 1, 1)), {"dilation": 2, "output_padding": 1}),
        ((IMAGES[0], floats(4, 2, 2, 2)), {"dilation": 3, "output_padding": 2, "stride": 2}),
    ],
    "conv_transpose3d": [((VOLUMES, floats(4, 2, 2, 3, 1), floats(2)), {"stride": 2, "dilation": (1, 1, 3)})],
    "fold": [((floats(2, 12, 8), (5, 4), (2, 3)), {"stride": (1, 2), "padding": (0, 1)})],
    "fractional_max_pool2d": [
        ((IMAGES, 2, (3, 2), None, True, rng.random((2, 4, 2)).astype(np.float64)), {}),
    ],
    "fractional_max_pool3d": [((VOLUMES, 1, (3, 2, 2), None, True, rng.random((2, 4, 3))), {})],
    "grid_sample": [
        *(
            ((IMAGES, GRID), {"mode": "bilinear", "padding_mode": pad, "align_corners": corners})
            for pad in ("zeros", "border", "reflection")
            for corners in (True, False)
        ),
        ((VOLUMES, GRID3), {"padding_mode": "reflection", "align_corners": False}),
    ],
    "group_norm": [((IMAGES, 2, floats(4), floats(4)), {"eps": 1e-3}), ((X, 3), {})],
    "instance_norm": [
        ((IMAGES,), {"eps": 1e-3}),
        ((LINES, floats(4), POSITIVE, floats(4), floats(4), False), {}),
        ((LINES, floats(4), POSITIVE, floats(4), floats(4)), {"momentum": 0.3}),
    ],
    "interpolate": [
        ((LINES, 14), {"mode": "linear"}),
        ((LINES,), {"scale_factor": 1.7}),
        ((IMAGES, (9, 3)), {"mode": "bilinear", "align_corners": True}),
        ((IMAGES,), {"scale_factor": (0.6, 1.5), "mode": "bilinear"}),
        ((IMAGES,), {"scale_factor": 0.6, "mode": "bilinear", "recompute_scale_factor": True}),
        ((IMAGES, (9, 3)), {"mode": "bicubic"}),
        ((IMAGES, (3, 9)), {"mode": "bilinear", "antialias": True}),
        ((IMAGES, (3, 9)), {"mode": "bicubic", "antialias": True, "align_corners": True}),
        ((IMAGES, (3, 9)), {"mode": "lanczos", "antialias": True}),
        ((IMAGES, 4), {"mode": "nearest-exact"}),
        ((IMAGES, 4), {"mode": "area"}),
        ((VOLUMES, (2, 7, 4)), {"mode": "trilinear"}),
    ],
    "layer_norm": [((X, (6,), floats(6), floats(6)), {}), ((X, (4, 6)), {"eps": 1e-2})],
    "local_response_norm": [((IMAGES, 3), {}), ((LINES, 2, 0.3, 0.5, 2.0), {})],
    "lp_pool1d": [((LINES, 3, 2), {})],
    "lp_pool2d": [
        ((IMAGES, 2, (2, 3)), {"stride": 2, "ceil_mode": True}),
        ((IMAGES, float("inf"), 2), {}),
        ((IMAGES, float("-inf"), 2, 1), {}),
    ],
    "lp_pool3d": [((VOLUMES, 2, 2), {})],
    "max_pool1d": [((LINES, 3, 2, 1), {"return_indices": True}), ((LINES[0], 2), {"dilation": 2})],
    "max_pool2d": [
        ((IMAGES, (3, 2)), {"stride": 2, "padding": 1, "ceil_mode": True, "return_indices": True})
    ],
    "max_pool3d": [((VOLUMES, 2, 1), {"padding": 1, "return_indices": True}), ((VOLUMES[0], (1, 2, 3)), {})],
    "max_unpool1d": [((LINES[:1, :1], np.arange(9)[None, None] * 2, 2), {})],
    "max_unpool2d": [((IMAGES, PLACES, 2), {}), ((IMAGES, PLACES, 2), {"output_size": (2, 4, 13, 10)})],
    "max_unpool3d": [((VOLUMES[:1, :1], np.arange(60).reshape(1, 1, 4, 5, 3), 2), {})],
    "normalize": [((X,), {}), ((IMAGES,), {"p": 1.0, "dim": -1}), ((X * 1e-3,), {"eps": 1.0})],
    "pad": [
        ((IMAGES, (1, 2, 0, 3)), {}),
        ((X, (1, -1)), {"value": 2.0}),
        ((X.astype(np.float32), (-6, 2)), {"mode": "replicate"}),
        *(((IMAGES, (2, 1, 0, 3)), {"mode": mode}) for mode in ("reflect", "replicate", "circular")),
        *(((IMAGES, (-2, 1, 1, -3)), {"mode": mode}) for mode in ("reflect", "replicate", "circular")),
        ((VOLUMES, (1, 0, 2, 1, 3, 3)), {"mode": "reflect"}),
        ((LINES[0], (9, 4)), {"mode": "circular"}),
    ],
    "pixel_shuffle": [((IMAGES, 2), {}), ((IMAGES[0], 2), {})],
    "pixel_unshuffle": [((floats(2, 3, 4, 6), 2), {})],
    "rms_norm": [((X, (6,), floats(6)), {}), ((IMAGES, (6, 5)), {"eps": 1e-2})],
    "unfold": [((IMAGES, (2, 3)), {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)})],
    "upsample": [((IMAGES,), {"scale_factor": 2, "mode": "bilinear"})],
    "upsample_bilinear": [((IMAGES, (9, 3)), {})],
    "upsample_nearest": [((IMAGES,), {"scale_factor": 2})],
}
ALL = [
    pytest.param(name, *case, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, case in enumerate(cases)
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # PyTorch's
@pytest.mark.filterwarnings("ignore:.*is deprecated")  # PyTorch's
@pytest.mark.parametrize(("name", "args", "options"), ALL)
def test_function_is_that_of_torch(name, args, options, like_torch):
    like_torch(name, args, options)


@pytest.mark.parametrize("mode", ["nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [True, False])
def test_images_are_sampled_as_by_torch(mode, padding, corners):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    found = []
    for lib, functions, new in ((torch, torch.nn.functional, torch.tensor), (dt, F, dt.tensor)):
        x, grid = new(IMAGES).requires_grad_(), new(GRID).requires_grad_()
        out = functions.grid_sample(x, grid, mode, padding, corners)
        g = new(np.random.default_rng(1).standard_normal(tuple(out.shape)))
        found.append([out, *lib.autograd.grad(out, [x, grid], g, allow_unused=True)])

    for ours, theirs in zip(*found[::-1], strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), 1e-9, 1e-9)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy's
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_images_are_sampled_at_no_place_as_by_torch(mode, padding, value):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    grid = GRID.copy()
    grid[0, 0, 0, 0] = value

    ours = F.grid_sample(dt.tensor(IMAGES), dt.tensor(grid), mode, padding, False)

    theirs = torch.nn.functional.grid_sample(torch.tensor(IMAGES), torch.tensor(grid), mode, padding, False)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-9, 1e-9)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    "how", [{"size": (4, 9)}, {"size": 11}, {"scale_factor": 0.7}, {"scale_factor": 1.7}]
)
def test_bytes_are_resized_to_the_bytes_of_torch(mode, antialias, how):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    if antialias != (mode == "lanczos") and (mode.startswith("nearest") or mode == "lanczos"):
        pytest.skip("no such combination")
    x = rng.integers(0, 256, (2, 3, 7, 8), np.uint8)

    ours = F.interpolate(dt.tensor(x), mode=mode, antialias=antialias, **how)
    theirs = torch.nn.functional.interpolate(torch.tensor(x), mode=mode, antialias=antialias, **how)

    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_batch_norm_keeps_running_values_as_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    for name, options in (("batch_norm", {"training": True}), ("instance_norm", {})):
        ours, theirs = (
            [dt.tensor(v) for v in (X[0, :4], POSITIVE)],
            [torch.tensor(v) for v in (X[0, :4], POSITIVE)],
        )

        getattr(F, name)(dt.tensor(IMAGES), *ours, momentum=0.3, **options)
        getattr(torch.nn.functional, name)(torch.tensor(IMAGES), *theirs, momentum=0.3, **options)

        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), 1e-12)


def test_what_torch_has_at_the_top_is_there_too():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    there = [name for name in CASES if callable(getattr(torch, name, None))]

    ours = [name for name in there if getattr(dt, name, None) is getattr(F, name)]

    others = {
        "adaptive_max_pool1d",
        "batch_norm",
        "group_norm",
        "instance_norm",
        "layer_norm",
    }  # other arguments
    assert set(there) - set(ours) <= others
    assert all(hasattr(dt, name) for name in there)


def test_integers_are_convolved_exactly():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x, w = rng.integers(-9, 9, (2, 4, 6, 5)), rng.integers(-9, 9, (6, 2, 3, 2))

    ours = F.conv2d(dt.tensor(x), dt.tensor(w), groups=2)

    np.testing.assert_array_equal(
        ours.numpy(), torch.conv2d(torch.tensor(x), torch.tensor(w), groups=2).numpy()
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["conv1d", "conv3d", "rms_norm", "interpolate", "avg_pool1d", "group_norm"])
def test_half_precision_comes_back_in_its_own_type(name, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    args, options = CASES[name][0]
    theirs = [torch.tensor(a).to(getattr(torch, dtype)) if isinstance(a, np.ndarray) else a for a in args]
    ours = [dt.tensor(a).to(getattr(dt, dtype)) if isinstance(a, np.ndarray) else a for a in args]

    out, want = getattr(F, name)(*ours, **options), getattr(torch.nn.functional, name)(*theirs, **options)

    assert out.dtype is getattr(dt, dtype)
    limit = {"float16": 8e-3, "bfloat16": 6e-2}[dtype]
    np.testing.assert_allclose(out.float().numpy(), want.float().numpy(), limit, limit)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: F.conv2d(x[None], x),
            RuntimeError,
            r"weight must have 4 dimensions .* got shape \(4, 6\)",
        ),
        (
            lambda x: F.adaptive_avg_pool2d(x[None], (1, 2, 3)),
            RuntimeError,
            "output_size must be one integer or 2 of them",
        ),
        (
            lambda x: F.conv_transpose1d(x, x[:, :1, None], output_padding=1),
            RuntimeError,
            "output_padding=.1,.",
        ),
        (
            lambda x: F.adaptive_avg_pool2d(x[None], (1,)),
            RuntimeError,
            "output_size must be one integer or 2",
        ),
        (lambda x: F.pad(x, (1.0, 1)), TypeError, "a tuple of integers"),
        (lambda x: F.pad(x, dt.tensor([1, 1])), TypeError, "a tuple of integers, got Tensor"),
        (lambda x: F.pad(x, (1, 1), value=1.0, mode="reflect"), RuntimeError, "takes no value, got 1.0"),
        (lambda x: F.pad(x, (1, 1), "mirror"), NotImplementedError, "got 'mirror'"),
        (lambda x: F.pad(x, (-4, -4)), RuntimeError, "cuts more than there is"),
        (lambda x: F.pad(x, (-2, -4), "reflect"), RuntimeError, "leaves nothing of shape"),
        (lambda x: F.pad(x, (-6, 2), "circular"), RuntimeError, "leaves nothing of 6 elements"),
        (lambda x: F.interpolate(x[None], 3, 2.0), ValueError, "give one of size and scale_factor"),
        (lambda x: F.interpolate(x[None], 3, mode="cubic"), NotImplementedError, "unknown mode 'cubic'"),
        (lambda x: F.interpolate(x[None], 3, align_corners=True), ValueError, "no meaning in mode 'nearest'"),
        (lambda x: F.interpolate(x[None], (3, 3)), ValueError, r"each of 1 dimensions, got \(3, 3\)"),
        (lambda x: F.grid_sample(x[None, None], x, "linear"), ValueError, "got 'linear'"),
        (
            lambda x: F.grid_sample(x[None, None], x[None]),
            RuntimeError,
            r"does not take a grid of shape \(1, 4, 6\)",
        ),
        (lambda x: F.max_unpool2d(x[None], x[None], 2), RuntimeError, "indices must be an int64 Tensor"),
        (lambda x: F.avg_pool1d(x, 2, divisor_override=2), TypeError, "divisor_override"),
        (
            lambda x: F.avg_pool3d(x[None, None], (3, 1, 1), padding=(1, 0, 0)),
            RuntimeError,
            r"volumes of \(1, 4, 6\) are smaller than the windows of \(3, 1, 1\)",
        ),
        (
            lambda x: F.adaptive_avg_pool3d(x[None, :0, :, None, None], 2),
            RuntimeError,
            "one channel and pixel",
        ),
        (lambda x: F.batch_norm(x, None, None), RuntimeError, "needs running_mean and running_var"),
        (lambda x: F.layer_norm(x, (4,)), RuntimeError, r"must end with normalized_shape \(4,\)"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call(dt.tensor(X))
