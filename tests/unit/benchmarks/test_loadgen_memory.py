"""The memory of a run is that of the whole command, and a run that came to nothing has none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loadgen import memory
from benchmarks.loadgen.memory import FailedError, measure

ROOT = Path(__file__).parents[3]


def test_the_whole_command_is_measured(tmp_path: Path) -> None:
    # By a process of its own, for this one is large.
    load = ("--requests", "300", "--tokens", "4", "--concurrency", "8")
    command = [sys.executable, "-m", "benchmarks.loadgen.memory", *load, "-o", str(tmp_path / "memory.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "memory.json").read_text())
    assert figures["completed"] == figures["requests"] == 300
    # Evaluating it loads pyarrow and matplotlib, which the client does without.
    assert 2**24 < figures["client_peak_rss_bytes"] < figures["peak_rss_bytes"] < memory.LIMIT_BYTES
    assert figures["wall_s"] > figures["run_s"] > 0


def test_a_run_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROMPT_TOKENS", -1)
    with pytest.raises(FailedError, match="exit status 2"):
        measure(requests=3, tokens=4, concurrency=1)
