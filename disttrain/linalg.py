"""``disttrain.linalg``: matrices, with the names of ``torch.linalg``."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.errors import LinAlgError
from disttrain.functions.creation import vander
from disttrain.functions.decompositions import (
    cholesky,
    cholesky_ex,
    cond,
    det,
    eigh,
    eigvalsh,
    inv,
    inv_ex,
    lstsq,
    matrix_exp,
    matrix_norm,
    matrix_power,
    matrix_rank,
    pinv,
    qr,
    slogdet,
    solve,
    solve_triangular,
    svd,
    svdvals,
    tensorinv,
    tensorsolve,
)
from disttrain.functions.decompositions import linalg_diagonal as diagonal
from disttrain.functions.linalg import linalg_cross as cross
from disttrain.functions.linalg import matmul, multi_dot, vecdot
from disttrain.functions.norm import linalg_norm as norm
from disttrain.functions.norm import vector_norm
from disttrain.functions.out import with_out

__all__ = [
    "LinAlgError",
    "cholesky",
    "cholesky_ex",
    "cond",
    "cross",
    "det",
    "diagonal",
    "eigh",
    "eigvalsh",
    "inv",
    "inv_ex",
    "lstsq",
    "matmul",
    "matrix_exp",
    "matrix_norm",
    "matrix_power",
    "matrix_rank",
    "multi_dot",
    "norm",
    "pinv",
    "qr",
    "slogdet",
    "solve",
    "solve_triangular",
    "svd",
    "svdvals",
    "tensorinv",
    "tensorsolve",
    "vander",
    "vecdot",
    "vector_norm",
]

_WITHOUT_OUT = ("LinAlgError", "diagonal", "matrix_exp", "vander")
globals().update({name: with_out(globals()[name]) for name in __all__ if name not in _WITHOUT_OUT})

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
