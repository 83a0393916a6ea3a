"""The process around the script: ``python -m disttrain.launcher.worker PARENT_PID [--compat] [-m] PROGRAM ARGS...``.

It dies with the launcher, runs the program as Python itself would, and reports how it ended.
"""

import ctypes
import faulthandler
import logging
import os
import resource
import signal
import sys
import threading

from disttrain.collectives import control, ledger, signals, stacks
from disttrain.collectives.env import WorkerEnv
from disttrain.launcher.program import Outcome, Program, leave_fork, outcome_of, run_for_torch, say

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the launcher's main thread is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(1)


def main(argv: list[str]) -> None:
    die_with_parent(int(argv[0]))
    signal.signal(signal.SIGUSR1, signals.forward)
    faulthandler.enable(all_threads=False)  # a crash in native code then says where
    for stream in (sys.stdout, sys.stderr):
        # By lines also under PYTHONUNBUFFERED, which would send a line in pieces that others can get between.
        stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]
    _show_notices()
    env = WorkerEnv.from_environ()
    ledger.note_stacks(env.ledger, stacks.answer())
    if ledger.is_ours(env.ledger):  # what the script starts is no rank
        os.set_inheritable(env.ledger, False)
    rest = argv[1:]
    if rest[0] == "--compat":
        rest = rest[1:]
        run_for_torch()
    is_module = rest[0] == "-m"
    program_argv = rest[1:] if is_module else rest
    if env.hosted > 1:
        from disttrain.launcher.hosted import run_hosted

        outcomes = run_hosted(env, program_argv, is_module=is_module)
    else:
        pid = os.getpid()

        def body() -> None:
            program = Program.load(program_argv, is_module=is_module)
            program.run(program.new_main())

        outcome = outcome_of(body)
        if os.getpid() != pid:  # a fork in the script has come to its end: not the rank's
            leave_fork(outcome)
        outcomes = {env.rank: outcome}
    finish(env, outcomes)


def finish(env: WorkerEnv, outcomes: dict[int, Outcome]) -> None:
    """Report the end of the hosted ranks; return if all is well, else leave the process."""
    if all(o.code == 0 for o in outcomes.values()):
        # The script's other threads first: until they have ended the rank may still communicate.
        closing = outcome_of(_close)
        if closing.code != 0:
            outcomes = dict.fromkeys(outcomes, closing)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    _lift_limits()
    for rank, o in sorted(outcomes.items(), key=lambda item: item[1].code == 0):
        try:
            control.post_end(
                env.control,
                run=env.run_id,
                generation=env.generation,
                process=env.process,
                rank=rank,
                code=o.code,
                error=o.error,
                message=o.message,
                traceback=o.traceback,
                follower=o.follower,
            )
        except Exception:  # for want of memory or files; its own error is not the one to be read
            say(o)
            control.leave(o.code or 1)
    code = max(o.code for o in outcomes.values())
    if code != 0:
        control.leave(next(o.code for o in outcomes.values() if o.code != 0))


def _lift_limits() -> None:
    """Raise the limits on memory and files as far as they go: a script that has used them up is to be reported."""
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (hard, hard))


def _show_notices() -> None:
    """Print what disttrain says of its choices and fallbacks."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("disttrain: %(message)s"))
    logger = logging.getLogger("disttrain")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _close() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    world = sys.modules.get("disttrain.collectives.world")
    if world is not None:  # the script may have communicated
        world.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
