"""What to say of a name that is not here: whether PyTorch has it, and what is near that is here."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

_NAMES: Final = Path(__file__).with_name("pytorch_names.txt")
_ELSEWHERE: Final = ("", "nn.functional", "nn", "optim", "Tensor", "linalg", "special", "nn.utils", "nn.init")
"""Where a name that is asked of the wrong namespace may be."""
_INSTEAD: Final = {
    "fx": "nothing is traced; Module.named_modules() walks a model",
    "jit": "nothing is compiled; call the module itself",
    "onnx": "no exporter; disttrain.save() writes safetensors, which other programs read",
    "hub": "nothing is downloaded; put the file where disttrain.load() finds it",
    "multiprocessing.spawn": "start the ranks with `disttrain launch -n N`",
}


@functools.cache
def pytorch_names() -> dict[str, frozenset[str]]:
    """Return PyTorch's public names by module: ``""`` is ``torch``, then ``"nn"``, …, and ``"Tensor"``."""
    names: dict[str, frozenset[str]] = {}
    for section in _NAMES.read_text(encoding="ascii").split("\n[")[1:]:
        module, _, words = section.partition("]")
        names[module] = frozenset(words.split())
    from disttrain.absent import TENSOR_NAMES

    names["Tensor"] = frozenset(TENSOR_NAMES)
    return names


def names_here(namespace: str) -> list[str]:
    """Return our public names in ``namespace`` (``""``, ``"nn"``, …, ``"Tensor"``); empty if there is no such."""
    try:
        if namespace == "Tensor":
            from disttrain.tensors import Tensor

            return [n for n in dir(Tensor) if not n.startswith("_") and hasattr(Tensor, n)]
        module = importlib.import_module(f"disttrain.{namespace}".rstrip("."))
    except ImportError:
        return []
    public = getattr(module, "__all__", None) or [n for n in dir(module) if not n.startswith("_")]
    return list(public)


def error(namespace: str, name: str) -> AttributeError:
    """Return the exception for ``name``, which ``namespace`` does not have.

    Names that begin with an underscore are asked by protocols (NumPy's, copy's), which want a quick no.
    """
    if name.startswith("_"):
        return AttributeError(f"{_full(namespace)} has no {name!r}", name=name)
    return AttributeError(text(namespace, name), name=name)


@functools.cache
def text(namespace: str, name: str) -> str:
    """Return what the exception says: PyTorch's or nobody's, and what is nearest."""
    near = nearest(namespace, name)
    shown = f"; nearest: {', '.join(near)}" if near else ""
    known = pytorch_names()
    if name not in known.get(namespace, ()) and f"{namespace}.{name}".lstrip(".") not in known:
        return f"{_full(namespace)} has no {name!r}, and neither has PyTorch{shown}"
    reason = _INSTEAD.get(f"{namespace}.{name}".lstrip("."))
    if reason is not None:
        shown = f"; {reason}"
    return f"{_full(namespace)}.{name} is PyTorch's, not in disttrain{shown}"


def nearest(namespace: str, name: str, count: int = 3) -> list[str]:
    """Return full names here that are like ``name``: the same one elsewhere first, then similar ones beside it."""
    known = pytorch_names()
    bare = name.rstrip("_")
    found = [
        _full(f"{where}.{n}".lstrip("."))
        for n in dict.fromkeys((name, bare))
        for where in _ELSEWHERE
        if (where != namespace or n != name) and n in known.get(where, ()) and n in names_here(where)
    ]
    here = {n.lower(): n for n in names_here(namespace)}
    similar = difflib.get_close_matches(bare.lower(), here, n=count, cutoff=0.6)
    found += [_full(f"{namespace}.{here[n]}".lstrip(".")) for n in similar]
    return list(dict.fromkeys(found))[:count]


def of(module: str) -> Callable[[str], NoReturn]:
    """Return the ``__getattr__`` of a module of ours, for names that it does not have."""
    namespace = module.partition(".")[2]

    def __getattr__(name: str) -> Any:
        raise error(namespace, name)

    return __getattr__


def _full(namespace: str) -> str:
    return f"disttrain.{namespace}".rstrip(".")
