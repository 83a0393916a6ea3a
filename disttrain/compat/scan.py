"""Which of PyTorch's names a script uses, found by reading it: no line of it is run."""

from __future__ import annotations

import ast
import io
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

import numpy as np

from disttrain import missing
from disttrain.compat.finder import ours
from disttrain.nn.module import Module
from disttrain.optim.optimizer import Optimizer

_ROOTS: Final = ("torch", "torchvision")
_OTHERS: Final = (str, bytes, list, dict, set, tuple, int, float, io.TextIOWrapper, pathlib.Path, np.ndarray)
_SHARED: Final = {name for cls in (*_OTHERS, Module, Optimizer) for name in dir(cls)} | {
    "indices",  # of max(), sort(), topk() and Subset
    *("eig", "lstsq", "solve"),  # which PyTorch itself has no more
}
"""Names of methods that other things have too: a call says nothing about Tensors."""


@dataclass
class Use:
    """A name of PyTorch's, and where it is used."""

    name: str
    """In full, as ``torch.nn.Linear`` or ``torch.Tensor.view``."""
    state: str
    """``"here"``, ``"not here"``, or ``"refused"``: it is here and only says that there is no such thing."""
    advice: str = ""
    lines: list[int] = field(default_factory=list)


@dataclass
class Scan:
    """What was found in one script."""

    path: str
    uses: list[Use]
    error: str = ""
    """Why it could not be read."""

    @property
    def absent(self) -> list[Use]:
        return [u for u in self.uses if u.state != "here"]


def scan(path: str) -> Scan:
    """Read one script."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read(), path)
        names = _Names()
        names.visit(tree)
    except (
        OSError,
        SyntaxError,
        ValueError,
        RecursionError,
    ) as e:  # the last of thousands of nested expressions
        return Scan(path, [], error=str(e))
    uses = []
    for name, lines in sorted(names.found.items()):
        state, advice = look_up(name)
        uses.append(Use(name, state, advice, sorted(lines)))
    return Scan(path, uses)


def look_up(name: str) -> tuple[str, str]:
    """Return the state of a full name (see :class:`Use`) and what is said of one that is not here."""
    root, *parts = name.split(".")
    try:
        found: Any = ours(root)
    except ImportError as e:
        return "not here", str(e)
    for i, part in enumerate(parts):
        if not isinstance(found, ModuleType | type):
            return "here", ""  # an attribute of a value
        try:
            found = getattr(found, part)
            if found is annotations:  # a module of ours imports it from __future__
                raise AttributeError(missing.text(".".join(parts[:i]), part))
        except AttributeError as e:
            try:
                found = ours(".".join((root, *parts[: i + 1])))
            except ImportError:
                return "not here", str(e)
    if isinstance(refusal := getattr(found, "refusal", None), str):
        return "refused", refusal
    return "here", ""


class _Names(ast.NodeVisitor):
    """Collects full names of PyTorch's, following imports and plain assignments."""

    def __init__(self) -> None:
        self.found: dict[str, set[int]] = {}
        self._aliases: dict[str, str] = {}
        """Name in the script → full name; ``""`` for what comes from elsewhere."""
        self._own: set[str] = set()
        """Methods and attributes that the script itself defines."""
        self._tensor_names = missing.pytorch_names()["Tensor"]

    def visit_Module(self, node: ast.Module) -> None:
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self._own.add(inner.name)
            elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                self._own.add(inner.attr)
        for inner in ast.walk(node):  # imports anywhere first: a function may stand before what it uses
            if isinstance(inner, ast.Import):
                self._import(inner)
            elif isinstance(inner, ast.ImportFrom):
                self._import_from(inner)
        self.generic_visit(node)

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            ours_ = alias.name.partition(".")[0] in _ROOTS
            local = alias.asname or alias.name.partition(".")[0]
            self._aliases[local] = (alias.name if alias.asname else local) if ours_ else ""
            if ours_:
                self._add(alias.name, node.lineno)

    def _import_from(self, node: ast.ImportFrom) -> None:
        if node.level or (node.module or "").partition(".")[0] not in _ROOTS:
            self._aliases.update({a.asname or a.name: "" for a in node.names})
            return
        for alias in node.names:
            if alias.name == "*":
                self._add(str(node.module), node.lineno)
                for name in missing.pytorch_names().get(str(node.module).partition(".")[2], ()):
                    self._aliases.setdefault(name, f"{node.module}.{name}")
            else:
                self._aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                self._add(f"{node.module}.{alias.name}", node.lineno)

    def visit_Assign(self, node: ast.Assign) -> None:
        full = self._full(node.value)
        if full and len(node.targets) == 1 and isinstance(target := node.targets[0], ast.Name):
            self._aliases[target.id] = full
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        full = self._full(node)
        if full:
            self._add(full, node.lineno)
            return
        self._method(node)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and (full := self._aliases.get(node.id)):
            self._add(full, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        match node:  # getattr(nn, "LSTM")
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name)), *_]):
                if full := self._full(value):
                    self._add(f"{full}.{name}", node.lineno)
        self.generic_visit(node)

    def _method(self, node: ast.Attribute) -> None:
        """Count an attribute of something unknown as a Tensor's if only a Tensor can have it."""
        name = node.attr
        if name not in self._tensor_names or name in _SHARED or name in self._own:
            return
        root: ast.expr = node.value
        while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
            root = root.func if isinstance(root, ast.Call) else root.value
        if not isinstance(root, ast.Name) or self._aliases.get(root.id, "unknown"):
            self._add(f"torch.Tensor.{name}", node.lineno)

    def _full(self, node: ast.expr) -> str:
        """Return the full name that ``a.b.c`` stands for, or ``""``."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        home = self._aliases.get(node.id, "") if isinstance(node, ast.Name) else ""
        return ".".join((home, *reversed(parts))) if home else ""

    def _add(self, name: str, line: int) -> None:
        self.found.setdefault(name, set()).add(line)


def python_files(paths: Sequence[str]) -> Iterator[str]:
    """Yield the scripts among ``paths`` and in the folders among them."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
            yield from (os.path.join(folder, n) for n in sorted(names) if n.endswith(".py"))


def report(paths: Sequence[str]) -> int:
    """Print what the scripts use, what of it is not here first; return 0 if all is here, else 1."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    scans = [scan(path) for path in python_files(paths)]
    for s in scans:
        if s.error:
            console.print(f"{s.path}: cannot be read: {s.error}", markup=False, highlight=False)
        elif s.uses:
            table = Table("name", "lines", "", "instead", title=s.path, title_justify="left", box=None)
            for use in sorted(s.uses, key=lambda u: u.state == "here"):
                lines = ", ".join(map(str, use.lines[:5])) + (", …" if len(use.lines) > 5 else "")
                style = None if use.state == "here" else "bold red"
                table.add_row(use.name, lines, use.state, _advice(use.advice), style=style)
            console.print(table, markup=False)
    used = {u.name for s in scans for u in s.uses}
    absent = {u.name for s in scans for u in s.absent}
    files = f"{len(scans)} script" + ("" if len(scans) == 1 else "s")
    shown = f"; not here: {', '.join(sorted(absent))}" if absent else ""
    console.print(
        f"{files}: {len(used) - len(absent)} of {len(used)} PyTorch names are here{shown}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 1 if absent or any(s.error for s in scans) or not scans else 0


def _advice(text: str) -> str:
    """Return what a message about a missing name says beyond the name."""
    return text.partition("; ")[2] or text.partition(": ")[2]
