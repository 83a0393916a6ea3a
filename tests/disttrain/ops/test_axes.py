import numpy as np
import pytest

from disttrain.kernels.axes import selection, spans
from disttrain.ops.axes import map_axes

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
rng = np.random.default_rng(0)
PICK = selection([3, 0, 0, 1, 5], 6)
MEANS = spans([0, 2, 2], [3, 6, 2], [1 / 3, 0.25, 1.0], 6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("m", [PICK, MEANS, PICK.transposed, MEANS.transposed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_is_a_product_with_a_matrix(compare, m, axis, order):
    shape = [2, 3, 4]
    shape[axis] = m.size
    x = np.asarray(rng.standard_normal(shape), order=order)
    matrix = torch.tensor(
        np.stack([map_axes(e, maps=((0, m),))[0] for e in np.eye(m.size)], 1) if m.size else np.zeros((0, 0))
    )

    def reference(x):
        return torch.moveaxis(torch.tensordot(matrix.to(x.dtype), x, ([1], [axis])), 0, axis)

    compare(map_axes, reference, x, dtypes=("float64", "float32"), maps=((axis, m),))


def test_maps_say_what_they_sum():
    x = np.array([1.0, 2, 4, 8, 16, 32])

    np.testing.assert_array_equal(map_axes(x, maps=((0, PICK),))[0], x[[3, 0, 0, 1, 5]])
    np.testing.assert_allclose(map_axes(x, maps=((0, MEANS),))[0], [7 / 3, 15, 0])


def test_gradients_are_those_of_differences(check):
    check(map_axes, rng.standard_normal((6, 2, 6)), maps=((0, PICK), (2, MEANS)))


def test_the_order_of_axes_in_memory_stays():
    x = rng.standard_normal((2, 6, 6, 3)).transpose(0, 3, 1, 2)

    out = map_axes(x, maps=((2, MEANS), (3, PICK)))[0]

    assert out.shape == (2, 3, 3, 5)
    assert out.transpose(0, 2, 3, 1).flags.c_contiguous
