"""Transforms of whole batches, after the DataLoader has made them: on the device where the batch is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttrain import context
from disttrain.distributions import Beta
from disttrain.functions.random import randint
from disttrain.kernels.arrays import get_array_module
from disttrain.kernels.crop import crop_flip_normalize
from disttrain.nn.functional import one_hot
from disttrain.nn.module import Module
from disttrain.random import BATCH, SampleGenerator, current_generator
from disttrain.tensors import Tensor


class RandomCropFlipNormalize(Module):
    """``RandomCrop``, ``RandomHorizontalFlip``, ``ToTensor`` and ``Normalize`` of a whole batch in one pass.

    Takes uint8 images (N, C, H, W) and returns float32 (N, C, *size), channels last in memory. In evaluation
    (``eval()``) it takes the middle and flips nothing. What an image draws is a function of (seed, epoch, sample) where
    the images are the batch that a DataLoader has dealt last, else it comes from the rank's generator.

    Args:
        size: (height, width) of the crop, or one number for both.
        mean: of each channel, in units of 255.
        std: of each channel, in units of 255.
        padding: black pixels around the image that a crop may reach into.
        p: chance that an image is mirrored.

    Raises:
        TypeError: the images are not uint8.
        ValueError: they have other channels than ``mean`` and ``std``, or are smaller than the crop.
    """

    def __init__(
        self,
        size: Sequence[int] | int,
        mean: Sequence[float],
        std: Sequence[float],
        padding: int = 0,
        p: float = 0.5,
    ) -> None:
        super().__init__()
        h, w = (size, size) if isinstance(size, int) else size
        if len(mean) != len(std):
            raise ValueError(f"mean and std need a number for each channel, got {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {list(std)}")
        if padding < 0 or not 0 <= p <= 1:
            raise ValueError(f"padding must not be negative and p be in [0, 1], got {padding} and {p}")
        self.size = (int(h), int(w))
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.padding = padding
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        x = images._array
        if x.dtype != np.uint8 or x.ndim != 4:
            raise TypeError(
                f"RandomCropFlipNormalize takes a batch of uint8 images (N, C, H, W), got {images.dtype} of shape "
                f"{list(images.shape)}"
            )
        N, C, H, W = x.shape
        room = (H + 2 * self.padding - self.size[0], W + 2 * self.padding - self.size[1])
        if len(self.mean) != C or min(room) < 0:
            raise ValueError(
                f"images of shape {[C, H, W]} do not fit: mean has {len(self.mean)} channels, and the crop is "
                f"{list(self.size)} with padding {self.padding}"
            )
        if self.training:
            drawn = _draw(N)
            corners = (drawn[:, :2] * (np.array(room) + 1)).astype(np.int64) - self.padding
            flips = (drawn[:, 2] < self.p).astype(np.int64)
        else:
            corners = np.tile(np.array([room]) // 2 - self.padding, (N, 1)).astype(np.int64)
            flips = np.zeros(N, np.int64)
        xp = get_array_module(x)
        std = np.array(self.std)
        scale, shift = 1 / (255 * std), -np.array(self.mean) / std
        out = crop_flip_normalize(
            x,
            xp.asarray(corners),
            xp.asarray(flips),
            self.size,
            xp.asarray(scale, np.float32),
            xp.asarray(shift, np.float32),
        )
        return Tensor._of(out)

    def extra_repr(self) -> str:
        return f"{self.size}, mean={self.mean}, std={self.std}, padding={self.padding}, p={self.p}"


def _draw(count: int) -> np.ndarray[Any, Any]:
    """Return three numbers in [0, 1) for each image of a batch, float64."""
    dealt = context.current().dealt
    if (
        dealt is not None
        and dealt.key is not None
        and dealt.indices is not None
        and len(dealt.indices) == count
    ):
        generator = SampleGenerator(*dealt.key, BATCH)
        words = np.empty((count, 3), np.uint64)
        for row, sample in zip(words, dealt.indices, strict=True):
            generator.turn_to(sample)
            row[...] = generator.raw(3)
    else:
        words = current_generator().raw(3 * count).reshape(count, 3)
    return (words >> np.uint64(11)) * 2.0**-53


class _Mixing(Module):
    """What MixUp and CutMix share: each image of a batch meets the one before it, and so do their labels."""

    def __init__(
        self, *, alpha: float = 1.0, num_classes: int | None = None, labels_getter: Any = "default"
    ) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if labels_getter != "default":
            raise NotImplementedError(
                "labels_getter is not in disttrain: call with (images, labels), or a dict with 'labels'"
            )
        self.alpha = float(alpha)
        self.num_classes = num_classes
        self._beta = Beta(self.alpha, self.alpha)

    def forward(self, *inputs: Any) -> Any:
        batch = inputs if len(inputs) > 1 else inputs[0]
        if isinstance(batch, dict):
            name = next(
                (k for k in batch if str(k).lower() in ("label", "labels", "target", "targets")), None
            )
            if name is None:
                raise ValueError(f"{type(self).__name__}: no labels among {', '.join(map(str, batch))}")
            key = next(
                (k for k, v in batch.items() if k != name and isinstance(v, Tensor) and v.ndim >= 4), None
            )
            if key is None:
                raise ValueError(
                    f"{type(self).__name__}: no batch of images among {', '.join(map(str, batch))}"
                )
            images, labels = self._mix_both(batch[key], batch[name])
            return {**batch, key: images, name: labels}
        if not isinstance(batch, list | tuple) or len(batch) < 2:
            raise ValueError(f"{type(self).__name__} takes images and labels, got {type(batch).__name__}")
        images, labels = self._mix_both(batch[0], batch[1])
        return type(batch)([images, labels, *batch[2:]])

    def _mix_both(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        name = type(self).__name__
        if not isinstance(labels, Tensor) or labels.ndim not in (1, 2):
            raise ValueError(
                f"{name}: labels are a Tensor of shape (batch,) or (batch, classes), got {labels!r:.80}"
            )
        if not isinstance(images, Tensor) or images.ndim < 4 or not images.dtype.is_floating_point:
            raise ValueError(
                f"{name} needs a batch of floating point images (batch, channels, height, width); apply it after the "
                f"DataLoader, and ToTensor or ConvertImageDtype in the data set; got "
                f"{getattr(images, 'dtype', type(images).__name__)} of shape {list(getattr(images, 'shape', []))}"
            )
        if labels.shape[0] != images.shape[0]:
            raise ValueError(f"{name}: {images.shape[0]} images, but {labels.shape[0]} labels")
        if labels.ndim == 1 and self.num_classes is None:
            raise ValueError(f"{name}: give num_classes, as the labels are numbers of classes")
        if labels.ndim == 2 and self.num_classes not in (None, labels.shape[1]):
            raise ValueError(
                f"{name}: labels of {labels.shape[1]} classes, but num_classes={self.num_classes}"
            )
        mixed, share = self._mix(images, float(self._beta.sample(()).item()))
        probabilities = labels if labels.ndim == 2 else one_hot(labels, self.num_classes or -1)
        if not probabilities.dtype.is_floating_point:
            probabilities = probabilities.float()
        return mixed, probabilities * share + probabilities.roll(1, 0) * (1 - share)

    def _mix(self, images: Tensor, share: float) -> tuple[Tensor, float]:
        """Return the mixed images, and which part of each is its own, given what was drawn for that."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, num_classes={self.num_classes}"


class MixUp(_Mixing):
    """Mixes each image of a batch with the one before it, as ``torchvision.transforms.v2.MixUp``.

    Zhang et al., "mixup: Beyond empirical risk minimization", 2018. Call it with ``(images, labels)`` of a DataLoader.

    Args:
        alpha: of the Beta distribution, (alpha, alpha), of the part that is the image's own.
        num_classes: needed for labels that are numbers of classes; they come back as probabilities.
        labels_getter: must stay as it is.

    Raises:
        ValueError: from the call: not floating point images with labels of theirs.
    """

    def _mix(self, images: Tensor, share: float) -> tuple[Tensor, float]:
        return images * share + images.roll(1, 0) * (1 - share), share


class CutMix(_Mixing):
    """Replaces a rectangle of each image by that of the one before it, as ``torchvision.transforms.v2.CutMix``.

    Yun et al., "CutMix: Regularization strategy to train strong classifiers", 2019. Arguments as of :class:`MixUp`; the
    labels are mixed by area.
    """

    def _mix(self, images: Tensor, share: float) -> tuple[Tensor, float]:
        H, W = images.shape[-2:]
        x, y = int(randint(W, (1,)).item()), int(randint(H, (1,)).item())
        half = 0.5 * math.sqrt(1 - share)
        dx, dy = int(half * W), int(half * H)
        left, top, right, bottom = max(x - dx, 0), max(y - dy, 0), min(x + dx, W), min(y + dy, H)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
        return mixed, 1 - (right - left) * (bottom - top) / (W * H)
