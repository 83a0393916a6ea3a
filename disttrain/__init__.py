"""Train neural networks on many GPUs with NumPy and CuPy arrays, NCCL and MPI; PyTorch's names.

Every name is imported when it is first used, so that ``import disttrain`` costs little and tools that need no
arrays (the launcher) load none.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "disttrain.launcher.function": "LaunchError launch",
    "disttrain.tensors": "Tensor Size is_tensor",
    "disttrain.capture": "graph",
    "disttrain.autograd": (
        "enable_grad inference_mode is_anomaly_check_nan_enabled is_anomaly_enabled is_grad_enabled "
        "is_inference_mode_enabled no_grad set_grad_enabled"
    ),
    "disttrain.batching": "vmap",
    "disttrain.devices": "device",
    "disttrain.dtypes": "bfloat16 dtype float16 float32 float64 int16 int32 int64 int8 promote_types uint8",
    "disttrain.random": "Generator default_generator get_rng_state initial_seed manual_seed seed set_rng_state",
    "disttrain.functions.random": (
        "bernoulli binomial multinomial normal poisson rand rand_like randint randint_like randn randn_like randperm"
    ),
    "disttrain.functions.conversion": "as_tensor asarray from_dlpack from_numpy frombuffer tensor",
    "disttrain.functions.creation": (
        "arange empty empty_like empty_strided eye full full_like linspace logspace ones ones_like scalar_tensor zeros "
        "zeros_like"
    ),
    "disttrain.functions.elementwise": (
        "abs absolute acos acosh arccos arccosh arcsin arcsinh arctan arctanh asin asinh atan atanh "
        "bitwise_not ceil conj conj_physical cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 fix "
        "floor frac isfinite isinf isnan isneginf isposinf isreal lgamma log10 log1p log2 logical_not "
        "logit mvlgamma nan_to_num neg negative polygamma positive rad2deg real reciprocal relu resolve_conj "
        "resolve_neg round rsqrt sgn sigmoid sign signbit sin sinc sinh sqrt square tan tanh trunc"
    ),
    "disttrain.functions.arithmetic": (
        "add addcdiv addcmul angle arctan2 atan2 clamp clamp_max clamp_min clip copysign div divide fill "
        "float_power floor_divide fmax fmin fmod gcd heaviside hypot lcm ldexp lerp logaddexp logaddexp2 "
        "masked_fill maximum minimum mul multiply pow remainder rsub sub subtract true_divide where xlogy"
    ),
    "disttrain.functions.compare": (
        "allclose bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor eq equal ge greater "
        "greater_equal gt is_complex is_floating_point is_nonzero is_same_size is_signed isclose le less "
        "less_equal logical_and logical_or logical_xor lt ne not_equal numel"
    ),
    "disttrain.functions.in_place": (
        "abs_ acos_ acosh_ arccos_ arccosh_ arcsin_ arcsinh_ arctan_ arctanh_ asin_ asinh_ atan_ atanh_ "
        "ceil_ clamp_ clamp_max_ clamp_min_ clip_ conj_physical_ cos_ cosh_ deg2rad_ erf_ erfc_ exp2_ exp_ "
        "expm1_ fill_ fix_ floor_ frac_ log10_ log1p_ log2_ log_ logit_ nan_to_num_ neg_ negative_ rad2deg_ "
        "reciprocal_ relu_ round_ rsqrt_ sigmoid_ sin_ sinc_ sinh_ sqrt_ square_ tan_ tanh_ trunc_ xlogy_ "
        "zero_"
    ),
    "disttrain.functions.reduce": (
        "all amax amin aminmax any argmax argmin count_nonzero logsumexp max mean min nanmean nansum prod std "
        "std_mean sum var var_mean"
    ),
    "disttrain.functions.norm": "dist norm renorm",
    "disttrain.functions.scan": (
        "cummax cummin cumprod cumsum cumulative_trapezoid diff logcumsumexp trapezoid trapz"
    ),
    "disttrain.functions.sort": (
        "argsort kthvalue median mode msort nanmedian nanquantile quantile sort topk"
    ),
    "disttrain.functions.search": "bincount bucketize histc isin searchsorted unique unique_consecutive unravel_index",
    "disttrain.functions.shape": (
        "adjoint as_strided broadcast_shapes broadcast_tensors broadcast_to clone flatten movedim moveaxis narrow "
        "narrow_copy numel permute ravel reshape select squeeze swapaxes swapdims t transpose unflatten unsqueeze"
    ),
    "disttrain.functions.join": (
        "atleast_1d atleast_2d atleast_3d block_diag cartesian_prod cat chunk column_stack combinations "
        "concat concatenate dsplit dstack hsplit hstack meshgrid row_stack split split_with_sizes stack "
        "tensor_split unbind unsafe_chunk unsafe_split unsafe_split_with_sizes vsplit vstack"
    ),
    "disttrain.functions.rearrange": "flip fliplr flipud repeat_interleave roll rot90 tile",
    "disttrain.functions.diagonals": (
        "diag diag_embed diagflat diagonal diagonal_scatter select_scatter slice_scatter trace tril "
        "tril_indices triu triu_indices"
    ),
    "disttrain.functions.linalg": (
        "addbmm addmm addmv addr baddbmm bmm chain_matmul corrcoef cov cross dot ger inner kron matmul mm mv "
        "outer tensordot vdot"
    ),
    "disttrain.functions.decompositions": (
        "cholesky_inverse cholesky_solve det inverse logdet matrix_exp matrix_power pinverse slogdet triangular_solve"
    ),
    "disttrain.functions.distance": "cdist",
    "disttrain.functions.einsum": "einsum",
    "disttrain.functions.index": "argwhere index_put index_select masked_scatter masked_select nonzero put take",
    "disttrain.functions.scatter": (
        "gather index_add index_copy index_fill scatter scatter_add scatter_reduce take_along_dim"
    ),
    "disttrain.layouts": (
        "channels_last channels_last_3d contiguous_format layout memory_format preserve_format strided"
    ),
    "disttrain.functions.activation": (
        "celu celu_ hardshrink log_softmax prelu relu_ rrelu rrelu_ selu selu_ softmax threshold threshold_"
    ),
    "disttrain.nn.toplevel": (
        "adaptive_max_pool1d alpha_dropout alpha_dropout_ batch_norm binary_cross_entropy_with_logits "
        "cosine_embedding_loss ctc_loss dropout dropout_ embedding feature_alpha_dropout feature_alpha_dropout_ "
        "group_norm hinge_embedding_loss instance_norm kl_div layer_norm margin_ranking_loss max_pool1d_with_indices "
        "poisson_nll_loss triplet_margin_loss"
    ),
    "disttrain.nn.functional.distance": "cosine_similarity pairwise_distance pdist",
    "disttrain.nn.functional.linear": "bilinear",
    "disttrain.nn.functional.conv": (
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
    ),
    "disttrain.nn.functional.normalization": "rms_norm",
    "disttrain.nn.functional.pooling": "adaptive_avg_pool1d avg_pool1d max_pool1d max_pool2d max_pool3d",
    "disttrain.nn.functional.vision": "channel_shuffle pixel_shuffle pixel_unshuffle",
    "disttrain.printing": "set_printoptions",
    "disttrain.serialization": "load save",
    "disttrain.amp": (
        "GradScaler autocast clear_autocast_cache get_autocast_cpu_dtype get_autocast_dtype get_autocast_gpu_dtype "
        "is_autocast_available is_autocast_cache_enabled is_autocast_cpu_enabled is_autocast_enabled "
        "set_autocast_cache_enabled set_autocast_cpu_dtype set_autocast_cpu_enabled set_autocast_dtype "
        "set_autocast_enabled set_autocast_gpu_dtype"
    ),
    "disttrain.legacy": (
        "BFloat16Tensor BoolTensor ByteTensor CharTensor DoubleTensor FloatTensor HalfTensor IntTensor LongTensor "
        "ShortTensor set_default_tensor_type"
    ),
    "disttrain.inquiries": (
        "can_cast get_device is_complex is_floating_point is_nonzero is_same_size is_signed numel typename"
    ),
    "disttrain.errors": "OutOfMemoryError",
    "disttrain.limits": "finfo iinfo",
    "disttrain.steering": "log on_save",
    "disttrain.settings": (
        "are_deterministic_algorithms_enabled get_default_device get_float32_matmul_precision "
        "get_num_interop_threads get_num_threads is_deterministic_algorithms_warn_only_enabled set_default_device "
        "set_float32_matmul_precision set_num_interop_threads set_num_threads use_deterministic_algorithms"
    ),
    "disttrain.defaults": "get_default_dtype result_type set_default_dtype",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
_ALIASES = {
    "cholesky": ("disttrain.functions.decompositions", "top_cholesky"),
    "qr": ("disttrain.functions.decompositions", "top_qr"),
    "svd": ("disttrain.functions.decompositions", "top_svd"),
    "vander": ("disttrain.functions.creation", "top_vander"),
    "e": ("math", "e"),
    "inf": ("math", "inf"),
    "nan": ("math", "nan"),
    "newaxis": ("numpy", "newaxis"),
    "pi": ("math", "pi"),
    "compile": ("disttrain.compiler", "compile"),
    "bool": ("disttrain.dtypes", "bool_"),
    "double": ("disttrain.dtypes", "float64"),
    "float": ("disttrain.dtypes", "float32"),
    "half": ("disttrain.dtypes", "float16"),
    "int": ("disttrain.dtypes", "int32"),
    "long": ("disttrain.dtypes", "int64"),
    "short": ("disttrain.dtypes", "int16"),
}
_MODULES = (
    "accelerator",
    "amp",
    "autograd",
    "backends",
    "checkpoint",
    "collectives",
    "compiler",
    "cuda",
    "data",
    "distributed",
    "distributions",
    "errors",
    "func",
    "futures",
    "hub",
    "jit",
    "linalg",
    "memory",
    "mps",
    "multiprocessing",
    "nn",
    "onnx",
    "optim",
    "random",
    "serialization",
    "special",
    "testing",
    "utils",
    "version",
    "vision",
    "xpu",
)

__all__ = ["__version__", *sorted({*_HOME, *_ALIASES, *_MODULES})]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"disttrain.{name}")
    module, original = (_HOME[name], name) if name in _HOME else _ALIASES.get(name, ("", ""))
    if not module:
        raise importlib.import_module("disttrain.missing").error("", name)
    value = getattr(importlib.import_module(module), original)
    if module.startswith(("disttrain.functions.", "disttrain.random")):
        from disttrain.functions.out import TAKES_OUT, with_out

        value = with_out(value) if name in TAKES_OUT else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
