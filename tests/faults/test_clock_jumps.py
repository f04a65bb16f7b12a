"""The wall clock is set while a run goes on: nothing that was measured may know of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

HOUR_S = 3600
NUM_REQUESTS = 200
GAP_NS = 10_000_000
LONGEST_S = 60
"""No instant of this run of 2 s lies beyond it on any machine; an hour does."""


@pytest.fixture(scope="module")
def jumping_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and LD_PRELOAD")
    library = tmp_path_factory.mktemp("clock") / "jumping_clock.so"
    source = Path(__file__).with_name("jumping_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def count_rows(run: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in run.glob("requests*.jsonl"))


@pytest.mark.parametrize(("jump_s", "processes"), [(HOUR_S, 1), (-HOUR_S, 1), (-HOUR_S, 2)])
def test_a_run_does_not_notice_that_the_wall_clock_jumps(
    jumping_clock: Path, tmp_path: Path, jump_s: int, processes: int
) -> None:
    folder, jump = tmp_path / "runs", tmp_path / "jump"
    run = folder / "null_server-rate-100"
    command = [
        *(sys.executable, "-m", "neobench", "run", "--engine", "null_server", "--arrival", "constant", "--rate", "100"),
        *("--workload", "synthetic:fixed:8,4", "--first-token-ms", "20", "--inter-token-ms", "5"),
        *("--num-requests", str(NUM_REQUESTS), "--num-warmup", "0", "--client-processes", str(processes)),
        *("--timeout", "30", "--output", str(folder)),
    ]
    clock = {"LD_PRELOAD": str(jumping_clock), "JUMP_WHEN": str(jump), "JUMP_S": str(jump_s)}
    began = datetime.now(timezone.utc)
    with subprocess.Popen(
        command, env={**os.environ, **clock}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline_s = time.monotonic() + LONGEST_S
        while count_rows(run) < NUM_REQUESTS // 4:
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        jump.touch()
        in_mid_run = count_rows(run) < NUM_REQUESTS
        _, said = process.communicate(timeout=LONGEST_S)
    took_s = (datetime.now(timezone.utc) - began).total_seconds()
    assert process.returncode in (0, 4), said
    assert in_mid_run
    assert jump.with_name("jump.seen").exists(), "the run has read the clock after the jump, at least for its figures"

    summary = json.loads((run / "summary.json").read_text())
    assert summary["completed"] == NUM_REQUESTS, said
    assert NUM_REQUESTS * GAP_NS / 1e9 - 0.1 < summary["duration"] < took_s
    assert 0 < summary["client_window_s"] < took_s
    assert 20 <= summary["median_ttft_from_issue_ms"] < 1e3 * took_s
    rows = [json.loads(line) for path in run.glob("requests*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(row["scheduled_ns"] for row in rows) == [index * GAP_NS for index in range(NUM_REQUESTS)]
    for row in rows:
        instants = [row["scheduled_ns"], row["issued_ns"], *row["token_ns"], row["ended_ns"]]
        assert instants == sorted(instants)
        assert row["ended_ns"] - row["scheduled_ns"] < LONGEST_S * 1e9
    samples = [json.loads(line) for line in (run / "telemetry.jsonl").read_text().splitlines()]
    at_ns = [sample["at_ns"] for sample in samples if "note" not in sample]
    assert at_ns == sorted(at_ns)
    assert 1e9 < at_ns[-1] - at_ns[0] < LONGEST_S * 1e9, "telemetry goes on over the jump"
    provenance = json.loads((run / "run.json").read_text())["provenance"]
    started = datetime.fromisoformat(provenance["started_at"])
    assert timedelta(seconds=-2) < started - began < timedelta(seconds=LONGEST_S)
