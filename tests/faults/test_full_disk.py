"""A run whose disk gets full: it ends by itself with what it measured, and says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = [
    *(sys.executable, "-m", "neobench", "run", "--engine", "null", "--workload", "synthetic:fixed:8,64"),
    *("--rate", "200", "--num-requests", "600", "--num-warmup", "0", "--telemetry-interval", "0"),
]
SHOW = [sys.executable, "-m", "neobench", "show"]


def in_shell(script: str, *words: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, "sh", "-c", script, "sh", *words], capture_output=True, text=True, check=False, timeout=120
    )


def check_kept(text: str, *, told: str, shown: str) -> None:
    """`text` is that of requests.jsonl, whose last line may be half written; `told` by the run, `shown` of it later."""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    assert 0 < len(rows) < 600
    assert all(row["outcome"] == "ok" and row["output_tokens"] == 64 for row in rows)
    assert f"{len(rows)} records are kept" in told, told
    assert "Traceback" not in told
    assert f"The run was cut short: {len(rows)} of 600 requests were recorded" in " ".join(shown.split())


def test_a_full_file_system_ends_the_run_and_its_rows_are_shown(tmp_path: Path) -> None:
    """On one of 128 KiB, mounted for this test alone."""
    mounting = ("unshare", "--map-root-user", "--mount")
    mount = f"mount -t tmpfs -o size=128k tmpfs {tmp_path}"
    try:
        if in_shell(mount, prefix=mounting).returncode != 0:
            pytest.skip("this machine lets nobody but root mount")
    except FileNotFoundError:
        pytest.skip("needs unshare")
    folder = tmp_path / "runs"
    script = (
        f'{mount}; folder=$1; shift; "$@" --output "$folder"; echo "exit status $?" >&2; echo ===; '
        f'cat "$folder"/null-rate-200/requests.jsonl; echo ===; {" ".join(SHOW)} "$folder/null-rate-200"'
    )
    done = in_shell(script, str(folder), *RUN, prefix=mounting)
    _, rows, shown = done.stdout.split("===\n")
    assert "exit status 1" in done.stderr
    assert "the disk is full: cannot write" in done.stderr
    check_kept(rows, told=done.stderr, shown=shown)


def test_a_file_that_may_not_grow_ends_the_run_and_its_rows_are_shown(tmp_path: Path) -> None:
    """Of quotas, file systems and `ulimit -f` the last can be had everywhere."""
    folder = tmp_path / "runs"
    run = folder / "null-rate-200"
    done = in_shell('ulimit -f 128; exec "$@"', *RUN, "--output", str(folder))
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    shown = subprocess.run([*SHOW, str(run)], capture_output=True, text=True, check=False, timeout=60)
    check_kept((run / "requests.jsonl").read_text(), told=done.stderr, shown=shown.stdout)
