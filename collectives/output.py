"""What a process sees to before it ends at once."""

import contextlib
import fcntl
import os
import stat
import struct
import sys
import termios
import time


def let_output_be_read(patience_s: float = 0.5) -> None:
    """Wait for the reader of stdout and stderr: mpiexec drops what is left in the pipes of an aborted job."""
    sys.stdout.flush()
    sys.stderr.flush()
    deadline = time.monotonic() + patience_s
    for fd in (1, 2):
        with contextlib.suppress(OSError):  # closed, or nothing that can be asked
            while stat.S_ISFIFO(os.fstat(fd).st_mode) and time.monotonic() < deadline:
                (unread,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
                if not unread:
                    break
                time.sleep(1e-3)
