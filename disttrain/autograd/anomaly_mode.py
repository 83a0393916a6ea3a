"""Finding the first value that is not finite, and who made it: ``torch.autograd.anomaly_mode`` and more.

PyTorch looks at gradients alone. Here the results of recorded operations are looked at as well, so that a run stops at
the line that made the first nan or infinity and not where its gradient comes by.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

import numpy as np

from disttrain import engine
from disttrain.context import grad_enabled
from disttrain.errors import AnomalyError
from disttrain.kernels.arrays import get_array_module, is_array, to_host
from disttrain.modes import Immediate, Mode, Switch, changed
from disttrain.nodes import Node

__all__ = ["detect_anomaly", "is_anomaly_check_nan_enabled", "is_anomaly_enabled", "set_detect_anomaly"]

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

_AROUND = ("contextlib.py", "functools.py", "_ufunc_config.py")
"""Files of what decorators put around functions of ours; the last is NumPy's errstate."""

Line = tuple[str, int, str]


class Watch:
    """What anomaly mode does at each recorded operation, forward and backward."""

    def __init__(self, check: bool) -> None:
        self.check = check
        self._visited: Node | None = None
        """The node whose gradient is being computed: what is recorded meanwhile is part of it."""

    def forward(self, node: Node, inputs: Sequence[Any], outs: Sequence[Any]) -> None:
        """Remember the user's line of a new node, and check what it computed.

        Raises:
            AnomalyError: a result is not finite although all arguments and options are.
        """
        if self._visited is not None:
            if hasattr(self._visited, "line"):
                node.line = self._visited.line
            return
        node.line = users_line()
        if not self.check:
            return
        for i, out in enumerate(outs):
            if not _is_finite(out) and _all_finite(inputs) and _all_finite(node.options.values()):
                which = f" in output {i}" if len(outs) > 1 else ""
                raise AnomalyError(
                    f"{node.op.__name__}() made the first value that is not finite: {_describe(out)}{which}, from "
                    f"arguments that are all finite\n{_show(node)}"
                )

    def visiting(self, visit: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
        """Return ``visit`` with checks of the gradients; an error tells the forward line of its node."""

        def watched(node: Node, g: Any, *rest: Any) -> Sequence[Any]:
            before, self._visited = self._visited, node
            try:
                grads = visit(node, g, *rest)
            except AnomalyError:
                raise
            except Exception as e:
                e.add_note(f"in backward of {node.op.__name__}()\n{_show(node)}")
                raise
            finally:
                self._visited = before
            if self.check:
                self._check(node, g, grads)
            return grads

        return watched

    def _check(self, node: Node, g: Any, grads: Sequence[Any]) -> None:
        for i, one in enumerate(grads):
            if one is None or _is_finite(one):
                continue
            array = one._array if isinstance(one, engine.Tensor_) else np.asarray(one)
            kind = "nan" if bool(get_array_module(array).isnan(_plain(array)).any()) else "inf"
            clean = _all_finite(g if isinstance(g, tuple | list) else (g,))
            raise AnomalyError(
                f"Function '{node.name()}' returned {kind} values in its {i}th output: the gradient that "
                f"{node.op.__name__}() gives to argument {i} has {_describe(array)}, "
                + (
                    "and what came in was finite"
                    if clean
                    else "and so had what came in, from backward() or a hook"
                )
                + f"\n{_show(node)}"
            )


def _plain(array: Any) -> Any:
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _is_finite(x: Any) -> bool:
    if isinstance(x, engine.Tensor_):
        x = x._array
    if isinstance(x, float):
        return bool(np.isfinite(x))
    if not is_array(x) or x.dtype.kind not in "fV":
        return True
    return bool(get_array_module(x).isfinite(_plain(x)).all())


def _all_finite(values: Iterable[Any]) -> bool:
    return all(map(_is_finite, values))


def _describe(array: Any) -> str:
    """Return the first bad value, where it is and how many there are."""
    host = _plain(to_host(array))
    bad = ~np.isfinite(host)
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    place = f" at {list(first)}" if first else ""
    return f"{host[first]}{place} ({int(bad.sum())} of {host.size} elements)"


def users_line() -> Line:
    """Return the innermost line that is not of this library."""
    frame: FrameType | None = sys._getframe(1)
    last = frame
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_OWN) and os.path.basename(name) not in _AROUND:
            break
        last, frame = frame, frame.f_back
    found = frame or last
    assert found is not None
    return found.f_code.co_filename, found.f_lineno, found.f_code.co_name


def _show(node: Node) -> str:
    """Return the user's line in the form of a traceback."""
    if not hasattr(node, "line"):
        return "  it was recorded before anomaly mode began: begin it before the forward pass to see its line"
    return show_line(node.line)


def show_line(line: Line) -> str:
    """Return a line of source in the form of a traceback."""
    file, number, function = line
    code = linecache.getline(file, number).strip()
    return f'  File "{file}", line {number}, in {function}' + (f"\n    {code}" if code else "")


class detect_anomaly(Switch):
    """Look for the first value that is not finite inside a ``with`` block, as ``torch.autograd.detect_anomaly``.

    Each recorded operation whose result is not finite although its arguments are, and each gradient that is not
    finite, raises :class:`disttrain.errors.AnomalyError` (a ``RuntimeError``) that names the operation and the line
    of the user's code that called it. Other errors in backward get that line as a note.

    Args:
        check_nan: whether to look at values; else only lines are remembered.
    """

    def __init__(self, check_nan: bool = True) -> None:
        super().__init__()
        self.check_nan = bool(check_nan)

    def _mode(self) -> Mode:
        return changed(watch=Watch(self.check_nan))

    def _again(self) -> Switch:
        return detect_anomaly(self.check_nan)


class set_detect_anomaly(Immediate):
    """Switch :class:`detect_anomaly` on or off, at once and until the end of a ``with`` block."""

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        self.mode, self.check_nan = bool(mode), bool(check_nan)
        super().__init__()

    def _mode(self) -> Mode:
        return changed(watch=Watch(self.check_nan) if self.mode else None)


def _watch() -> Watch | None:
    mode: Mode = grad_enabled.get()
    return mode.watch if not isinstance(mode, bool) and isinstance(mode.watch, Watch) else None


def is_anomaly_enabled() -> bool:
    """Return whether anomaly mode is on in this thread."""
    return _watch() is not None


def is_anomaly_check_nan_enabled() -> bool:
    """Return whether anomaly mode looks at values."""
    watch = _watch()
    return watch is not None and watch.check
