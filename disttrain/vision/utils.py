"""Images of batches of images: ``make_grid`` and ``save_image``, as in ``torchvision.utils``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from disttrain import missing
from disttrain.functions.conversion import from_numpy
from disttrain.functions.join import stack
from disttrain.tensors import Tensor
from disttrain.vision.transforms.functional import pil

__all__ = ["make_grid", "save_image"]


def make_grid(
    tensor: Tensor | Sequence[Tensor],
    nrow: int = 8,
    padding: int = 2,
    normalize: bool = False,
    value_range: tuple[float, float] | None = None,
    scale_each: bool = False,
    pad_value: float = 0.0,
) -> Tensor:
    """Return one image ``(C, H, W)`` of many.

    Args:
        tensor: images ``(B, C, H, W)``, a list of images of one size, or one image. One channel becomes three.
        nrow: images in a row.
        padding: pixels between them.
        normalize: move the values to [0, 1], from ``value_range`` or from the lowest and highest.
        value_range: see there.
        scale_each: take lowest and highest of each image.
        pad_value: what stands between the images.

    Raises:
        TypeError: not Tensors.
        ValueError: another number of dimensions.
    """
    if isinstance(tensor, list | tuple) and all(isinstance(t, Tensor) for t in tensor):
        tensor = stack(list(tensor))
    if not isinstance(tensor, Tensor):
        raise TypeError(f"images come in a Tensor or a list of Tensors, got {type(tensor).__name__}")
    if tensor.ndim not in (2, 3, 4):
        raise ValueError(f"images must be of shape (B, C, H, W), got {list(tensor.shape)}")
    images = tensor.detach().cpu().numpy()
    if images.ndim == 2:
        images = images[None]
    if images.ndim == 3:
        images = np.concatenate([images] * 3)[None] if images.shape[0] == 1 else images[None]
    if images.shape[1] == 1:
        images = np.concatenate([images] * 3, 1)
    if normalize:
        images = images.copy()
        parts = list(images) if scale_each else [images]
        for part in parts:
            low, high = value_range if value_range is not None else (float(part.min()), float(part.max()))
            np.clip(part, low, high, out=part)
            part -= low
            part /= max(high - low, 1e-5)
    if len(images) == 1:
        return from_numpy(np.ascontiguousarray(images[0]))
    count, channels = images.shape[:2]
    columns = min(nrow, count)
    rows = math.ceil(count / columns)
    height, width = images.shape[2] + padding, images.shape[3] + padding
    grid = np.full((channels, height * rows + padding, width * columns + padding), pad_value, images.dtype)
    for k, image in enumerate(images):
        top, left = k // columns * height + padding, k % columns * width + padding
        grid[:, top : top + height - padding, left : left + width - padding] = image
    return from_numpy(grid)


def save_image(
    tensor: Tensor | Sequence[Tensor],
    fp: str | os.PathLike[str] | IO[bytes],
    format: str | None = None,
    **kwargs: Any,
) -> None:
    """Write images whose values count from 0 to 1 into one image file.

    Args:
        tensor: see :func:`make_grid`.
        fp: a path, or a file object.
        format: Pillow's name of the format; by default the path tells.
        **kwargs: :func:`make_grid`'s.

    Raises:
        ImportError: Pillow is not installed.
    """
    grid = make_grid(tensor, **kwargs)
    pixels = np.clip(grid.numpy() * 255 + 0.5, 0, 255).astype(np.uint8)
    pil().fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(fp, format=format)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
