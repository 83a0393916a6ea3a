"""Where older programs look for :func:`functional_call` (``torch.nn.utils.stateless``)."""

from disttrain.func import functional_call

__all__ = ["functional_call"]
