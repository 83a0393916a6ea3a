"""Arguments have PyTorch's names, order and defaults, wherever PyTorch says what they are."""

import ast
import inspect
import re

import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with torch")

NOT_HERE = {"out", "_stacklevel", "layout", "pin_memory", "foreach"}
"""Arguments that need not be named in a signature: handled around the function, or without meaning here."""

ITS_TEXT = "PyTorch takes these names; its documentation shows others"
DIFFERENT = {
    **dict.fromkeys(
        ("amax", "amin", "broadcast_to", "cholesky_solve", "normal", "topk", "scatter"), ITS_TEXT
    ),
    **dict.fromkeys(("tril_indices", "triu_indices", "triangular_solve", "nn.functional.one_hot"), ITS_TEXT),
    **dict.fromkeys(("cholesky_inverse", "linalg.matrix_power", "cdist"), ITS_TEXT),
    **dict.fromkeys(("kthvalue", "nan_to_num", "searchsorted", "true_divide"), ITS_TEXT),
    **dict.fromkeys(("set_num_threads", "set_num_interop_threads", "empty_strided", "concatenate"), ITS_TEXT),
    **dict.fromkeys(
        (
            "dsplit",
            "hsplit",
            "vsplit",
            "tensor_split",
            "repeat_interleave",
            "std",
            "var",
            "std_mean",
            "var_mean",
            "where",
        ),
        "PyTorch has several forms, and documents one",
    ),
    **dict.fromkeys(
        ("linalg.matrix_rank", "linalg.pinv"), "the same: the older forms come first by position"
    ),
    **dict.fromkeys(("det", "slogdet"), "one function is there and in linalg, where the name is A"),
    **dict.fromkeys(("load", "save"), "nothing is pickled here"),
    "compile": "nothing is compiled yet",
}
"""Names of which the signature differs, and why."""


def documented(f):
    """Return the signature in the first line of a docstring: names in order, and defaults as text."""
    line = (getattr(f, "__doc__", None) or "").strip().split("\n\n")[0].replace("\n", " ")
    found = re.match(r"[\w.]*\((.*)\)\s*(->|$)", line)
    if not found or "..." in found[1] or "[" in found[1]:
        return None
    arguments = re.sub(r"\s+", " ", found[1])
    try:
        tree = ast.parse(f"def f({arguments}): pass").body[0].args
    except SyntaxError:
        return None
    positional = [*tree.posonlyargs, *tree.args]
    defaults = [None] * (len(positional) - len(tree.defaults)) + list(tree.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(tree.kwonlyargs, tree.kw_defaults, strict=True)]
    if tree.vararg:
        return None
    return [(a.arg, None if d is None else ast.unparse(d)) for a, d in pairs]


def theirs_of(f):
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (ValueError, TypeError):
        return documented(f)
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return documented(f)
    return [(p.name, None if p.default is p.empty else repr(p.default)) for p in parameters]


def ours_of(f):
    parameters = list(inspect.signature(f).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return [
        (p.name, None if p.default is p.empty else repr(p.default))
        for p in parameters
        if p.kind is not p.VAR_KEYWORD
    ]


def same_default(ours, theirs):
    if (ours is None) != (theirs is None):
        return False
    ours, theirs = (re.sub(r"torch\.|disttrain\.|<|>", "", str(d)) for d in (ours, theirs))
    try:
        return ast.literal_eval(ours) == ast.literal_eval(theirs)
    except (ValueError, SyntaxError):
        return True  # a name of an object: cannot be compared as text


def difference(name, ours, theirs):
    """Return how a signature differs, or ``None``."""
    if name in DIFFERENT:
        return None
    a, b = ours_of(ours), theirs_of(theirs)
    if a is None or b is None:
        return None
    if name.startswith("Tensor."):
        a, b = a[1:], b[1:]  # the tensor itself
    b = [(n, d) for n, d in b if n not in NOT_HERE or n in dict(a)]
    names_a, names_b = [n for n, _ in a], [n for n, _ in b]
    if names_a[: len(names_b)] != names_b and {*names_b} - {*names_a}:
        return f"{name}: ({', '.join(names_a)}), PyTorch ({', '.join(names_b)})"
    common = [n for n in names_a if n in names_b]
    if common != [n for n in names_b if n in names_a]:
        return f"{name}: order ({', '.join(names_a)}), PyTorch ({', '.join(names_b)})"
    wrong = [n for n in common if not same_default(dict(a)[n], dict(b)[n])]
    if wrong:
        return f"{name}: defaults " + ", ".join(f"{n}={dict(a)[n]}, PyTorch {dict(b)[n]}" for n in wrong)
    return None


def pairs():
    for prefix, ours, theirs in (
        ("", dt, torch),
        ("nn.functional.", dt.nn.functional, torch.nn.functional),
        ("linalg.", getattr(dt, "linalg", None), torch.linalg),
        ("nn.init.", dt.nn.init, torch.nn.init),
        ("nn.utils.", dt.nn.utils, torch.nn.utils),
    ):
        for name in getattr(ours, "__all__", ()):
            f, g = getattr(ours, name), getattr(theirs, name, None)
            if inspect.isroutine(f) and callable(g) and not inspect.isclass(g):
                yield f"{prefix}{name}", f, g
    for prefix, ours, theirs in (
        ("nn.", dt.nn, torch.nn),
        ("optim.", dt.optim, torch.optim),
        ("optim.lr_scheduler.", dt.optim.lr_scheduler, torch.optim.lr_scheduler),
    ):
        for name in dir(ours):
            f, g = getattr(ours, name), getattr(theirs, name, None)
            if inspect.isclass(f) and inspect.isclass(g) and not name.startswith("_"):
                yield f"{prefix}{name}", f.__init__, g.__init__
    for name in dir(dt.Tensor):
        f, g = getattr(dt.Tensor, name, None), getattr(torch.Tensor, name, None)
        written_in_python = inspect.isfunction(
            g
        )  # the documentation of the others names arguments as it likes
        if inspect.isfunction(f) and not name.startswith("_") and written_in_python:
            yield f"Tensor.{name}", f, g


def test_signatures_are_pytorchs():
    differences = [d for name, ours, theirs in pairs() if (d := difference(name, ours, theirs))]

    assert not differences, "\n".join([f"{len(differences)} signatures differ:", *differences])
