"""Where scripts that were written for ``torch.utils`` look for things."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.utils import checkpoint as checkpoint
from disttrain.utils import data as data
from disttrain.utils import hooks as hooks
from disttrain.utils import model_zoo as model_zoo

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
