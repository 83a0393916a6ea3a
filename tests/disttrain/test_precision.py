"""Autocast, function by function: the types and values of results against PyTorch's under the same autocast."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import disttrain as dt
import disttrain.functions
import disttrain.nn.functional
from disttrain import precision
from disttrain.precision import POLICIES, Policy, State

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


class Inputs:
    """The same random tensors for both libraries, in one type."""

    def __init__(self, lib, kind):
        self.lib, self.kind, self.random = lib, kind, np.random.default_rng(0)

    def __call__(self, *shape, kind=None):
        """Return numbers in [0.1, 0.9], in the type of these inputs or another, that requires a gradient."""
        x = self.lib.tensor(self.random.uniform(0.1, 0.9, shape).astype(np.float32))
        return x.to(getattr(self.lib, kind or self.kind)).requires_grad_()

    def spd(self):
        """Return a positive definite matrix."""
        return (self.lib.eye(3) * 2 + 0.1).to(getattr(self.lib, self.kind)).requires_grad_()

    def whole(self, *values):
        return self.lib.tensor(values)


# By the name in POLICIES: calls that show what autocast does. F is nn.functional, x makes inputs.
CASES = {
    "addbmm": lambda t, F, x: t.addbmm(x(3, 3), x(2, 3, 3), x(2, 3, 3)),
    "addmm": lambda t, F, x: t.addmm(x(3), x(2, 3), x(3, 3), beta=0.5),
    "addmv": lambda t, F, x: t.addmv(x(3), x(3, 2), x(2)),
    "addr": lambda t, F, x: t.addr(x(3, 2), x(3), x(2)),
    "adaptive_avg_pool3d": lambda t, F, x: F.adaptive_avg_pool3d(x(1, 1, 4, 4, 4), 2),
    "adaptive_max_pool3d": lambda t, F, x: F.adaptive_max_pool3d(x(1, 1, 4, 4, 4), 2),
    "avg_pool3d": lambda t, F, x: F.avg_pool3d(x(1, 1, 4, 4, 4), 2),
    "baddbmm": lambda t, F, x: t.baddbmm(x(2, 3, 3), x(2, 3, 3), x(2, 3, 3)),
    "bilinear": lambda t, F, x: F.bilinear(x(2, 3), x(2, 3), x(4, 3, 3), x(4)),
    "binary_cross_entropy": lambda t, F, x: F.binary_cross_entropy(x(4), x(4)),
    "binary_cross_entropy_with_logits": lambda t, F, x: F.binary_cross_entropy_with_logits(x(4), x(4)),
    "bmm": lambda t, F, x: x(2, 3, 3).bmm(x(2, 3, 3)),
    "cat": lambda t, F, x: t.cat([x(3), x(2, kind="float32")]),
    "cdist": lambda t, F, x: t.cdist(x(3, 2), x(4, 2)),
    "cholesky": lambda t, F, x: t.linalg.cholesky(x.spd()),
    "cholesky_ex": lambda t, F, x: t.linalg.cholesky_ex(x.spd())[0],
    "cholesky_inverse": lambda t, F, x: t.cholesky_inverse(x.spd().detach().tril()),
    "cholesky_solve": lambda t, F, x: t.cholesky_solve(x(3, 1), x.spd().detach().tril()),
    "cond": lambda t, F, x: t.linalg.cond(x.spd()),
    "conv1d": lambda t, F, x: F.conv1d(x(1, 2, 5), x(3, 2, 3), x(3)),
    "conv2d": lambda t, F, x: F.conv2d(x(1, 2, 5, 5), x(3, 2, 3, 3), x(3), padding="same"),
    "conv3d": lambda t, F, x: F.conv3d(x(1, 2, 4, 4, 4), x(3, 2, 3, 3, 3)),
    "conv_transpose1d": lambda t, F, x: F.conv_transpose1d(x(1, 2, 5), x(2, 3, 3)),
    "conv_transpose2d": lambda t, F, x: F.conv_transpose2d(x(1, 2, 5, 5), x(2, 3, 3, 3), x(3)),
    "conv_transpose3d": lambda t, F, x: F.conv_transpose3d(x(1, 2, 4, 4, 4), x(2, 3, 3, 3, 3)),
    "cosine_embedding_loss": lambda t, F, x: F.cosine_embedding_loss(x(2, 3), x(2, 3), x.whole(1, -1)),
    "cross_entropy": lambda t, F, x: F.cross_entropy(x(2, 3), x.whole(0, 2), x(3).detach()),
    "ctc_loss": lambda t, F, x: F.ctc_loss(x(4, 1, 3).log(), t.tensor([[1, 2]]), (4,), (2,)),
    "dot": lambda t, F, x: t.dot(x(3), x(3)),
    "eigh": lambda t, F, x: t.linalg.eigh(x.spd())[0],
    "eigvalsh": lambda t, F, x: t.linalg.eigvalsh(x.spd()),
    "fractional_max_pool2d": lambda t, F, x: F.fractional_max_pool2d(
        x(1, 1, 5, 5), 2, 2, _random_samples=x(1, 1, 2).detach()
    ),
    "fractional_max_pool3d": lambda t, F, x: F.fractional_max_pool3d(
        x(1, 1, 5, 5, 5), 2, 2, _random_samples=x(1, 1, 3).detach()
    ),
    "grid_sample": lambda t, F, x: F.grid_sample(x(1, 1, 3, 3), x(1, 2, 2, 2), align_corners=False),
    "hinge_embedding_loss": lambda t, F, x: F.hinge_embedding_loss(x(2), x.whole(1, -1)),
    "huber_loss": lambda t, F, x: F.huber_loss(x(3), x(3)),
    "index_copy": lambda t, F, x: t.index_copy(x(3, 2), 0, x.whole(1), x(1, 2, kind="float32")),
    "inv": lambda t, F, x: t.linalg.inv(x.spd()),
    "inv_ex": lambda t, F, x: t.linalg.inv_ex(x.spd())[0],
    "inverse": lambda t, F, x: x.spd().inverse(),
    "kl_div": lambda t, F, x: F.kl_div(x(2, 3), x(2, 3), reduction="batchmean"),
    "l1_loss": lambda t, F, x: F.l1_loss(x(3), x(3)),
    "linear": lambda t, F, x: F.linear(x(2, 3), x(4, 3), x(4)),
    "lstsq": lambda t, F, x: t.linalg.lstsq(x.spd().detach(), x(3, 1).detach()).solution,
    "margin_ranking_loss": lambda t, F, x: F.margin_ranking_loss(x(2), x(2), x.whole(1, -1)),
    "matmul": lambda t, F, x: x(2, 3) @ x(3),
    "matrix_rank": lambda t, F, x: t.linalg.matrix_rank(x.spd().detach()),
    "max_pool3d": lambda t, F, x: F.max_pool3d(x(1, 1, 4, 4, 4), 2),
    "max_unpool2d": lambda t, F, x: F.max_unpool1d(x(1, 1, 2), t.tensor([[[0, 2]]]), 2),
    "max_unpool3d": lambda t, F, x: F.max_unpool3d(x(1, 1, 1, 1, 1), t.tensor([[[[[3]]]]]), 2),
    "mm": lambda t, F, x: t.mm(x(2, 3), x(3, 2, kind="float32")),
    "mse_loss": lambda t, F, x: F.mse_loss(x(3), x(3, kind="float32")),
    "multi_margin_loss": lambda t, F, x: F.multi_margin_loss(x(2, 3), x.whole(0, 2)),
    "multilabel_margin_loss": lambda t, F, x: F.multilabel_margin_loss(x(3), x.whole(1, 0, -1)),
    "mv": lambda t, F, x: t.mv(x(3, 2), x(2)),
    "nanquantile": lambda t, F, x: t.nanquantile(x(5), 0.5),
    "nll_loss": lambda t, F, x: F.nll_loss(x(2, 3), x.whole(0, 2)),
    "pad_by_copies": lambda t, F, x: F.pad(x(1, 3, 3), (1, 1), mode="reflect"),
    "pinverse": lambda t, F, x: t.pinverse(x.spd()),
    "poisson_nll_loss": lambda t, F, x: F.poisson_nll_loss(x(3), x(3)),
    "prelu": lambda t, F, x: F.prelu(x(3), x(1)),
    "prod": lambda t, F, x: x(3).prod(),
    "qr": lambda t, F, x: t.linalg.qr(x.spd())[1].abs(),
    "quantile": lambda t, F, x: t.quantile(x(5), 0.5),
    "scaled_dot_product_attention": lambda t, F, x: F.scaled_dot_product_attention(
        x(1, 2, 3), x(1, 2, 3), x(1, 2, 3), x(2, 2).detach()
    ),
    "smooth_l1_loss": lambda t, F, x: F.smooth_l1_loss(x(3), x(3)),
    "soft_margin_loss": lambda t, F, x: F.soft_margin_loss(x(2), x(2).detach()),
    "solve": lambda t, F, x: t.linalg.solve(x.spd(), x(3)),
    "stack": lambda t, F, x: t.stack([x(3), x(3, kind="float32")]),
    "svd": lambda t, F, x: t.linalg.svd(x.spd())[1],
    "svdvals": lambda t, F, x: t.linalg.svdvals(x.spd()),
    "tensorinv": lambda t, F, x: t.linalg.tensorinv(x.spd(), ind=1),
    "tensorsolve": lambda t, F, x: t.linalg.tensorsolve(x.spd(), x(3)),
    "trace": lambda t, F, x: x(3, 3).trace(),
    "triangular_solve": lambda t, F, x: t.triangular_solve(x(3, 1), x.spd())[0],
    "triplet_margin_loss": lambda t, F, x: F.triplet_margin_loss(x(2, 3), x(2, 3), x(2, 3)),
    "vdot": lambda t, F, x: t.vdot(x(3), x(3)),
    "vecdot": lambda t, F, x: t.linalg.vecdot(x(2, 3), x(2, 3)),
    # In no list of the CPU's: made of functions that are, or left alone.
    "a sum of types": lambda t, F, x: x(3) + x(3, kind="float32"),
    "activations": lambda t, F, x: F.gelu(F.relu(x(3))).exp().sum(),
    "affine_grid": lambda t, F, x: F.affine_grid(x(1, 2, 3), (1, 1, 2, 2), align_corners=False),
    "batch_norm": lambda t, F, x: F.batch_norm(x(2, 3), None, None, t.ones(3), t.zeros(3), training=True),
    "chain_matmul": lambda t, F, x: t.linalg.multi_dot([x(2, 3), x(3, 3), x(3, 2)]),
    "circular": lambda t, F, x: F.pad(x(1, 3), (1, 1), mode="circular"),
    "cosine_similarity": lambda t, F, x: F.cosine_similarity(x(2, 3), x(2, 3)),
    "cov": lambda t, F, x: t.cov(x(3, 4)),
    "dist": lambda t, F, x: t.dist(x(3), x(3)),
    "einsum": lambda t, F, x: t.einsum("ij,jk->ik", x(2, 3), x(3, 2)),
    "einsum without a sum": lambda t, F, x: t.einsum("i,j->ij", x(2), x(3)),
    "embedding": lambda t, F, x: F.embedding(x.whole(1, 2), x(3, 2)),
    "group_norm": lambda t, F, x: F.group_norm(x(2, 4), 2, t.ones(4), t.zeros(4)),
    "inner": lambda t, F, x: t.inner(x(2, 3), x(4, 3)),
    "inner of vectors": lambda t, F, x: t.inner(x(3), x(3)),
    "interpolate": lambda t, F, x: F.interpolate(x(1, 1, 2, 2), scale_factor=2, mode="bilinear"),
    "kron": lambda t, F, x: t.kron(x(2, 2), x(2, 2)),
    "layer_norm": lambda t, F, x: F.layer_norm(x(2, 4), (4,), t.ones(4), t.zeros(4)),
    "log_softmax": lambda t, F, x: x(2, 3).log_softmax(-1),
    "matrix_power": lambda t, F, x: t.linalg.matrix_power(x(3, 3), 3),
    "mean": lambda t, F, x: x(3).mean(),
    "norm": lambda t, F, x: x(3).norm(),
    "outer": lambda t, F, x: t.outer(x(2), x(3)),
    "pairwise_distance": lambda t, F, x: F.pairwise_distance(x(2, 3), x(2, 3)),
    "softmax": lambda t, F, x: F.softmax(x(2, 3), -1),
    "softmax to a type": lambda t, F, x: F.softmax(x(2, 3), -1, dtype=t.float64),
    "tensordot": lambda t, F, x: t.tensordot(x(2, 3), x(3, 2), 1),
    "in place": lambda t, F, x: x(2, 2, kind="float32").detach().addmm_(t.ones(2, 3), t.ones(3, 2)),
    "float64": lambda t, F, x: x(2, 3, kind="float64") @ x(3, 2, kind="float64"),
}
NO_CASE = {"gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"}
"""See the tests of recurrent layers."""

OURS = {
    "conv_transpose2d.input": "conv_transpose2d",
    "conv_transpose3d.input": "conv_transpose3d",
    "cross_entropy_loss": "cross_entropy",
    "grid_sampler": "grid_sample",
    "grid_sampler_2d": "grid_sample",
    "grid_sampler_3d": "grid_sample",
    "multilabel_margin_loss_forward": "multilabel_margin_loss",
    "mkldnn_rnn_layer": "lstm",
    "_thnn_fused_lstm_cell": "lstm_cell",
    "_thnn_fused_gru_cell": "gru_cell",
    "rnn_tanh_cell": "rnn_cell",
    "rnn_relu_cell": "rnn_cell",
    "nll_loss2d": "nll_loss",
    "native_layer_norm": "layer_norm",
    "convolution": "conv2d",
    "_convolution": "conv2d",
    "_native_multi_head_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "_addmm_activation": "addmm",
    "frobenius_norm": "matrix_norm",
    "nuclear_norm": "matrix_norm",
    **dict.fromkeys(["reflection_pad1d", "reflection_pad2d"], "pad_by_copies"),
    **{f"replication_pad{n}d": "pad_by_copies" for n in (1, 2, 3)},
}
"""Our names for PyTorch's operators that have others."""
ABSENT = {
    "_grid_sampler_2d_cpu_fallback",
    "_lu_with_info",
    "conv_tbc",
    "cudnn_convolution",
    "cudnn_convolution_transpose",
    "fake_quantize_per_tensor_affine",
    "geqrf",
    "linalg_eig",
    "linalg_eigvals",
    "linalg_householder_product",
    "lu_solve",
    "orgqr",
    "ormqr",
    "polar",
    "stft",
    "view_as_complex",
}
"""PyTorch's operators that have no like here."""


def ours(operator):
    """Return our name of one of PyTorch's operators, ``None`` if it is not here."""
    name = operator.removeprefix("aten::").partition(".")[0]
    if name in ABSENT or name.startswith("fft_"):
        return None
    if "upsample" in name:
        return "resize"
    return OURS.get(name, name.removeprefix("linalg_"))


def listed(key):
    """Return our names of the operators that PyTorch has a kernel for under autocast."""
    operators = torch._C._dispatch_get_all_op_names()
    found = {ours(n) for n in operators if torch._C._dispatch_has_kernel_for_dispatch_key(n, key)}
    return found - {None}


def functional(lib):
    return importlib.import_module(f"{lib.__name__}.nn.functional")


def number_type(t):
    return str(t.dtype).partition(".")[2]


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_types_and_values_are_those_of_pytorch(name, kind):
    results = []
    for lib in (torch, dt):
        with lib.autocast("cpu"):
            y = CASES[name](lib, functional(lib), Inputs(lib, kind))
        results.append((number_type(y), tuple(y.shape), y.detach().to(lib.float64).tolist()))

    (*their_kind, theirs), (*my_kind, mine) = results

    assert my_kind == their_kind
    np.testing.assert_allclose(mine, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"matrix_rank", "lstsq"}))
def test_leaves_get_gradients_of_their_own_type(name):
    made = []

    class Remembered(Inputs):
        def __call__(self, *shape, kind=None):
            made.append(super().__call__(*shape, kind=kind))
            return made[-1]

    with dt.autocast("cpu", dtype=dt.float16):
        y = CASES[name](dt, functional(dt), Remembered(dt, "float32"))
    if y.requires_grad:
        y.sum().backward()

    for leaf in made:
        assert leaf.grad is None or leaf.grad.dtype is leaf.dtype
    if y.requires_grad and made:
        assert any(leaf.grad is not None for leaf in made)


def test_every_name_in_the_lists_has_a_case():
    assert POLICIES["cpu"].keys() - NO_CASE <= CASES.keys()


def test_the_lists_have_every_name_of_pytorch_that_is_here():
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        missing = listed(key) - POLICIES[device].keys()
        both = missing & {"qr", "svd"}  # PyTorch's old names
        assert missing == both, f"autocast({device!r}) leaves out {sorted(missing)}"


def test_the_policies_for_gpus_are_those_of_pytorchs_header():
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    text = header.read_text().replace("\\\n", " ")
    found = {}
    for macro, policy in (
        ("LOWER_PRECISION_FP", Policy.LOWER),
        ("FP32", Policy.FULL),
        ("FP32_SET_OPT_DTYPE", Policy.FULL_BY_DEFAULT),
        ("PROMOTE", Policy.WIDEST),
    ):
        body = re.search(rf"#define AT_FORALL_{macro}\(_\)(.*)", text).group(1)
        found |= {ours(n): policy for n in re.findall(r"_\((\w+)", body)}
    found.pop(None)
    found["matrix_norm"] = Policy.FULL_BY_DEFAULT  # under its newer name; the older ones have no dtype

    assert len(found) > 80
    assert {name: POLICIES["cuda"][name] for name in found} == found


def test_every_name_in_the_lists_is_decorated():
    decorated = set()
    for package in (disttrain.functions, disttrain.nn.functional):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            members = vars(importlib.import_module(module.name)).values()
            functions = [
                inspect.unwrap(m, stop=lambda f: hasattr(f, "autocasts_as")) for m in members if callable(m)
            ]
            decorated |= {f.autocasts_as for f in functions if hasattr(f, "autocasts_as")}

    assert decorated | NO_CASE == POLICIES["cpu"].keys() | POLICIES["cuda"].keys()
    with pytest.raises(KeyError):
        precision.autocasts_as("no such function")


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_recurrent_layers(name):
    results = []
    for lib in (torch, dt):
        layer = getattr(lib.nn, name)(3, 4)
        with lib.no_grad():
            for i, p in enumerate(layer.parameters()):
                p.copy_(lib.arange(p.numel(), dtype=lib.float32).reshape(p.shape).sub(5 + i).mul(0.02))
        x = Inputs(lib, "float32")(*((2, 3) if "Cell" in name else (5, 2, 3)))
        with lib.autocast("cpu"):
            out = layer(x)
        while isinstance(out, tuple):
            out = out[0]
        out.float().sum().backward()
        results.append((number_type(out), out.detach().float().numpy(), x.grad.numpy()))
        assert all(number_type(p.grad) == "float32" for p in layer.parameters())

    (their_kind, theirs, their_grad), (my_kind, mine, my_grad) = results

    assert my_kind == their_kind
    np.testing.assert_allclose(mine, theirs, atol=2e-2)
    np.testing.assert_allclose(my_grad, their_grad, atol=2e-2)


@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"mask": True}])
def test_attention_of_many_heads(options):
    kinds = []
    for lib in (torch, dt):
        layer = lib.nn.MultiheadAttention(4, 2)
        x = lib.ones(3, 2, 4)
        given = {**options, "attn_mask": lib.zeros(3, 3)} if "mask" in options else dict(options)
        given.pop("mask", None)
        with lib.autocast("cpu"):
            kinds.append([None if t is None else number_type(t) for t in layer(x, x, x, **given)])
            kinds[-1].append(number_type(lib.nn.TransformerEncoderLayer(4, 2, 8)(x)))

    assert kinds[0] == kinds[1]


def test_what_follows_a_layer_in_half_precision_takes_it():
    layers = dt.nn.Linear(3, 3), dt.nn.GRU(3, 3), dt.nn.LSTM(3, 3), dt.nn.LSTMCell(3, 3)
    with dt.autocast("cpu"):
        x = layers[0](dt.ones(2, 1, 3))
        for layer in layers[1:3]:
            x = layer(x)[0]
        x = layers[3](x[0])[0]
    x.sum().backward()

    assert all(p.grad.dtype is dt.float32 for layer in layers for p in layer.parameters())
    lstm = dt.nn.LSTM(3, 3)
    with (
        dt.autocast("cpu"),
        pytest.raises(RuntimeError, match="must have one dtype, and autocast does not make"),
    ):
        lstm(dt.ones(2, 1, 3, dtype=dt.float64))


@pytest.mark.parametrize(
    ("policy", "kinds", "options", "expected"),
    [
        (Policy.LOWER, "float32 float64 int64", {}, "float16 float64 int64"),
        (Policy.FULL, "float16 bfloat16 float64", {}, "float32 float32 float64"),
        (Policy.FULL_BY_DEFAULT, "float16", {}, "float32"),
        (Policy.FULL_BY_DEFAULT, "float16", {"dtype": "float64"}, "float16"),
        (Policy.WIDEST, "float16 float32", {}, "float32 float32"),
        (Policy.WIDEST, "float16 float64", {}, "float16 float64"),
        (Policy.UNTOUCHED, "float16 float32", {}, "float16 float32"),
    ],
)
def test_what_each_policy_does(monkeypatch, policy, kinds, options, expected):
    monkeypatch.setattr(precision, "POLICIES", {"cpu": {"seen": policy}})

    @precision.autocasts
    def seen(tensors, dtype=None):
        assert not dt.is_autocast_enabled("cpu")  # what a listed function is made of is not cast again
        return " ".join(t.dtype.name for t in tensors)

    tensors = [dt.ones(2, dtype=getattr(dt, kind)) for kind in kinds.split()]
    with dt.autocast("cpu", dtype=dt.float16):
        assert seen(tensors, **options) == expected
        assert seen(tensors=tuple(tensors), **options) == expected
    with dt.autocast("cpu", enabled=False):
        assert precision.state() != State()


def test_a_function_that_is_refused_says_what_to_call(monkeypatch):
    monkeypatch.setattr(precision, "POLICIES", {"cpu": POLICIES["cuda"]})
    refused = precision.autocasts(inspect.unwrap(functional(dt).binary_cross_entropy))
    with dt.autocast("cpu"), pytest.raises(RuntimeError, match=r"use binary_cross_entropy_with_logits\(\)"):
        refused(dt.ones(2), dt.ones(2))
    assert refused(dt.ones(2), dt.ones(2)).item() == 0.0
