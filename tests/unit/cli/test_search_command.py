"""`neobench search` on the engine that answers at once, end to end; the answer in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from neobench.cli import main
from neobench.cli.search import answer
from neobench.harness.search import RateVerdicts, SearchResult
from neobench.harness.slo import parse_slos


def search(folder: Path, *arguments: str) -> Result:
    common = ["--engine", "null", "--workload", "synthetic:8,4", "--num-requests", "40", "--output", str(folder)]
    return CliRunner().invoke(main, ["search", *common, *arguments])


def test_the_answer_is_kept_and_the_same_command_measures_nothing_twice(tmp_path: Path) -> None:
    # Nobody starts to answer within 100 ns, so the search goes down and every measurement ends at its first requests.
    arguments = ["--slo", "p99_ttft<0.0001ms", "--start-rate", "200", "--min-rate", "100", "--repeats", "2"]
    first = search(tmp_path, *arguments, "--json")
    document = json.loads(first.stdout)
    if document["status"] == "client_limit":
        pytest.skip("this machine is too busy for 200 requests/s")
    assert first.exit_code == 1
    assert document["status"] == "below_min"
    assert (document["high"]["rate"], document["high"]["measured"]) == (100.0, 2)
    assert {point["basis"] for point in document["points"]} == {"certain"}
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "points").iterdir()}
    assert search(tmp_path, *arguments).exit_code == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "points").iterdir()} == runs
    assert {"search.json", "search.png", "search.pdf", "search.svg"} <= {p.name for p in (tmp_path / "null").iterdir()}


def test_a_client_that_lags_is_never_taken_for_a_limit_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neobench.results.validity.LAG_LIMIT_MS", -1.0)
    monkeypatch.setattr("neobench.results.validity.LAG_LIMIT_SHARE_OF_TTFT", 0.0)
    done = search(tmp_path, "--slo", "p99_ttft<5s", "--start-rate", "200")
    assert done.exit_code == 4, done.output
    assert "the client or its machine, not the engine, was the limit" in done.output
    document = json.loads((tmp_path / "null" / "search.json").read_text())
    assert (document["status"], document["high"]) == ("client_limit", None)
    assert len(list((tmp_path / "points").iterdir())) == 2, "tried twice"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what has to be met"),
        (["--slo", "p99_tft<2s"], "p99_ttft"),
        (["--slo", "p99_ttft<2s", "--start-rate", "4", "--max-rate", "2"], "must ascend"),
        (["--slo", "p99_ttft<2s", "--engine", "nul"], "null"),
        (["--slo", "request_goodput>=95%"], "e.g. --goodput ttft:500"),
        (["--slo", "p99_ttft<2s", "--percentiles", "90"], "--percentiles"),
    ],
)
def test_wrong_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = search(tmp_path / "none", *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "none").exists()


def test_a_busy_machine_is_never_taken_for_a_limit_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neobench.results.machine_validity.MAX_OTHER_CPU_PERCENT", -1.0)
    monkeypatch.setattr("neobench.results.machine_validity.WARN_OTHER_CPU_PERCENT", -1.0)
    done = search(tmp_path, "--slo", "p99_ttft<5s", "--start-rate", "200", "--telemetry-interval", "0.05")
    assert done.exit_code == 4, done.output
    assert "was the limit: at 200 req/s: The" in done.output
    document = json.loads((tmp_path / "null" / "search.json").read_text())
    assert (document["status"], document["high"]) == ("client_limit", None)


def test_a_run_that_is_not_valid_does_not_meet_and_is_not_said_to_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neobench.results.validity.STEADY_START_FRACTION", 1.0)
    arguments = ("--slo", "mean_ttft<5s", "--start-rate", "200", "--min-rate", "200", "--repeats", "1")
    done = search(tmp_path, *arguments)
    document = json.loads((tmp_path / "null" / "search.json").read_text())
    if document["status"] == "client_limit":
        pytest.skip("this machine is too busy for 200 requests/s")
    assert document["points"][0]["basis"] == "not valid"
    assert "At 200 req/s no objective was missed, but the run is not valid: The steady window" in done.output


def test_dry_run(tmp_path: Path) -> None:
    done = search(tmp_path / "none", "--slo", "p90_ttft<2s", "--dry-run")
    assert done.exit_code == 0
    assert "4 of 40 requests may be over" in done.output
    assert not (tmp_path / "none").exists()


def test_the_answer_in_words() -> None:
    low, high = RateVerdicts(rate=7.5, met=3, measured=3), RateVerdicts(rate=8, met=0, measured=3)
    between = RateVerdicts(rate=7.7, met=1, measured=2)
    result = SearchResult(
        status="found", reason="", low=low, high=high, error_bound=0.5, rates=[low, between, high], contradictions=["x"]
    )
    assert answer(result, parse_slos(["p99_ttft<2s"])) == [
        "p99_ttft<2s: meets at 7.5 req/s in 3 of 3, fails at 8 req/s in 3 of 3.",
        "In between it depends: 7.7 req/s met in 1 of 2.",
        "Not monotone, so no highest rate is sure: x.",
    ]
