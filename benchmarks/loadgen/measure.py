"""One tool at one load, against a server that was started for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.loadgen.loads import Load, Report
from benchmarks.loadgen.tools import Tool, UnreadableError
from benchmarks.loadgen.truth import measured_requests, true_figures
from neobench.engines import die_with_parent
from neobench.engines.instant_log import Instants, read_instants
from neobench.engines.process import ServerProcess, free_port

SERVER_START_TIMEOUT_S = 30.0
LOG_TAIL_LINES = 15
_TAIL_BYTES = 16_384
_COMPARED = ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "itl_p50_ms", "itl_p99_ms")


@dataclass(frozen=True)
class Delays:
    """Of the server. Without any, an answer leaves at once and in one piece."""

    first_token_ms: float = 0.0
    inter_token_ms: float = 0.0

    def flags(self) -> list[str]:
        if not (self.first_token_ms or self.inter_token_ms):
            return []
        return ["--first-token-ms", f"{self.first_token_ms:g}", "--inter-token-ms", f"{self.inter_token_ms:g}"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int | None
    """None: it was stopped at its limit."""
    started_ns: int
    """time.perf_counter_ns."""
    wall_s: float
    cpu_s: float
    """Of the command and all its processes that have ended."""


def measure(tool: Tool, load: Load, *, delays: Delays, folder: Path, limit_s: float) -> dict[str, Any]:
    """A row of the table. Nothing that was started is left. Raises EngineError where the server does not work."""
    folder.mkdir(parents=True)
    port = free_port()
    instants_path = folder / "instants.jsonl"
    command = [sys.executable, "-m", "neobench.engines.null_server", str(port), "--log", str(instants_path)]
    server = ServerProcess([*command, *delays.flags()], port=port, log_path=folder / "server.log")
    asyncio.run(server.start(timeout_s=SERVER_START_TIMEOUT_S, progress=lambda _: None))
    try:
        told = tool.command(load, server.url, folder)
        busy_s = _busy_s()
        ended = run_command(told, folder / "tool.log", tool.environment(), limit_s=limit_s)
        others_s = _busy_s() - busy_s - ended.cpu_s - _server_cpu_s(server)
    finally:
        asyncio.run(server.stop())
    report, failure = _report(tool, ended, folder, limit_s)
    row = build_row(load, read_instants(instants_path), report, ended)
    others_share = max(0.0, others_s) / (ended.wall_s * (psutil.cpu_count() or 1))
    told_how = {"command": told, "environment": dict(tool.environment())}
    return {"tool": tool.name, **row, "failure": failure, "others_cpu_share": others_share, **told_how}


def _busy_s() -> float:
    """CPU seconds that the whole machine has worked."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def _server_cpu_s(server: ServerProcess) -> float:
    """Raises EngineError if it has died."""
    server.check_alive()
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


def _report(tool: Tool, ended: Ended, folder: Path, limit_s: float) -> tuple[Report | None, str | None]:
    """What the tool says, or why it says nothing."""
    try:
        if ended.status in tool.good_statuses:
            return tool.read(folder), None
        problem = f"stopped after {limit_s:.0f} s" if ended.status is None else f"exit status {ended.status}"
    except UnreadableError as error:
        problem = str(error)
    return None, f"{problem}. The end of its output:\n{_tail(folder / 'tool.log')}"


def build_row(load: Load, served: Sequence[Instants], report: Report | None, ended: Ended) -> dict[str, Any]:
    """The server's log beside the tool's report; an error is what was reported less what was true."""
    requests = measured_requests(served, load.num_requests)
    true = true_figures(requests)
    reported = None if report is None else asdict(report)
    delivered = true["delivered_rate"]
    return {
        **asdict(load),
        "load": load.name,
        "delivered_ratio": delivered / load.rate if delivered and load.rate else None,
        "true": true,
        "reported": reported,
        "error": {name: _difference(reported, name, true[name]) for name in _COMPARED}
        | {f"sent_{name}": _difference(reported, f"sent_{name}", true[name]) for name in _COMPARED[:2]},
        "start_up_s": (requests[0].received_ns - ended.started_ns) / 1e9 if requests else None,
        "wall_s": ended.wall_s,
        "cpu_s": ended.cpu_s,
    }


def _difference(reported: Mapping[str, Any] | None, name: str, true: float | None) -> float | None:
    told = None if reported is None else reported[name]
    return None if told is None or true is None else told - true


def run_command(command: Sequence[str], log_path: Path, environment: Mapping[str, str], *, limit_s: float) -> Ended:
    """Its output goes to `log_path`. It and what it started are gone when this returns."""
    wrapper = [sys.executable, "-I", die_with_parent.__file__, str(os.getpid())]
    is_late = threading.Event()
    with log_path.open("wb") as log:
        started_ns = time.perf_counter_ns()
        child = subprocess.Popen(
            [*wrapper, *command],
            env={**os.environ, **environment},
            # What a tool drops into its working folder goes the way of its other files.
            cwd=log_path.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def stop() -> None:
            is_late.set()
            _kill_group(child.pid)

        timer = threading.Timer(limit_s, stop)
        timer.start()
        try:
            # Until it is reaped its process id, and so the group's, is nobody else's.
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            wall_s = (time.perf_counter_ns() - started_ns) / 1e9
        finally:
            timer.cancel()
            timer.join()
            _kill_group(child.pid)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
    return Ended(
        status=None if is_late.is_set() else child.returncode,
        started_ns=started_ns,
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
    )


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _tail(path: Path) -> str:
    lines = path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").splitlines()
    return "\n".join(line[:300] for line in lines[-LOG_TAIL_LINES:]) or "(nothing)"
