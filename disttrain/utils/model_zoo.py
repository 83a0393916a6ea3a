"""``torch.utils.model_zoo``: nothing is downloaded."""

from disttrain.hub import load_state_dict_from_url

__all__ = ["load_url"]

load_url = load_state_dict_from_url
