"""`neobench search` and Ctrl-C against the real engine."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]
pytestmark = pytest.mark.slow


def arguments(folder: Path, *more: str) -> list[str]:
    engine = ["--engine", "gpu_only", "--workload", "synthetic:60,24", "--device-blocks", "24", "--num-warmup", "2"]
    objective = ["--slo", "p90_ttft<1s", "--num-requests", "40", "--tolerance", "0.5", "--repeats", "2"]
    return ["search", *engine, *objective, "--output", str(folder), *more]


def test_finds_where_a_small_engine_saturates_and_goes_on_after_ctrl_c(start_neobench: Start, tmp_path: Path) -> None:
    process = start_neobench(*arguments(tmp_path, "--start-rate", "4"))
    deadline = time.monotonic() + 90
    while not list((tmp_path / "points").glob("*/verdict.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 4, stderr
    assert "cut short: stopped by the user" in stdout
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "points").glob("*/verdict.json")}

    process = start_neobench(*arguments(tmp_path, "--start-rate", "4", "--json"))
    stdout, stderr = process.communicate(timeout=200)
    document = json.loads(stdout)
    assert all(path.stat().st_mtime_ns == instant for path, instant in kept.items())
    if document["status"] == "client_limit":
        pytest.skip(f"this machine is too busy: {document['reason']}")
    assert document["status"] == "found", document["answer"]
    assert (document["low"]["met"], document["low"]["measured"]) == (2, 2)
    assert (document["high"]["met"], document["high"]["measured"]) == (0, 2)
    assert document["low"]["rate"] < document["high"]["rate"]
    assert any(point["basis"] != "all requests" for point in document["points"]), "what is hopeless ends early"
