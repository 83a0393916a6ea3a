"""Ranks are played one after the other: what they would exchange is computed beforehand from all of them."""

import numpy as np
import pytest

from disttrain.ops.norm import batch_norm
from disttrain.ops.sync_norm import all_sum, sync_batch_norm

rng = np.random.default_rng(0)


def alone(x):
    return x


def twice(x):
    return 2 * x


def test_of_one_rank_is_batch_norm(compare):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x, w, b = rng.standard_normal((4, 3, 5, 2)) * 2 + 1, rng.standard_normal(3), rng.standard_normal(3)

    def reference(*args):
        x, *rest = args
        return torch.nn.functional.batch_norm(x, None, None, *rest, training=True)

    compare(sync_batch_norm, reference, x, w, b, total=alone, weighted=alone)
    compare(sync_batch_norm, reference, x, total=alone, weighted=alone)


def test_gradients_are_those_of_differences(check):
    x, w, b = rng.standard_normal((4, 3, 5)), rng.standard_normal(3), rng.standard_normal(3)

    check(sync_batch_norm, x, w, b, total=alone, weighted=alone)
    check(all_sum, x, total=alone, adjoint=alone)
    check(all_sum, x, total=twice, adjoint=twice)  # as of two ranks that hold the same


def test_two_ranks_that_hold_the_same_normalise_as_one():
    x, mean, var = rng.standard_normal((4, 3)), np.zeros(3), np.ones(3)
    mean_of_one, var_of_one = np.zeros(3), np.ones(3)

    out = sync_batch_norm(x, running_mean=mean, running_var=var, total=twice, weighted=twice)[0]
    whole = batch_norm(
        np.concatenate([x, x]), running_mean=mean_of_one, running_var=var_of_one, training=True
    )[0]

    np.testing.assert_allclose(np.concatenate([out, out]), whole, 1e-12, 1e-12)
    np.testing.assert_allclose([mean, var], [mean_of_one, var_of_one], 1e-12)


def test_one_value_on_all_ranks_is_an_error():
    with pytest.raises(ValueError, match=r"more than one value per channel on all ranks, got shape \(1, 3\)"):
        sync_batch_norm(np.zeros((1, 3)), total=alone, weighted=alone)
