"""Running a script that says ``import torch``, as ``python script.py`` would, on disttrain."""

from __future__ import annotations

import sys

from disttrain.compat.finder import install
from disttrain.launcher.program import Program, user_frames


def run(argv: list[str], *, is_module: bool = False) -> None:
    """Run the script ``argv[0]`` (or the module of that name) as ``__main__``; what it raises is shown as usual.

    Raises:
        SystemExit: the script ended that way, or by an exception (code 1).
    """
    install()
    try:
        program = Program.load(argv, is_module=is_module)
        program.run(program.new_main())
    except SystemExit:
        raise
    except BaseException as e:
        trace = user_frames(e.__traceback__ and e.__traceback__.tb_next)  # without this function
        sys.excepthook(type(e), e.with_traceback(trace), trace)
        sys.exit(130 if isinstance(e, KeyboardInterrupt) else 1)
