"""``dt.save`` and ``dt.load``: one file without pickle, whole or not there at all, checked when it is read.

The file is a safetensors file; other programs can read its tensors, which have the names of a state dict. Its
metadata hold

* ``format``: ``disttrain``; ``version``: ``1``;
* ``description``: JSON that says what the object is (see :class:`_Writer`), and of each tensor its dtype,
shape
  and SHA-256;
* ``sha256``: that of the description.

Nothing in a file is ever run: a file names classes of modules, and those are looked up among what the program
has imported, created without calling them, and given their attributes.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import math
import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from disttrain import dtypes, missing
from disttrain.devices import device as Device
from disttrain.errors import FileDamaged
from disttrain.kernels.arrays import to_host
from disttrain.tensors import Size, Tensor
from disttrain.whole_files import replacing

_VERSION = "1"
_MAX_HEADER = 100_000_000
"""Bytes of a safetensors header at most; the limit of the safetensors library."""
_MAX_DEPTH = 100
_SAFETENSORS_TYPES = {
    "BOOL": dtypes.bool_,
    "U8": dtypes.uint8,
    "I8": dtypes.int8,
    "I16": dtypes.int16,
    "I32": dtypes.int32,
    "I64": dtypes.int64,
    "F16": dtypes.float16,
    "BF16": dtypes.bfloat16,
    "F32": dtypes.float32,
    "F64": dtypes.float64,
}
_REGISTRIES = ("_parameters", "_buffers", "_modules")
MapLocation = Any
"""``None``, a device or its name, a dict of names, or a function of (tensor, name)."""


def save(
    obj: Any, f: str | os.PathLike[str] | IO[bytes], *, _use_new_zipfile_serialization: bool = True
) -> None:
    """Write ``obj`` to a file, as ``torch.save``.

    A file at that path is replaced at once when the new one is safely on the disk; if anything fails it stays
    as it was. Tensors that share all their memory (tied weights) are stored once and share it again when
    loaded; tensors that share a part of it do not.

    Args:
        obj: tensors, modules, NumPy arrays, numbers, strings, bytes, ``None``, dtypes, Sizes and devices, in
            dicts, OrderedDicts, lists, tuples and sets.
        f: a path, or a file object open for writing.
        _use_new_zipfile_serialization: accepted for PyTorch's sake.

    Raises:
        TypeError: something in ``obj`` is of another type; the error says where.
        ValueError: ``obj`` contains itself, or is nested more than 100 deep.
        OSError: the file cannot be written.
    """
    content = _Writer().content(obj)
    if not isinstance(f, str | os.PathLike):
        f.write(content)
        return
    with replacing(f) as file:
        file.write(content)


def load(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: MapLocation = None,
    *,
    weights_only: bool | None = None,
    mmap: bool | None = None,
) -> Any:
    """Return the object that :func:`save` has written.

    Args:
        f: a path, or a file object open for reading.
        map_location: where tensors go; by default to the device that they were on.
        weights_only: accepted for PyTorch's sake. No file can run code here, so that it makes no difference.
        mmap: accepted for PyTorch's sake.

    Raises:
        FileDamaged: not a file of ours, or not as it was written; names the tensor or the part that is wrong.
        RuntimeError: it holds a module of a class that the program has not imported.
        OSError: the file cannot be read.
    """
    if isinstance(f, str | os.PathLike):
        with open(f, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileDamaged(f"{os.fspath(f)} is not a regular file")
            return _Reader(os.fspath(f), file.read(), map_location).object()
    return _Reader(str(getattr(f, "name", "the file object")), f.read(), map_location).object()


def add_safe_globals(safe_globals: Sequence[Any]) -> None:
    """Nothing, as ``torch.serialization.add_safe_globals`` for any list: no file can run code here."""


@contextlib.contextmanager
def safe_globals(safe_globals: Sequence[Any]) -> Iterator[None]:
    """Nothing, as ``torch.serialization.safe_globals`` for any list: no file can run code here."""
    yield


def describe(obj: Any, prefix: str = "") -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Return what ``obj`` is, for JSON, and its arrays (on the host) by the names it has them under.

    Args:
        obj: what :func:`save` takes.
        prefix: of all names.

    Raises:
        TypeError, ValueError: as :func:`save`.
    """
    writer = _Writer(prefix)
    root = writer._describe(obj, ())
    return {"objects": writer._objects, "root": root}, writer._arrays


def rebuild(description: Any, arrays: Mapping[str, np.ndarray[Any, Any]], source: str) -> Any:
    """Return the object that :func:`describe` was given.

    Args:
        description: from a file, which may say anything.
        arrays: by name; they become the memory of tensors.
        source: what to call the file in errors.

    Raises:
        FileDamaged: the description makes no sense.
        RuntimeError: it holds a module of a class that the program has not imported.
    """
    return _Builder(source, description, arrays, _locator(None)).object()


class _Writer:
    """Describes an object in JSON.

    ``None``, bools, strings, floats and small ints are themselves and lists are lists. All else is a JSON
    object with one key that says what it is. Tensors and modules are in the table ``objects`` and are
    referred to by their place there, so that what was one object is one again.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._objects: list[Any] = []
        self._places: dict[int, int] = {}
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._open: set[int] = set()
        self._alive: list[Any] = []  # so that no id or address is given out twice

    def content(self, obj: Any) -> bytes:
        root = self._describe(obj, ())
        tensors = {
            name: {"dtype": dtypes.of(a).name, "shape": list(a.shape), "sha256": _digest(a)}
            for name, a in self._arrays.items()
        }
        description = json.dumps(
            {"tensors": tensors, "objects": self._objects, "root": root}, allow_nan=False
        )
        return safetensors.numpy.save(
            self._arrays,
            {
                "format": "disttrain",
                "version": _VERSION,
                "description": description,
                "sha256": hashlib.sha256(description.encode()).hexdigest(),
            },
        )

    def _describe(self, obj: Any, path: tuple[Any, ...]) -> Any:
        kind = type(obj)
        if obj is None or kind in (bool, str):
            return obj
        if kind is int:
            return obj if -(1 << 63) <= obj < 1 << 63 else {"int": hex(obj)}
        if kind is float:
            return obj if math.isfinite(obj) else {"float": str(obj)}
        if kind in (bytes, bytearray):
            return {kind.__name__: base64.b64encode(obj).decode()}
        if kind is dtypes.dtype:
            return {"dtype": obj.name}
        if kind is Size:
            return {"Size": list(obj)}
        if kind is Device:
            return {"device": str(obj)}
        if isinstance(obj, np.ndarray | np.generic):
            return self._describe_array(obj, path)
        if isinstance(obj, Tensor):
            return self._refer(obj, path, self._describe_tensor)
        if _is_module(obj):
            return self._refer(obj, path, self._describe_module)
        if kind is FunctionType and (name := f"{obj.__module__}:{obj.__name__}").startswith(_FUNCTIONS):
            return {"function": name}
        return self._describe_container(obj, path)

    def _describe_container(self, obj: Any, path: tuple[Any, ...]) -> Any:
        kind = type(obj)
        if kind not in (dict, OrderedDict, list, tuple, set, frozenset):
            raise TypeError(_unsupported(obj, path))
        if id(obj) in self._open:
            raise ValueError(f"cannot save {_where(path)}: it contains itself")
        if len(path) >= _MAX_DEPTH:
            raise ValueError(f"cannot save {_where(path)}: nested more than {_MAX_DEPTH} deep")
        self._open.add(id(obj))
        described: Any
        if kind in (dict, OrderedDict):
            described = {
                kind.__name__: [
                    [self._describe_key(key, path), self._describe(value, (*path, ("[]", key)))]
                    for key, value in obj.items()
                ]
            }
        elif kind in (set, frozenset):
            described = {kind.__name__: [self._describe_key(item, path) for item in obj]}
        else:
            items = [self._describe(item, (*path, ("[]", i))) for i, item in enumerate(obj)]
            described = items if kind is list else {"tuple": items}
        self._open.discard(id(obj))
        return described

    def _describe_key(self, key: Any, path: tuple[Any, ...]) -> Any:
        plain = (str, int, float, bool, bytes, type(None), dtypes.dtype)
        if not (type(key) in plain or (type(key) is tuple and all(type(k) in plain for k in key))):
            raise TypeError(
                f"cannot save {_where(path)}: it has the key or element {key!r:.80} of type "
                f"{type(key).__name__}; keys must be strings, numbers, bytes, None, or "
                f"tuples of those"
            )
        return self._describe(key, path)

    def _refer(self, obj: Any, path: tuple[Any, ...], describe: Callable[[Any, tuple[Any, ...]], Any]) -> Any:
        place = self._places.get(id(obj))
        if place is None:
            place = self._places[id(obj)] = len(self._objects)
            self._objects.append(None)
            self._alive.append(obj)
            self._objects[place] = describe(obj, path)
        return {"object": place}

    def _describe_module(self, module: Any, path: tuple[Any, ...]) -> Any:
        cls = type(module)
        if "<locals>" in cls.__qualname__:
            raise TypeError(
                f"cannot save {_where(path)}: its class {cls.__qualname__} is defined inside a "
                f"function, where load() cannot find it; define it at the top of a module, or "
                f"save a state_dict()"
            )
        if len(path) >= _MAX_DEPTH:
            raise ValueError(f"cannot save {_where(path)}: nested more than {_MAX_DEPTH} deep")
        attributes = []
        for name, value in vars(module).items():
            if name in _REGISTRIES and type(value) is dict:
                entries = [[key, self._describe(entry, (*path, (".", key)))] for key, entry in value.items()]
                attributes.append([name, {"dict": entries}])
            else:
                attributes.append([name, self._describe(value, (*path, (".", name)))])
        return {"module": f"{cls.__module__}:{cls.__qualname__}", "attributes": attributes}

    def _describe_tensor(self, tensor: Tensor, path: tuple[Any, ...]) -> Any:
        described: dict[str, Any] = {"tensor": self._store(tensor._array, path)}
        if type(tensor) is not Tensor:
            if type(tensor) not in _tensor_classes().values():
                raise TypeError(_unsupported(tensor, path))
            described["class"] = type(tensor).__name__
            if getattr(tensor, "persistent", True) is False:
                described["persistent"] = False
        if tensor.requires_grad:
            described["requires_grad"] = True
        if tensor.device.type != "cpu":
            described["device"] = str(tensor.device)
        return described

    def _describe_array(self, array: Any, path: tuple[Any, ...]) -> Any:
        try:
            dtypes.of(array)
        except TypeError:
            raise TypeError(_unsupported(array, path, f"an array of {array.dtype}")) from None
        if isinstance(array, np.generic):
            return {"scalar": self._store(np.asarray(array), path)}
        return {"array": self._store(array, path)}

    def _store(self, array: Any, path: tuple[Any, ...]) -> str:
        """Return the name under which the elements are in the file."""
        on_host = isinstance(array, np.ndarray)
        memory = array.__array_interface__ if on_host else array.__cuda_array_interface__
        key = (memory["data"][0], array.dtype, array.shape, array.strides) if array.size else (id(array),)
        name = self._names.get(key)
        if name is None:
            self._alive.append(array)
            name = self._names[key] = self._new_name(path)
            host = to_host(array)
            self._arrays[name] = np.ascontiguousarray(host).reshape(host.shape)
        return name

    def _new_name(self, path: tuple[Any, ...]) -> str:
        plain = ".".join(str(key) for _, key in path).encode("ascii", "backslashreplace").decode() or "tensor"
        plain = self._prefix + plain
        name, n = plain, 1
        while name in self._arrays or name == "__metadata__":
            n += 1
            name = f"{plain}#{n}"
        return name


class _Builder:
    """Rebuilds an object from its description, which may say anything, and its arrays."""

    def __init__(
        self,
        source: str,
        description: Any,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        locate: Callable[[Tensor, str], Tensor],
    ) -> None:
        self._source = source
        self._locate = locate
        with self._understanding("the description"):
            self._objects: list[Any] = description["objects"]
            self._root = description["root"]
        self._arrays = arrays
        self._built: dict[int, Any] = {}
        self._tensors: dict[str, Tensor] = {}

    def object(self) -> Any:
        with self._understanding("the description"):
            return self._build(self._root)

    def _build(self, described: Any) -> Any:
        if isinstance(described, list):
            return [self._build(item) for item in described]
        if not isinstance(described, dict):
            return described
        if "object" in described:
            return self._build_object(described["object"])
        ((kind, value),) = described.items()
        if kind in ("dict", "OrderedDict"):
            pairs = [(self._build(key), self._build(item)) for key, item in value]
            return dict(pairs) if kind == "dict" else OrderedDict(pairs)
        if kind in ("tuple", "set", "frozenset"):
            container = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
            return container(self._build(item) for item in value)
        if kind in ("array", "scalar"):
            return self._arrays[value] if kind == "array" else self._arrays[value][()]
        return _LEAVES[kind](value)

    def _build_object(self, place: int) -> Any:
        if place in self._built:
            return self._built[place]
        if type(place) is not int or place < 0:
            raise ValueError(f"{place!r:.20} is no place in a table")
        described: dict[str, Any] = self._objects[place]
        if "tensor" in described:
            built = self._built[place] = self._build_tensor(described)
            return built
        cls = _imported_class(described["module"], self._source)
        module = self._built[place] = object.__new__(cls)  # first, since children may refer to it
        for name, value in described["attributes"]:
            if not isinstance(name, str):
                raise TypeError(f"{name!r} cannot name an attribute")
            vars(module)[name] = self._build(value)
        return module

    def _build_tensor(self, described: dict[str, Any]) -> Tensor:
        name = described["tensor"]
        if name not in self._tensors:
            self._tensors[name] = self._locate(Tensor._of(self._arrays[name]), described.get("device", "cpu"))
        tensor = self._tensors[name].detach()  # the same memory for all that are stored under this name
        cls = described.get("class")
        if cls == "Parameter":
            tensor = _tensor_classes()[cls](tensor, False)
        elif cls is not None:
            tensor = _tensor_classes()[cls](tensor, persistent=described.get("persistent", True) is True)
        if described.get("requires_grad") is not True:
            return tensor
        if not tensor.is_floating_point():
            raise ValueError(f"tensor {name!r} of {tensor.dtype} cannot require gradients")
        return tensor.requires_grad_()

    @contextlib.contextmanager
    def _understanding(self, part: str) -> Iterator[None]:
        """Turn whatever goes wrong with a description that says anything at all into :class:`FileDamaged`."""
        try:
            yield
        except FileDamaged:
            raise
        except RecursionError:
            raise self._damaged(f"{part} is nested too deep") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._damaged(f"{part} makes no sense ({type(error).__name__}: {error!s:.200})") from None

    def _damaged(self, what: str) -> FileDamaged:
        return FileDamaged(f"{self._source} is damaged: {what}; restore it from another copy")


class _Reader(_Builder):
    """Rebuilds an object from the bytes of a file, which may be anything."""

    def __init__(self, source: str, content: bytes, map_location: MapLocation) -> None:
        self._source = source
        metadata, stored = self._open(content)
        text = metadata["description"]
        if hashlib.sha256(text.encode()).hexdigest() != metadata["sha256"]:
            raise self._damaged("the checksum of the description differs")
        with self._understanding("the description"):
            described = json.loads(text)
            expected = described["tensors"]
            if set(expected) != set(stored):
                differing = sorted(set(expected) ^ set(stored))
                raise ValueError(f"it describes other tensors than the file has: {differing[:5]}")
        arrays = {name: self._check(name, stored[name], expected[name]) for name in stored}
        super().__init__(source, described, arrays, _locator(map_location))

    def _open(self, content: bytes) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        """Return the metadata and the tensors of a safetensors file; the lengths in it have been checked."""
        if not isinstance(content, bytes | bytearray):
            raise TypeError(f"load() needs a file open in binary mode, read() gave {type(content).__name__}")
        pickled = content[:1] == b"\x80" and content[1:2] <= b"\x05" and content[8:9] != b"{"
        if pickled or content[:2] == b"PK":
            raise FileDamaged(
                f"{self._source} is a pickle or a PyTorch file, which load() does not read; "
                f"disttrain.checkpoint.read_foreign(path) reads the tensors in files of PyTorch"
            )
        length = int.from_bytes(content[:8], "little")
        if len(content) < 8 or length > min(len(content) - 8, _MAX_HEADER) or content[8:9] != b"{":
            raise FileDamaged(
                f"{self._source} is not a file of disttrain, or its beginning is damaged or cut off: "
                f"it has {len(content)} bytes and no header that fits"
            )
        try:
            header = json.loads(content[8 : 8 + length])
            metadata = header.get("__metadata__")
            stored = dict(safetensors.deserialize(bytes(content)))  # type: ignore[no-untyped-call]
        except (ValueError, RecursionError, safetensors.SafetensorError) as error:
            raise self._damaged(f"its header or the lengths in it are wrong ({error})") from None
        if not isinstance(metadata, dict) or metadata.get("format") != "disttrain":
            raise FileDamaged(
                f"{self._source} was not written by disttrain.save(), or its header is damaged: "
                f"its metadata do not say format 'disttrain'"
            )
        if metadata.get("version") != _VERSION:
            raise FileDamaged(
                f"{self._source} has format version {metadata.get('version')!r:.20}, and this "
                f"version of disttrain reads {_VERSION!r}; it is newer, or damaged"
            )
        if not all(isinstance(metadata.get(key), str) for key in ("description", "sha256")):
            raise self._damaged("its description is missing")
        return metadata, stored

    def _check(self, name: str, stored: dict[str, Any], expected: Any) -> np.ndarray[Any, Any]:
        """Return the tensor ``name``, which is as it was described."""
        kind = _SAFETENSORS_TYPES.get(stored["dtype"])
        with self._understanding(f"the description of tensor {name!r}"):
            if kind is None or (kind.name, list(stored["shape"])) != (expected["dtype"], expected["shape"]):
                raise ValueError(
                    f"it says {expected['dtype']} of shape {expected['shape']}, the file has "
                    f"{stored['dtype']} of shape {list(stored['shape'])}"
                )
            checksum = expected["sha256"]
            assert kind is not None
            data = stored["data"] if isinstance(stored["data"], bytearray) else bytearray(stored["data"])
            array = np.frombuffer(data, kind.numpy).reshape(stored["shape"])
        if _digest(array) != checksum:
            raise self._damaged(f"the checksum of tensor {name!r} differs: these are not the saved numbers")
        return array


def _digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def _where(path: tuple[Any, ...]) -> str:
    return "obj" + "".join(f".{key}" if how == "." else f"[{key!r:.60}]" for how, key in path)


def _unsupported(obj: Any, path: tuple[Any, ...], what: str = "") -> str:
    kind = "a function" if callable(obj) and hasattr(obj, "__code__") else f"of type {type(obj).__qualname__}"
    return (
        f"cannot save {_where(path)}: it is {what or kind}; a file holds tensors, modules, numbers, strings, "
        f"bytes, None, and dicts, lists, tuples and sets of those"
    )


def _is_module(obj: Any) -> bool:
    nn = sys.modules.get("disttrain.nn.module")
    return nn is not None and isinstance(obj, nn.Module)


def _tensor_classes() -> dict[str, Any]:
    from disttrain.nn.parameter import Buffer, Parameter

    return {"Parameter": Parameter, "Buffer": Buffer}


def _imported_class(name: Any, source: str) -> Any:
    """Return the class ``module:qualified.name`` if it has been imported and is a Module's.

    Looks into dictionaries only, so that no ``__getattr__`` of a module is run.

    Raises:
        RuntimeError: there is no such class in the program.
        ValueError: it is no class of modules.
    """
    from disttrain.nn.module import Module

    home, _, qualified = name.partition(":")
    found: Any = sys.modules.get(home)
    for part in qualified.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    if found is None:
        raise RuntimeError(
            f"{source} holds a module of class {qualified}, which is not imported; import {home} "
            f"(where {qualified} was defined when it was saved) before load()"
        )
    if not isinstance(found, type) or not issubclass(found, Module):
        raise ValueError(f"{name} is no class of modules")
    return found


def _locator(map_location: MapLocation) -> Callable[[Tensor, str], Tensor]:
    """Return the function that moves a tensor from the host to where it belongs."""
    if map_location is None:
        return lambda tensor, saved: tensor if saved == "cpu" else tensor.to(saved)
    if isinstance(map_location, str | Device):
        return lambda tensor, saved: tensor.to(map_location)
    if isinstance(map_location, Mapping):
        return lambda tensor, saved: tensor.to(map_location.get(saved, saved))
    if not callable(map_location):
        raise TypeError(f"map_location must be a device, a dict or a function, got {map_location!r}")

    def call(tensor: Tensor, saved: str) -> Tensor:
        moved = map_location(tensor, saved)
        return tensor.to(saved) if moved is None else moved

    return call


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


_FUNCTIONS = ("disttrain.functions.", "disttrain.nn.functional.")
"""Where functions are that a file may name: functions of tensors, without any other effect."""


def _function(name: str) -> Any:
    """Return the function ``module:name`` of ours, for layers that keep one (an activation)."""
    home, _, function = name.partition(":")
    found = vars(sys.modules.get(home, sys)).get(function) if name.startswith(_FUNCTIONS) else None
    if not isinstance(found, FunctionType) or found.__module__ != home:
        raise ValueError(f"{name!r:.80} is no function that a file may name")
    return found


_LEAVES: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "bytes": _from_base64,
    "bytearray": lambda text: bytearray(_from_base64(text)),
    "dtype": dtypes.BY_NAME.__getitem__,
    "Size": Size,
    "device": Device,
    "function": _function,
}


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
