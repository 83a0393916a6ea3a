"""What each rank that is a thread has of its own in the one process, and what it cannot have: modules."""

import os
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import ModuleType
from typing import Final

from disttrain.collectives.env import enter_rank, hosted_env, hosted_rank

_OUR_PACKAGE: Final = __name__.partition(".")[0]
_NOT_USERS: Final = tuple(
    os.path.realpath(path) + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (path := sysconfig.get_path(name))
)
_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes)


class Variables(MutableMapping[bytes, bytes]):
    """The environment variables as the calling thread's rank sees them; other threads see the process's.

    It takes the place of the dictionary inside ``os.environ``, which itself stays the object that everybody has.
    """

    def __init__(self, process: MutableMapping[bytes, bytes], ranks: Mapping[int, Mapping[str, str]]) -> None:
        self._process = process
        self._of_rank = {
            rank: {**process, **{os.fsencode(k): os.fsencode(v) for k, v in own.items()}}
            for rank, own in ranks.items()
        }
        self._written = {os.fsencode(k) for own in ranks.values() for k in own}
        """The variables in which ranks may differ."""

    def show(self, rank: int) -> None:
        """Let native code, and processes that are started, see the variables of ``rank``."""
        theirs = self._of_rank[rank]
        for name in self._written:
            value = theirs.get(name)
            if value is None:
                os.unsetenv(name)
            else:
                os.putenv(name, value)

    def _mine(self) -> MutableMapping[bytes, bytes]:
        env = hosted_env()
        return self._process if env is None else self._of_rank.get(env.rank, self._process)

    def __getitem__(self, name: bytes) -> bytes:
        return self._mine()[name]

    def __setitem__(self, name: bytes, value: bytes) -> None:
        self._written.add(name)
        self._mine()[name] = value

    def __delitem__(self, name: bytes) -> None:
        del self._mine()[name]
        self._written.add(name)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._mine())

    def __len__(self) -> int:
        return len(self._mine())


@contextmanager
def own_variables(ranks: Mapping[int, Mapping[str, str]]) -> Iterator[Variables]:
    """Give each rank an ``os.environ`` of its own, with these variables beside those of the process."""
    holders = [vars(os.environ), vars(os.environb)]
    process = holders[0]["_data"]
    variables = Variables(process, ranks)
    for holder in holders:
        holder["_data"] = variables
    try:
        yield variables
    finally:
        for holder in holders:
            holder["_data"] = process


@contextmanager
def threads_of_ranks() -> Iterator[None]:
    """Let each thread that a rank starts belong to the rank: its context, variables and prefix."""
    start = threading.Thread.start

    def start_in_rank(self: threading.Thread) -> None:
        rank = hosted_rank()
        if rank is not None:
            run = self.run

            def run_in_rank() -> None:
                enter_rank(rank)
                run()

            self.run = run_in_rank  # type: ignore[method-assign]
        start(self)

    threading.Thread.start = start_in_rank  # type: ignore[method-assign]
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]


class SharedModules:
    """Finds the user's modules that several ranks have imported: there is one copy of each, and of what it holds."""

    def __init__(self) -> None:
        self._before = set(sys.modules)
        self._named: set[str] = set()

    def find(self, mains: Iterable[ModuleType], *, at_the_end: bool = False) -> list[str]:
        """Return those that are new since the last call.

        A module is taken for imported by a rank whose ``__main__``, or a module of the user's that it has imported,
        holds it or something of it. At the end also those count that nobody holds: imported inside a function.
        """
        users = {name: m for name, m in list(sys.modules.items()) if self._is_users(name, m)}
        if not users:
            return []
        holder = {id(m): name for name, m in users.items()}
        for name, m in users.items():
            for value in list(vars(m).values()):
                if not isinstance(value, (*_PLAIN, ModuleType)):
                    holder.setdefault(id(value), name)
        count = dict.fromkeys(users, 0)
        for main in mains:
            found: set[str] = set()
            todo = [main]
            while todo:
                for value in list(vars(todo.pop()).values()):
                    name = holder.get(id(value), "")
                    if name and name not in found:
                        found.add(name)
                        todo.append(users[name])
            for name in found:
                count[name] += 1
        new = [n for n, k in count.items() if n not in self._named and (k > 1 or (at_the_end and k == 0))]
        self._named.update(new)
        return sorted(new)

    def _is_users(self, name: str, module: object) -> bool:
        if name in self._before or name.partition(".")[0] in (_OUR_PACKAGE, "__main__", "__mp_main__"):
            return False
        file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
        own = getattr(module, "__name__", name).partition(".")[0] == _OUR_PACKAGE  # "torch" under --compat
        return isinstance(file, str) and not own and not os.path.realpath(file).startswith(_NOT_USERS)
