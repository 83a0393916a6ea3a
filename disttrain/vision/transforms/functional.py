"""Functions of images, as ``torchvision.transforms.functional``: Pillow's, or Tensors of shape ``(..., C, H, W)``."""

from __future__ import annotations

import enum
import importlib
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, missing
from disttrain.functions.conversion import from_numpy
from disttrain.tensors import Tensor
from disttrain.vision.transforms import resampling


class InterpolationMode(enum.Enum):
    """How pixels between pixels are found; the values are Pillow's names."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


_PIL_FILTERS = {
    "nearest": 0,
    "nearest-exact": 0,
    "lanczos": 1,
    "bilinear": 2,
    "bicubic": 3,
    "box": 4,
    "hamming": 5,
}
_BY_NUMBER = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def pil(module: str = "Image") -> Any:
    """Return a module of Pillow.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(f"PIL.{module}")
    except ImportError:
        raise ImportError(
            "images need Pillow, which is not installed; pip install 'disttrain[vision]'"
        ) from None


def is_pil(img: object) -> bool:
    """Return whether ``img`` is a Pillow image; none exists before Pillow is imported."""
    image = sys.modules.get("PIL.Image")
    return image is not None and isinstance(img, image.Image)


def _check(img: object) -> None:
    if not isinstance(img, Tensor) and not is_pil(img):
        raise TypeError(f"an image must be a Pillow image or a Tensor, got {type(img).__name__}")
    if isinstance(img, Tensor) and img.ndim < 2:
        raise TypeError(f"a Tensor is an image of shape (..., C, H, W), got shape {list(img.shape)}")


def _mode(interpolation: Any) -> str:
    if isinstance(interpolation, int):
        interpolation = InterpolationMode(_BY_NUMBER[interpolation])
    if not isinstance(interpolation, InterpolationMode):
        raise TypeError(f"interpolation must be an InterpolationMode, got {interpolation!r}")
    return interpolation.value


def get_dimensions(img: Any) -> list[int]:
    """Return ``[channels, height, width]``."""
    _check(img)
    if isinstance(img, Tensor):
        return [1 if img.ndim == 2 else img.shape[-3], *img.shape[-2:]]
    return [len(img.getbands()), img.height, img.width]


def get_image_size(img: Any) -> list[int]:
    """Return ``[width, height]``."""
    return get_dimensions(img)[:0:-1]


# ------------------------------------------------------------------------------------------ conversion


def pil_to_tensor(pic: Any) -> Tensor:
    """Return a Pillow image as a Tensor of shape ``(C, H, W)`` in the type of its pixels, uint8 for most.

    Raises:
        TypeError: not a Pillow image.
    """
    if not is_pil(pic):
        raise TypeError(f"pil_to_tensor() takes a Pillow image, got {type(pic).__name__}")
    kind = {"1": np.bool_, "I": np.int32, "I;16": np.int16, "F": np.float32}.get(pic.mode, np.uint8)
    array: np.ndarray[Any, Any] = np.array(pic, copy=True).astype(kind, copy=False)
    array = array.reshape(pic.height, pic.width, len(pic.getbands()))
    return from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def to_tensor(pic: Any) -> Tensor:
    """Return an image or an array of shape ``(H, W, C)`` or ``(H, W)`` as a Tensor ``(C, H, W)``.

    Bytes become float32 in [0, 1]; other types of pixels stay as they are.

    Raises:
        TypeError: neither an image nor an array.
        ValueError: an array of another number of dimensions.
    """
    if isinstance(pic, np.ndarray):
        if pic.ndim not in (2, 3):
            raise ValueError(f"an image has 2 or 3 dimensions, got {pic.ndim}")
        array = pic[:, :, None] if pic.ndim == 2 else pic
        t = from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
    elif is_pil(pic):
        t = pil_to_tensor(pic)
        if pic.mode == "1":
            t = t.to(dtypes.uint8) * 255
    else:
        raise TypeError(f"to_tensor() takes a Pillow image or an ndarray, got {type(pic).__name__}")
    return t.float() / 255 if t.dtype is dtypes.uint8 else t


def to_pil_image(pic: Any, mode: str | None = None) -> Any:
    """Return a Tensor ``(C, H, W)`` or an array ``(H, W, C)`` as a Pillow image; floats count from 0 to 1.

    Args:
        pic: 1 to 4 channels.
        mode: Pillow's; by default what the channels and the type suggest.

    Raises:
        TypeError: neither a Tensor nor an array, or of a type that no image has.
        ValueError: another number of dimensions or channels, or a mode that does not fit.
    """
    if isinstance(pic, Tensor):
        if pic.ndim not in (2, 3):
            raise ValueError(f"an image has 2 or 3 dimensions, got {pic.ndim}")
        if pic.is_floating_point() and mode != "F":
            pic = pic.detach().mul(255).to(dtypes.uint8)
        array = pic.detach().cpu().numpy()
        array = array[None] if array.ndim == 2 else array
        array = array.transpose(1, 2, 0)
    elif isinstance(pic, np.ndarray):
        if pic.ndim not in (2, 3):
            raise ValueError(f"an image has 2 or 3 dimensions, got {pic.ndim}")
        array = pic[:, :, None] if pic.ndim == 2 else pic
    else:
        raise TypeError(f"to_pil_image() takes a Tensor or an ndarray, got {type(pic).__name__}")
    channels = array.shape[2]
    if channels > 4:
        raise ValueError(f"to_pil_image(): Pillow knows images of at most 4 channels, got {channels}")
    if channels == 1:
        array = array[:, :, 0]
        expected = {"uint8": "L", "int16": "I;16", "int32": "I", "float32": "F"}.get(array.dtype.name)
        if expected is None:
            raise TypeError(f"to_pil_image(): Pillow has no images of {array.dtype}; use uint8")
        if mode is not None and mode != expected:
            raise ValueError(
                f"to_pil_image(): {array.dtype} makes an image of mode {expected}, got mode={mode!r}"
            )
        if expected == "I;16":
            array = array.astype(np.uint16)
        return pil().fromarray(np.ascontiguousarray(array))
    if array.dtype != np.uint8:
        raise TypeError(f"to_pil_image(): Pillow has no images of {array.dtype}; use uint8")
    fitting = {2: ("LA",), 3: ("RGB", "YCbCr", "HSV"), 4: ("RGBA", "CMYK", "RGBX")}[channels]
    if mode is not None and mode not in fitting:
        raise ValueError(
            f"to_pil_image(): {channels} channels make one of {list(fitting)}, got mode={mode!r}"
        )
    height, width = array.shape[:2]
    return pil().frombytes(mode or fitting[0], (width, height), np.ascontiguousarray(array).tobytes())


def convert_image_dtype(image: Tensor, dtype: dtypes.dtype = dtypes.float32) -> Tensor:
    """Return a Tensor image in another type, its values scaled: floats count from 0 to 1, integers to their largest.

    Raises:
        TypeError: not a Tensor.
        RuntimeError: the largest number of the type has no such floating point number.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"convert_image_dtype() takes a Tensor, got {type(image).__name__}")
    if image.dtype is dtype:
        return image
    from_float, to_float = image.dtype.is_floating_point, dtype.is_floating_point
    if from_float and to_float:
        return image.to(dtype)
    if to_float:
        return image.to(dtype) / int(np.iinfo(image.dtype.numpy).max)
    largest = int(np.iinfo(dtype.numpy).max)
    if from_float:
        if dtype is dtypes.int64 or (dtype is dtypes.int32 and image.dtype is not dtypes.float64):
            raise RuntimeError(f"convert_image_dtype(): {dtype} does not hold all values of {image.dtype}")
        return image.mul(largest + 1.0 - 1e-3).to(dtype)
    shift = (int(np.iinfo(image.dtype.numpy).max) + 1) / (largest + 1)
    if shift >= 1:
        return (image // int(shift)).to(dtype)
    return image.to(dtype) * int(1 / shift)


def normalize(tensor: Tensor, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> Tensor:
    """Return ``(tensor - mean) / std`` channel by channel.

    Raises:
        TypeError: not a Tensor of a floating point type.
        ValueError: fewer than three dimensions, or a ``std`` of zero.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"normalize() takes a Tensor, got {type(tensor).__name__}; ToTensor() comes first")
    if not tensor.is_floating_point():
        raise TypeError(
            f"normalize() takes floating point numbers, got {tensor.dtype}; ToTensor() makes them"
        )
    if tensor.ndim < 3:
        raise ValueError(f"normalize(): an image is (..., C, H, W), got shape {list(tensor.shape)}")
    kind = tensor.dtype.numpy
    means, stds = (np.asarray(v, kind).reshape(-1, 1, 1) for v in (mean, std))
    if (stds == 0).any():
        raise ValueError(f"normalize(): std must not hold 0, got {std} for {tensor.dtype}")
    out = tensor if inplace else tensor.clone()
    return out.sub_(from_numpy(means)).div_(from_numpy(stds))


# ------------------------------------------------------------------------------------------ geometry


def new_size(
    height: int, width: int, size: Sequence[int] | int, max_size: int | None = None
) -> tuple[int, int]:
    """Return the (height, width) that :func:`resize` makes.

    Raises:
        ValueError: ``size`` has not one or two numbers, or ``max_size`` does not go with it.
    """
    wanted = [size] if isinstance(size, int) else list(size)
    if len(wanted) not in (1, 2):
        raise ValueError(f"resize(): size is an int, or 1 or 2 of them, got {size!r:.80}")
    if len(wanted) == 2:
        if max_size is not None:
            raise ValueError("resize(): max_size goes with one number as size, the shorter edge")
        return wanted[0], wanted[1]
    short, long = sorted((height, width))
    new_short, new_long = wanted[0], int(wanted[0] * long / short)
    if max_size is not None:
        if max_size <= new_short:
            raise ValueError(
                f"resize(): max_size {max_size} must be greater than size {new_short}, the shorter edge"
            )
        if new_long > max_size:
            new_short, new_long = int(max_size * new_short / new_long), max_size
    return (new_short, new_long) if height <= width else (new_long, new_short)


def resize(
    img: Any,
    size: Sequence[int] | int,
    interpolation: Any = InterpolationMode.BILINEAR,
    max_size: int | None = None,
    antialias: bool | None = True,
) -> Any:
    """Return the image in another size: ``(height, width)``, or one number for the smaller edge.

    Args:
        img: the image.
        size: see above.
        interpolation: nearest, bilinear or bicubic; Pillow images take all.
        max_size: limits the longer edge.
        antialias: of Tensors; Pillow always does.

    Raises:
        ValueError: a Tensor with another interpolation.
    """
    mode = _mode(interpolation)
    _, height, width = get_dimensions(img)
    new_height, new_width = new_size(height, width, size, max_size)
    if not isinstance(img, Tensor):
        return img.resize((new_width, new_height), _PIL_FILTERS[mode])
    if (new_height, new_width) == (height, width):
        return img
    if mode not in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        raise ValueError(f"resize(): a Tensor cannot be scaled with {mode}; use bilinear")
    return Tensor._of(resampling.resize(img._array, new_height, new_width, mode, bool(antialias)))


def crop(img: Any, top: int, left: int, height: int, width: int) -> Any:
    """Return a part of the image; zeros where it lies outside."""
    if not isinstance(img, Tensor):
        _check(img)
        return img.crop((left, top, left + width, top + height))
    _, h, w = get_dimensions(img)
    right, bottom = left + width, top + height
    if left < 0 or top < 0 or right > w or bottom > h:
        inside = img[..., max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        around = [
            max(-left + min(0, right), 0),
            max(-top + min(0, bottom), 0),
            max(right - max(w, left), 0),
            max(bottom - max(h, top), 0),
        ]
        return pad(inside, around)
    return img[..., top:bottom, left:right]


def center_crop(img: Any, output_size: Sequence[int] | int) -> Any:
    """Return the middle of the image, ``(height, width)``; a smaller image is padded with zeros first."""
    height, width = pair(output_size, "output_size")
    _, h, w = get_dimensions(img)
    if width > w or height > h:
        around = [
            (width - w) // 2 if width > w else 0,
            (height - h) // 2 if height > h else 0,
            (width - w + 1) // 2 if width > w else 0,
            (height - h + 1) // 2 if height > h else 0,
        ]
        img = pad(img, around)
        _, h, w = get_dimensions(img)
        if (width, height) == (w, h):
            return img
    return crop(img, round((h - height) / 2.0), round((w - width) / 2.0), height, width)


def pair(size: Any, name: str) -> tuple[int, int]:
    """Return ``(height, width)`` from a number, or a sequence of one or two.

    Raises:
        ValueError: more numbers.
    """
    given = [size] if isinstance(size, int | float) else list(size)
    if len(given) not in (1, 2):
        raise ValueError(f"{name} must be a number or two, got {size!r}")
    return int(given[0]), int(given[-1])


def pad(img: Any, padding: Any, fill: Any = 0, padding_mode: str = "constant") -> Any:
    """Return the image with a border.

    Args:
        img: the image.
        padding: one number, (left and right, top and bottom), or (left, top, right, bottom).
        fill: the border's value; for Pillow images also one for each channel.
        padding_mode: ``constant``, ``edge``, ``reflect`` or ``symmetric``.

    Raises:
        ValueError: another number of numbers, or another mode.
    """
    _check(img)
    four: list[int] = [padding] if isinstance(padding, int) else list(padding)
    if len(four) not in (1, 2, 4):
        raise ValueError(f"pad(): padding has 1, 2 or 4 numbers, got {len(four)}")
    if padding_mode not in ("constant", "edge", "reflect", "symmetric"):
        raise ValueError(f"pad(): padding_mode is constant, edge, reflect or symmetric, got {padding_mode!r}")
    left, top, right, bottom = four if len(four) == 4 else (four * 4 if len(four) == 1 else four * 2)
    if isinstance(img, Tensor):
        return Tensor._of(_pad(img._array, img.ndim - 2, left, top, right, bottom, fill, padding_mode))
    if padding_mode == "constant":
        given = list(fill) if isinstance(fill, list | tuple) else [fill]
        bands = len(img.getbands())
        color = given[0] if bands == 1 else tuple(given * bands if len(given) == 1 else given)
        return pil("ImageOps").expand(img, border=(left, top, right, bottom), fill=color)
    array = _pad(np.asarray(img), 0, left, top, right, bottom, 0, padding_mode)
    return pil().fromarray(array)


def _pad(
    a: np.ndarray[Any, Any], rows: int, left: int, top: int, right: int, bottom: int, fill: Any, mode: str
) -> np.ndarray[Any, Any]:
    """Pad axis ``rows`` and the next; negative numbers cut off."""
    cut: list[slice] = [slice(None)] * a.ndim
    cut[rows] = slice(max(-top, 0), a.shape[rows] - max(-bottom, 0))
    cut[rows + 1] = slice(max(-left, 0), a.shape[rows + 1] - max(-right, 0))
    width = [(0, 0)] * a.ndim
    width[rows], width[rows + 1] = (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))
    if mode == "constant":
        value = fill[0] if isinstance(fill, list | tuple) else fill
        return np.pad(a[tuple(cut)], width, mode="constant", constant_values=value)
    return np.pad(a[tuple(cut)], width, mode=mode)  # type: ignore[no-any-return, call-overload]


def resized_crop(
    img: Any,
    top: int,
    left: int,
    height: int,
    width: int,
    size: Sequence[int] | int,
    interpolation: Any = InterpolationMode.BILINEAR,
    antialias: bool | None = True,
) -> Any:
    """Return a part of the image in another size."""
    return resize(crop(img, top, left, height, width), size, interpolation, antialias=antialias)


def hflip(img: Any) -> Any:
    """Return the image with left and right exchanged."""
    _check(img)
    return img.flip(-1) if isinstance(img, Tensor) else img.transpose(0)  # Pillow's FLIP_LEFT_RIGHT


def vflip(img: Any) -> Any:
    """Return the image with top and bottom exchanged."""
    _check(img)
    return img.flip(-2) if isinstance(img, Tensor) else img.transpose(1)  # Pillow's FLIP_TOP_BOTTOM


def rotate(
    img: Any,
    angle: float,
    interpolation: Any = InterpolationMode.NEAREST,
    expand: bool = False,
    center: Sequence[float] | None = None,
    fill: Any = None,
) -> Any:
    """Return the image turned counter-clockwise by ``angle`` degrees.

    Args:
        img: the image.
        angle: in degrees.
        interpolation: nearest or bilinear.
        expand: whether the result is as large as the turned image, or cut to the image's size.
        center: (x, y) of the point that stays; the middle by default.
        fill: the value outside; zero by default.

    Raises:
        ValueError: a Tensor with another interpolation.
    """
    _check(img)
    mode = _mode(interpolation)
    if not isinstance(img, Tensor):
        bands = len(img.getbands())
        color = fill if fill is None or bands == 1 or isinstance(fill, list | tuple) else (fill,) * bands
        if isinstance(color, list | tuple):
            color = tuple(color) * (bands if len(color) == 1 and bands > 1 else 1)
            color = color[0] if bands == 1 else color
        return img.rotate(angle, _PIL_FILTERS[mode], expand, center, fillcolor=color)
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"a Tensor is turned with nearest or bilinear interpolation, got {mode}")
    return Tensor._of(resampling.rotate(img._array, angle, mode, expand, center, fill))


def erase(img: Any, i: int, j: int, h: int, w: int, v: Any, inplace: bool = False) -> Any:
    """Return a Tensor image with the rectangle at row ``i``, column ``j`` of ``h`` by ``w`` set to ``v``.

    Raises:
        TypeError: not a Tensor.
    """
    if not isinstance(img, Tensor):
        raise TypeError(f"erase() needs a Tensor image, got {type(img).__name__}")
    out = img if inplace else img.clone()
    out[..., i : i + h, j : j + w] = v
    return out


# ------------------------------------------------------------------------------------------ color


def rgb_to_grayscale(img: Any, num_output_channels: int = 1) -> Any:
    """Return the image without color, in 1 or 3 channels.

    Raises:
        ValueError: another number of channels.
    """
    if num_output_channels not in (1, 3):
        raise ValueError(f"rgb_to_grayscale(): num_output_channels is 1 or 3, got {num_output_channels}")
    if not isinstance(img, Tensor):
        _check(img)
        gray = img.convert("L")
        return gray if num_output_channels == 1 else pil().merge("RGB", [gray] * 3)
    channels = get_dimensions(img)[0]
    if channels not in (1, 3):
        raise TypeError(f"an image of colours or greys has 3 channels or 1, got {channels}")
    if channels == 3:
        r, g, b = img.unbind(-3)
        img = (0.2989 * r + 0.587 * g + 0.114 * b).to(img.dtype).unsqueeze(-3)
    return img.expand(*img.shape[:-3], 3, *img.shape[-2:]) if num_output_channels == 3 else img


to_grayscale = rgb_to_grayscale


def _blend(img1: Tensor, img2: Any, ratio: float) -> Tensor:
    bound = 1.0 if img1.is_floating_point() else 255.0
    mixed = ratio * img1.float() + (1.0 - ratio) * img2
    return mixed.clamp(0, bound).to(img1.dtype)  # type: ignore[no-any-return]


def _enhance(img: Any, factor: float, name: str) -> Any:
    _check(img)
    return getattr(pil("ImageEnhance"), name)(img).enhance(factor)


def _not_negative(factor: float, name: str) -> None:
    if factor < 0:
        raise ValueError(f"{name} must not be negative, got {factor}")


def adjust_brightness(img: Any, brightness_factor: float) -> Any:
    """Return the image brighter (above 1) or darker; 0 is black.

    Raises:
        ValueError: a negative factor, of a Tensor.
    """
    if isinstance(img, Tensor):
        _not_negative(brightness_factor, "brightness_factor")
        return _blend(img, 0.0, brightness_factor)
    return _enhance(img, brightness_factor, "Brightness")


def adjust_contrast(img: Any, contrast_factor: float) -> Any:
    """Return the image with more (above 1) or less contrast; 0 is gray.

    Raises:
        ValueError: a negative factor, of a Tensor.
    """
    if isinstance(img, Tensor):
        _not_negative(contrast_factor, "contrast_factor")
        gray = rgb_to_grayscale(img) if get_dimensions(img)[0] == 3 else img
        return _blend(img, gray.float().mean((-3, -2, -1), True), contrast_factor)
    return _enhance(img, contrast_factor, "Contrast")


def adjust_saturation(img: Any, saturation_factor: float) -> Any:
    """Return the image with more (above 1) or less color; 0 is black and white.

    Raises:
        ValueError: a negative factor, of a Tensor.
    """
    if isinstance(img, Tensor):
        _not_negative(saturation_factor, "saturation_factor")
        return (
            img
            if get_dimensions(img)[0] == 1
            else _blend(img, rgb_to_grayscale(img).float(), saturation_factor)
        )
    return _enhance(img, saturation_factor, "Color")


def adjust_hue(img: Any, hue_factor: float) -> Any:
    """Return the image with its colors moved along the circle of hues; 0.5 and -0.5 are half way round.

    Raises:
        ValueError: a factor outside [-0.5, 0.5].
    """
    if not -0.5 <= hue_factor <= 0.5:
        raise ValueError(f"adjust_hue(): hue_factor lies in [-0.5, 0.5], got {hue_factor}")
    if isinstance(img, Tensor):
        return img if get_dimensions(img)[0] == 1 else Tensor._of(resampling.turn_hue(img._array, hue_factor))
    _check(img)
    if img.mode in ("L", "1", "I", "F"):
        return img
    h, s, v = img.convert("HSV").split()
    turned = np.asarray(h).astype(np.int64) + math.trunc(hue_factor * 255)
    hue = pil().fromarray((turned % 256).astype(np.uint8))
    return pil().merge("HSV", (hue, s, v)).convert(img.mode)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
