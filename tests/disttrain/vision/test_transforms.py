"""Transforms of images: on Tensors and on Pillow's images, against PyTorch, NumPy and Pillow."""

import math

import numpy as np
import pytest

import disttrain as dt
from disttrain.vision import transforms as T
from disttrain.vision.transforms import functional as F

Image = pytest.importorskip("PIL.Image", reason="needs Pillow, which is not installed")

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 13, 17)).astype(np.uint8)
FLOATS = np.random.default_rng(1).random((2, 3, 13, 17)).astype(np.float32)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


@pytest.fixture
def image():
    return Image.fromarray(PIXELS.transpose(1, 2, 0).copy())


def as_array(x):
    """Return the pixels of an image or Tensor in the order (..., C, H, W)."""
    return x.numpy() if isinstance(x, dt.Tensor) else F.pil_to_tensor(x).numpy()


# ------------------------------------------------------------------------------------------ conversion


def test_an_image_becomes_a_tensor(image):
    t = T.ToTensor()(image)

    assert t.dtype is dt.float32
    np.testing.assert_array_equal(t.numpy(), PIXELS.astype(np.float32) / 255)
    assert (T.PILToTensor()(image).numpy() == PIXELS).all()
    gray = image.convert("L")
    assert T.ToTensor()(gray).shape == (1, 13, 17)
    assert F.pil_to_tensor(gray.convert("F")).dtype is dt.float32
    assert F.pil_to_tensor(gray.convert("I")).dtype is dt.int32
    black = Image.new("1", (2, 2), 1)
    assert T.ToTensor()(black).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


def test_an_array_becomes_a_tensor():
    assert T.ToTensor()(np.zeros((4, 5), np.uint8)).shape == (1, 4, 5)
    assert T.ToTensor()(np.zeros((4, 5, 2))).dtype is dt.float64
    for wrong in ([1], dt.ones(1, 2, 2)):
        with pytest.raises(TypeError, match="a Pillow image or an ndarray, got"):
            T.ToTensor()(wrong)
    with pytest.raises(ValueError, match="2 or 3 dimensions, got 1"):
        T.ToTensor()(np.zeros(3))


def test_a_tensor_becomes_an_image(image):
    assert T.ToPILImage()(dt.from_numpy(PIXELS)) == image
    assert T.ToPILImage()(dt.from_numpy(PIXELS.astype(np.float32) / 255)) == image
    assert T.ToPILImage()(PIXELS.transpose(1, 2, 0).copy()) == image
    for channels, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")):
        assert F.to_pil_image(dt.zeros(channels, 2, 3)).mode == mode
    assert F.to_pil_image(dt.zeros(2, 3)).size == (3, 2)
    assert F.to_pil_image(dt.zeros(3, 2, 3), "HSV").mode == "HSV"
    assert F.to_pil_image(dt.zeros(1, 2, 3), "F").mode == "F"
    for wrong, error in (
        ((dt.zeros(5, 2, 3),), "4 channels"),
        ((dt.zeros(2),), "2 or 3 dimensions, got 1"),
        ((dt.zeros(3, 2, 3), "L"), "3 channels make one of"),
    ):
        with pytest.raises(ValueError, match=error):
            F.to_pil_image(*wrong)
    with pytest.raises(TypeError, match="a Tensor or an ndarray, got list"):
        F.to_pil_image([1])
    with pytest.raises(TypeError, match="Pillow has no images of"):
        F.to_pil_image(np.zeros((2, 2), np.int64))


def test_types_are_converted_with_their_scale():
    x = dt.tensor([0.0, 0.5, 1.0])

    assert F.convert_image_dtype(x, dt.uint8).tolist() == [0, 127, 255]
    assert F.convert_image_dtype(dt.tensor([0, 255], dtype=dt.uint8)).tolist() == [0.0, 1.0]
    assert F.convert_image_dtype(dt.tensor([0, 32767], dtype=dt.int16), dt.uint8).tolist() == [0, 255]
    assert T.ConvertImageDtype(dt.float64)(x).dtype is dt.float64
    with pytest.raises(RuntimeError, match="does not hold all values of"):
        F.convert_image_dtype(x, dt.int32)


def test_normalize():
    x = dt.from_numpy(FLOATS.copy())
    expected = (FLOATS - np.float32([0.1, 0.2, 0.3])[:, None, None]) / np.float32([1, 2, 0.5])[:, None, None]

    y = T.Normalize((0.1, 0.2, 0.3), (1, 2, 0.5))(x)

    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(x.numpy(), FLOATS)
    assert F.normalize(x, [0.0], [2.0], inplace=True) is x
    for error, args in (
        (TypeError, (dt.from_numpy(PIXELS), [0], [1])),
        (ValueError, (dt.ones(2, 2), [0], [1])),
        (ValueError, (dt.ones(1, 2, 2), [0], [0])),
        (TypeError, (FLOATS, [0], [1])),
    ):
        with pytest.raises(error):
            F.normalize(*args)


# ------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(5, 7), (26, 30), (9, 40), (13, 17)])
def test_a_tensor_is_resized_as_pytorch_does(torch, size, mode, antialias):
    smooth = mode in ("bilinear", "bicubic")
    options = {"antialias": antialias, "align_corners": False} if smooth else {}
    expected = torch.nn.functional.interpolate(torch.from_numpy(FLOATS), size, mode=mode, **options)

    resized = F.resize(dt.from_numpy(FLOATS), size, F.InterpolationMode(mode), antialias=antialias)

    np.testing.assert_allclose(resized.numpy(), expected.numpy(), atol=2e-6)


def test_bytes_are_resized_as_pillow_does(image):
    for size in ((6, 5), (40, 30)):
        a, b = F.resize(image, size), F.resize(dt.from_numpy(PIXELS), size)
        assert b.dtype is dt.uint8
        assert np.abs(as_array(a).astype(int) - as_array(b)).max() <= 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        *(((6,), (6, 7)), (([6],), (6, 7)), (((8, 3),), (8, 3))),
        *(((12, 2, 14), (11, 14)), ((6, 2, 20), (6, 7)), ((13,), (13, 17))),
    ],
)
def test_sizes(image, args, expected):
    for img in (image, dt.from_numpy(PIXELS)):
        assert tuple(F.get_dimensions(F.resize(img, *args))[1:]) == expected
    assert F.get_image_size(image) == [17, 13]


def test_wrong_sizes_are_refused(image):
    for args, error in (
        (((1, 2, 3),), "an int, or 1 or 2 of them"),
        (((5, 5), 2, 9), "max_size goes with one number"),
        ((9, 2, 9), "must be greater than size 9"),
    ):
        with pytest.raises(ValueError, match=error):
            F.resize(image, *args)
    with pytest.raises(ValueError, match="cannot be scaled with lanczos"):
        F.resize(dt.ones(1, 4, 4), 2, F.InterpolationMode.LANCZOS)
    with pytest.raises(TypeError, match="Pillow image or a Tensor"):
        F.resize(3, 2)
    with pytest.raises(TypeError, match="size is an int or two, got float"):
        T.Resize(2.5)


@pytest.mark.parametrize(
    "part", [(0, 0, 5, 6), (-2, -3, 9, 8), (8, 10, 9, 9), (-1, 3, 30, 4), (20, 20, 3, 3)]
)
def test_tensors_are_cut_as_pillow_cuts(image, part):
    np.testing.assert_array_equal(
        as_array(F.crop(dt.from_numpy(PIXELS), *part)), as_array(F.crop(image, *part))
    )


@pytest.mark.parametrize("size", [5, (3, 9), (20, 20), (20, 4), [7]])
def test_the_middle(image, size):
    a, b = T.CenterCrop(size)(image), T.CenterCrop(size)(dt.from_numpy(PIXELS))

    np.testing.assert_array_equal(as_array(a), as_array(b))
    assert tuple(as_array(a).shape[1:]) == F.pair(size, "size")
    if size == (3, 9):
        np.testing.assert_array_equal(as_array(a), PIXELS[:, 5:8, 4:13])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize("padding", [2, [1], (1, 2), (0, 1, 2, 3)])
def test_borders(image, padding, mode):
    four = {2: (2, 2, 2, 2), (1, 2): (1, 2, 1, 2)}.get(padding if not isinstance(padding, list) else 0)
    left, top, right, bottom = four or ((1, 1, 1, 1) if isinstance(padding, list) else padding)
    expected = np.pad(PIXELS, ((0, 0), (top, bottom), (left, right)), mode=mode)

    for img in (image, dt.from_numpy(PIXELS)):
        np.testing.assert_array_equal(as_array(T.Pad(padding, padding_mode=mode)(img)), expected)


def test_borders_have_a_color(image):
    assert as_array(F.pad(image, 1, (1, 2, 3)))[:, 0, 0].tolist() == [1, 2, 3]
    assert as_array(F.pad(image, 1, 7))[:, 0, 0].tolist() == [7, 7, 7]
    assert F.pad(dt.zeros(1, 1, 1), 1, 5).sum().item() == 40
    for args in ((1, 0, "wrap"), ((1, 2, 3),)):
        with pytest.raises(ValueError, match=r"pad\(\): padding"):
            F.pad(image, *args)


def test_flips(image):
    for img in (image, dt.from_numpy(PIXELS)):
        np.testing.assert_array_equal(as_array(F.hflip(img)), PIXELS[:, :, ::-1])
        np.testing.assert_array_equal(as_array(F.vflip(img)), PIXELS[:, ::-1])
        assert T.RandomHorizontalFlip(0.0)(img) is img
        np.testing.assert_array_equal(as_array(T.RandomHorizontalFlip(1.0)(img)), PIXELS[:, :, ::-1])
        np.testing.assert_array_equal(as_array(T.RandomVerticalFlip(1.0)(img)), PIXELS[:, ::-1])


@pytest.mark.parametrize("angle", [0.0, 31.0, -75.0])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_tensors_are_turned_as_grid_sample_does(torch, mode, angle):
    x = torch.from_numpy(FLOATS[:, :, :, :13].copy())  # square: no aspect in the grid
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    theta = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(2, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    expected = torch.nn.functional.grid_sample(x, grid, mode=mode, align_corners=False)

    turned = F.rotate(dt.from_numpy(x.numpy()), angle, F.InterpolationMode(mode))

    np.testing.assert_allclose(turned.numpy(), expected.numpy(), atol=1e-5)


def test_turning(image):
    square = PIXELS[:, :, :13].copy()

    np.testing.assert_array_equal(
        as_array(F.rotate(dt.from_numpy(square), 90)), np.rot90(square, axes=(1, 2))
    )
    assert as_array(F.rotate(dt.from_numpy(PIXELS), 90, expand=True)).shape[2] >= 13
    assert F.rotate(image, 90, expand=True).size == (13, 17)
    assert as_array(F.rotate(image, 45, fill=9))[:, 0, 0].tolist() == [9, 9, 9]
    assert as_array(F.rotate(dt.from_numpy(PIXELS), 45, fill=9))[:, 0, 0].tolist() == [9, 9, 9]
    assert as_array(F.rotate(dt.from_numpy(PIXELS), 45, fill=[1, 2, 3]))[:, 0, 0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="nearest or bilinear"):
        F.rotate(dt.ones(1, 3, 3), 3, F.InterpolationMode.BICUBIC)
    assert T.RandomRotation(10).degrees == [-10, 10]
    for wrong in (-1, (1, 2, 3)):
        with pytest.raises(ValueError, match="degrees"):
            T.RandomRotation(wrong)
    assert (
        as_array(T.RandomRotation((90, 90))(dt.from_numpy(square))).tolist()
        == np.rot90(square, axes=(1, 2)).tolist()
    )


# ------------------------------------------------------------------------------------------ color


def test_without_color(image):
    r, g, b = PIXELS.astype(float)
    expected = 0.2989 * r + 0.587 * g + 0.114 * b

    for img in (image, dt.from_numpy(PIXELS)):
        gray = as_array(T.Grayscale()(img))
        assert np.abs(gray[0] - expected).max() <= 1
        assert as_array(T.Grayscale(3)(img)).shape == PIXELS.shape
        assert as_array(T.RandomGrayscale(1.0)(img)).shape == PIXELS.shape
        assert T.RandomGrayscale(0.0)(img) is img
        with pytest.raises(ValueError, match="1 or 3"):
            F.to_grayscale(img, 2)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.8])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_tensors_change_color_as_pillow_changes_it(image, name, factor):
    adjust = getattr(F, f"adjust_{name}")

    difference = as_array(adjust(image, factor)).astype(int) - as_array(adjust(dt.from_numpy(PIXELS), factor))

    assert np.abs(difference).max() <= 2
    with pytest.raises(ValueError, match=r"must not be negative, got -1\.0"):
        adjust(dt.from_numpy(PIXELS), -1.0)


def test_hue(image):
    import colorsys

    x = FLOATS[0, :, :2, :2]
    turned = F.adjust_hue(dt.from_numpy(x), 0.3).numpy()

    for i in range(2):
        for j in range(2):
            h, s, v = colorsys.rgb_to_hsv(*map(float, x[:, i, j]))
            np.testing.assert_allclose(turned[:, i, j], colorsys.hsv_to_rgb((h + 0.3) % 1, s, v), atol=1e-5)
    assert (
        np.abs(as_array(F.adjust_hue(image, 0.0)).astype(int) - PIXELS).mean() < 3
    )  # Pillow's HSV has 8 bits
    assert F.adjust_hue(image.convert("L"), 0.2).mode == "L"
    with pytest.raises(ValueError, match=r"lies in \[-0.5, 0.5\], got 0.6"):
        F.adjust_hue(image, 0.6)


def test_color_jitter(image):
    assert T.ColorJitter()(image) is image
    jitter = T.ColorJitter(0.5, 0.5, 0.5, 0.1)
    assert (jitter.brightness, jitter.hue) == ((0.5, 1.5), (-0.1, 0.1))
    dt.manual_seed(0)
    a = as_array(jitter(image))
    dt.manual_seed(0)
    assert (as_array(jitter(image)) == a).all()
    assert (as_array(jitter(image)) != a).any()
    for wrong in ({"brightness": -1}, {"hue": 0.6}, {"contrast": (2, 1)}):
        with pytest.raises(ValueError, match=r"ColorJitter: .* (lies in|must not be negative)"):
            T.ColorJitter(**wrong)
    with pytest.raises(TypeError, match="saturation is a number or"):
        T.ColorJitter(saturation=[1, 2, 3])


# ------------------------------------------------------------------------------------------ random parts


def test_random_parts_are_parts(image):
    dt.manual_seed(0)
    tops = set()
    for _ in range(60):
        top, left, height, width = T.RandomCrop.get_params(image, (9, 8))
        assert 0 <= top <= 4
        assert 0 <= left <= 9
        assert (height, width) == (9, 8)
        tops.add(top)
    assert tops == {0, 1, 2, 3, 4}
    padded = np.pad(PIXELS, ((0, 0), (4, 4), (4, 4)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 13, 17))[0]
    crop = as_array(T.RandomCrop((13, 17), padding=4)(image))
    assert (windows == crop).all((-3, -2, -1)).any()
    assert as_array(T.RandomCrop(20, pad_if_needed=True)(image)).shape == (3, 20, 20)
    with pytest.raises(ValueError, match="cannot be cut out of an image of"):
        T.RandomCrop(20)(image)


def test_random_resized_parts(image):
    dt.manual_seed(1)
    for _ in range(50):
        top, left, h, w = T.RandomResizedCrop.get_params(image, (0.2, 1.0), (0.75, 4 / 3))
        assert top >= 0
        assert left >= 0
        assert top + h <= 13
        assert left + w <= 17
        assert h * w >= 0.2 * 13 * 17 * 0.75
    for img in (image, dt.from_numpy(PIXELS)):
        assert as_array(T.RandomResizedCrop(8)(img)).shape == (3, 8, 8)
    assert T.RandomResizedCrop.get_params(dt.zeros(3, 2, 50), (1.0, 1.0), (0.75, 4 / 3))[2:] == (2, 3)
    with pytest.warns(UserWarning, match="min, max"):
        T.RandomResizedCrop(8, scale=(1.0, 0.5))


def test_random_erasing():
    dt.manual_seed(2)
    x = dt.ones(3, 20, 20)

    y = T.RandomErasing(1.0)(x)

    hole = (y.numpy() == 0).all(0)
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    assert hole.sum() == len(rows) * len(columns) > 0
    assert 0.01 < hole.mean() < 0.4
    assert (x == 1).all()
    assert T.RandomErasing(0.0)(x) is x
    assert T.RandomErasing(1.0, inplace=True)(x.clone()).shape == x.shape
    assert set(T.RandomErasing(1.0, value=[2, 3, 4])(x)[2].numpy().ravel()) == {1, 4}
    assert len(set(T.RandomErasing(1.0, value="random")(x).numpy().ravel())) > 3
    for wrong in ({"p": 2}, {"scale": (-1, 1)}, {"value": "blue"}):
        with pytest.raises(ValueError, match=r"RandomErasing: .* (is|holds) "):
            T.RandomErasing(**wrong)
    with pytest.raises(TypeError, match="Tensor image"):
        F.erase(FLOATS, 0, 0, 1, 1, 0)


def test_combinations():
    add, double = T.Lambda(lambda x: x + 1), T.Lambda(lambda x: 2 * x)

    assert T.Compose([add, double])(1) == 4
    assert T.RandomApply([add, double], p=1.0)(1) == 4
    assert T.RandomApply([add, double], p=0.0)(1) == 1
    assert {T.RandomOrder([add, double])(1) for _ in range(30)} == {3, 4}
    assert {T.RandomChoice([add, double])(5) for _ in range(30)} == {6, 10}
    assert {T.RandomChoice([add, double], p=[1.0, 0.0])(5) for _ in range(10)} == {6}
    with pytest.raises(TypeError, match="lambd is a function, got"):
        T.Lambda(3)
    assert repr(T.Compose([T.ToTensor(), T.RandomCrop(32, padding=4)])) == (
        "Compose(\n    ToTensor()\n    RandomCrop(size=(32, 32), padding=4)\n)"
    )


PRINTED = {
    "Resize(5)": "Resize(size=5, interpolation=bilinear, max_size=None, antialias=True)",
    "CenterCrop(3)": "CenterCrop(size=(3, 3))",
    "Normalize((0.1,), (0.2,))": "Normalize(mean=(0.1,), std=(0.2,))",
    "ColorJitter(0.1, 0.2, 0.3, 0.1)": (
        "ColorJitter(brightness=(0.9, 1.1), contrast=(0.8, 1.2), saturation=(0.7, 1.3), hue=(-0.1, 0.1))"
    ),
    "RandomRotation(10)": (
        "RandomRotation(degrees=[-10.0, 10.0], interpolation=nearest, expand=False, fill=0)"
    ),
    "RandomErasing()": "RandomErasing(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0, inplace=False)",
    "Pad(2)": "Pad(padding=2, fill=0, padding_mode=constant)",
    "RandomResizedCrop(224)": (
        "RandomResizedCrop(size=(224, 224), scale=(0.08, 1.0), ratio=(0.75, 1.3333), interpolation=bilinear, "
        "antialias=True)"
    ),
    "ToPILImage()": "ToPILImage()",
    "Grayscale()": "Grayscale(num_output_channels=1)",
    "RandomGrayscale()": "RandomGrayscale(p=0.1)",
    "RandomHorizontalFlip()": "RandomHorizontalFlip(p=0.5)",
    "RandomApply([])": "RandomApply(\n    p=0.5\n)",
}
"""What torchvision 0.29 prints; it needs another build of PyTorch than the tests install, so it is written here."""


@pytest.mark.parametrize("made", PRINTED)
def test_everything_prints_as_in_torchvision(made):
    assert repr(eval(f"T.{made}")) == PRINTED[made]


def test_random_numbers_are_those_of_the_rank(image):
    dt.manual_seed(3)
    first = [as_array(T.RandomCrop(5)(image)) for _ in range(3)]
    dt.manual_seed(3)
    again = [as_array(T.RandomCrop(5)(image)) for _ in range(3)]

    assert all((a == b).all() for a, b in zip(first, again, strict=True))
