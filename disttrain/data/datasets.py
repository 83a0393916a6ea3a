"""Data sets that come with the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disttrain.data.dataset import Dataset, TensorDataset
from disttrain.tensors import Tensor

_DIGITS = Path(__file__).with_name("digits.npz")


class Digits(Dataset[tuple[Any, Any]]):
    """1,797 handwritten digits, 8 x 8 pixels (Alpaydin and Kaynak, UCI 1998, CC BY 4.0; see ``digits.txt``).

    Samples are ``(image, label)``: float32 of shape (1, 8, 8) in [0, 1], and an int in [0, 9]. Of each class
    every fifth digit in the file's order (its 5th, 10th, …) is held out: 1,442 to train on, 355 to test on.

    Args:
        train: the digits to train on, else those held out.
        transform: applied to the image.
        target_transform: applied to the label.
    """

    def __init__(
        self,
        train: bool = True,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        with np.load(_DIGITS, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
        nth = np.empty(len(labels), np.int64)  # which digit of its class each one is
        for label in range(10):
            nth[labels == label] = np.arange(np.count_nonzero(labels == label))
        chosen = (nth % 5 != 4) == train
        self.images = Tensor._of((images[chosen, None] / np.float32(16)).astype(np.float32))
        """All images: float32, (n, 1, 8, 8)."""
        self.labels = Tensor._of(labels[chosen].astype(np.int64))
        """All labels: int64, (n,)."""
        self.train = train
        self.transform = transform
        self.target_transform = target_transform

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        image, label = self.images[index], int(self.labels._array[index])
        return (
            image if self.transform is None else self.transform(image),
            label if self.target_transform is None else self.target_transform(label),
        )

    @property
    def can_collate(self) -> bool:
        """Whether :meth:`collated` means the same as sample by sample: there are no transforms."""
        return self.transform is None and self.target_transform is None

    def collated(self, indices: Sequence[int]) -> list[Tensor]:
        """Return the batch of these samples before any transform, by one gather per tensor."""
        return self.tensors().collated(indices)

    def tensors(self) -> TensorDataset:
        """Return the images and labels, without transforms, as a :class:`TensorDataset`."""
        return TensorDataset(self.images, self.labels)

    def __len__(self) -> int:
        return len(self.labels)
