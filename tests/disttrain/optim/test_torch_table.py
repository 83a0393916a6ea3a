"""PyTorch's own table of optimizers."""

import pytest

pytest.importorskip("torch", reason="PyTorch is the reference")
pytest.importorskip("expecttest", reason="PyTorch's tables import it")

import torch_optimizers

NAMES = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adamax",
    "AdamW",
    "ASGD",
    "LBFGS",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]


def test_every_optimizer_that_the_table_and_disttrain_have_is_here():
    assert list(torch_optimizers.offered()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_table_agrees(name):
    score = torch_optimizers.run(name)

    assert not score.failed
    assert score.ran["trajectory"] >= 5
    assert score.ran["error"] >= 5
