"""Where scripts that were written for ``torch.utils`` look for things."""

from disttrain.utils import checkpoint as checkpoint
from disttrain.utils import data as data
