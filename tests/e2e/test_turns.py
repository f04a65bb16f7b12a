"""neobench ab and bisect-noise with real processes. The engine answers at once, so figures mean nothing here."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from neobench.cli import main

COMMON = [
    "--workload",
    "synthetic:8,4",
    "--rate",
    "200",
    "--num-requests",
    "10",
    "--num-warmup",
    "0",
    "--telemetry-interval",
    "0",
]
REPOSITORY = Path(__file__).resolve().parents[2]


def run_infos(folder, side):
    paths = sorted((folder / side).glob("turn-*/run/*/run.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.slow
def test_sides_take_turns_with_the_same_requests_and_go_on_where_they_were(tmp_path):
    output = tmp_path / "ab"
    command = ["ab", "--a", "--engine null", "--b", "--engine null --timeout 60", *COMMON, "--output", str(output)]
    result = CliRunner().invoke(main, [*command, "--turns", "2", "--json"])
    # A busy machine may make a run invalid, and noise of microseconds may be called a change.
    assert result.exit_code in (0, 3, 4), result.output
    a, b = run_infos(output, "a"), run_infos(output, "b")
    assert [info["spec"]["seed"] for info in a] == [info["spec"]["seed"] for info in b] == [0, 1]
    started = {
        (side, turn): (output / side / f"turn-{turn}/done").stat().st_mtime_ns for side in "ab" for turn in (0, 1)
    }
    assert sorted(started, key=lambda key: started[key]) == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    document = json.loads(result.stdout)
    assert [metric["base_runs"] for metric in document["points"][0]["metrics"]] == [2] * 4
    again = CliRunner().invoke(main, [*command, "--turns", "3"])
    assert again.exit_code in (0, 3, 4), again.output
    assert "Turn 1" not in again.output
    assert len(run_infos(output, "a")) == 3
    other = CliRunner().invoke(main, [*command, "--turns", "3", "--num-requests", "20"])
    assert other.exit_code == 2
    assert "turns of other options" in other.output


@pytest.mark.slow
def test_equal_runs_give_thresholds(tmp_path):
    result = CliRunner().invoke(
        main, ["bisect-noise", "--engine", "null", *COMMON, "--turns", "3", "--output", str(tmp_path / "n"), "--json"]
    )
    if "tell nothing of the noise" in result.output:
        pytest.skip("the machine is too busy for valid runs")
    assert result.exit_code == 0, result.output
    noise = {one["metric"]: one for one in json.loads(result.stdout)["metrics"]}
    throughput = noise["output_throughput"]
    assert throughput["paired_deviation"] < throughput["deviation"]
    assert throughput["threshold_apart"]["10"] < throughput["threshold_apart"]["3"]


@pytest.mark.slow
@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a git checkout")
def test_a_revision_runs_its_own_code(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    output = tmp_path / "ab"
    command = ["ab", "--a-rev", "HEAD", "--engine", "null", *COMMON, "--turns", "2", "--output", str(output)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code in (0, 3, 4), result.output
    sources = {info["fingerprint"]["source"]["commit"] for info in run_infos(output, "a")}
    assert len(sources) == 1
    assert all(info["fingerprint"]["source"]["dirty"] is False for info in run_infos(output, "a"))


@pytest.mark.slow
def test_interrupted_turns_go_on(tmp_path):
    output = tmp_path / "ab"
    sides = ["--a", "--engine null", "--b", "--engine null --timeout 60"]
    command = [sys.executable, "-m", "neobench", "ab", *sides, *COMMON, "--turns", "2", "--output", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    said = ""
    while "Turn 1 of 2, b" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    os.killpg(process.pid, signal.SIGINT)
    said += process.communicate(timeout=60)[1]
    assert "Traceback" not in said, said
    assert process.returncode in (1, 4), said
    assert (output / "a/turn-0/done").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Turn 1 of 2, a" not in done.stderr
    assert len(sorted(output.glob("?/turn-*/done"))) == 4
