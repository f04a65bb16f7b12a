"""A server as a child process: started, watched, stopped by its own id. Knows no engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import aiohttp

from neobench.engines import die_with_parent, group_guard
from neobench.harness.engine import EngineError

HOST = "127.0.0.1"
POLL_S = 0.05
PROGRESS_S = 1.0
REQUEST_TIMEOUT_S = 2.0
LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 16_384


def free_port() -> int:
    """A TCP port that was free a moment ago; a server that loses it in between dies and its log says why."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """One start and one stop. The server leads a process group of its own.

    On Linux it does not outlive this process; to be exact, the thread that starts it. That holds for the program alone
    unless `several_processes` says that it starts others, which must stay in its group; `pid` is then of their guard.
    `environment` is added to this process's own.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        several_processes: bool = False,
    ) -> None:
        self.url = f"http://{HOST}:{port}"
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._wrapper = str((group_guard if several_processes else die_with_parent).__file__)
        self._log_path = log_path
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    async def start(self, *, timeout_s: float, progress: Callable[[str], None]) -> None:
        """Returns once GET /health answers 200. Raises EngineError, the child gone, if it dies or takes too long."""
        self._spawn()
        try:
            await self._wait_until_healthy(timeout_s, progress)
        except BaseException:
            await self.stop(grace_s=1.0)
            raise

    def check_alive(self) -> None:
        """Raises EngineError with the exit status and the end of the log if the server has died."""
        if self._child is not None and self._has_exited():
            raise EngineError(f"the server died: {_describe_exit(self._reap())}.\n{self._log_tail()}")

    async def stop(self, *, grace_s: float = 15.0) -> None:
        """SIGTERM, then SIGKILL for whatever of its group is left after the grace period. Safe to call twice."""
        child = self._child
        if child is None or child.returncode is not None:
            return
        try:
            if not self._has_exited():
                child.terminate()
            deadline = time.monotonic() + grace_s
            while not self._has_exited() and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
        finally:
            self._reap()

    def _spawn(self) -> None:
        assert self._child is None, "a ServerProcess is started once"
        wrapper = [sys.executable, "-I", self._wrapper, str(os.getpid())]
        try:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            with self._log_path.open("ab") as log:
                self._log_start = log.tell()
                self._child = subprocess.Popen(
                    [*wrapper, *self._command],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(f"cannot start {self._command[0]} with its log in {self._log_path}: {error}") from error

    async def _wait_until_healthy(self, timeout_s: float, progress: Callable[[str], None]) -> None:
        started = time.monotonic()
        next_progress_s = PROGRESS_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)) as session:
            while not await self._is_healthy(session):
                self.check_alive()
                waited_s = time.monotonic() - started
                if waited_s > timeout_s:
                    raise EngineError(f"the server was not ready after {timeout_s:g} s.\n{self._log_tail()}")
                if waited_s >= next_progress_s:
                    next_progress_s += PROGRESS_S
                    progress(f"waiting for the server ({waited_s:.0f} s): {self._last_log_line()}")
                await asyncio.sleep(POLL_S)
        # Another program may have taken the port and answered in the place of a child that is dead.
        self.check_alive()

    async def _is_healthy(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(self.url + "/health") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return False

    def _has_exited(self) -> bool:
        """Looks without reaping: until then the process id, and so the group's, cannot be given to anybody else."""
        child = self._child
        assert child is not None
        if child.returncode is not None:
            return True
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _reap(self) -> int:
        """Kill what is left of the group and collect the exit status: negative for a signal."""
        child = self._child
        assert child is not None
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        return child.wait()

    def _log_tail(self) -> str:
        lines = self._read_log_end().splitlines()[-LOG_TAIL_LINES:]
        if not lines:
            return f"Its log {self._log_path} is empty."
        return "\n".join([f"The last lines of its log {self._log_path}:", *(f"  {line}" for line in lines)])

    def _last_log_line(self) -> str:
        lines = self._read_log_end().splitlines()
        return lines[-1].strip() if lines else "no output yet"

    def _read_log_end(self) -> str:
        """At most LOG_TAIL_BYTES, and nothing that an earlier server wrote into the same file."""
        try:
            with self._log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - LOG_TAIL_BYTES))
                return log.read().decode("utf-8", errors="replace")
        except OSError as error:
            return f"(the log cannot be read: {error})"


def _describe_exit(returncode: int) -> str:
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"
