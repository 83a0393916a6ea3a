"""What to say of a name that is not here: whether PyTorch has it, and what is near that is here."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, Final

_NAMES: Final = os.path.join(os.path.dirname(__file__), "pytorch_names.txt")
_ELSEWHERE: Final = ("", "nn.functional", "nn", "optim", "Tensor", "linalg", "special", "nn.utils", "nn.init")
"""Where a name that is asked of the wrong namespace may be."""
_INSTEAD: Final = {
    "distributed.FileStore": "the launcher brings the ranks together; objects travel by broadcast_object_list()",
    "distributed.HashStore": "the launcher brings the ranks together; objects travel by broadcast_object_list()",
    "distributed.PrefixStore": "the launcher brings the ranks together; objects travel by broadcast_object_list()",
    "distributed.Store": "the launcher brings the ranks together; objects travel by broadcast_object_list()",
    "distributed.TCPStore": "the launcher brings the ranks together; objects travel by broadcast_object_list()",
    "distributed.algorithms.ddp_comm_hooks.powerSGD_hook": "default_hooks.bf16_compress_hook sends half the bytes",
    "distributed.algorithms.model_averaging": "gradients are averaged in each step",
    "distributed.checkpoint": "disttrain.checkpoint.save() and load() write and read a run, spread parameters included",
    "distributed.nn": "the calls of disttrain.distributed, which have no gradients",
    "distributed.launcher": "disttrain.launch(fn, args, nproc=N), or `disttrain launch -n N`",
    "distributed.pipelining": "disttrain.distributed.fsdp.fully_shard() spreads a model that is too large for one rank",
    "distributed.rpc": "ranks exchange tensors by send() and recv(), objects by send_object_list()",
    "distributed.run": "`disttrain launch -n N script.py`, or `python -m disttrain launch`",
    "distributed.tensor": "disttrain.distributed.fsdp.fully_shard() spreads a model that is too large for one rank",
    "fx": "nothing is traced; Module.named_modules() walks a model",
    "utils.tensorboard": "write losses with print() or a file of your own",
}
"""What to do without a name that has no like here."""
_DISTRIBUTIONS = """
bernoulli beta binomial categorical cauchy chi2 dirichlet exp_family exponential fishersnedecor geometric gumbel
half_cauchy half_normal independent inverse_gamma laplace log_normal mixture_same_family multinomial
multivariate_normal negative_binomial normal one_hot_categorical pareto poisson relaxed_categorical studentT
transformed_distribution uniform weibull
"""
MOVED: Final = {
    "amp.autocast_mode": "disttrain.amp",
    "amp.grad_scaler": "disttrain.amp",
    "autograd.gradcheck": "disttrain.autograd.checks",
    "autograd.variable": "disttrain.autograd",
    "cuda.amp.autocast_mode": "disttrain.cuda.amp",
    "cuda.amp.grad_scaler": "disttrain.cuda.amp",
    "distributed.algorithms.ddp_comm_hooks.default_hooks": "disttrain.parallel.comm_hooks",
    "distributed.distributed_c10d": "disttrain.distributed",
    "distributed.fsdp": "disttrain.distributed.fsdp",
    "distributed.fsdp.api": "disttrain.parallel.fully_sharded",
    "distributed.fsdp.fully_sharded_data_parallel": "disttrain.parallel.fully_sharded",
    "distributed.fsdp.sharded_grad_scaler": "disttrain.parallel.fully_sharded",
    "distributed.fsdp.wrap": "disttrain.distributed.fsdp.wrap",
    "distributed.optim": "disttrain.distributed.optim",
    "distributed.optim.zero_redundancy_optimizer": "disttrain.parallel.zero",
    "distributions.relaxed_bernoulli": "disttrain.distributions.transformed",
    "nn.parallel.data_parallel": "disttrain.nn.data_parallel",
    "nn.parallel.distributed": "disttrain.parallel.data_parallel",
    "nn.utils.clip_grad": "disttrain.nn.utils.clip_grad",
    "nn.utils.convert_parameters": "disttrain.nn.utils.vector",
    "optim.adamw": "disttrain.optim.adam",
    "utils.data._utils.collate": "disttrain.data.collate",
    "utils.data.dataloader": "disttrain.data.loader",
    "utils.data.dataset": "disttrain.data.dataset",
    "utils.data.sampler": "disttrain.data.sampler",
} | {f"distributions.{name}": "disttrain.distributions" for name in _DISTRIBUTIONS.split()}
"""PyTorch's modules that have another name here."""


@functools.cache
def pytorch_names() -> dict[str, frozenset[str]]:
    """Return PyTorch's public names by module: ``""`` is ``torch``, then ``"nn"``, …, and ``"Tensor"``."""
    names: dict[str, frozenset[str]] = {}
    with open(_NAMES, encoding="ascii") as file:
        sections = file.read().split("\n[")[1:]
    for section in sections:
        module, _, words = section.partition("]")
        names[module] = frozenset(words.split())
    from disttrain.absent import TENSOR_NAMES

    names["Tensor"] = frozenset(TENSOR_NAMES.split())
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


class MissingName(AttributeError):
    """A name that a namespace does not have. Its text is made when it is shown: ``hasattr`` must be quick."""

    def __init__(self, namespace: str, name: str) -> None:
        super().__init__(namespace, name, name=name)

    def __str__(self) -> str:
        return text(*self.args)


def error(namespace: str, name: str) -> AttributeError:
    """Return the exception for ``name``, which ``namespace`` (``""``, ``"nn"``, …, ``"Tensor"``) does not have.

    Names that begin with an underscore are asked by protocols (NumPy's, copy's) and are nobody's mistake.
    """
    if name.startswith("_"):
        return AttributeError(f"{_full(namespace)} has no {name!r}", name=name)
    return MissingName(namespace, name)


@functools.cache
def text(namespace: str, name: str) -> str:
    """Return what the exception says: PyTorch's or nobody's, and what is nearest."""
    near = nearest(namespace, name)
    shown = f"; nearest: {', '.join(near)}" if near else ""
    known = pytorch_names()
    full = f"{namespace}.{name}".lstrip(".")
    if name not in known.get(namespace, ()) and full not in known and full not in _INSTEAD:
        nobodys = ", and neither has PyTorch" if namespace in known else ""
        if name.startswith("_"):
            nobodys = ": what begins with an underscore is PyTorch's own, which scripts should not use"
        return f"{_full(namespace)} has no {name!r}{nobodys}{shown}"
    reason = _INSTEAD.get(full)
    if reason is not None:
        shown = f"; {reason}"
    return f"{_full(namespace)}.{name} is PyTorch's, not in disttrain{shown}"


def nearest(namespace: str, name: str, count: int = 3) -> list[str]:
    """Return full names here that are like ``name``: the same one elsewhere first, then similar ones beside it."""
    import difflib

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


def of(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module of ours: it finds what :data:`MOVED` says, and names what is not here."""
    namespace = module.partition(".")[2]

    def __getattr__(name: str) -> Any:
        if (moved := MOVED.get(f"{namespace}.{name}")) is not None:
            return importlib.import_module(moved)
        raise error(namespace, name)

    return __getattr__


def _full(namespace: str) -> str:
    return f"disttrain.{namespace}".rstrip(".")


def refused(name: str, why: str) -> Callable[..., Any]:
    """Return a stand-in for PyTorch's function ``name``: calling it says what to do instead.

    A program that only mentions it runs.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{_full(name)} is not in disttrain: {why}")

    call.__name__ = call.__qualname__ = name.rpartition(".")[2]
    call.__doc__ = f"Raise NotImplementedError: {why}."
    call.refusal = f"{_full(name)} is not in disttrain: {why}"  # type: ignore[attr-defined]  # for `disttrain compat`
    return call
