"""Of ``torchvision.transforms.v2`` what mixes batches; of the others use ``disttrain.vision.transforms``."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.vision.transforms.batches import CutMix, MixUp

__all__ = ["CutMix", "MixUp"]

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
