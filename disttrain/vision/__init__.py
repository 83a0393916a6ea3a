"""Images: transforms, data sets and utilities by the names of torchvision, the small part that training programs use.

Images are Pillow's (``pip install 'disttrain[vision]'``) or Tensors of shape ``(..., C, H, W)``.
"""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.vision import datasets, models, transforms, utils

__all__ = ["datasets", "models", "transforms", "utils"]

__version__ = "0.28.0+disttrain"
"""The torchvision whose names and results are followed."""


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
