"""`neobench run` against the real engine: what it leaves, and what it survives."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from neobench.results.store import load_run

Start = Callable[..., "subprocess.Popen[str]"]
pytestmark = pytest.mark.slow


def wait_for_rows(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    rows = run / "requests.jsonl"
    while not rows.exists() or rows.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no request finished"
        time.sleep(0.05)


def server_of(process: subprocess.Popen[str]) -> psutil.Process:
    (child,) = psutil.Process(process.pid).children()
    return child


def assert_gone(process: psutil.Process) -> None:
    psutil.wait_procs([process], timeout=20)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_both_engines_at_two_rates(start_neobench: Start, small_run: list[str], tmp_path: Path) -> None:
    process = start_neobench(
        *small_run, "--engine", "neo,gpu_only", "--rate", "30,90", "--num-requests", "40", "--json"
    )
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode in (0, 4), stderr
    summaries = json.loads(stdout)
    assert [(s["backend"], s["request_rate"]) for s in summaries] == [
        ("neo", 30.0),
        ("neo", 90.0),
        ("gpu_only", 30.0),
        ("gpu_only", 90.0),
    ]
    for summary in summaries:
        assert (summary["completed"], summary["failed"]) == (40, 0)
        stats = summary["engine_stats"]
        assert stats["finished_requests"] == 40, "warm-up is not counted"
        decoded = stats["gpu_decode_tokens"] + stats["cpu_decode_tokens"]
        prefilled = stats["prefills_to_device"] + stats["prefills_to_host"]
        assert decoded + prefilled == summary["total_output_tokens"], "a prefill yields one token"
        assert 0 < stats["prediction_error_median"] <= stats["prediction_error_p95"]
        assert stats["predicted_iteration_ns"] > 0
        assert stats["measured_iteration_ns"] > 0
    neo, gpu_only = summaries[1]["engine_stats"], summaries[3]["engine_stats"]
    assert neo["cpu_decode_tokens"] > 0
    assert neo["iterations_asymmetric"] > 0
    assert gpu_only["cpu_decode_tokens"] == gpu_only["iterations_asymmetric"] == 0
    folder = tmp_path / "runs"
    assert {"load-latency.png", "load-latency.pdf", "load-latency.svg", "neo.log"} <= {p.name for p in folder.iterdir()}
    run = load_run(folder / "neo-rate-90")
    assert run.complete
    assert run.info.engine["device"] == "emulated in RAM"


def test_baselines_with_and_without_the_host(start_neobench: Start, small_run: list[str]) -> None:
    engines = "chunked_prefill,full_offload"
    process = start_neobench(
        *small_run, "--engine", engines, "--rate", "90", "--num-requests", "30", "--max-batch-tokens", "40", "--json"
    )
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode in (0, 4), stderr
    chunked, offload = (summary["engine_stats"] for summary in json.loads(stdout))
    assert chunked["finished_requests"] == offload["finished_requests"] == 30
    assert chunked["prefill_chunks"] > 45, "prompts of 60 tokens, 40 an iteration"
    assert chunked["cpu_decode_tokens"] == offload["gpu_decode_tokens"] == 0
    assert offload["iterations_asymmetric"] > 0
    assert offload["correction_linear"] != 1.0


def test_ctrl_c_keeps_what_was_measured(start_neobench: Start, small_run: list[str], tmp_path: Path) -> None:
    process = start_neobench(*small_run, "--engine", "neo", "--rate", "8", "--num-requests", "500")
    folder = tmp_path / "runs" / "neo-rate-8"
    wait_for_rows(folder, 6, process)
    server = server_of(process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 4, stderr
    assert "INVALID" in stdout
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["completed"] >= 4
    assert summary["outcomes"]["interrupted"] > 0
    assert summary["completed"] + summary["failed"] == 500, "every request has its record"
    assert not summary["validity"]["valid"]
    assert_gone(server)


def test_ctrl_c_while_the_engine_starts(start_neobench: Start, small_run: list[str], tmp_path: Path) -> None:
    process = start_neobench(*small_run, "--engine", "neo", "--rate", "8")
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs" / "neo.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 4


def test_a_killed_run_leaves_a_readable_folder_and_no_server(
    start_neobench: Start, small_run: list[str], tmp_path: Path
) -> None:
    process = start_neobench(*small_run, "--engine", "gpu_only", "--rate", "8", "--num-requests", "500")
    folder = tmp_path / "runs" / "gpu_only-rate-8"
    wait_for_rows(folder, 6, process)
    server = server_of(process)
    process.kill()
    process.communicate(timeout=20)
    assert_gone(server)
    run = load_run(folder)
    assert not run.complete
    assert run.summary["completed"] >= 4
    assert "cut short" in run.summary["validity"]["reasons"][0]


def test_a_server_that_dies_is_reported_with_the_end_of_its_log(
    start_neobench: Start, small_run: list[str], tmp_path: Path
) -> None:
    process = start_neobench(*small_run, "--engine", "gpu_only", "--rate", "8", "--num-requests", "500")
    folder = tmp_path / "runs" / "gpu_only-rate-8"
    wait_for_rows(folder, 6, process)
    server_of(process).kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "killed by SIGKILL" in stderr
    assert "serving tiny" in stderr, "the last lines of the log"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["completed"] >= 4
    assert any("died" in reason for reason in summary["validity"]["reasons"])
