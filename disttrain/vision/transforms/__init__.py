"""Transforms of images by torchvision's names. What is random is drawn from the calling rank's generator."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from disttrain import missing
from disttrain.functions.random import rand, randint, randperm
from disttrain.nn.module import Module
from disttrain.tensors import Tensor
from disttrain.vision.transforms import functional
from disttrain.vision.transforms import functional as F
from disttrain.vision.transforms.batches import CutMix, MixUp, RandomCropFlipNormalize
from disttrain.vision.transforms.functional import InterpolationMode

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "ConvertImageDtype",
    "CutMix",
    "Grayscale",
    "InterpolationMode",
    "Lambda",
    "MixUp",
    "Normalize",
    "PILToTensor",
    "Pad",
    "RandomApply",
    "RandomChoice",
    "RandomCrop",
    "RandomCropFlipNormalize",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomOrder",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "Resize",
    "ToPILImage",
    "ToTensor",
    "functional",
]


def _chance(p: float) -> bool:
    return float(rand(1).item()) < p


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(rand(1).item())


def _below(n: int) -> int:
    return int(randint(0, n, (1,)).item())


class Compose:
    """Applies transforms one after the other, as ``torchvision.transforms.Compose``."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, img: Any) -> Any:
        for t in self.transforms:
            img = t(img)
        return img

    def __repr__(self) -> str:
        lines = "".join(f"\n    {t}" for t in self.transforms)
        return f"{type(self).__name__}({lines}\n)"


class ToTensor:
    """:func:`functional.to_tensor`: an image or array ``(H, W, C)`` as a Tensor ``(C, H, W)``, bytes as [0, 1]."""

    def __call__(self, pic: Any) -> Tensor:
        return F.to_tensor(pic)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class PILToTensor:
    """:func:`functional.pil_to_tensor`: a Pillow image as a Tensor ``(C, H, W)`` of its own type."""

    def __call__(self, pic: Any) -> Tensor:
        return F.pil_to_tensor(pic)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ToPILImage:
    """:func:`functional.to_pil_image`: a Tensor ``(C, H, W)`` or an array ``(H, W, C)`` as a Pillow image."""

    def __init__(self, mode: str | None = None) -> None:
        self.mode = mode

    def __call__(self, pic: Any) -> Any:
        return F.to_pil_image(pic, self.mode)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.mode is None else f'mode={self.mode}'})"


class ConvertImageDtype(Module):
    """:func:`functional.convert_image_dtype`."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        """Return the image in the other type, scaled."""
        return F.convert_image_dtype(image, self.dtype)


class Lambda:
    """Applies a function.

    Raises:
        TypeError: it cannot be called.
    """

    def __init__(self, lambd: Callable[[Any], Any]) -> None:
        if not callable(lambd):
            raise TypeError(f"Lambda: lambd is a function, got {type(lambd).__name__!r}")
        self.lambd = lambd

    def __call__(self, img: Any) -> Any:
        return self.lambd(img)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Normalize(Module):
    """:func:`functional.normalize`: subtracts ``mean`` and divides by ``std``, channel by channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        super().__init__()
        self.mean, self.std, self.inplace = mean, std, inplace

    def forward(self, tensor: Tensor) -> Tensor:
        """Return the normalized Tensor."""
        return F.normalize(tensor, self.mean, self.std, self.inplace)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std})"


class Resize(Module):
    """:func:`functional.resize`: to ``(height, width)``, or the smaller edge to one number."""

    def __init__(
        self,
        size: Sequence[int] | int,
        interpolation: Any = InterpolationMode.BILINEAR,
        max_size: int | None = None,
        antialias: bool | None = True,
    ) -> None:
        super().__init__()
        if not isinstance(size, int | Sequence):
            raise TypeError(f"Resize: size is an int or two, got {type(size).__name__}")
        if isinstance(size, Sequence) and len(size) not in (1, 2):
            raise ValueError(f"Resize: size has 1 or 2 numbers, got {list(size)}")
        self.size, self.interpolation, self.max_size, self.antialias = (
            size,
            interpolation,
            max_size,
            antialias,
        )

    def forward(self, img: Any) -> Any:
        """Return the resized image."""
        return F.resize(img, self.size, self.interpolation, self.max_size, self.antialias)

    def __repr__(self) -> str:
        detail = (
            f"size={self.size}, interpolation={getattr(self.interpolation, 'value', self.interpolation)}, "
            f"max_size={self.max_size}, antialias={self.antialias}"
        )
        return f"{type(self).__name__}({detail})"


class CenterCrop(Module):
    """:func:`functional.center_crop`."""

    def __init__(self, size: Sequence[int] | int) -> None:
        super().__init__()
        self.size = F.pair(size, "size")

    def forward(self, img: Any) -> Any:
        """Return the middle of the image."""
        return F.center_crop(img, self.size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


class Pad(Module):
    """:func:`functional.pad`: a border around the image."""

    def __init__(self, padding: Any, fill: Any = 0, padding_mode: str = "constant") -> None:
        super().__init__()
        if not isinstance(padding, numbers.Number | tuple | list):
            raise TypeError(f"Pad: padding is an int or a sequence of them, got {type(padding).__name__}")
        if not isinstance(padding, numbers.Number) and len(padding) not in (1, 2, 4):
            raise ValueError(f"Pad: padding has 1, 2 or 4 numbers, got {len(padding)}")
        if padding_mode not in ("constant", "edge", "reflect", "symmetric"):
            raise ValueError(
                f"Pad: padding_mode is constant, edge, reflect or symmetric, got {padding_mode!r}"
            )
        self.padding, self.fill, self.padding_mode = padding, fill, padding_mode

    def forward(self, img: Any) -> Any:
        """Return the image with its border."""
        return F.pad(img, self.padding, self.fill, self.padding_mode)

    def __repr__(self) -> str:
        detail = f"padding={self.padding}, fill={self.fill}, padding_mode={self.padding_mode}"
        return f"{type(self).__name__}({detail})"


class RandomHorizontalFlip(Module):
    """Exchanges left and right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, img: Any) -> Any:
        """Return the image, flipped or not."""
        return F.hflip(img) if _chance(self.p) else img

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p})"


class RandomVerticalFlip(RandomHorizontalFlip):
    """Exchanges top and bottom with probability ``p``."""

    def forward(self, img: Any) -> Any:
        """Return the image, flipped or not."""
        return F.vflip(img) if _chance(self.p) else img


class RandomCrop(Module):
    """A part of the image of a given size, anywhere.

    Args:
        size: (height, width), or one number for both.
        padding: a border that is put around the image first, see :func:`functional.pad`.
        pad_if_needed: pad an image that is smaller than ``size``.
        fill: the border's value.
        padding_mode: the kind of border.
    """

    def __init__(
        self,
        size: Sequence[int] | int,
        padding: Any = None,
        pad_if_needed: bool = False,
        fill: Any = 0,
        padding_mode: str = "constant",
    ) -> None:
        super().__init__()
        self.size = F.pair(size, "size")
        self.padding, self.pad_if_needed, self.fill, self.padding_mode = (
            padding,
            pad_if_needed,
            fill,
            padding_mode,
        )

    @staticmethod
    def get_params(img: Any, output_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of a part.

        Raises:
            ValueError: the image is smaller.
        """
        _, h, w = F.get_dimensions(img)
        height, width = output_size
        if h < height or w < width:
            raise ValueError(
                f"RandomCrop: {output_size} cannot be cut out of an image of {(h, w)}; see pad_if_needed"
            )
        if (h, w) == (height, width):
            return 0, 0, h, w
        return _below(h - height + 1), _below(w - width + 1), height, width

    def forward(self, img: Any) -> Any:
        """Return the part."""
        if self.padding is not None:
            img = F.pad(img, self.padding, self.fill, self.padding_mode)
        if self.pad_if_needed:
            _, h, w = F.get_dimensions(img)
            if w < self.size[1]:
                img = F.pad(img, [self.size[1] - w, 0], self.fill, self.padding_mode)
            if h < self.size[0]:
                img = F.pad(img, [0, self.size[0] - h], self.fill, self.padding_mode)
        return F.crop(img, *self.get_params(img, self.size))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, padding={self.padding})"


class RandomResizedCrop(Module):
    """A part of random area and aspect, resized (Szegedy et al., "Going deeper with convolutions", 2014).

    Args:
        size: (height, width) of the result, or one number for both.
        scale: lower and upper bound of the part's area, as a share of the image's.
        ratio: lower and upper bound of its width over its height.
        interpolation: see :func:`functional.resize`.
        antialias: see there.
    """

    def __init__(
        self,
        size: Sequence[int] | int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0),
        interpolation: Any = InterpolationMode.BILINEAR,
        antialias: bool | None = True,
    ) -> None:
        super().__init__()
        if scale[0] > scale[1] or ratio[0] > ratio[1]:
            warnings.warn("Scale and ratio should be of kind (min, max)", stacklevel=2)
        self.size = F.pair(size, "size")
        self.scale, self.ratio, self.interpolation, self.antialias = scale, ratio, interpolation, antialias

    @staticmethod
    def get_params(img: Any, scale: Sequence[float], ratio: Sequence[float]) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of a part; the middle if ten tries do not fit."""
        _, height, width = F.get_dimensions(img)
        low, high = math.log(ratio[0]), math.log(ratio[1])
        for _ in range(10):
            area = height * width * _between(scale[0], scale[1])
            aspect = math.exp(_between(low, high))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return _below(height - h + 1), _below(width - w + 1), h, w
        w, h = width, height
        if width / height < min(ratio):
            h = round(width / min(ratio))
        elif width / height > max(ratio):
            w = round(height * max(ratio))
        return (height - h) // 2, (width - w) // 2, h, w

    def forward(self, img: Any) -> Any:
        """Return the part, resized."""
        part = self.get_params(img, self.scale, self.ratio)
        return F.resized_crop(img, *part, self.size, self.interpolation, self.antialias)

    def __repr__(self) -> str:
        detail = (
            f"size={self.size}, scale={tuple(round(s, 4) for s in self.scale)}, "
            f"ratio={tuple(round(r, 4) for r in self.ratio)}, "
            f"interpolation={getattr(self.interpolation, 'value', self.interpolation)}, antialias={self.antialias}"
        )
        return f"{type(self).__name__}({detail})"


class Grayscale(Module):
    """:func:`functional.rgb_to_grayscale`: without color, in 1 or 3 channels."""

    def __init__(self, num_output_channels: int = 1) -> None:
        super().__init__()
        self.num_output_channels = num_output_channels

    def forward(self, img: Any) -> Any:
        """Return the image without color."""
        return F.rgb_to_grayscale(img, self.num_output_channels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_output_channels={self.num_output_channels})"


class RandomGrayscale(Module):
    """Takes the color away with probability ``p``; the number of channels stays."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = p

    def forward(self, img: Any) -> Any:
        """Return the image, with its color or without."""
        return F.rgb_to_grayscale(img, F.get_dimensions(img)[0]) if _chance(self.p) else img

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p})"


class ColorJitter(Module):
    """Changes brightness, contrast, saturation and hue by random factors, in random order.

    Args:
        brightness: a factor from ``[max(0, 1 - b), 1 + b]``, or from the bounds that are given.
        contrast: the same.
        saturation: the same.
        hue: a shift from ``[-h, h]``, or from the bounds that are given; within [-0.5, 0.5].

    Raises:
        ValueError: a negative number, or bounds in the wrong order or out of range.
    """

    def __init__(self, brightness: Any = 0, contrast: Any = 0, saturation: Any = 0, hue: Any = 0) -> None:
        super().__init__()
        self.brightness = self._bounds(brightness, "brightness")
        self.contrast = self._bounds(contrast, "contrast")
        self.saturation = self._bounds(saturation, "saturation")
        self.hue = self._bounds(hue, "hue", middle=0.0, least=-0.5, most=0.5)

    @staticmethod
    def _bounds(
        value: Any, name: str, middle: float = 1.0, least: float = 0.0, most: float = math.inf
    ) -> tuple[float, float] | None:
        if isinstance(value, numbers.Real):
            if value < 0:
                raise ValueError(f"ColorJitter: {name} must not be negative, got {value}")
            low, high = middle - float(value), middle + float(value)
            low = max(low, 0.0) if middle == 1.0 else low
        elif isinstance(value, list | tuple) and len(value) == 2:
            low, high = map(float, value)
        else:
            raise TypeError(f"ColorJitter: {name} is a number or (least, most), got {value!r:.80}")
        if not least <= low <= high <= most:
            raise ValueError(f"ColorJitter: {name} lies in {(least, most)}, got {(low, high)}")
        return None if low == high == middle else (low, high)

    def forward(self, img: Any) -> Any:
        """Return the image with other colors."""
        steps = (
            (F.adjust_brightness, self.brightness),
            (F.adjust_contrast, self.contrast),
            (F.adjust_saturation, self.saturation),
            (F.adjust_hue, self.hue),
        )
        for i in randperm(4).tolist():
            adjust, bounds = steps[i]
            if bounds is not None:
                img = adjust(img, _between(*bounds))
        return img

    def __repr__(self) -> str:
        detail = f"brightness={self.brightness}, contrast={self.contrast}, saturation={self.saturation}"
        return f"{type(self).__name__}({detail}, hue={self.hue})"


class RandomRotation(Module):
    """Turns the image by a random angle.

    Args:
        degrees: (lowest, highest) angle, or one number ``d`` for ``(-d, d)``.
        interpolation: see :func:`functional.rotate`, as the others.
        expand: see there.
        center: see there.
        fill: see there.

    Raises:
        ValueError: a single negative number, or not two.
    """

    def __init__(
        self,
        degrees: Any,
        interpolation: Any = InterpolationMode.NEAREST,
        expand: bool = False,
        center: Sequence[float] | None = None,
        fill: Any = 0,
    ) -> None:
        super().__init__()
        if isinstance(degrees, numbers.Real):
            if degrees < 0:
                raise ValueError(f"RandomRotation: degrees must not be negative, got {degrees}")
            degrees = (-degrees, degrees)
        if len(degrees) != 2:
            raise ValueError(f"RandomRotation: degrees is a number or (least, most), got {degrees!r:.80}")
        self.degrees = [float(d) for d in degrees]
        self.interpolation, self.expand, self.center, self.fill = interpolation, expand, center, fill

    def forward(self, img: Any) -> Any:
        """Return the turned image."""
        angle = _between(*self.degrees)
        return F.rotate(img, angle, self.interpolation, self.expand, self.center, self.fill)

    def __repr__(self) -> str:
        mode = getattr(self.interpolation, "value", self.interpolation)
        detail = f"degrees={self.degrees}, interpolation={mode}, expand={self.expand}"
        detail += "" if self.center is None else f", center={self.center}"
        return f"{type(self).__name__}({detail}, fill={self.fill})"


class RandomErasing(Module):
    """Overwrites a random rectangle of a Tensor image (Zhong et al., "Random erasing data augmentation", 2017).

    Args:
        p: how probable that is.
        scale: bounds of the rectangle's area, as a share of the image's.
        ratio: bounds of its height over its width.
        value: a number, one for each channel, or ``"random"`` for normally distributed ones.
        inplace: overwrite the image itself.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: Any = 0,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(value, str) and value != "random":
            raise ValueError(f"RandomErasing: value is 'random' or numbers, got {value!r}")
        if scale[0] < 0 or scale[1] > 1:
            raise ValueError(f"RandomErasing: scale holds parts of the area, in [0, 1], got {scale}")
        if p < 0 or p > 1:
            raise ValueError(f"RandomErasing: p is a probability, in [0, 1], got {p}")
        self.p, self.scale, self.ratio, self.value, self.inplace = p, scale, ratio, value, inplace

    def forward(self, img: Tensor) -> Tensor:
        """Return the image, erased in part or not."""
        if not _chance(self.p):
            return img
        channels, height, width = F.get_dimensions(img)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * _between(*self.scale)
            aspect = math.exp(_between(low, high))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = _below(height - h + 1), _below(width - w + 1)
                value = self._fill(img, channels, h, w)
                return F.erase(img, top, left, h, w, value, self.inplace)  # type: ignore[no-any-return]
        return img

    def _fill(self, img: Tensor, channels: int, h: int, w: int) -> Any:
        if self.value == "random":
            return img.new_empty(channels, h, w).normal_()
        if isinstance(self.value, list | tuple):
            if len(self.value) not in (1, channels):
                raise ValueError(f"RandomErasing: value has 1 number or one for each of {channels} channels")
            return img.new_tensor(self.value).reshape(-1, 1, 1)
        return self.value

    def __repr__(self) -> str:
        detail = (
            f"p={self.p}, scale={self.scale}, ratio={self.ratio}, value={self.value}, inplace={self.inplace}"
        )
        return f"{type(self).__name__}({detail})"


class RandomApply(Module):
    """Applies all of ``transforms``, or with probability ``1 - p`` none."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]], p: float = 0.5) -> None:
        super().__init__()
        self.transforms, self.p = transforms, p

    def forward(self, img: Any) -> Any:
        """Return the image, transformed or not."""
        if _chance(self.p):
            for t in self.transforms:
                img = t(img)
        return img

    def __repr__(self) -> str:
        lines = "".join(f"\n    {t}" for t in self.transforms)
        return f"{type(self).__name__}(\n    p={self.p}{lines}\n)"


class RandomOrder:
    """Applies all of ``transforms`` in a random order."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, img: Any) -> Any:
        for i in randperm(len(self.transforms)).tolist():
            img = self.transforms[i](img)
        return img


class RandomChoice:
    """Applies one of ``transforms``, by the weights ``p`` or all alike."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]], p: Sequence[float] | None = None) -> None:
        self.transforms, self.p = transforms, p

    def __call__(self, img: Any) -> Any:
        p = self.p or [1.0] * len(self.transforms)
        point = _between(0.0, sum(p))
        for t, weight in zip(self.transforms, p, strict=True):
            point -= weight
            if point < 0:
                return t(img)
        return self.transforms[-1](img)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
