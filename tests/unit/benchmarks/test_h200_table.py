"""Rows of table.json from raw runs: medians, baselines, spread, requirements, and missing runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.h200.table import Comparison, build_rows, format_table, holds, spread, write_table

RATE = "output_tokens_per_s"


def run(system: str, *, case: str = "3", reason: str | None = None, commit: str = "abc", **metrics: float) -> Any:
    return {
        "job": {"case": case, "system": system},
        "outcome": "failed" if reason else "ok",
        "reason": reason,
        "metrics": metrics,
        "provenance": {"commit": commit, "kind": "measured"},
    }


def only_row(records: list[Any], comparison: Comparison, *, judged: bool = True) -> dict[str, Any]:
    (row,) = build_rows(records, [comparison], judged=judged)
    return row


def rate(system: str, *baselines: str, required: str | None = None) -> Comparison:
    return Comparison("3", system, RATE, "tok/s", baselines, required=required)


@pytest.mark.parametrize(
    ("required", "number", "expected"),
    [(">= 0.90", 0.9, True), (">= 0.90", 0.8999, False), ("<= 1.25", 1.25, True), ("<= 1.25", 1.26, False)],
)
def test_a_requirement_holds_up_to_its_limit(required: str, number: float, expected: bool) -> None:
    assert holds(required, number) is expected


@pytest.mark.parametrize("required", ["0.9", "> 1", "== 1", ""])
def test_an_unknown_requirement_is_an_error(required: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        holds(required, 1.0)


def test_spread_is_the_range_over_the_median() -> None:
    assert spread([90.0, 100.0, 120.0]) == pytest.approx(0.3)
    assert spread([5.0]) is None
    assert spread([0.0, 0.0]) is None


def test_value_and_ratio_are_of_medians() -> None:
    records = [run("neo", **{RATE: value}) for value in (300.0, 330.0, 900.0)]
    records += [run("vllm", **{RATE: value}) for value in (190.0, 200.0, 240.0)]
    row = only_row(records, rate("neo", "vllm", required=">= 1.5"))
    assert (row["value"], row["baseline"], row["baseline_value"], row["runs"]) == (330.0, "vllm", 200.0, 3)
    assert row["ratio"] == pytest.approx(1.65)
    assert row["spread"] == pytest.approx(600 / 330)
    assert row["passed"] is True
    assert (row["commit"], row["provenance"], row["note"]) == ("abc", "measured", None)


def test_the_best_of_several_baselines_counts() -> None:
    records = [run("neo", **{RATE: 120.0}), run("gpu_only", **{RATE: 80.0}), run("chunked", **{RATE: 100.0})]
    row = only_row(records, rate("neo", "gpu_only", "chunked", required=">= 1.25"))
    assert (row["baseline"], row["ratio"], row["passed"]) == ("chunked", pytest.approx(1.2), False)


def test_the_best_of_some_is_not_taken_for_the_best_of_all() -> None:
    records = [run("neo", **{RATE: 120.0}), run("gpu_only", **{RATE: 80.0}), run("chunked", reason="exit status 1: no")]
    row = only_row(records, rate("neo", "gpu_only", "chunked", required=">= 1.25"))
    assert (row["ratio"], row["passed"], row["baseline_value"]) == (None, None, None)
    assert row["note"] == f"no {RATE} of chunked"


def test_failed_runs_are_told_and_not_counted() -> None:
    records = [run("neo", **{RATE: 100.0}), run("neo", reason="stopped after 5 s"), run("neo", **{RATE: 110.0})]
    row = only_row(records, rate("neo", "vllm"))
    assert (row["value"], row["runs"]) == (105.0, 2)
    assert row["note"] == f"1 of 3 runs failed: stopped after 5 s; no {RATE} of vllm"


def test_a_limit_of_the_same_run_is_compared_run_by_run() -> None:
    """Bandwidth swings between runs; the ratio of medians would mix one run's value with another's limit."""
    records = [
        run("neo", host_gbps=50.0, host_read_gbps=100.0),
        run("neo", host_gbps=120.0, host_read_gbps=150.0),
        run("neo", host_gbps=90.0, host_read_gbps=100.0),
    ]
    row = only_row(records, Comparison("3", "neo", "host_gbps", "GB/s", limit_metric="host_read_gbps"))
    assert (row["value"], row["baseline"], row["baseline_value"]) == (90.0, "host_read_gbps", 100.0)
    assert row["ratio"] == pytest.approx(0.8)


def test_without_a_baseline_the_value_is_judged() -> None:
    comparison = Comparison("3", "neo", "hidden_fraction", "", required=">= 0.85")
    assert only_row([run("neo", hidden_fraction=0.84)], comparison)["passed"] is False
    assert only_row([run("neo", hidden_fraction=0.86)], comparison)["passed"] is True
    missing = only_row([run("neo", **{RATE: 1.0})], comparison)
    assert (missing["passed"], missing["note"]) == (None, "no hidden_fraction")


def test_speed_is_judged_only_where_it_was_meant_to_hold_and_correctness_everywhere() -> None:
    slow, wrong = run("neo", hidden_fraction=0.1), run("neo", unexplained_differences=3.0)
    speed = Comparison("3", "neo", "hidden_fraction", "", required=">= 0.85")
    correctness = Comparison("3", "neo", "unexplained_differences", "", required="<= 0", at_any_scale=True)
    assert only_row([slow], speed, judged=False)["passed"] is None
    assert only_row([wrong], correctness, judged=False)["passed"] is False


def test_runs_of_another_case_or_commit_are_kept_apart_or_named() -> None:
    records = [run("neo", case="5", **{RATE: 1.0}), run("neo", **{RATE: 2.0}), run("neo", commit="def", **{RATE: 4.0})]
    row = only_row(records, rate("neo"))
    assert (row["value"], row["commit"]) == (3.0, "abc, def")


def test_table_is_replaced_in_one_piece_and_printed(tmp_path: Path) -> None:
    records = [run("neo", **{RATE: 90.0}), run("vllm", **{RATE: 100.0})]
    rows = build_rows(records, [rate("neo", "vllm", required=">= 0.95"), rate("other")], judged=True)
    for count in (1, 2):
        write_table(tmp_path / "table.json", {"rows": rows[:count]})
        assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == count
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
    lines = format_table(rows).splitlines()
    assert lines[1].split() == ["3", "neo", RATE, "90", "tok/s", "0.9", "x", "vllm", ">=", "0.95", "MISSED", "1"]
    assert lines[-1] == "3 other: no run of other"
