"""MultiheadAttention and the Transformer layers against PyTorch."""

import itertools
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn

rng = np.random.default_rng(0)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is the reference")


def twins(torch: Any, name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Return PyTorch's layer and ours with the same weights, in float64."""
    theirs = getattr(torch.nn, name)(*args, dtype=torch.float64, **options)
    ours = getattr(nn, name)(*args, dtype=dt.float64, **options)
    copy_weights(theirs, ours)
    return theirs, ours


def copy_weights(theirs: Any, ours: Any) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    ours.load_state_dict({k: dt.from_numpy(v.numpy().copy()) for k, v in theirs.state_dict().items()})


def agree(torch: Any, pair: Any, arrays: Any, **options: Any) -> None:
    """Compare outputs and all gradients of a call; arrays become tensors."""
    found = []
    for library, layer in zip((torch, dt), pair, strict=True):
        leaves = [library.from_numpy(a.copy()).requires_grad_() for a in arrays]
        named = {
            k: library.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in options.items()
        }
        outs = layer(*leaves, **named)
        outs = [o for o in (outs if isinstance(outs, tuple) else [outs]) if o is not None]
        loss = sum((o * o.detach().cos()).sum() for o in outs)
        weights = [p for _, p in sorted(layer.named_parameters())]
        grads = library.autograd.grad(loss, [*leaves, *weights], allow_unused=True)
        found.append([None if t is None else t.detach().numpy() for t in (*outs, *grads)])
    for number, (a, b) in enumerate(zip(found[1], found[0], strict=True)):
        if a is None or b is None:  # where one library has None for a gradient the other may have zeros
            assert all(v is None or not v.any() for v in (a, b))
            continue
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, 1e-9, 1e-10, err_msg=f"number {number}")


def closed(*shape: int) -> Any:
    """Booleans, each row of which leaves something open."""
    mask = rng.random(shape) < 0.4
    mask[..., 0] = False
    return mask


def numbers(mask: Any) -> Any:
    return np.where(mask, -np.inf, 0.0)


@pytest.mark.parametrize("extras", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"bias": False}])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 5, "vdim": 3}])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_is_that_of_torch(torch, batch_first, sizes, extras):
    pair = twins(torch, "MultiheadAttention", 6, 2, batch_first=batch_first, **sizes, **extras)
    shapes = [(3, 2, 6), (4, 2, sizes.get("kdim", 6)), (4, 2, sizes.get("vdim", 6))]
    arrays = [rng.standard_normal(s) for s in shapes]
    if batch_first:
        arrays = [a.swapaxes(0, 1).copy() for a in arrays]
    padding, pairs, each = closed(2, 4), closed(3, 4), closed(4, 3, 4)
    masks = [
        {},
        {"key_padding_mask": padding},
        {"attn_mask": pairs},
        {"attn_mask": numbers(pairs)},
        {"attn_mask": each, "key_padding_mask": padding},
        {"attn_mask": numbers(each), "key_padding_mask": numbers(padding)},
    ]

    for mask, weights in itertools.product(
        masks, ({}, {"average_attn_weights": False}, {"need_weights": False})
    ):
        agree(torch, pair, arrays, **mask, **weights)
    agree(torch, pair, [a[:, 0] if not batch_first else a[0] for a in arrays], key_padding_mask=padding[0])


def test_initial_weights_of_attention():
    dt.manual_seed(0)
    layer = nn.MultiheadAttention(50, 2, add_bias_kv=True)

    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()
    bound = (6 / 200) ** 0.5
    assert bound * 0.9 < float(layer.in_proj_weight.max()) <= bound
    assert 0 < float(layer.bias_k.std()) < 1


def test_weights_are_dropped_in_training_only():
    layer = nn.MultiheadAttention(8, 2, dropout=0.5)
    x = dt.randn(5, 3, 8)

    _, weights = layer(x, x, x, average_attn_weights=False)
    layer.eval()
    _, whole = layer(x, x, x, average_attn_weights=False)

    assert 0.2 < float((weights == 0).double().mean()) < 0.8
    np.testing.assert_allclose(whole.sum(-1).detach().numpy(), 1, 1e-6)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"activation": "gelu"}, {"layer_norm_eps": 0.1}])
def test_layers_are_those_of_torch(torch, options, batch_first, norm_first):
    options = {"dropout": 0.0, "batch_first": batch_first, "norm_first": norm_first, **options}
    encoder = twins(torch, "TransformerEncoderLayer", 6, 2, 8, **options)
    decoder = twins(torch, "TransformerDecoderLayer", 6, 3, 8, **options)
    x, memory = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 4, 6))
    if not batch_first:
        x, memory = x.swapaxes(0, 1).copy(), memory.swapaxes(0, 1).copy()
    causal = numbers(np.triu(np.ones((3, 3), np.bool_), 1))

    agree(torch, encoder, [x])
    agree(torch, encoder, [x], src_mask=closed(3, 3), src_key_padding_mask=closed(2, 3))
    agree(torch, encoder, [x], src_mask=causal, is_causal=True)
    agree(torch, encoder, [x[0]], src_mask=closed(len(x[0]), len(x[0])))
    agree(torch, decoder, [x, memory])
    agree(
        torch,
        decoder,
        [x, memory],
        tgt_mask=causal,
        tgt_is_causal=True,
        memory_mask=closed(3, 4),
        memory_key_padding_mask=closed(2, 4),
    )
    agree(torch, decoder, [x, memory], tgt_mask=closed(6, 3, 3), tgt_key_padding_mask=closed(2, 3))


def test_any_function_can_be_the_activation(torch):
    pair = []
    for library in (torch, dt):
        layer = library.nn.TransformerEncoderLayer(6, 2, 8, 0.0, library.tanh, dtype=library.float64)
        pair.append(layer)
    copy_weights(*pair)

    agree(torch, pair, [rng.standard_normal((3, 2, 6))])


def test_stacks_are_those_of_torch(torch):
    pairs = []
    for library in (torch, dt):
        options = {"dropout": 0.0, "dtype": library.float64}
        norms = [library.nn.LayerNorm(6, dtype=library.float64) for _ in range(2)]
        encoder = library.nn.TransformerEncoderLayer(6, 2, 8, **options)
        decoder = library.nn.TransformerDecoderLayer(6, 2, 8, **options)
        pairs.append(
            (
                library.nn.TransformerEncoder(encoder, 2, norms[0], enable_nested_tensor=False),
                library.nn.TransformerDecoder(decoder, 2, norms[1]),
            )
        )
    encoders, decoders = zip(*pairs, strict=True)
    copy_weights(*encoders)
    copy_weights(*decoders)
    x, memory = rng.standard_normal((3, 2, 6)), rng.standard_normal((4, 2, 6))
    causal = numbers(np.triu(np.ones((3, 3), np.bool_), 1))

    agree(torch, encoders, [x])
    agree(torch, encoders, [x], mask=causal)
    agree(torch, encoders, [x], mask=causal, is_causal=True)
    agree(torch, encoders, [x], mask=closed(3, 3), src_key_padding_mask=closed(2, 3))
    agree(torch, decoders, [x, memory], tgt_mask=causal, memory_key_padding_mask=closed(2, 4))
    agree(torch, decoders, [x, memory], tgt_mask=causal, tgt_is_causal=False, memory_mask=closed(3, 4))
    first, second = encoders[1].layers
    assert first.linear1.weight is not second.linear1.weight


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_whole_transformer(torch, batch_first):
    options = {"dropout": 0.0, "batch_first": batch_first}
    pair = twins(torch, "Transformer", 6, 2, 1, 2, 8, **options)
    src, tgt = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 3, 6))
    if not batch_first:
        src, tgt = src.swapaxes(0, 1).copy(), tgt.swapaxes(0, 1).copy()
    mask = nn.Transformer.generate_square_subsequent_mask(3, dtype=dt.float64).numpy()

    agree(torch, pair, [src, tgt])
    agree(
        torch,
        pair,
        [src, tgt],
        tgt_mask=mask,
        src_key_padding_mask=closed(2, 4),
        memory_key_padding_mask=closed(2, 4),
    )
    agree(torch, pair, [src[0], tgt[0]] if batch_first else [src[:, 0], tgt[:, 0]])


def test_the_causal_mask_and_the_names_of_a_transformer(torch):
    for n, kind in ((0, "float32"), (1, "float64"), (4, "float32")):
        ours = nn.Transformer.generate_square_subsequent_mask(n, dtype=getattr(dt, kind))
        theirs = torch.nn.Transformer.generate_square_subsequent_mask(n, dtype=getattr(torch, kind))
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        assert ours.dtype is getattr(dt, kind)
    same = nn.Identity()
    assert nn.Transformer(8, 2, custom_encoder=same, custom_decoder=same).encoder is same


ERRORS = [
    ((lambda m: m(*[dt.zeros(3, 2, 5)] * 3)), "6 features, got 5"),
    ((lambda m: m(dt.zeros(3, 2, 6), dt.zeros(4, 2, 6), dt.zeros(5, 2, 6))), "must fit together"),
    ((lambda m: m(dt.zeros(3, 2, 6), *[dt.zeros(4, 3, 6)] * 2)), "must fit together"),
    ((lambda m: m(*[dt.zeros(1, 3, 2, 6)] * 3)), r"got shape \[1, 3, 2, 6\]"),
    (
        (lambda m: m(dt.zeros(3, 6), *[dt.zeros(4, 2, 6)] * 2)),
        "key and value must have 2 dimensions like an unbatched query, got 3",
    ),
    (
        (lambda m: m(*[dt.zeros(3, 2, 6)] * 3, key_padding_mask=dt.zeros(2, 4))),
        r"shape \[2, 3\], got \[2, 4\]",
    ),
    (
        (lambda m: m(*[dt.zeros(3, 2, 6)] * 3, key_padding_mask=dt.zeros(3))),
        "2 dimensions with a batched query, got 1",
    ),
    ((lambda m: m(*[dt.zeros(3, 2, 6)] * 3, attn_mask=dt.zeros(2, 3))), r"shape \[3, 3\], got \[2, 3\]"),
    (
        (lambda m: m(*[dt.zeros(3, 2, 6)] * 3, attn_mask=dt.zeros(3, 3, 3))),
        r"shape \[4, 3, 3\], got \[3, 3, 3\]",
    ),
    ((lambda m: m(*[dt.zeros(3, 2, 6)] * 3, attn_mask=dt.zeros(3))), r"attn_mask is \(L, S\) or"),
    (
        (lambda m: m(*[dt.zeros(3, 6)] * 3, attn_mask=dt.zeros(3, 3, 3))),
        r"shape \[2, 3, 3\], got \[3, 3, 3\]",
    ),
    (
        (lambda m: m(*[dt.zeros(3, 2, 6)] * 3, attn_mask=dt.zeros(3, 3).long())),
        "holds booleans or floating point numbers",
    ),
    ((lambda m: m(*[dt.zeros(3, 2, 6)] * 3, is_causal=True)), "so give it too"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_calls_that_do_not_fit(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(nn.MultiheadAttention(6, 2))


def test_layers_that_do_not_fit():
    with pytest.raises(ValueError, match="6 is not a multiple of num_heads 4"):
        nn.MultiheadAttention(6, 4)
    with pytest.raises(ValueError, match="must be positive, got 6 and 0"):
        nn.MultiheadAttention(6, 0)
    with pytest.raises(RuntimeError, match="'relu', 'gelu' or a function, got 'tanh'"):
        nn.TransformerEncoderLayer(6, 2, activation="tanh")
    model = nn.Transformer(6, 2, 1, 1, 8)
    with pytest.raises(RuntimeError, match="must be batches of one size"):
        model(dt.zeros(3, 2, 6), dt.zeros(3, 1, 6))
    with pytest.raises(RuntimeError, match=r"must have 6 features \(d_model\), got 6 and 5"):
        model(dt.zeros(3, 2, 6), dt.zeros(3, 2, 5))
