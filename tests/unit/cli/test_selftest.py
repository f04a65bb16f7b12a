"""The command against its real server. What it finds depends on the machine: held is what is true on any."""

import json
import os
import re
import subprocess
import sys

from click.testing import CliRunner

from neobench.cli import main


def selftest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "neobench", "selftest", *arguments]
    narrow = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=narrow)


def test_one_point_is_printed_and_judged():
    done = selftest("--rate", "100", "--seconds", "2", "--tokens", "8", "--json")
    point = json.loads(done.stdout)
    assert set(point) == {
        *("offered", "achieved", "achieved_ratio", "lag_p50_ms", "lag_p99_ms"),
        *("tokens_per_s", "cpu_percent", "valid", "reasons"),
    }
    assert 60 < point["offered"] < 140
    assert point["cpu_percent"] > 0
    assert done.returncode == (0 if point["valid"] else 4)
    assert point["valid"] == (not point["reasons"])


def test_a_ceiling_is_not_judged_by_its_lag_and_memory_is_told():
    done = selftest("--seconds", "0.5", "--tokens", "2")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    ceilings = [row for row in rows if row.startswith("│64 in flight")]
    assert len(ceilings) == 2
    assert all("ceiling" in row and "INVALID" not in row for row in ceilings)
    assert not any(row.startswith("64 in flight:") for row in rows)
    assert "…" not in done.stdout
    assert max(map(len, rows)) <= 80
    said = " ".join(done.stdout.split())
    assert re.search(r"Memory: [\d.]+ kB a request and its record .* a peak of [\d,]+ MB for [\d,]+ requests", said)
    assert "bounds, not loads to measure at" in said


def test_a_closed_loop_of_two_processes():
    done = selftest("--concurrency", "4", "--seconds", "1", "--tokens", "2", "--client-processes", "2", "--json")
    point = json.loads(done.stdout)
    assert point["tokens_per_s"] > 100
    assert "Traceback" not in done.stderr


def test_a_concurrency_that_cannot_be_shared_is_a_usage_error():
    result = CliRunner().invoke(main, ["selftest", "--concurrency", "1", "--client-processes", "2"])
    assert result.exit_code == 2
    assert "cannot share a concurrency of 1" in result.output
