"""Runs one job in a process of its own, so that each starts with a fresh device and loses nothing for the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.h200.jobs import Job
from neobench.engines import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
_TAIL_BYTES = 16_384


@dataclass(frozen=True)
class VllmPlace:
    """Where vLLM is: an interpreter, and a folder of packages for its PYTHONPATH if it is not installed there."""

    python: str = sys.executable
    site: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """`answer` is what the child wrote; None with a `reason` when it crashed or took too long before it had written.

    Where it did so afterwards, the reason is among the answer's facts as "unfinished".
    """

    answer: dict[str, Any] | None
    reason: str | None = None


def run_child(job: Job, *, limit_s: float, log_path: Path, vllm: VllmPlace) -> Outcome:
    """The child's output goes to `log_path`. It and what it started are gone when this returns."""
    with tempfile.TemporaryDirectory(prefix="neobench-h200-") as folder:
        job_path, result_path = Path(folder, "job.json"), Path(folder, "result.json")
        job_path.write_text(json.dumps(asdict(job)))
        arguments = ["-m", f"benchmarks.h200.{job.child}", str(job_path), str(result_path)]
        command, environment = _vllm_child(vllm) if job.child == "vllm_child" else _own_child()
        status = _run([*command, *arguments], environment, limit_s=limit_s, log_path=log_path)
        reason = None
        if status != 0:
            stopped = f"stopped after {limit_s:.0f} s"
            reason = stopped if status is None else f"exit status {status}: {_last_line(log_path)}"
        if not result_path.exists():
            return Outcome(None, reason or "it left no result")
        answer = json.loads(result_path.read_text())
        if reason is not None:
            answer["facts"]["unfinished"] = reason
        return Outcome(answer)


def _own_child() -> tuple[list[str], dict[str, str]]:
    # A child sees the packages that its parent sees, also where the parent was started without site-packages.
    flags = ["-S"] if sys.flags.no_site else []
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return [sys.executable, *flags], {**os.environ, "PYTHONPATH": path}


def _vllm_child(vllm: VllmPlace) -> tuple[list[str], dict[str, str]]:
    path = os.pathsep.join(str(place) for place in (vllm.site, ROOT) if place is not None)
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return [vllm.python], {**os.environ, **offline, "PYTHONPATH": path}


def _run(command: Sequence[str], environment: Mapping[str, str], *, limit_s: float, log_path: Path) -> int | None:
    """Exit status, or None when it was stopped at its limit."""
    wrapper = [sys.executable, "-I", die_with_parent.__file__, str(os.getpid())]
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            [*wrapper, *command],
            env=dict(environment),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return child.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill_group(child)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Whatever of its process group is still there: vLLM's engine is a process of its own and holds the GPU."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last_line(log_path: Path) -> str:
    tail = log_path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
