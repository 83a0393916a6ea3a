"""Running and reading programs that say ``import torch``."""
