"""A server that misbehaves in one way: the run ends by itself, keeps what it measured, and says what failed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).with_name("fault_server.py")
NUM_REQUESTS = 12
EVERY = 3
WANTED = {"output": 6}


@contextmanager
def fault_server(fault: str, every: int = EVERY) -> Iterator[str]:
    command = [sys.executable, str(SERVER), fault, str(every)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def command_of(url: str, folder: Path, *options: str) -> list[str]:
    lengths = folder.with_suffix(".json")
    lengths.write_text(json.dumps([{"prompt": 4, "max_tokens": WANTED["output"]}] * 300))
    run = [sys.executable, "-m", "neobench", "run", "--engine", "openai", "--base-url", url, "--num-warmup", "0"]
    return [*run, "--workload-file", str(lengths), "--output", str(folder), *options]


def measure(url: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    load = ["--rate", "40", "--num-requests", str(NUM_REQUESTS), "--timeout", "3"]
    return subprocess.run(
        command_of(url, folder, *load, *options), capture_output=True, text=True, check=False, timeout=60
    )


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("fault", "outcome", "said"),
    [
        ("hung", "timeout", "not ended 3 s after it was issued"),
        ("slow_loris", "timeout", "not ended 3 s"),
        ("endless", "timeout", "not ended 3 s"),
        ("half_closed", "connection_error", ""),
        ("reset", "connection_error", ""),
        ("invalid_utf8", "protocol_error", "utf-8"),
        ("invalid_json", "protocol_error", ""),
        ("error_event", "protocol_error", "out of KV blocks"),
        ("too_few", "short_output", "5 of 6 output tokens"),
        ("too_many", "long_output", "7 output tokens where 6"),
        ("no_usage", "protocol_error", "usage"),
        ("status_429", "http_error", "slow down"),
        ("status_503", "http_error", "loading"),
        ("status_500", "http_error", "Internal error"),
        ("not_http", "protocol_error", ""),
    ],
)
def test_a_fault_costs_its_own_requests_only(fault: str, outcome: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    with fault_server(fault) as url:
        done = measure(url, folder)
    run = folder / "openai-rate-40"
    summary = json.loads((run / "summary.json").read_text())
    failed = NUM_REQUESTS // EVERY
    assert done.returncode == 4, done.stderr
    assert summary["outcomes"]["ok"] == summary["completed"] == NUM_REQUESTS - failed, done.stderr
    assert summary["outcomes"][outcome] == summary["failed"] == failed
    assert any(f"{failed} {outcome}" in reason for reason in summary["validity"]["reasons"])
    rows = rows_of(run)
    assert len(rows) == NUM_REQUESTS
    errors = [row["error"] for row in rows if row["outcome"] == outcome]
    assert all(said.lower() in error.lower() for error in errors)
    assert f"x {outcome}: " in done.stderr
    assert "Traceback" not in done.stderr
    healthy = [row for row in rows if row["outcome"] == "ok"]
    assert all(row["output_tokens"] == len(row["token_ns"]) == WANTED["output"] for row in healthy)
    if fault in ("status_429", "status_503"):
        asked = {"status_429": 7.0, "status_503": 30.0}[fault]
        assert {row["retry_after_s"] for row in rows if row["outcome"] == outcome} == {asked}
    if fault in ("half_closed", "reset", "error_event"):
        # What had arrived before the fault is kept.
        assert all(len(row["token_ns"]) == WANTED["output"] // 2 for row in rows if row["outcome"] == outcome)


def test_a_server_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    with fault_server("killed", every=8) as url:
        done = measure(url, folder, "--num-requests", "400")
    assert done.returncode == 1
    assert "nobody answers at http://127.0.0.1" in done.stderr
    run = folder / "openai-rate-40"
    summary = json.loads((run / "summary.json").read_text())
    assert "The engine died" in summary["validity"]["reasons"][0]
    rows = rows_of(run)
    assert len(rows) == 400
    assert summary["outcomes"]["ok"] == sum(row["outcome"] == "ok" for row in rows) > 0
    assert summary["outcomes"]["connection_error"] > 0
    assert summary["outcomes"]["interrupted"] > 0


def test_a_server_that_is_killed_ends_a_run_of_several_client_processes(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    with fault_server("killed", every=8) as url:
        done = measure(url, folder, "--num-requests", "400", "--client-processes", "2")
    assert done.returncode == 1
    assert "nobody answers at http://127.0.0.1" in done.stderr
    run = folder / "openai-rate-40"
    assert sorted(path.name for path in run.glob("requests*.jsonl")) == ["requests-00.jsonl", "requests-01.jsonl"]
    summary = json.loads((run / "summary.json").read_text())
    assert "The engine died" in summary["validity"]["reasons"][0]
    assert summary["outcomes"]["ok"] > 0
    assert summary["outcomes"]["connection_error"] > 0
    assert summary["outcomes"]["interrupted"] > 100
    assert summary["num_prompts"] == 400


def test_outputs_of_any_length_are_good_where_the_run_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    with fault_server("too_few") as url:
        measure(url, folder, "--no-exact-output")
    run = folder / "openai-rate-40"
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads((run / "run.json").read_text())["spec"]["exact_output"] is False
    assert summary["completed"] == NUM_REQUESTS
    assert summary["total_output_tokens"] == NUM_REQUESTS * WANTED["output"] - NUM_REQUESTS // EVERY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_ended_at_any_moment_is_readable(tmp_path: Path, number: signal.Signals, seed: int) -> None:
    folder = tmp_path / "runs"
    run = folder / "openai-rate-100"
    with fault_server("healthy") as url:
        command = command_of(url, folder, "--rate", "100", "--num-requests", "300")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                deadline = time.monotonic() + 60
                while not (run / "requests.jsonl").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(random.Random(seed).uniform(0.05, 1.5))
                os.kill(process.pid, number)
                _, said = process.communicate(timeout=60)
            finally:
                # Popen waits for it at the end of the block, also for one that would not go.
                process.kill()
    assert json.loads((run / "run.json").read_text())["num_requests"] == 300
    text = (run / "requests.jsonl").read_text()
    complete = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if number is signal.SIGKILL:
        assert not (run / "summary.json").exists()
        assert all(row["outcome"] == "ok" for row in complete)
        return
    summary = json.loads((run / "summary.json").read_text())
    assert process.returncode == 4
    assert "Traceback" not in said
    assert len(complete) == 300
    assert summary["outcomes"]["ok"] + summary["outcomes"]["interrupted"] == 300
    assert "The run was interrupted" in summary["validity"]["reasons"][0]
