"""PyTorch's private place for the functions that make batches; scripts name it to extend ``default_collate``."""

from disttrain.data import collate as collate
