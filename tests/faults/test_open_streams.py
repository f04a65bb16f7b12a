"""As many open streams as files may be open, and what a run says when more are wanted than that."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.loadgen.open_streams import most_at_once
from neobench.engines.process import ServerProcess, free_port

ROOT = Path(__file__).parents[2]
STREAMS = 10_000
SERVER_RESERVE = 256
MAX_FILES = 200
FIT = 100


def test_spans_are_open_up_to_their_end() -> None:
    assert most_at_once([(0, 10), (10, 20), (5, 12)]) == 2
    assert most_at_once([(0, 4), (1, 3), (2, 9), (5, 6)]) == 3
    assert most_at_once([]) == 0


def test_ten_thousand_streams_are_open_at_once_and_none_is_lost() -> None:
    """Fewer where this machine's hard limit is lower; the command begins with a soft limit of 256."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    streams = STREAMS if hard == resource.RLIM_INFINITY else min(STREAMS, hard - SERVER_RESERVE)
    # The last stream is opened after 5 s, on a busy machine after 12.
    flags = ["--streams", str(streams), "--rate", "2000", "--hold-s", "12"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loadgen.open_streams", *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["outcomes"] == {"ok": streams}
    assert figures["open_at_once_by_server"] == figures["open_at_once_by_client"] == streams


@asynccontextmanager
async def holding_server(log_path: Path) -> AsyncIterator[str]:
    """Its streams stay open for 4 s. It has this process's limits, not those of the run."""
    port = free_port()
    delays = ["--first-token-ms", "50", "--inter-token-ms", "4000"]
    command = [sys.executable, "-m", "neobench.engines.null_server", str(port), *delays]
    server = ServerProcess(command, port=port, log_path=log_path)
    await server.start(timeout_s=60, progress=lambda _: None)
    try:
        yield server.url
    finally:
        await server.stop()


def run_with_few_files(url: str, folder: Path, *load: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "neobench", "run", "--engine", "openai", "--base-url", url, "--num-warmup", "0"]
    limited = ["sh", "-c", f'ulimit -n {MAX_FILES}; exec "$@"', "sh", *run, "--workload", "synthetic:fixed:8,2"]
    return subprocess.run(
        [*limited, "--output", str(folder), *load], capture_output=True, text=True, check=False, timeout=120
    )


async def test_a_run_without_files_for_its_streams_keeps_what_it_measured_and_says_the_fix(tmp_path: Path) -> None:
    async with holding_server(tmp_path / "server.log") as url:
        done = run_with_few_files(url, tmp_path / "runs", "--rate", "100", "--num-requests", "150")
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    run = tmp_path / "runs" / "openai-rate-100"
    outcomes = json.loads((run / "summary.json").read_text())["outcomes"]
    # On a machine that is busy enough the last requests come when the first have ended.
    assert outcomes["ok"] >= FIT
    assert outcomes["connection_error"] == 150 - outcomes["ok"] > 0
    assert f"{FIT} are open, and the limit on open files leaves room for {FIT} (raise it: `ulimit -n`" in done.stderr
    assert f"keep --concurrency at {FIT} or less" in done.stderr


async def test_a_concurrency_that_cannot_be_kept_is_refused_before_the_run(tmp_path: Path) -> None:
    load = ["--arrival", "closed", "--concurrency", "1000", "--num-requests", "2000"]
    async with holding_server(tmp_path / "server.log") as url:
        done = run_with_few_files(url, tmp_path / "runs", *load)
    assert done.returncode == 1
    assert "1000 requests in flight need 1128 open files, but a process may have 200" in done.stderr
    assert "ulimit -Hn 1128" in done.stderr
    assert f"--concurrency at {FIT} or less" in done.stderr
    assert not list((tmp_path / "runs").glob("*/requests.jsonl"))
