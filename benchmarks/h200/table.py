"""From raw runs to the rows of table.json: medians, ratios, spread, and whether what was required holds.

value    median over the runs that succeeded
spread   (largest - smallest) / median of them; None for a single run
ratio    value / the baseline's: another system's median of the same metric (of several systems, the largest),
         or, for a limit that the same run measured, the median over runs of value / limit
passed   whether `required` holds for the ratio (for the value, where there is no baseline); None where there is
         nothing to judge by: no requirement, no runs, or a scale or device at which it was not meant to hold
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neobench.results.store import encode_pretty

SCHEMA = "neobench/h200-table/v1"
_HEADINGS = ("case", "system", "metric", "value", "of baseline", "required", "", "runs", "spread")

Record = Mapping[str, Any]
"""A run file: {"job": {"case", "system", ...}, "outcome", "reason", "metrics", ...}; see `run.py`."""


@dataclass(frozen=True)
class Comparison:
    """A row of the table. `required` is ">= number" or "<= number"."""

    case: str
    system: str
    metric: str
    unit: str
    baselines: tuple[str, ...] = ()
    """Systems of the same case, all of which must have run: the largest is the baseline."""
    limit_metric: str | None = None
    """The baseline is this metric of the same run."""
    required: str | None = None
    at_any_scale: bool = False
    """Correctness is required everywhere, speed at full scale on the GPU."""


def holds(required: str, number: float) -> bool:
    """Raises ValueError for what is not ">= number" or "<= number"."""
    sense, _, limit = required.partition(" ")
    if sense not in (">=", "<="):
        raise ValueError(f"{required!r} is neither '>= number' nor '<= number'")
    return number >= float(limit) if sense == ">=" else number <= float(limit)


def spread(values: Sequence[float]) -> float | None:
    middle = statistics.median(values)
    return (max(values) - min(values)) / abs(middle) if len(values) > 1 and middle else None


def build_rows(records: Sequence[Record], comparisons: Iterable[Comparison], *, judged: bool) -> list[dict[str, Any]]:
    """A row for each comparison; `judged` is False where speed requirements were not meant to hold."""
    return [_row(records, comparison, judged=judged or comparison.at_any_scale) for comparison in comparisons]


def _row(records: Sequence[Record], comparison: Comparison, *, judged: bool) -> dict[str, Any]:
    runs = _succeeded(records, comparison.case, comparison.system, comparison.metric)
    values = [run["metrics"][comparison.metric] for run in runs]
    value = statistics.median(values) if values else None
    baseline, baseline_value, ratio = _baseline(records, comparison, runs, value)
    number = ratio if comparison.baselines or comparison.limit_metric else value
    passed = None
    if judged and comparison.required is not None and number is not None:
        passed = holds(comparison.required, number)
    return {
        "case": comparison.case,
        "system": comparison.system,
        "metric": comparison.metric,
        "value": value,
        "unit": comparison.unit,
        "baseline": baseline,
        "baseline_value": baseline_value,
        "ratio": ratio,
        "required": comparison.required,
        "passed": passed,
        "runs": len(runs),
        "spread": spread(values) if values else None,
        "commit": ", ".join(sorted({str(run["provenance"]["commit"]) for run in runs})) or None,
        "provenance": ", ".join(sorted({run["provenance"]["kind"] for run in runs})) or None,
        "note": _note(records, comparison),
    }


def _baseline(
    records: Sequence[Record], comparison: Comparison, runs: Sequence[Record], value: float | None
) -> tuple[str | None, float | None, float | None]:
    """Name, value and ratio of the baseline, as far as there are runs of it."""
    if comparison.limit_metric is not None:
        limits = [(run["metrics"][comparison.metric], run["metrics"].get(comparison.limit_metric)) for run in runs]
        pairs = [(number, limit) for number, limit in limits if limit]
        if not pairs:
            return comparison.limit_metric, None, None
        ratio = statistics.median(number / limit for number, limit in pairs)
        return comparison.limit_metric, statistics.median(limit for _, limit in pairs), ratio
    if not comparison.baselines:
        return None, None, None
    medians = {}
    for system in comparison.baselines:
        peers = _succeeded(records, comparison.case, system, comparison.metric)
        if not peers:
            # The best of some would flatter: it might have been the one that is missing.
            return " or ".join(comparison.baselines), None, None
        medians[system] = statistics.median(peer["metrics"][comparison.metric] for peer in peers)
    best = max(medians, key=lambda system: medians[system])
    ratio = value / medians[best] if value is not None and medians[best] else None
    return best, medians[best], ratio


def _succeeded(records: Sequence[Record], case: str, system: str, metric: str) -> list[Record]:
    return [record for record in _of(records, case, system) if metric in record["metrics"]]


def _of(records: Sequence[Record], case: str, system: str) -> list[Record]:
    return [record for record in records if (record["job"]["case"], record["job"]["system"]) == (case, system)]


def _note(records: Sequence[Record], comparison: Comparison) -> str | None:
    """Why a row lacks something, as a sentence for each system that it needs."""
    notes = []
    runs = _of(records, comparison.case, comparison.system)
    failed = [run for run in runs if run["outcome"] != "ok"]
    if not runs:
        notes.append(f"no run of {comparison.system}")
    elif failed:
        notes.append(f"{len(failed)} of {len(runs)} runs failed: {failed[-1]['reason']}")
    elif not _succeeded(records, comparison.case, comparison.system, comparison.metric):
        notes.append(f"no {comparison.metric}")
    for system in comparison.baselines:
        if not _succeeded(records, comparison.case, system, comparison.metric):
            notes.append(f"no {comparison.metric} of {system}")
    return "; ".join(notes) or None


def write_table(path: Path, document: Mapping[str, Any]) -> None:
    """Atomically: whoever reads it sees the rows before this call or all of them after it."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(encode_pretty(document))
    unfinished.replace(path)


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row, and below them the notes."""
    lines: list[tuple[str, ...]] = [
        ("case", "system", "metric", "value", "of baseline", "required", "", "runs", "spread")
    ]
    lines += [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = dict.fromkeys(f"{row['case']} {row['system']}: {row['note']}" for row in rows if row["note"])
    return "\n".join([*text, *notes])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = "" if row["baseline"] is None else f"{_number(row['ratio'])} x {row['baseline']}"
    verdict = {True: "ok", False: "MISSED", None: ""}[row["passed"]]
    value = f"{_number(row['value'])} {row['unit']}".rstrip()
    part = "" if row["spread"] is None else f"{row['spread']:.1%}"
    names = (row["case"], row["system"], row["metric"])
    return (*names, value, ratio, row["required"] or "", verdict, str(row["runs"]), part)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
