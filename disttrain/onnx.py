"""``torch.onnx``: there is no exporter yet."""

from typing import TYPE_CHECKING

from disttrain import missing

__all__ = ["export"]

export = missing.refused("onnx.export", "there is no exporter; disttrain.save() writes safetensors")

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
