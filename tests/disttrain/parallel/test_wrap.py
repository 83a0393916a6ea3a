"""Which modules a policy makes units."""

from functools import partial

import pytest

from disttrain import nn
from disttrain.parallel.wrap import (
    CustomPolicy,
    ModuleWrapPolicy,
    always_wrap_policy,
    choose,
    enable_wrap,
    lambda_auto_wrap_policy,
    size_based_auto_wrap_policy,
    transformer_auto_wrap_policy,
    wrap,
)


def model():
    return nn.Sequential(
        nn.Linear(4, 4),
        nn.ModuleList([nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())]),
        nn.TransformerEncoderLayer(4, 2, 8),
    )


def chosen(policy, ignored=()):
    root = model()
    names = {m: name for name, m in root.named_modules()}
    apart = {m for name in ignored for m in root.get_submodule(name).modules()}
    return {names[m]: options for m, options in choose(root, policy, apart).items()}


def test_always():
    found = list(chosen(always_wrap_policy))

    assert found.index("1.1.0") < found.index("1.1")  # the inner one first
    assert {"0", "1.0", "1.1.1", "2", "2.self_attn"} <= set(found)
    assert not {"", "1", "2.self_attn.out_proj"} & set(found)  # nobody calls the forward of the last two


def test_by_class():
    classes = {nn.Linear}

    assert set(chosen(ModuleWrapPolicy(classes))) == {"0", "1.0", "1.1.0", "2.linear1", "2.linear2"}
    assert chosen(partial(transformer_auto_wrap_policy, transformer_layer_cls=classes)) == chosen(
        ModuleWrapPolicy(classes)
    )
    assert repr(ModuleWrapPolicy([nn.Linear])) == "ModuleWrapPolicy(Linear)"


def test_by_size():
    # 20, 40 and 72 elements; a layer of attention with 80 more; an inner unit counts no more in the outer one
    found = chosen(partial(size_based_auto_wrap_policy, min_num_params=60))

    assert set(found) == {"1.1.0", "2.self_attn", "2"}
    assert chosen(size_based_auto_wrap_policy) == {}


def test_by_a_function():
    def is_wide(module):
        return getattr(module, "out_features", 0) == 8

    assert set(chosen(partial(lambda_auto_wrap_policy, lambda_fn=is_wide))) == {"1.0", "1.1.0", "2.linear1"}
    options = {"backward_prefetch": None}
    assert chosen(CustomPolicy(lambda m: is_wide(m) and options)) == dict.fromkeys(
        ("1.0", "1.1.0", "2.linear1"), options
    )
    with pytest.raises(ValueError, match="must return True, False or a dict of options, got None"):
        chosen(CustomPolicy(lambda m: None))


def test_ignored_modules_are_left_alone():
    assert set(chosen(ModuleWrapPolicy({nn.Linear}), ignored=["1.1", "2"])) == {"0", "1.0"}


def test_wrapping_by_hand():
    layer = nn.Linear(4, 4)
    assert wrap(layer) is layer

    with enable_wrap(wrapper_cls=lambda module, **options: (module, options), a=1, b=2):
        assert wrap(layer, b=3) == (layer, {"a": 1, "b": 3})
    assert wrap(layer) is layer
