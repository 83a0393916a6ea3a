"""Elementwise functions and methods against PyTorch's."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import disttrain as dt

rng = np.random.default_rng(0)
FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
WHOLE = (np.int64, np.int32, np.int16, np.int8, np.uint8)
DTYPES = (*FLOATS, *WHOLE, np.bool_)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


def pos(*shape: int) -> Any:
    return rng.uniform(0.3, 2.0, shape)


def mask(*shape: int) -> Any:
    return rng.integers(0, 2, shape).astype(bool)


def unary(make: Any = f, special: tuple[float, ...] = (0.0, -1.0, 2.5, np.inf, -np.inf, np.nan)) -> list[Any]:
    """Shapes with 0 to 3 dimensions, empty ones, strided ones, every type, and numbers at the edges."""
    cases = [c(make(*s)) for s in [(), (3,), (2, 3), (0,), (2, 0), (2, 1, 3)]]
    cases.append(c(make(4, 6)[::2, ::-1].copy().T))
    cases += [c((make(2, 3) * 2).astype(d)) for d in DTYPES]
    cases += [c(np.asarray(make(1)[0] * 2).astype(d)) for d in DTYPES]
    return cases + [c(np.array(special, d)) for d in FLOATS]


def binary(make: Any = f, *, numbers: tuple[Any, ...] = (2, -3, 0.5, True, 0)) -> list[Any]:
    """Broadcast shapes, pairs of types, numbers on either side, and shapes that do not fit."""
    shapes = [
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((), (2,)),
        ((2,), ()),
        ((0,), (1,)),
        ((), ()),
    ]
    cases = [c(make(*a), make(*b)) for a, b in [*shapes, ((2, 1, 3), (4, 1)), ((2, 3), (4,)), ((0,), (2,))]]
    for a, b in itertools.product(DTYPES, DTYPES):
        x, y = (make(2, 3) * 2).astype(a), (make(3) * 2).astype(b)
        if b in WHOLE or b is np.bool_:
            y[:] = [1, 2, 1]
        cases += [c(x, y), c(x, np.asarray(y[0])), c(np.asarray(x[0, 0]), y)]
    for a, n in itertools.product(DTYPES, numbers):
        cases += [c((make(2, 3) * 2).astype(a), n), c(np.asarray(make(1)[0] * 2).astype(a), n)]
    return cases


def in_place(cases: list[Any]) -> list[Any]:
    return [case for case in cases if isinstance(case[0][0], np.ndarray)]


UNARY = {
    name: unary()
    for name in [
        "abs",
        "ceil",
        "floor",
        "trunc",
        "sign",
        "round",
        "neg",
        "square",
        "exp",
        "exp2",
        "expm1",
        "sin",
        "cos",
        "tan",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "sigmoid",
        "relu",
        "isnan",
        "isinf",
        "isfinite",
        "logical_not",
        "bitwise_not",
        "positive",
        "frac",
        "sgn",
        "signbit",
        "deg2rad",
        "rad2deg",
        "asinh",
        "sinc",
        "erf",
        "erfc",
        "isposinf",
        "isneginf",
        "isreal",
        "nan_to_num",
        "real",
        "conj",
        "conj_physical",
        "resolve_conj",
        "resolve_neg",
    ]
} | {
    name: unary(pos)
    for name in [
        "log",
        "log2",
        "log10",
        "log1p",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "asin",
        "acos",
        "atanh",
        "acosh",
        "erfinv",
        "lgamma",
        "logit",
    ]
}

BINARY = {
    name: binary(pos if name == "pow" else f)
    for name in [
        "add",
        "sub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "pow",
        "logical_and",
        "logical_or",
        "logical_xor",
        "fmax",
        "fmin",
        "atan2",
        "hypot",
        "logaddexp",
        "logaddexp2",
        "copysign",
        "xlogy",
        "float_power",
        "bitwise_left_shift",
        "bitwise_right_shift",
    ]
} | {name: binary(pos, numbers=(2, -3, 0.5, True)) for name in ["floor_divide", "remainder", "fmod"]}

CASES: dict[str, list[Any]] = {**UNARY, **BINARY}
CASES["add"] += [
    c(f(2, 3), f(3), alpha=2),
    c(f(2, 3), 2, alpha=0.5),
    c(np.arange(3), np.arange(3), alpha=3),
    c(np.arange(3), np.arange(3), alpha=0.5),
    c(f(3), "a"),
    c(f(3), None),
]
CASES["sub"] += [
    c(f(2, 3), f(3), alpha=2),
    c(np.arange(3), 2, alpha=2),
    c(mask(3), mask(3)),
    c(f(3), [1, 2, 3]),
]
CASES["div"] += [
    c(x, y, rounding_mode=m)
    for m in ("floor", "trunc", None, "nearest")
    for x in (f(2, 3) * 9, np.arange(-6, 6), np.arange(6, dtype=np.uint8))
    for y in (np.asarray(2.0), np.asarray(-3), 2, -2.5, 3)
] + [c(f(3), np.zeros(3)), c(np.arange(3), 0), c(np.arange(3), np.zeros(3, np.int64))]
CASES["pow"] += [
    c(np.arange(4), -1),
    c(np.arange(1, 4), np.array([2, 1, 0])),
    c(np.array([0.0, -0.0, 1, -2]), 2),
    c(np.array([0.0, 1, 2]), np.array([0.0, 0, -1])),
    c(np.array([-1.5, 2.0]), 3),
    c(2, f(3)),
    c(0, pos(3)),
    c(2.0, np.arange(3)),
    c(2, np.arange(3)),
    c(np.array([0.0, 2.0]), 0),
    c(np.array([0.0, 4.0]), 0.5),
    c(np.array([0.0, 0.0, 3.0]), np.array([0.0, 2.0, 2.0])),
]
CASES["round"] += [c(f(3) * 100, decimals=d) for d in (0, 1, 2, -1)]
CASES["round"] += [c(np.array([0.5, 1.5, 2.5, -0.5])), c(np.arange(3), decimals=1)]
CASES["floor_divide"] += [
    c(np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])),
    c(f(3), np.zeros(3)),
    c(7, pos(3)),
]
CASES["remainder"] += [
    c(np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])),
    c(f(3) * 5, -1.5),
    c(7, pos(3)),
    c(np.array([7.0, -7.0]), np.array([2.0, -2.0])),
]
CASES["fmod"] += [c(np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])), c(f(3) * 5, -1.5)]
CASES["maximum"] += [c(np.array([1.0, 2, np.nan]), np.array([1.0, 3, 0]))]
CASES["minimum"] += [c(np.array([1.0, 2, np.nan]), np.array([1.0, 1, 0]))]
CASES["abs"] += [c(np.array([0.0, -0.0]))]

for _name in ["bitwise_and", "bitwise_or", "bitwise_xor"]:
    CASES[_name] = [
        c(np.arange(-3, 3).astype(a), np.arange(6).astype(b))
        for a, b in itertools.product((*WHOLE, np.bool_), (*WHOLE, np.bool_))
    ] + [
        c(np.arange(3), 5),
        c(mask(3), True),
        c(mask(3), 3),
        c(np.arange(3), 1.5),
        c(f(3), f(3)),
        c(mask(2), 1.0),
    ]

CASES["clamp"] = [
    c(x, *limits)
    for x in (
        f(2, 3),
        np.arange(-3, 4),
        f(3).astype(np.float32),
        f(2, 3).astype(np.float16),
        f(2, 3).astype(ml_dtypes.bfloat16),
        np.asarray(2.0),
        f(0),
    )
    for limits in ((-0.5, 0.5), (None, 0.3), (0, None), (0, 1), (1, -1), (None, None), (0.5, True))
] + [
    c(f(2, 3), f(3), None),
    c(f(2, 3), None, f(2, 1)),
    c(f(2, 3), f(3), f(2, 1)),
    c(f(2, 3), np.asarray(-0.1), np.asarray(0.1)),
    c(np.array([1.0, 2.0, 3.0]), 1.0, 3.0),
    c(f(3), min=0.0),
    c(f(3), max=0.0),
    c(np.array([1.0, 2.0]), np.array([1.0, 3.0]), np.array([2.0, 1.0])),
    c(np.arange(3), np.array([0.5, 1.5, 0.1]), None),
    c(np.array([np.nan, 1.0]), 0.0, 0.5),
    c(f(3), "a", None),
]
CASES["nan_to_num"] += [
    c(np.array([np.nan, np.inf, -np.inf, 1.0]), 1.0, 2.0, 3.0),
    c(np.array([np.nan, np.inf, -np.inf, 1.0]), posinf=2.0),
]
CASES["logit"] += [c(np.array([0.0, 0.05, 0.5, 0.99, 1.0]), eps=0.1), c(f(3), 0.2)]
CASES["digamma"] = [
    case for case in unary(pos) if case[0][0].dtype != np.float64
]  # PyTorch's second is to 1e-10
CASES["atan2"] = [  # for the gradient PyTorch squares integers, which wrap around
    case for case in CASES["atan2"] if all(np.asarray(x).dtype.kind == "f" for x in case[0])
]
CASES["signbit"] = [case for case in CASES["signbit"] if case[0][0].dtype != ml_dtypes.bfloat16]  # nan's sign
CASES["signbit"] += [c(np.array([0.0, -0.0]))]
CASES["xlogy"] += [c(np.array([0.0, 0.0, 1.0]), np.array([0.0, np.nan, 0.0])), c(2, 3)]
CASES["rsub"] = [c(f(2, 3), f(3)), c(f(3), 2, alpha=0.5), c(np.arange(3), 2), c(mask(3), 1), c(2, f(3))]
CASES["heaviside"] = [
    c(np.array([-1.0, 0.0, 2.0, np.nan], np.float32), np.array([0.5], np.float32)),
    c(np.arange(-2, 3), np.asarray(7)),
    c(f(3), np.ones(3, np.float32)),
    c(f(3), 1.0),
]
CASES["clamp_min"] = [c(f(2, 3), 0.1), c(f(2, 3), f(3)), c(np.arange(3), 0.5), c(f(3), None)]
CASES["clamp_max"] = CASES["clamp_min"]
CASES["fill"] = [c(f(2, 3), v) for v in (1, 2.5, True, np.asarray(2.0), "a")] + [c(f(3), f(3)), c(2, 3)]
CASES["pow"] += [c(np.array([2, 1, -1, 0]), np.array([-1, -2, -3, -1]))]
CASES["add"] += [c(1, 2), c(1.5, True)]
CASES["div"] += [
    c(7, 2),
    c(7, 2, rounding_mode="trunc"),
    c(np.array([np.inf, 1.0]), 0.0, rounding_mode="trunc"),
]
CASES["clip"] = CASES["clamp"]
CASES["where"] = [
    c(mask(2, 3), f(2, 3), f(3)),
    c(mask(3), f(2, 1), f(1, 3)),
    c(mask(3), f(3), 0.0),
    c(mask(3), 1, f(3)),
    c(mask(3), 1, 2),
    c(mask(3), 1.5, 2),
    c(mask(3), True, False),
    c(mask(3), np.arange(3), 0.5),
    c(mask(3), np.arange(3), f(3).astype(np.float32)),
    c(mask(3), np.asarray(1.0), np.arange(3, dtype=np.float32)),
    c(mask(2, 3)),
    c(mask(), f(2), f(2)),
    c(mask(2), f(3), f(3)),
    c(f(3), f(3), f(3)),
    c(np.array([0, 1, 2]), f(3), f(3)),
    c(mask(0), f(0), f(0)),
]
CASES["Tensor.where"] = [c(f(2, 3), mask(3), f(3)), c(f(3), mask(2, 1), 1.0), c(np.arange(3), mask(3), 0.5)]
CASES["masked_fill"] = [
    c(f(2, 3), mask(2, 3), 0.5),
    c(f(2, 3), mask(3), np.asarray(2.0)),
    c(f(2, 3), mask(2, 1), -np.inf),
    c(f(3), mask(2, 3), 1),
    c(np.arange(3), mask(3), 2),
    c(np.arange(3), mask(3), 2.7),
    c(np.arange(3), mask(3), True),
    c(f(3).astype(np.float32), mask(3), 2.5),
    c(f(3).astype(np.float16), mask(3), 2.5),
    c(f(3).astype(np.float32), mask(3), np.asarray(2.5)),
    c(mask(3), mask(3), 1),
    c(f(3), np.arange(3), 1.0),
    c(f(3), mask(3), f(3)),
    c(f(3), mask(2), 1.0),
    c(f(3), mask(3), "a"),
]
CASES["lerp"] = [
    c(f(2, 3), f(3), 0.3),
    c(f(2, 3), f(2, 3), f(3)),
    c(f(3), f(3), np.asarray(0.2)),
    c(f(3).astype(np.float32), f(3).astype(np.float32), 0.3),
    c(f(3), f(3).astype(np.float32), 0.3),
    c(f(2), f(3), 0.3),
    c(np.arange(3), np.arange(3), 0.5),
]
CASES["addcmul"] = [
    c(f(2, 3), f(3), f(2, 1)),
    c(f(2, 3), f(3), f(2, 1), value=0.5),
    c(f(3).astype(np.float32), f(3).astype(np.float32), f(3).astype(np.float32), value=-2),
    c(np.arange(3), np.arange(3), np.arange(3), value=2),
    c(f(3), f(2), f(2)),
]
CASES["addcdiv"] = [
    c(f(2, 3), f(3), pos(2, 1)),
    c(f(2, 3), f(3), pos(2, 1), value=0.5),
    c(f(3).astype(np.float32), f(3).astype(np.float32), pos(3).astype(np.float32), value=-2),
    c(np.arange(3), np.arange(3), np.arange(1, 4)),
    c(f(3), f(2), f(2)),
]

ALIASES = {
    "true_divide": "div",
    "divide": "div",
    "fix": "trunc",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arctan2": "atan2",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "__lshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift",
    "__rlshift__": "bitwise_left_shift",
    "__rrshift__": "bitwise_right_shift",
    "__rdiv__": "div",
    "__pos__": "positive",
    "multiply": "mul",
    "subtract": "sub",
    "negative": "neg",
    "absolute": "abs",
    "__add__": "add",
    "__radd__": "add",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__sub__": "sub",
    "__truediv__": "div",
    "__floordiv__": "floor_divide",
    "__mod__": "remainder",
    "__pow__": "pow",
    "__neg__": "neg",
    "__abs__": "abs",
    "__invert__": "bitwise_not",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "__rand__": "bitwise_and",
    "__ror__": "bitwise_or",
    "__rxor__": "bitwise_xor",
    "__lt__": "lt",
    "__le__": "le",
    "__gt__": "gt",
    "__ge__": "ge",
    "__eq__": "eq",
    "__ne__": "ne",
    "__rsub__": "sub",
    "__rtruediv__": "div",
    "__rfloordiv__": "floor_divide",
    "__rmod__": "remainder",
    "__rpow__": "pow",
}
for _alias, _name in ALIASES.items():
    CASES[_alias] = [case for case in CASES[_name] if not case[1]]
    if _alias.startswith("__") and _name not in ("abs", "neg", "bitwise_not", "positive"):
        # Python asks the other operand where it knows no answer, so only sensible ones are compared.
        CASES[_alias] = [
            case for case in CASES[_alias] if isinstance(case[0][1], np.ndarray | bool | int | float)
        ]
    if _alias in (
        "__rtruediv__",
        "__rfloordiv__",
        "__rmod__",
        "__rpow__",
        "__rsub__",
        "__rlshift__",
        "__rrshift__",
        "__rdiv__",
    ):  # Python gives only numbers
        CASES[_alias] = [case for case in CASES[_alias] if not isinstance(case[0][1], np.ndarray)]

IN_PLACE = {f"{n}_": n for n in CASES if hasattr(dt.Tensor, f"{n}_")} | {
    f"__i{n}__": n
    for n in (
        "add",
        "sub",
        "mul",
        "pow",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
        "mod",
        "floordiv",
        "truediv",
    )
}
for _alias, _name in IN_PLACE.items():
    _cases = in_place(CASES[f"__{_name}__"] if _alias.startswith("__") else CASES[_name])
    CASES[_alias] = _cases[:: max(len(_cases) // 100, 1)]  # the function has had all of them
for _name in [
    n for n in IN_PLACE if ALIASES.get(IN_PLACE[n], IN_PLACE[n]) in ("eq", "ne", "lt", "le", "gt", "ge")
]:  # a gradient of zeros flows to the other in PyTorch
    CASES[_name] = [
        case
        for case in CASES[_name]
        if case[0][0].dtype == np.float64 or np.asarray(case[0][1]).dtype != np.float64
    ]
for _name in (
    "logical_and_",
    "logical_or_",
    "logical_xor_",
    "logical_not_",
):  # PyTorch forgets to end the history
    CASES[_name] = [case for case in CASES[_name] if case[0][0].dtype != np.float64]
CASES["fill_"] = [c(f(2, 3), v) for v in (1, 2.5, True, np.asarray(2.0), np.asarray(3), "a")]
CASES["fill_"] += [c(np.arange(3), 2.7), c(mask(3), 2), c(f(3).astype(np.float16), 1.5), c(f(3), f(3))]
CASES["zero_"] = [c(f(2, 3)), c(np.arange(3)), c(f(0)), c(np.asarray(2.0)), c(mask(3))]
CASES["copy_"] = [
    c(f(2, 3), f(3)),
    c(f(2, 3), np.arange(3)),
    c(np.arange(3), f(3)),
    c(f(3), f(2)),
    c(f(3), f(2, 3)),
    c(f(2, 3), f(2, 3).astype(np.float32)),
    c(f(3).astype(np.float16), f(3)),
    c(f(3), f(1, 3)),
]

HALF, BYTES = f(3).astype(np.float16), np.arange(3).astype(np.uint8)
LARGE = (300, -1, -300, 1e10, -1e9, float("inf"), float("nan"), 2.7)  # what some types cannot hold
CASES["fill_"] += [c(x, v) for x in (HALF, BYTES, mask(3), f(3).astype(np.float32)) for v in (*LARGE, 1e300)]
CASES["masked_fill"] += [
    c(x, mask(3), v) for x in (HALF, BYTES, f(3).astype(np.float32)) for v in (*LARGE, 1e300)
]
CASES["where"] += [c(mask(3), x, v) for x in (HALF, BYTES) for v in LARGE]
CASES["clamp"] += [c(x, min=v) for x in (HALF, BYTES, f(3).astype(ml_dtypes.bfloat16)) for v in LARGE]
CASES["clamp"] += [c(f(3), 0, f(3)), c(f(3), f(3), 1), c(f(3), min=f(3), max=1.0), c(BYTES, 0, 256)]
CASES["pow"] += [c(BYTES, 300), c(BYTES, 255)]
CASES["addcmul"] += [c(BYTES, BYTES, BYTES, value=300)]
CASES["add"] += [c(f(3), f(3), alpha=True), c(mask(3), mask(3), alpha=True), c(BYTES, 300)]
CASES["sub"] += [c(np.arange(3), 2, alpha=True)]
CASES["div"] += [c(mask(3), 2, rounding_mode=r) for r in ("trunc", "floor")]
CASES["round"] += [c(np.array([3.05, -2.56, 1.72], np.float16), decimals=d) for d in (1, 2, -1)]
for _name in ("lt_", "eq_"):
    CASES[_name] += [c(np.arange(3), other=1)]
CASES["add"] += [c(f(3), np.array([200, 100, 1], np.uint8), alpha=3)]  # more than the type of other holds
CASES["rsub"] += [c(np.array([200, 100, 1], np.uint8), f(3), alpha=3)]
CASES["div"] += [c(300, np.array([7, 2], np.int64), rounding_mode="trunc")]
CASES["remainder"] += [c(np.zeros((0, 3), np.int64), 0)]
CASES["clamp"] += [c(mask(3), 0, 1), c(mask(3), min=True), c(f(3), np.asarray(0), 1.0)]
CASES["addcmul"] += [c(np.arange(3), np.arange(3), np.arange(3), value=0.5)]
CASES["masked_fill"] += [c(BYTES, mask(3), np.asarray(v)) for v in (300, -1, 7)]
CASES["addcmul"] += [c(f(2), np.array([1e200, 1.0]), np.array([1e200, 1.0]), value=0)]
CASES["addcdiv"] += [c(f(2), np.array([1e200, 1.0]), np.array([1e-200, 1.0]), value=0)]
CASES["clamp"] += [c(mask(3), mask(3), mask(3)), c(mask(3), max=mask(3))]
SINGLE = pos(3).astype(np.float32)  # PyTorch's trigamma has nine digits
CASES["polygamma"] = [c(n, x) for n in (0, 1, 2, -1) for x in (SINGLE, HALF, np.arange(1, 3))]
CASES["polygamma"] += [c(n, pos(3)) for n in (2, 3)]
CASES["Tensor.polygamma"] = [c(x, n) for x, n in ((SINGLE, 0), (SINGLE, 1), (pos(3), 2), (pos(3), -1))]
CASES["Tensor.polygamma_"] = CASES["Tensor.polygamma"]
CASES["mvlgamma"] = CASES["mvlgamma_"] = [c(pos(3) + 3, p) for p in (1, 2, 5, 0)] + [c(np.arange(3, 6), 2)]
CASES["ldexp"] = CASES["ldexp_"] = [
    c(f(3), np.arange(3)),
    c(f(2, 1), f(3)),
    c(np.arange(3), np.arange(3)),
    c(f(3), 2),
]
CASES["gcd"] = [
    c(np.array([12, -8, 0]), np.array([18, 6, 5])),
    c(BYTES, np.arange(3)),
    c(f(3), f(3)),
    c(mask(3), BYTES),
]
CASES["lcm"] = CASES["gcd_"] = CASES["lcm_"] = CASES["gcd"]
CASES["angle"] = [c(np.array([-1.0, 0.0, 2.0, np.nan, -np.inf])), c(np.arange(-1, 2)), c(HALF), c(mask(3))]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


def test_two_numbers_are_refused_where_pytorch_refuses_them() -> None:
    with pytest.raises(TypeError, match="needs Tensors"):
        dt.maximum(1, 2)
    with pytest.raises(TypeError, match="needs a Tensor"):
        dt.pow(2, 3)
