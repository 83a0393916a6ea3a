"""``torch.hub``: nothing is downloaded."""

from typing import TYPE_CHECKING

from disttrain import missing

__all__ = ["download_url_to_file", "load", "load_state_dict_from_url"]

_WHY = "nothing is downloaded; fetch the file yourself and read it with disttrain.load() or safetensors"
load = missing.refused("hub.load", _WHY)
load_state_dict_from_url = missing.refused("hub.load_state_dict_from_url", _WHY)
download_url_to_file = missing.refused("hub.download_url_to_file", _WHY)

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
