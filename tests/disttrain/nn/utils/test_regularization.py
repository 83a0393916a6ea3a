import numpy as np
import pytest

import disttrain as dt
from disttrain.nn.utils import l1_penalty, l2_penalty


def test_penalties_are_sums_over_all_elements_with_gradients():
    a, b = np.array([[1.0, -2.0], [0.0, 3.0]]), np.array([-4.0])
    for penalty, value, slope in (
        (l1_penalty, 10.0, np.sign),
        (l2_penalty, 30.0, lambda x: 2 * x),
    ):
        params = [dt.tensor(x, requires_grad=True) for x in (a, b)]

        total = penalty(iter(params))
        (total * 0.5).backward()

        assert total.shape == ()
        assert total.dtype is dt.float64
        assert total.item() == value
        for p, x in zip(params, (a, b), strict=True):
            np.testing.assert_array_equal(p.grad.numpy(), 0.5 * slope(x))


def test_the_squares_in_the_loss_are_weight_decay():
    ends = []
    for decay, factor in ((0.3, 0.0), (0.0, 0.3)):
        p = dt.tensor([1.0, -2.0], dtype=dt.float64, requires_grad=True)
        optimizer = dt.optim.SGD([p], lr=0.1, weight_decay=decay)
        for _ in range(3):
            optimizer.zero_grad()
            (p.sin().sum() + 0.5 * factor * l2_penalty([p])).backward()
            optimizer.step()
        ends.append(p.tolist())

    np.testing.assert_allclose(*ends, rtol=1e-14)


def test_one_parameter_none_and_what_is_no_tensor():
    assert l1_penalty(dt.tensor([-2.0, 1.0])).item() == 3
    assert l2_penalty([]).item() == 0
    with pytest.raises(TypeError, match="on Tensors, got float"):
        l1_penalty([1.0])
