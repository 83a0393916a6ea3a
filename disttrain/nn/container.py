"""Modules that hold modules."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Union

from disttrain.kernels.arrays import on_gpu
from disttrain.nn import fusion
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.tensors import Tensor


class _Listed(Module):
    """Modules in order, named by their numbers or by names of their own."""

    def _key(self, index: int) -> str:
        """Return the name of the module at ``index``.

        Raises:
            IndexError: there is none.
        """
        index, n = operator.index(index), len(self._modules)
        if not -n <= index < n:
            raise IndexError(f"index {index} is out of range for {n} modules")
        return list(self._modules)[index]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._from(dict(list(self._modules.items())[index]))
        return self._modules[self._key(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        self.register_module(self._key(index), module)

    def __delitem__(self, index: int | slice) -> None:
        keys = list(self._modules)[index] if isinstance(index, slice) else [self._key(index)]
        for key in keys:
            del self._modules[key]
        self._renumber(list(self._modules.values()))

    def _renumber(self, modules: list[Any]) -> None:
        self._modules.clear()
        self._modules.update({str(i): m for i, m in enumerate(modules)})

    def _from(self, modules: dict[str, Any]) -> Any:
        raise NotImplementedError

    def pop(self, key: int | slice) -> Any:
        """Remove a module (or several) and return it."""
        module = self[key]
        del self[key]
        return module

    def append(self, module: Module) -> Any:
        """Add a module at the end and return this one."""
        number = len(self)
        while str(number) in self._modules:  # a slice keeps the names it had
            number += 1
        self.register_module(str(number), module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """Put a module before the one at ``index`` (the modules are numbered anew) and return this one.

        Raises:
            IndexError: ``index`` is out of range.
            TypeError: not a module.
        """
        modules = list(self._modules.values())
        if not -len(modules) <= index <= len(modules):
            raise IndexError(f"index {index} is out of range for an insertion into {len(modules)} modules")
        modules.insert(index, module)
        if not isinstance(module, Module):
            raise TypeError(f"expected an nn.Module, got {type(module).__name__}")
        self._renumber(modules)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end and return this one."""
        for module in modules:
            self.append(module)
        return self


class Sequential(_Listed):
    """Modules one after another: the output of each is the input of the next.

    Args:
        args: the modules, or one ``OrderedDict`` of names to modules.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            for name, module in args[0].items():
                self.register_module(name, module)
        else:
            for i, module in enumerate(args):
                self.register_module(str(i), module)

    def _from(self, modules: dict[str, Any]) -> Sequential:
        return Sequential(OrderedDict(modules))

    def __add__(self, other: Sequential) -> Sequential:
        return Sequential(*self, *_sequential(other))

    def __iadd__(self, other: Sequential) -> Sequential:
        self.extend(list(_sequential(other)))
        return self

    def __mul__(self, times: int) -> Sequential:
        return Sequential(*(m for _ in range(_count(times)) for m in self))

    __rmul__ = __mul__

    def __imul__(self, times: int) -> Sequential:
        own = list(self)
        for _ in range(_count(times) - 1):
            self.extend(own)
        return self

    def forward(self, input: Any) -> Any:
        if isinstance(input, Tensor) and on_gpu(input._array):
            return fusion.run(list(self._modules.values()), input)  # type: ignore[arg-type]
        for module in self._modules.values():
            input = module(input)  # type: ignore[misc]
        return input


def _sequential(other: Any) -> Sequential:
    if not isinstance(other, Sequential):
        raise ValueError(f"only a Sequential can be added to a Sequential, got {type(other).__name__}")
    return other


def _count(times: Any) -> int:
    if not isinstance(times, int):
        raise TypeError(f"a Sequential can be repeated a whole number of times, got {type(times).__name__}")
    if times <= 0:
        raise ValueError(f"a Sequential can be repeated once or more, got {times}")
    return times


class ModuleList(_Listed):
    """A list of modules that are registered; it has no ``forward`` of its own."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        self.extend(modules or ())

    def _from(self, modules: dict[str, Any]) -> ModuleList:
        return ModuleList(modules.values())

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])

    def __iadd__(self, modules: Iterable[Module]) -> ModuleList:
        self.extend(modules)
        return self

    def __repr__(self) -> str:
        """Show equal neighbours once, as PyTorch does: ``(0-2): 3 x Linear(...)``."""
        runs: list[tuple[int, int, str]] = []
        for i, module in enumerate(self):
            text = repr(module)
            if runs and runs[-1][2] == text:
                runs[-1] = (runs[-1][0], i, text)
            else:
                runs.append((i, i, text))
        if not runs:
            return f"{self._get_name()}()"
        lines = []
        for first, last, text in runs:
            shown = text.replace("\n", "\n  ")
            if first == last:
                lines.append(f"({first}): {shown}")
            else:
                lines.append(f"({first}-{last}): {last - first + 1} x {shown}")
        return f"{self._get_name()}(\n  " + "\n  ".join(lines) + "\n)"


Named = Union[Mapping[str, Module], "ModuleDict", Iterable[tuple[str, Module]]]


class ModuleDict(Module):
    """A dict of modules that are registered; it has no ``forward`` of its own."""

    def __init__(self, modules: Named | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.update(modules)

    def __getitem__(self, key: str) -> Any:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.register_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: str) -> bool:
        return key in self._modules

    def keys(self) -> Iterable[str]:
        """Return the names."""
        return self._modules.keys()

    def values(self) -> Iterable[Any]:
        """Return the modules."""
        return self._modules.values()

    def items(self) -> Iterable[tuple[str, Any]]:
        """Return names and modules."""
        return self._modules.items()

    def pop(self, key: str) -> Any:
        """Remove a module and return it."""
        return self._modules.pop(key)

    def clear(self) -> None:
        """Remove all modules."""
        self._modules.clear()

    def update(self, modules: Named) -> None:
        """Add modules, replacing those of the same names.

        Args:
            modules: a mapping, another ``ModuleDict``, or pairs.

        Raises:
            TypeError: none of these.
            ValueError: an entry is no pair.
        """
        for key, module in modules.items() if isinstance(modules, Mapping | ModuleDict) else modules:
            self[key] = module


class ParameterList(Module):
    """A list of parameters that are registered. Tensors are made parameters; anything else is kept as it is."""

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self._size = 0
        self.extend(values if values is not None else ())

    def _key(self, index: int) -> str:
        index = operator.index(index)
        if not -self._size <= index < self._size:
            raise IndexError(f"index {index} is out of range for {self._size} parameters")
        return str(index % self._size)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self._size))

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)([self[i] for i in range(self._size)[index]])
        return getattr(self, self._key(index))

    def __setitem__(self, index: int, value: Any) -> None:
        setattr(self, self._key(index), _kept(value))

    def append(self, value: Any) -> ParameterList:
        """Add a parameter at the end and return this list."""
        setattr(self, str(self._size), _kept(value))
        self._size += 1
        return self

    def extend(self, values: Iterable[Any]) -> ParameterList:
        """Add parameters at the end and return this list.

        Raises:
            TypeError: ``values`` is one tensor, or cannot be iterated.
        """
        if not isinstance(values, Iterable) or isinstance(values, Tensor):
            raise TypeError(
                f"ParameterList.extend() takes several parameters in an iterable, got {type(values).__name__}"
            )
        for value in values:
            self.append(value)
        return self

    def __iadd__(self, values: Iterable[Any]) -> ParameterList:
        return self.extend(values)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.isdigit()]

    def extra_repr(self) -> str:
        return "\n".join(f"  ({i}): {_entry(value)}" for i, value in enumerate(self))


class ParameterDict(Module):
    """A dict of parameters that are registered, in the order of insertion.

    Tensors are made parameters; anything else is kept as it is.
    """

    def __init__(self, parameters: Any = None) -> None:
        super().__init__()
        self._keys: dict[str, None] = {}
        if parameters is not None:
            self.update(parameters)

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)  # an unknown key is an AttributeError, as in PyTorch

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"the keys of a ParameterDict are strings, got {type(key).__name__}: {key!r}")
        if key not in self._keys and hasattr(type(self), key):
            raise KeyError(f"{type(self).__name__} has an attribute {key!r} already; use another key")
        self._keys[key] = None
        setattr(self, key, _kept(value))

    def __delitem__(self, key: str) -> None:
        del self._keys[key]
        delattr(self, key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self._keys))

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def keys(self) -> Iterable[str]:
        """Return the names."""
        return self._keys.keys()

    def values(self) -> Iterable[Any]:
        """Return the parameters."""
        return (self[k] for k in self._keys)

    def items(self) -> Iterable[tuple[str, Any]]:
        """Return names and parameters."""
        return ((k, self[k]) for k in self._keys)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the parameter of that name, or ``default``."""
        return getattr(self, key) if key in self._keys else default

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the parameter of that name, which is made of ``default`` if there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str) -> Any:
        """Remove a parameter and return it."""
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        """Remove the last parameter and return its name and itself."""
        key = list(self._keys)[-1] if self._keys else ""
        return key, self.pop(key)

    def clear(self) -> None:
        """Remove all parameters."""
        for key in list(self._keys):
            del self[key]

    def copy(self) -> ParameterDict:
        """Return another dict of the same parameters."""
        return ParameterDict(dict(self.items()))

    def fromkeys(self, keys: Iterable[str], default: Any = None) -> ParameterDict:
        """Return a dict with ``default`` under each key."""
        return ParameterDict((k, default) for k in keys)

    def update(self, parameters: Any) -> None:
        """Add parameters, replacing those of the same names.

        Args:
            parameters: a mapping, or pairs.

        Raises:
            TypeError: neither of these.
            ValueError: an entry is no pair.
        """
        if not isinstance(parameters, Iterable):
            raise TypeError(
                f"ParameterDict.update() takes a mapping or pairs of a key and a parameter, got "
                f"{type(parameters).__name__}"
            )
        if isinstance(parameters, Mapping | ParameterDict):
            parameters = parameters.items()
        for entry in parameters:
            if not isinstance(entry, Iterable) or len(list(entry)) != 2:
                raise ValueError(f"ParameterDict: an entry must be a key and a value, got {entry!r:.80}")
            key, value = entry
            self[key] = value

    def __or__(self, other: ParameterDict) -> ParameterDict:
        joined = self.copy()
        joined.update(other)
        return joined

    def __ror__(self, other: ParameterDict) -> ParameterDict:
        joined = ParameterDict(other)
        joined.update(self)
        return joined

    def __ior__(self, other: ParameterDict) -> ParameterDict:
        self.update(other)
        return self

    def extra_repr(self) -> str:
        return "\n".join(f"  ({key}): {_entry(value, kind=True)}" for key, value in self.items())


def _kept(value: Any) -> Any:
    return Parameter(value) if isinstance(value, Tensor) and not isinstance(value, Parameter) else value


def _entry(value: Any, kind: bool = False) -> str:
    """Return how a list shows what it holds; a dict shows the ``kind`` of tensor where a list shows the dtype."""
    if not isinstance(value, Tensor):
        return f"Object of type: {type(value).__name__}"
    what = "Parameter" if isinstance(value, Parameter) else "Tensor"
    where = f" ({value.device})" if value.is_cuda else ""
    name = value.type() if kind else repr(value.dtype)
    return f"{what} containing: [{name} of size {'x'.join(map(str, value.shape))}{where}]"
