"""Other names of functions, against PyTorch's ``torch.special``."""

import numpy as np
import pytest

import disttrain as dt

X = np.array([[0.1, 0.5], [0.7, 0.9]])
MORE = {
    "xlogy": (np.array([[1.0, 2.0], [0.0, 4.0]]),),
    "softmax": (1,),
    "log_softmax": (0,),
    "logsumexp": (1,),
}


@pytest.mark.parametrize("name", dt.special.__all__)
def test_functions_are_those_of_torch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def of(lib):
        more = [lib.from_numpy(a) if isinstance(a, np.ndarray) else a for a in MORE.get(name, ())]
        return getattr(lib.special, name)(lib.from_numpy(X), *more).numpy()

    np.testing.assert_allclose(of(dt), of(torch), rtol=1e-12)
