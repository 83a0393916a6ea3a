"""The worker's side of ``disttrain.launch(fn)``: a program that finds the function, calls it, and writes its result.

``python -m disttrain.launcher.called FILE``; the file beside which the results go is JSON: see :class:`Call`.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from disttrain.collectives.env import current_env

_NAMESPACE: Final = "argparse.Namespace"
"""The one key of the dict that a namespace is in JSON."""
_MAIN: Final = "__mp_main__"
"""The name of the parent's script when it is imported: its ``if __name__ == "__main__"`` must not run."""


@dataclass(frozen=True)
class Call:
    """What each rank is to call."""

    module: str
    """Where the function is; ``__main__`` is the script in ``script``."""
    name: str
    """Its ``__qualname__`` in there."""
    script: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: tuple[str, ...]
    """The caller's ``sys.path``."""
    ranked: bool = False
    """Whether the rank comes before the arguments."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=_plain)

    def find(self) -> Any:
        """Return the function.

        Raises:
            ImportError: its module cannot be imported here.
            AttributeError: the module does not have it.
        """
        found = (
            _import_script(self.script) if self.module == "__main__" else importlib.import_module(self.module)
        )
        for part in self.name.split("."):
            found = getattr(found, part)
        return found


def check_json(value: object, what: str) -> None:
    """Refuse what JSON does not give back as it is. A tuple counts as a list, a namespace as what it has.

    Raises:
        TypeError: names the part of ``what`` that is something else.
    """
    match value:
        case None | bool() | int() | float() | str():  # nan and inf too: Python's JSON has them
            return
        case list() | tuple():
            for i, item in enumerate(value):
                check_json(item, f"{what}[{i}]")
        case argparse.Namespace():
            check_json(vars(value), what)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{what} has the key {key!r}, but a key must be a string; use str(key)")
                check_json(item, f"{what}[{key!r}]")
        case _:
            raise TypeError(
                f"{what} is of {type(value).__module__}.{type(value).__qualname__}, but between processes go only "
                f"None, bool, int, float, str, list, tuple, dict and argparse.Namespace; give x.item() or x.tolist(), "
                f"or save it to a file and give the path"
            )


def read_result(file: Path) -> Any:
    """Return what a rank has written; None if it has left the function with ``sys.exit(0)``."""
    return json.loads(file.read_text(), object_hook=_made) if file.exists() else None


def result_file(call: Path, rank: int) -> Path:
    """Return where the result of ``rank`` is for the call in that file."""
    return call.with_name(f"result-{rank}.json")


def main(argv: list[str]) -> None:
    file = Path(argv[0])
    call = Call(**json.loads(file.read_text(), object_hook=_made))
    sys.path[:] = call.path
    rank = current_env().rank
    result = call.find()(*([rank] if call.ranked else []), *call.args, **call.kwargs)
    check_json(result, f"the result of {call.name}")
    target = result_file(file, rank)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, default=_plain))
    temporary.replace(target)


def _plain(value: argparse.Namespace) -> dict[str, Any]:
    return {_NAMESPACE: vars(value)}


def _made(value: dict[str, Any]) -> Any:
    return argparse.Namespace(**value[_NAMESPACE]) if value.keys() == {_NAMESPACE} else value


def _import_script(path: str) -> Any:
    if _MAIN in sys.modules:
        return sys.modules[_MAIN]
    spec = importlib.util.spec_from_file_location(_MAIN, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported; put the function into a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MAIN] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(sys.argv[1:])
