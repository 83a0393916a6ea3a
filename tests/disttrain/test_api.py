"""The façade and the tables: nothing public without a name in ``__all__``, a gradient case and a comparison."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import disttrain as dt
import disttrain.ops
from disttrain.ops.types import Result

HERE = Path(__file__).parent

TABLES_OF_CASES = "elementwise special reduce scan sort shape linalg index scatter strided decompositions"
"""Modules of ops whose test has tables by name; the tests of the others name each op where they check it."""

INNER = {
    "loss.class_targets": "an inner step of cross entropy, whose first and second derivatives are checked"
}
"""Ops that no test names, and why."""

COVERED_ELSEWHERE = {
    "disttrain.launcher.function": "tests/launcher/test_function.py",
    "disttrain.random": "tests/disttrain/test_random.py",
    "disttrain.batching": "tests/disttrain/test_func.py",
    "disttrain.functions.random": "tests/disttrain/test_random.py",
    "disttrain.modes": "tests/disttrain/test_modes.py",
    "disttrain.autograd.anomaly_mode": "tests/disttrain/autograd/test_anomaly_mode.py",
    "disttrain.defaults": "tests/disttrain/test_dtypes.py",
    "disttrain.autograd": "tests/disttrain/test_autograd.py",
    "disttrain.engine": "tests/disttrain/test_autograd.py",
    "disttrain.dtypes": "tests/disttrain/test_dtypes.py",
    "disttrain.serialization": "tests/disttrain/test_serialization.py",
    "disttrain.nn.functional": "tests/disttrain/nn",
    "disttrain.amp": "tests/disttrain/test_amp.py",
    "disttrain.capture": "tests/disttrain/test_capture.py",
    "disttrain.compiler": "tests/disttrain/test_settings.py",
    "disttrain.inquiries": "tests/disttrain/test_inquiries.py",
    "disttrain.legacy": "tests/disttrain/test_settings.py",
    "disttrain.printing": "tests/disttrain/test_printing.py",
    "disttrain.settings": "tests/disttrain/test_settings.py",
    "disttrain.steering": "tests/disttrain/test_steering.py",
}
"""Where functions that share no table with PyTorch are tested."""


def ops() -> dict[str, list[str]]:
    """Return the public functions of each module of ops that return a ``Result``."""
    found: dict[str, list[str]] = {}
    for info in pkgutil.iter_modules(disttrain.ops.__path__):
        module = importlib.import_module(f"disttrain.ops.{info.name}")
        found[info.name] = [
            name
            for name, f in vars(module).items()
            if inspect.isfunction(f) and f.__module__ == module.__name__ and not name.startswith("_")
            if f.__annotations__.get("return") in (Result, "Result")
        ]
    return found


def names_in(file: Path) -> set[str]:
    """Return all names, attributes and words in strings that a test file mentions."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    return (
        {n.attr for n in nodes if isinstance(n, ast.Attribute)}
        | {n.id for n in nodes if isinstance(n, ast.Name)}
        | {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    )


def test_every_op_has_a_gradient_case_or_says_that_it_has_no_gradient() -> None:
    missing = []
    for module, names in ops().items():
        file = HERE / "ops" / f"test_{module}.py"
        if module in TABLES_OF_CASES.split():
            tables = runpy.run_path(str(file))
            cases, without = tables["CASES"], tables.get("NO_GRADIENT", {})
            assert not set(cases) & set(without)
            assert all(cases.values()), f"an empty case in {file}"
            covered = {*cases, *without}
            assert covered <= set(names), f"{file} has cases of what is no op: {covered - set(names)}"
        else:
            covered = names_in(file) if names else set()
        missing += [
            f"{module}.{name}" for name in names if name not in covered and f"{module}.{name}" not in INNER
        ]

    assert sum(map(len, ops().values())) > 100
    assert not missing


def comparisons() -> set[str]:
    """Return the names that the tables of comparisons with PyTorch hold."""
    names: set[str] = set()
    for file in (HERE / "functions").glob("test_*.py"):
        names |= set(runpy.run_path(str(file)).get("CASES", ()))
    return {*names, *(name.removeprefix("Tensor.") for name in names)}


MADE = ("conversion", "creation")
"""Modules whose functions make tensors of none: each is tried by name in its tests."""


def test_every_function_is_compared_with_pytorch() -> None:
    compared, missing = comparisons(), []
    for name in dt.__all__:
        value = getattr(dt, name)
        if not inspect.isfunction(value) or value.__module__.startswith(tuple(COVERED_ELSEWHERE)):
            continue
        home = value.__module__.rpartition(".")[2]
        mentioned = home in MADE and name in names_in(HERE / "functions" / f"test_{home}.py")
        if name not in compared and not mentioned and name not in names_in(HERE / "test_tensors.py"):
            missing.append(name)

    assert not missing


def test_every_method_is_compared_with_pytorch() -> None:
    compared = comparisons()
    mentioned = set().union(
        *(
            names_in(HERE / f"test_{n}.py")
            for n in ("tensors", "autograd", "engine", "random", "inquiries", "missing")
        )
    )
    mentioned |= set().union(*(names_in(HERE / "functions" / f"test_{home}.py") for home in MADE))
    methods = [n for n in dir(dt.Tensor) if not n.startswith("_") and hasattr(dt.Tensor, n)]
    special = [n for n, f in vars(dt.Tensor).items() if n.startswith("__") and inspect.isfunction(f)]
    words = (HERE / "test_tensors.py").read_text() + "__repr__"  # below

    assert not [n for n in methods if n not in compared and n not in mentioned]
    assert not [n for n in special if n not in compared and n not in words]


def test_every_name_resolves_and_nothing_else_does() -> None:
    for name in dt.__all__:
        assert getattr(dt, name) is not None or name == "newaxis"
    assert set(dir(dt)) == set(dt.__all__)
    with pytest.raises(AttributeError, match="no 'bogus'"):
        dt.bogus


def test_import_loads_neither_compilers_nor_gpus_nor_mpi() -> None:
    code = """
import sys, disttrain
early = set(sys.modules)
disttrain.tensor([1.0, 2.0], requires_grad=True).sum().backward()
disttrain.randn(3)
print([m for m in ("numba", "cupy", "mpi4py", "torch", "zmq", "rich") if m in sys.modules], "numpy" in early)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "[] False\n"


def _repr_cases() -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        np.arange(3.0, dtype=np.float32),
        np.arange(6).reshape(2, 3),
        np.array([1.5, 2.25], np.float32),
        np.full((), 2.0, np.float32),
        np.array([True, False]),
        np.array([], np.float32),
        np.zeros((2, 0), np.float32),
        rng.standard_normal((2, 3)).astype(np.float32),
        np.array([1.0, 2.5]),
        np.array([1, 2], np.int32),
        np.array([np.nan, 1.0, np.inf], np.float32),
        np.asarray(3),
        np.array([1.5], np.float16),
        np.array([-1.5, 2.0], np.float32),
        np.array([1e-5, 1.0], np.float32),
        np.array([1e8, 1.0], np.float32),
        np.zeros((1001,), np.float32),
        np.array([[-1.0, 20.0]], np.float32),
        np.array([100000.5, 1.0], np.float32),
    ]


@pytest.mark.parametrize("number", range(len(_repr_cases())))
def test_repr_is_that_of_pytorch(number: int) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    array = _repr_cases()[number]

    assert repr(dt.from_numpy(array)).replace("disttrain.", "torch.") == repr(torch.from_numpy(array))


def test_repr_tells_history() -> None:
    x = dt.ones(2, requires_grad=True)
    assert repr(x) == "tensor([1., 1.], requires_grad=True)"
    assert repr(x * 2) == "tensor([2., 2.], grad_fn=<MulBackward0>)"
