"""PyTorch's own tables of operators and layers: values, gradients of two orders, invalid calls, ``repr``."""

import pytest

pytest.importorskip("torch", reason="compares with torch")
pytest.importorskip("expecttest", reason="the tables inside torch need expecttest")
torch_tables = pytest.importorskip("torch_tables", reason="compares with torch")
torch_modules = pytest.importorskip("torch_modules", reason="compares with torch")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

EXCEPTIONS: dict[str, dict[str, str]] = {
    "nn.functional.conv3d": {
        "dilation=3": "one float32 value of 1,320 is rounded otherwise, nearer to the true one"
    },
    "nn.LinearCrossEntropyLoss": {"": "an experiment of PyTorch's; Linear and CrossEntropyLoss do the same"},
}
"""For an operator or layer: words of the cases that differ, and why; docs/differences.md has them for users."""


def unexpected(score):
    """Return the failures that no exception explains; raise if an exception explains none."""
    known = EXCEPTIONS.get(score.name, {})
    failures = [f"{aspect}: {f}" for aspect, fs in score.failed.items() for f in fs]
    idle = [words for words in known if not any(words in f for f in failures)]
    assert not idle, f"{score.name}: these exceptions are no longer needed: {idle}"
    return [f for f in failures if not any(words in f for words in known)]


@pytest.mark.parametrize("name", torch_tables.OPERATORS)
def test_an_operator_agrees_with_pytorch(name):
    score = torch_tables.run(name)

    assert score.ran["forward"]
    assert not unexpected(score)


@pytest.mark.parametrize("name", [n for n in torch_modules.table() if torch_tables.resolve(n)])
def test_a_layer_agrees_with_pytorch(name):
    score = torch_modules.run(name)

    assert score.ran["repr"]
    assert not unexpected(score)


def test_what_is_compared_covers_what_is_offered():
    for name in torch_tables.OPERATORS:
        assert torch_tables.resolve(name) or hasattr(torch_tables.dt.Tensor, name), name
    for name, entry in torch_modules.table().items():
        assert torch_tables.resolve(name) or name in EXCEPTIONS, f"{name} ({entry.module_cls})"
