"""Run as a script: turn into another program that the kernel kills when the process that started it dies.

    python -I die_with_parent.py PARENT_PID PROGRAM [ARGUMENT ...]

A wrapper and not subprocess's preexec_fn, because Python code between fork and exec may deadlock in a program with
threads. The kernel's promise outlives exec. It is kept on Linux only; elsewhere the program runs without it.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def main(parent_pid: int, command: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
        # The parent may have died before the promise was made.
        if os.getppid() != parent_pid:
            sys.exit(f"process {parent_pid}, which started {command[0]}, is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
