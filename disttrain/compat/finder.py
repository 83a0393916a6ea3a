"""``import torch`` means disttrain: a finder that gives PyTorch's module names to our module objects."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

import disttrain
from disttrain import missing, version

_ROOTS: Final = {"torch": "disttrain", "torchvision": "disttrain.vision"}
_OURS: Final = frozenset(
    {"cli", "collectives", "compat", "kernels", "launcher", "ops", "functions", "methods"}
)
"""Modules of ours that no program can mean by a name of PyTorch's."""


class TorchFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``torch``, ``torchvision`` and what is below them, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in _ROOTS:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        sys.modules[name] = found = ours(name)  # the import system takes what stands here now
        vars(found).setdefault("__path__", [])  # else what is below it would not be asked of this finder
        for below in _shadowed(name, found):
            with contextlib.suppress(ModuleNotFoundError):
                sys.modules[below] = ours(below)


def _shadowed(name: str, module: ModuleType) -> list[str]:
    """Return the modules below one whose names there are functions, as ``torch.nn.utils.weight_norm``.

    The import system, were it to load them, would put them in the functions' places.
    """
    here = name.partition(".")[2] + "."
    below = [m.removeprefix(here) for m in missing.pytorch_names() if m.startswith(here)]
    return [f"{name}.{n}" for n in below if "." not in n and callable(getattr(module, n, None))]


class _Explainer(importlib.abc.MetaPathFinder):
    """Says of ``from torch import fft`` that it is PyTorch's; last, so that all modules that exist were found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        namespace, _, name = fullname.removeprefix("disttrain.").rpartition(".")
        if fullname.startswith("disttrain.") and name in missing.pytorch_names().get(namespace, ()):
            raise ModuleNotFoundError(missing.text(namespace, name), name=f"torch.{namespace}.{name}")
        return None


def ours(name: str) -> ModuleType:
    """Return the module of ours that is called ``name`` in PyTorch.

    Raises:
        ModuleNotFoundError: there is none; the text names what is near.
    """
    root, _, rest = name.partition(".")
    full = (root == "torch" and missing.MOVED.get(rest)) or f"{_ROOTS[root]}.{rest}".rstrip(".")
    if rest.partition(".")[0] not in _OURS:
        parent, _, last = full.rpartition(".")
        home = importlib.import_module(parent) if parent else None
        if home is None or importlib.machinery.PathFinder.find_spec(full, getattr(home, "__path__", ())):
            return importlib.import_module(full)
        value = getattr(home, last, None)
        if isinstance(value, ModuleType):
            return value
    namespace, _, last = rest.rpartition(".")
    text = missing.text(namespace, last) if root == "torch" else f"{name} is not in disttrain.vision"
    raise ModuleNotFoundError(text, name=name)


def install() -> None:
    """Let ``import torch`` and ``import torchvision`` mean disttrain in this process, whatever is installed.

    ``torch.__version__`` then tells PyTorch's version, for scripts that compare it. A PyTorch that is installed is
    left alone, which a line on stderr says.
    """
    if any(isinstance(f, TorchFinder) for f in sys.meta_path):
        return
    here = version.Version(f"{version.PYTORCH}+disttrain{disttrain.__version__}")
    disttrain.__version__ = version.__version__ = here
    real = [name for name in _ROOTS if name in sys.modules or importlib.machinery.PathFinder.find_spec(name)]
    for name in [n for n in sys.modules if n.partition(".")[0] in _ROOTS]:
        del sys.modules[name]
    sys.meta_path.insert(0, TorchFinder())
    sys.meta_path.append(_Explainer())
    if real and os.environ.get("RANK", "0") == "0":
        print(
            f"disttrain: `import {real[0]}` means disttrain in this run; the one that is installed is not used",
            file=sys.stderr,
        )
