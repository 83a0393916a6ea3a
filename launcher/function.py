"""``disttrain.launch(fn)``: run a function on every rank, from Python."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from disttrain.launcher.called import Call, check_json
from disttrain.launcher.config import LaunchConfig, parse_nproc
from disttrain.launcher.hosts import this_node
from disttrain.launcher.program import runs_for_torch
from disttrain.launcher.report import RunReport


class LaunchError(RuntimeError):
    """A job of :func:`launch` has failed: the text is the launcher's report, the root cause and its traceback first."""

    def __init__(self, text: str, report: RunReport) -> None:
        super().__init__(text)
        self.report = report
        """All that is known of the failure: ``report.failures[0]`` is the root cause."""
        self.code = report.code
        """What the exit code of ``disttrain launch`` would be."""


def launch(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    nproc: int | str = 1,
    ranks: int | None = None,
    transport: str = "auto",
    timeout: float = 1800.0,
    max_restarts: int = 0,
    env: Mapping[str, str] | None = None,
) -> list[Any]:
    """Call ``fn(*args, **kwargs)`` on every rank of a new job and return the results, by rank.

    What ``disttrain launch -n nproc`` does for a script, for a function. The workers import it by name: a script that
    calls ``launch`` does so under ``if __name__ == "__main__":``. Arguments and results travel as JSON: a tuple comes
    back as a list, and ``sys.exit(0)`` is the result None. What the ranks print is shown with the rank in front.

    Args:
        fn: a function at the top level of a module or script.
        args: of None, bool, int, float, str, and lists, dicts and ``argparse.Namespace`` of these; the same for every
            rank.
        nproc: number of processes, or ``"cpu"``, ``"gpu"``, ``"auto"``, ``"2:4"`` as ``-n``.
        ranks: number of ranks if it is another, as ``--ranks``.
        transport: as ``--transport``.
        timeout: seconds that a rank waits in a collective, as ``--timeout``.
        max_restarts: how often all ranks are started again after a failure, as ``--max-restarts``.
        env: variables for the workers, as ``--env``.

    Raises:
        LaunchError: a rank failed; the text has the traceback of the root cause.
        TypeError: ``fn`` cannot be found by name, or an argument is not JSON.
        ConfigError: a wrong option (a ValueError).
        RuntimeError: called by a rank of a job, or by a thread other than the main one.
        KeyboardInterrupt: Ctrl-C; all ranks have been ended.
    """
    return _launch(
        fn,
        args,
        kwargs or {},
        nproc=nproc,
        ranks=ranks,
        transport=transport,
        timeout=timeout,
        max_restarts=max_restarts,
        env=dict(env or {}),
    )


def spawn(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    nprocs: int = 1,
    join: bool = True,
    daemon: bool = False,
    start_method: str = "spawn",
) -> None:
    """Call ``fn(i, *args)`` in ``nprocs`` new processes, the ranks of a job, and wait for their end.

    ``torch.multiprocessing.spawn``, by :func:`launch`: ``i`` is the rank, and what PyTorch's scripts do next, setting
    ``MASTER_ADDR`` and calling ``init_process_group(rank=i, world_size=nprocs)``, does no harm. Arguments travel as
    JSON, an ``argparse.Namespace`` too.

    Args:
        fn: a function at the top level of a module or script.
        args: of None, bool, int, float, str, lists, dicts and namespaces of these; the same for every rank.
        nprocs: number of processes.
        join: they are always waited for.
        daemon: they never outlive the caller.
        start_method: they are always new interpreters, which import the function.

    Raises:
        LaunchError: a rank failed; the text has the traceback of the root cause (PyTorch: ProcessRaisedException).
        NotImplementedError: ``join=False``, or the start method ``"fork"``, whose processes have what the parent had.
        TypeError: ``fn`` cannot be found by name, or an argument is not JSON.
        RuntimeError: called by a rank of a job, or by a thread other than the main one.
    """
    if not join:
        raise NotImplementedError(
            "spawn(join=False) is not in disttrain: ranks end with who started them; let the ranks do the work, or "
            "start the script with `disttrain launch` in the background"
        )
    if start_method not in ("spawn", "forkserver"):
        raise NotImplementedError(
            f"start_method={start_method!r} is not in disttrain: ranks are new interpreters ('spawn'); give what they "
            f"need as arguments, or write it to a file and give the path"
        )
    _launch(fn, args, {}, nproc=nprocs, ranked=True)


def _launch(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    nproc: int | str,
    ranked: bool = False,
    **options: Any,
) -> list[Any]:
    """Call the function on every rank, with the rank first if it is ``ranked``; ``options`` are those of the job."""
    _check_caller()
    call = Call(*_by_name(fn), tuple(args), dict(kwargs), tuple(sys.path), ranked)
    check_json(list(call.args), "args")
    check_json(call.kwargs, "kwargs")
    cluster = this_node(str(nproc)) if ":" in str(nproc) else None
    config = LaunchConfig(
        program="disttrain.launcher.called",
        is_module=True,
        compat=runs_for_torch(),
        call=call.to_json(),
        processes=1 if cluster is not None else parse_nproc(str(nproc)),
        **options,
    )
    from disttrain.launcher.agent import Agent

    agent = Agent(config, cluster)
    report = agent.run()
    if report.stopped_by:
        signal.raise_signal(
            signal.Signals[report.stopped_by]
        )  # Ctrl-C is a KeyboardInterrupt, SIGTERM ends us
    if report.code != 0 or report.stopped_by:
        stopped = (
            f"stopped by {report.stopped_by}" if report.stopped_by else "saved and stopped, as a signal asked"
        )
        raise LaunchError(report.text(agent.directory) or stopped, report)
    return [result for _, result in sorted(agent.results.items())]


def _check_caller() -> None:
    if os.environ.get("DISTTRAIN_RUN_ID"):
        raise RuntimeError(
            "launch() or spawn() was called by a worker of a job. If this is a script that calls it, its workers "
            'import it too: put the call under `if __name__ == "__main__":`'
        )
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "launch() must be called by the main thread: the workers end with the thread that starts them"
        )


def _by_name(fn: Callable[..., Any]) -> tuple[str, str, str]:
    """Return module and name by which a worker finds ``fn``, and the path of the script if that is the module."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    cure = "define it with `def` at the top level of a .py file"
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError(f"launch() needs a function, got {fn!r}; {cure}")
    if "<" in name:  # <lambda>, <locals>
        raise TypeError(f"launch() gives the workers a function's name, and {name} has none; {cure}")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not fn:
        raise TypeError(
            f"launch() gives the workers a function's name, but {module}.{name} is not {fn!r}; {cure}"
        )
    if module != "__main__":
        return module, name, ""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:  # python -m: it has a name to import it by
        return str(main.__spec__.name), name, ""  # type: ignore[union-attr]
    script = getattr(main, "__file__", None)
    if not script or not os.path.exists(script):
        raise TypeError(
            f"launch() gives the workers a function's name, and {name} was typed in, where workers cannot import it "
            f"from; {cure} and import it from there (in a notebook: %%writefile work.py, then from work import {name})"
        )
    return module, name, os.path.abspath(script)
