"""Real vLLM through the command line; NEOBENCH_VLLM_PYTHON names the Python of an environment that has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

PYTHON = os.environ.get("NEOBENCH_VLLM_PYTHON", "")
NUM_REQUESTS = 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="NEOBENCH_VLLM_PYTHON is not set (tools/install_vllm_cpu.sh)"),
]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    common = ["--engine-python", PYTHON, "--workload", "synthetic:60,12", "--device-blocks", "64", "--rate", "4"]
    command = [sys.executable, "-m", "neobench", "run", *common, "--num-requests", str(NUM_REQUESTS)]
    return subprocess.run([*command, "--output", str(folder), *options], capture_output=True, text=True, check=False)


def document(run_folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_folder / name).read_text())
    return found


def test_vllm_and_our_engine_serve_the_same_model_and_prompts(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = tmp_path / "runs"
    done = run(folder, "--engine", "vllm-neo-paper:128,chunked_prefill")
    # A busy machine makes runs invalid (4); what they hold must be right all the same.
    assert done.returncode in (0, 4), done.stderr
    theirs, ours = folder / "vllm-neo-paper-128-rate-4", folder / "chunked_prefill-rate-4"
    for path in (theirs, ours):
        summary = document(path, "summary.json")
        assert (summary["completed"], summary["failed"]) == (NUM_REQUESTS, 0), done.stderr
    rows = {
        path: [json.loads(line) for line in (path / "requests.jsonl").read_text().splitlines()]
        for path in (theirs, ours)
    }
    for mine, other in zip(*(sorted(found, key=lambda row: row["index"]) for found in rows.values()), strict=True):
        assert mine["prompt_tokens"] == other["prompt_tokens"] == mine["reported_prompt_tokens"]
        assert mine["output_tokens"] == other["output_tokens"]
    engine, other_engine = document(theirs, "run.json")["engine"], document(ours, "run.json")["engine"]
    assert engine["device_kv_tokens"] == 64 * 16
    assert (engine["dtype"], engine["vocab_size"]) == (other_engine["dtype"], other_engine["vocab_size"])
    assert "--enforce-eager" in engine["handicaps"]
    assert "vllm-neo-paper:128 is slowed on purpose by --enforce-eager" in (folder / "table.md").read_text()
    counted = document(theirs, "summary.json")["engine_stats"]
    measured = [row for row in rows[theirs] if not row["warmup"]]
    assert counted["generated_tokens"] == sum(row["output_tokens"] for row in measured)
    assert counted["prefilled_prompt_tokens"] == sum(row["prompt_tokens"] for row in measured)
    assert counted["prefix_cache_hit_tokens"] == 0
    samples = [json.loads(line) for line in (theirs / "telemetry.jsonl").read_text().splitlines()]
    assert any("device_kv_used_fraction" in sample for sample in samples)
    assert any(sample.get("engine_cpu_percent", 0) > 0 for sample in samples)
    assert (folder / "load-latency.png").stat().st_size > 0
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(folder) in str(process.info["cmdline"])]


def test_cached_prompts_are_told_to_every_client_process(tmp_path: Path) -> None:
    folder, prefix_tokens, groups = tmp_path / "runs", 96, 2
    prefixes = ["--prefix-groups", str(groups), "--prefix-tokens", str(prefix_tokens), "--num-warmup", "4"]
    done = run(
        folder,
        *("--engine", "vllm", "--prefix-caching", "--vllm-args=--enforce-eager", "--client-processes", "2"),
        *prefixes,
    )
    assert done.returncode in (0, 4), done.stderr
    path = folder / "vllm-rate-4"
    assert document(path, "summary.json")["completed"] == NUM_REQUESTS, done.stderr
    rows = [json.loads(line) for file in path.glob("requests-*.jsonl") for line in file.read_text().splitlines()]
    assert {row["client"] for row in rows} == {0, 1}
    cached = [row["cached_tokens"] for row in rows if not row["warmup"]]
    assert set(cached) <= {0, prefix_tokens}
    assert cached.count(prefix_tokens) >= NUM_REQUESTS - groups
    assert document(path, "summary.json")["engine_stats"]["prefix_cache_hit_tokens"] == sum(cached)


def test_a_flag_that_this_release_does_not_know_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "runs", "--engine", "vllm", "--vllm-args", "--no-such-flag 3")
    assert done.returncode == 1
    assert "unrecognized arguments: --no-such-flag" in done.stderr
    assert "leave it out of --vllm-args" in done.stderr


def test_a_prefix_cache_finds_the_turn_before_and_no_more(tmp_path: Path) -> None:
    # Room for all of it: nothing is evicted.
    options = ["--engine", "vllm", "--prefix-caching", "--device-blocks", "200", "--turns", "3", "--think-time", "0.1"]
    done = run(tmp_path / "runs", *options, "--workload", "synthetic:100,12", "--num-warmup", "1")
    assert done.returncode in (0, 4), done.stderr
    folder = tmp_path / "runs" / "vllm-rate-4"
    summary = document(folder, "summary.json")
    assert (summary["completed"], summary["prefix_cache"]["unasked_cached_tokens"]) == (NUM_REQUESTS, 0)
    block_tokens = document(folder, "run.json")["engine"]["block_size"]
    rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    turns = {(row["session"], row["turn"]): row for row in rows if not row["warmup"]}
    for (session, turn), row in turns.items():
        before = turns[session, turn - 1]["prompt_tokens"] if turn else 0
        # Whole blocks of the prompt before, whose last token an engine may have to compute again.
        assert before - 2 * block_tokens < row["cached_tokens"] <= before, row
