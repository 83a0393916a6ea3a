"""The CUDA kernels of recurrent steps, run on the CPU, equal the plain array operations."""

import numpy as np
import pytest
from cuda_cases import DTYPES, cast, near

from disttrain.kernels import rnn

rng = np.random.default_rng(0)
B, H = 5, 67


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "gates", "signature", "written"),
    [
        ("rnn_step", 1, "gsi1", (0, 3)),
        ("rnn_step", 1, "gsi0", (0, 3)),
        ("rnn_step_grad", 1, "ggi1", (3,)),
        ("rnn_step_grad", 1, "ggi0", (3,)),
        ("lstm_step", 4, "GGhh", (0, 2, 3)),
        ("lstm_step_grad", 4, "Ahhhg", (3, 4)),
        ("gru_step", 3, "GGhh", (0, 3)),
        ("gru_step_grad", 3, "Ahhhgg", (3, 4, 5)),
    ],
)
def test_steps(name, gates, signature, written, dtype, shim):
    some = {
        "h": lambda: rng.standard_normal((B, H)),
        "A": lambda: rng.random((B, gates * H)),  # activated gates
        "G": lambda: rng.standard_normal((B, gates * H)) * 3,
        "g": lambda: rng.standard_normal((B, gates * H)),
    }
    if name.startswith("rnn"):
        arrays = [cast(some["h"](), dtype) for _ in range(3)]
        ours = [*arrays[:2], bool(int(signature[-1])), arrays[2]]
    else:
        ours = [cast(some[letter](), dtype) for letter in signature]
    theirs = [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in ours]

    getattr(rnn, f"{name}_reference")(*theirs)
    hidden = {"rnn_step": 3, "rnn_step_grad": 1, "lstm_step": 3, "lstm_step_grad": 2, "gru_step": 3}.get(
        name, 3
    )
    args = [ours[0], ours[1], ours[3], int(ours[2])] if name.startswith("rnn") else ours
    rnn._launch(name, ours[hidden], *args)

    near(tuple(ours[i] for i in written), tuple(theirs[i] for i in written), dtype, 2)
