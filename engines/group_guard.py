"""Run as a script: start another program, and kill its whole process group when the process that asked for it dies.

    python -I group_guard.py PARENT_PID PROGRAM [ARGUMENT ...]

For a server of several processes, of which `die_with_parent` would reach the first alone. The guard must lead the
group. It passes SIGTERM on to the program and ends as the program ends. Kept on Linux only, as there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def main(parent_pid: int, command: list[str]) -> None:
    child: subprocess.Popen[bytes] | None = None

    def kill_group(_number: int, _frame: FrameType | None) -> None:
        os.killpg(0, signal.SIGKILL)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if child is None:
            sys.exit(128 + number)
        child.send_signal(number)

    signal.signal(signal.SIGUSR1, kill_group)
    signal.signal(signal.SIGTERM, pass_on)
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGUSR1) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
        # The parent may have died before the promise was made.
        if os.getppid() != parent_pid:
            sys.exit(f"process {parent_pid}, which started {command[0]}, is gone")
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")
    _end_as(child.wait())


def _end_as(returncode: int) -> None:
    if returncode < 0:
        # Of SIGKILL and the like the guard dies itself, so that who waits for it reads the same status.
        if -returncode not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -returncode)
    sys.exit(returncode)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
