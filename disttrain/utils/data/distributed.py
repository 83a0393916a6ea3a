"""The sampler under the name that it has in PyTorch, ``torch.utils.data.distributed``."""

from disttrain.data import DistributedSampler

__all__ = ["DistributedSampler"]
