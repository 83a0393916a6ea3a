import numpy as np
import pytest

from disttrain.kernels.conv import Window
from disttrain.ops.fold import fold, unfold

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
F = torch.nn.functional
rng = np.random.default_rng(0)
WINDOWS = [
    Window((2, 3), (1, 1), (0, 0), (1, 1)),
    Window((3, 2), (2, 1), (1, 2), (1, 2)),
    Window((1, 1), (2, 3), (0, 0), (1, 1)),
]


@pytest.mark.parametrize("n", [2, 0])
@pytest.mark.parametrize("window", WINDOWS)
def test_are_those_of_torch(compare, window, n):
    (kernel, stride, padding, dilation), size = window, (7, 6)
    x = rng.standard_normal((n, 3, *size))
    columns = rng.standard_normal((n, 3 * kernel[0] * kernel[1], int(np.prod(window.out_size(*size)))))

    compare(unfold, lambda x: F.unfold(x, kernel, dilation, padding, stride), x, window=window)
    compare(
        fold, lambda x: F.fold(x, size, kernel, dilation, padding, stride), columns, window=window, size=size
    )


@pytest.mark.parametrize("window", WINDOWS)
def test_gradients_are_those_of_differences(check, window):
    x = rng.standard_normal((2, 3, 7, 6))

    check(unfold, x, window=window)
    check(fold, unfold(x, window=window)[0], window=window, size=(7, 6))
