"""Sessions of several turns against a server in a process of its own."""

from __future__ import annotations

import json
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from neobench.results.store import load_run

ARGUMENTS = ["run", "--engine", "null_server", "--workload", "synthetic:fixed:20,4", "--num-warmup", "2"]


@pytest.mark.parametrize("processes", [1, 2])
def test_turns_follow_their_answers(start_neobench, tmp_path: Path, processes: int) -> None:
    options = ["--turns", "3", "--think-time", "0.1:fixed", "--rate", "20", "--num-requests", "60"]
    process = start_neobench(
        *ARGUMENTS, *options, "--client-processes", str(processes), "--output", str(tmp_path / "out")
    )
    _, told = process.communicate(timeout=120)
    # 4 where something else keeps this machine busy.
    assert process.returncode in (0, 4), told
    assert "60 requests are the turns of 20 sessions, 3 each" in told
    run = load_run(tmp_path / "out" / "null_server-rate-20")
    assert run.summary["completed"] == 60
    assert run.summary["sessions"]["completed_sessions"] == 20
    assert run.summary["sessions"]["median_session_s"] > 0.2
    rows = sorted(run.columns.to_arrow().to_pylist(), key=lambda row: (row["warmup"], row["index"]))[:60]
    for before, after in pairwise(rows):
        if after["turn"]:
            assert after["scheduled_ns"] == before["ended_ns"] + 100_000_000
            assert after["prompt_tokens"] == before["prompt_tokens"] + 4 + 20


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_in_mid_session_keeps_what_was_measured(start_neobench, tmp_path: Path, processes: int) -> None:
    options = ["--turns", "5", "--think-time", "30:fixed", "--arrival", "all-at-once", "--num-requests", "40"]
    folder = tmp_path / "out" / "null_server-all-at-once"
    process = start_neobench(
        *ARGUMENTS, *options, "--client-processes", str(processes), "--output", str(tmp_path / "out")
    )
    while process.poll() is None and num_rows(folder) < 10:  # the warm-up and all first turns
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 4, told
    run = load_run(folder)
    assert run.complete
    assert len(run.columns) == 42
    assert run.summary["outcomes"]["ok"] == 8
    assert run.summary["outcomes"]["interrupted"] == 32
    assert "interrupted" in json.dumps(run.summary["validity"]["reasons"])


def num_rows(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("requests*.jsonl"))
