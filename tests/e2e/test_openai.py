"""`neobench run --engine openai` against a server of another process: neobench's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    command = [sys.executable, "-m", "neobench", "serve", "--model", "tiny", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        url = next(line.split()[-1] for line in process.stdout if line.startswith("serving"))
        yield url
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def run(url: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    common = ["--rate", "10", "--num-requests", "8", "--workload", "synthetic:30,8", "--output", str(folder)]
    command = [sys.executable, "-m", "neobench", "run", "--engine", "openai", "--base-url", url, *common, *options]
    environment = {**os.environ, "OPENAI_API_KEY": "sk-never-stored"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_server_that_runs_already_is_measured_and_no_secret_is_stored(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    secrets = ["--header", "X-Secret=hush-hush", "--header=X-Other=hush-hush"]
    done = run(f"{server}/v1", folder, "--vocab-size", "4096", *secrets)
    run_folder = folder / "openai-rate-10"
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["completed"] == 8, done.stderr
    rows = [json.loads(line) for line in (run_folder / "requests.jsonl").read_text().splitlines()]
    assert all(row["reported_prompt_tokens"] == row["prompt_tokens"] for row in rows)
    stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for secret in (b"sk-never-stored", b"hush-hush"):
        assert secret not in stored
        assert secret.decode() not in done.stdout + done.stderr
    assert b"X-Secret" in stored


def test_when_all_fails_the_reason_is_shown(server: str, tmp_path: Path) -> None:
    done = run(server, tmp_path / "runs")
    assert done.returncode == 4
    assert "Note: prompts are token ids below 32000" in done.stderr
    assert "x http_error: the prompt has token ids outside the vocabulary" in done.stderr
    assert "Nothing completed" in done.stdout
