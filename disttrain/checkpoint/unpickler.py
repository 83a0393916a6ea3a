"""A reader of the pickles in PyTorch's files that can make plain containers and tensors, and nothing else.

The ``pickle`` module is not used. A pickle is a program for a stack machine, and this machine lacks the instructions
that import and call: names are looked up in a table that the caller gives, and what is not there is refused. Stack and
memo hold references, and calls can copy no more than the file has bytes, so that no program makes much more than it is
long.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from disttrain.errors import FileDamaged

_MARK: Final = object()
_PLAIN: Final = (str, int, float, bool, bytes, type(None))
_MAX_LINE: Final = 1000
"""Bytes of a name of a module or class at most."""


class Call:
    """A name of which a pickle may ask for a call; ``make`` gets the arguments."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict()
    for key, value in pairs:
        made[_key(key)] = value
    return made


def _set(items: Any = ()) -> set[Any]:
    return {_key(item) for item in items}


def _counter(counts: Any = ()) -> Counter[Any]:
    return Counter({_key(k): v for k, v in dict(counts).items()})


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r:.40}")
    return text.encode(encoding)


CONTAINERS: Final[dict[str, Any]] = {
    "collections OrderedDict": Call(_ordered),
    "collections Counter": Call(_counter),
    "__builtin__ set": Call(_set),
    "builtins set": Call(_set),
    "_codecs encode": Call(_encode),
}
"""Names that make plain containers."""


def _key(key: Any) -> Any:
    """Return what may be a key or an element of a set: nothing whose hash goes deep."""
    if type(key) in _PLAIN or (type(key) is tuple and all(type(k) in _PLAIN for k in key)):
        return key
    raise ValueError(f"a key of type {type(key).__name__}")


class Unpickler:
    """Runs one pickle.

    Args:
        content: that holds it.
        begin: where.
        names: what it may name, by ``"module name"``: a :class:`Call`, or a value.
        persistent: makes what it refers to from outside (storages), of what it says of that.
        source: what to call the file in errors.
    """

    def __init__(
        self,
        content: bytes,
        begin: int,
        names: Mapping[str, Any],
        persistent: Callable[[Any], Any],
        source: str,
    ) -> None:
        self._content = content
        self._at = begin
        self._names = names
        self._persistent = persistent
        self._source = source
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._left = len(content)
        """How many elements calls may still copy."""

    @property
    def end(self) -> int:
        """Where the pickle ended, once it has run."""
        return self._at

    def load(self) -> Any:
        """Return the object.

        Raises:
            FileDamaged: the pickle makes no sense, or names or does what is not allowed.
        """
        try:
            while True:
                at = self._at
                code = self._take(1)
                if code == b".":
                    return self._pop()
                action = _ACTIONS.get(code)
                if action is None:
                    raise FileDamaged(
                        f"{self._source} holds the pickle instruction {code!r} at byte {at}, which is not run here"
                    )
                action(self)
        except FileDamaged:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
            raise FileDamaged(
                f"{self._source} is damaged, or no file of tensors: its pickle makes no sense at byte {at} "
                f"({type(error).__name__}: {error!s:.200})"
            ) from None

    def _take(self, count: int) -> bytes:
        if count < 0 or self._at + count > len(self._content):
            raise ValueError(f"it wants {count} bytes at {self._at} of {len(self._content)}")
        taken = self._content[self._at : self._at + count]
        self._at += count
        return taken

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._take(struct.calcsize(kind)))[0]

    def _line(self) -> str:
        end = self._content.find(b"\n", self._at, self._at + _MAX_LINE)
        if end < 0:
            raise ValueError("a name without an end")
        return self._take(end + 1 - self._at)[:-1].decode()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value was expected")
        return value

    def _drop(self) -> None:
        self._to_mark()

    def _to_mark(self) -> list[Any]:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i] is _MARK:
                found = self._stack[i + 1 :]
                del self._stack[i:]
                return found
        raise ValueError("no mark")

    def _top(self, *kinds: type) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kinds):
            raise ValueError(f"{type(top).__name__} where {kinds[0].__name__} was expected")
        return top

    # ------------------------------------------------------------------------------------- instructions

    def _long(self, size: str) -> None:
        self._push(int.from_bytes(self._take(self._number(size)), "little", signed=True))

    def _text(self, size: str) -> None:
        self._push(self._take(self._number(size)).decode("utf-8", "surrogatepass"))

    def _bytes(self, size: str) -> None:
        self._push(self._take(self._number(size)))

    def _old_text(self, size: str) -> None:
        """A string of Python 2."""
        self._push(self._take(self._number(size)).decode("latin-1"))

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(items[::-1]))

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._top(dict)
        if len(pairs) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_key(key)] = value

    def _append(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _add(self, items: list[Any]) -> None:
        self._top(set).update(_set(items))

    def _check_protocol(self, number: int) -> None:
        if number > 5:
            raise ValueError(f"protocol {number}")

    def _put(self, place: int) -> None:
        if self._stack[-1] is _MARK:
            raise ValueError("a mark cannot be remembered")
        self._memo[place] = self._stack[-1]

    def _dict(self) -> None:
        pairs = self._to_mark()
        self._push({})
        self._set_items(pairs)

    def _name(self, module: str, name: str) -> None:
        found = self._names.get(f"{module} {name}", _MARK)
        if found is _MARK:
            raise FileDamaged(
                f"{self._source} names {f'{module}.{name}'!r:.200}, and only tensors, numbers, texts and containers of "
                f"these are read, so that a file can run no code; save a state dict without it"
            )
        self._push(found)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name that is no text")
        self._name(module, name)

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(function, Call) or type(args) is not tuple:
            raise ValueError(f"a call of {type(function).__name__}")
        self._left -= sum(len(a) for a in args if isinstance(a, list | dict | set | tuple | str))
        if self._left < 0:
            raise ValueError("calls that copy more than the file has bytes")
        self._push(function.make(*args))

    def _build(self) -> None:
        """Attributes of an OrderedDict: the versions of a module's state dict, which nothing here needs."""
        self._pop()
        self._top(OrderedDict)


_ACTIONS: Final[dict[bytes, Callable[[Unpickler], None]]] = {
    b"\x80": lambda m: m._check_protocol(m._number("<B")),
    b"\x95": lambda m: m._number("<Q"),
    b"(": lambda m: m._push(_MARK),
    b"0": lambda m: m._stack.pop(),
    b"1": lambda m: m._drop(),
    b"2": lambda m: m._push(m._stack[-1]),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._number("<B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"\x8a": lambda m: m._long("<B"),
    b"\x8b": lambda m: m._long("<i"),
    b"G": lambda m: m._push(m._number(">d")),
    b"X": lambda m: m._text("<I"),
    b"\x8c": lambda m: m._text("<B"),
    b"\x8d": lambda m: m._text("<Q"),
    b"B": lambda m: m._bytes("<I"),
    b"C": lambda m: m._bytes("<B"),
    b"\x8e": lambda m: m._bytes("<Q"),
    b"T": lambda m: m._old_text("<i"),
    b"U": lambda m: m._old_text("<B"),
    b"}": lambda m: m._push({}),
    b"]": lambda m: m._push([]),
    b")": lambda m: m._push(()),
    b"\x8f": lambda m: m._push(set()),
    b"t": lambda m: m._push(tuple(m._to_mark())),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"l": lambda m: m._push(m._to_mark()),
    b"d": lambda m: m._dict(),
    b"a": lambda m: m._append([m._pop()]),
    b"e": lambda m: m._append(m._to_mark()),
    b"s": lambda m: m._set_items([m._pop(), m._pop()][::-1]),
    b"u": lambda m: m._set_items(m._to_mark()),
    b"\x90": lambda m: m._add(m._to_mark()),
    b"\x91": lambda m: m._push(frozenset(_set(m._to_mark()))),
    b"q": lambda m: m._put(m._number("<B")),
    b"r": lambda m: m._put(m._number("<I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"h": lambda m: m._push(m._memo[m._number("<B")]),
    b"j": lambda m: m._push(m._memo[m._number("<I")]),
    b"c": lambda m: m._name(m._line(), m._line()),
    b"\x93": lambda m: m._stack_global(),
    b"R": lambda m: m._reduce(),
    b"b": lambda m: m._build(),
    b"Q": lambda m: m._push(m._persistent(m._pop())),
}
"""The instructions of protocols 2 to 4, without those that call constructors and those that PyTorch never writes."""
