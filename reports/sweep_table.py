"""The one table of a sweep: a row for each point, medians over its repeats, on the screen and in Markdown.

"Done" is measured of all repeats; "Spread" is how far mean TTFT differs between them, as a share of its median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "-"
_FIGURES = {
    "Req/s": "request_throughput",
    "Tok/s": "output_throughput",
    "TTFT mean (ms)": "mean_ttft_ms",
    "TTFT p99 (ms)": "p99_ttft_ms",
    "TPOT (ms)": "mean_tpot_ms",
}


@dataclass
class SweepRow:
    """One point: its settings, and the summaries of its repeats that are done."""

    settings: Mapping[str, Any]
    repeats: int
    summaries: list[Mapping[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Why a repeat has no summary, a sentence each."""


def sweep_cells(rows: Sequence[SweepRow]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells. Beside engine and rate only settings that differ between points have a column."""
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    varying = [name for name in names if len({str(row.settings[name]) for row in rows if name in row.settings}) > 1]
    shown = list(dict.fromkeys([*(name for name in ("engine", "rate") if name in names), *varying]))
    headers = [*shown, "Done", *_FIGURES, "Spread", "Runs"]
    cells = [
        [
            *(str(row.settings.get(name, ABSENT)) for name in shown),
            f"{len(row.summaries)}/{row.repeats}",
            *(_figure(row.summaries, key) for key in _FIGURES.values()),
            _spread(row.summaries),
            _state(row),
        ]
        for row in rows
    ]
    return headers, cells


def sweep_table(rows: Sequence[SweepRow]) -> Table:
    from rich.table import Table
    from rich.text import Text

    headers, cells = sweep_cells(rows)
    notes = sweep_notes(rows)
    table = Table(caption=Text("\n".join(notes)) if notes else None, caption_justify="left", padding=0)
    for header in headers:
        table.add_column(header, justify="left" if header in ("engine", "workload", "Runs") else "right")
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def sweep_markdown(rows: Sequence[SweepRow]) -> str:
    headers, cells = sweep_cells(rows)
    lines = [headers, ["---"] * len(headers), *([cell.replace("|", "\\|") for cell in row] for row in cells)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *sweep_notes(rows)]) + "\n"


def sweep_notes(rows: Sequence[SweepRow]) -> list[str]:
    """Reasons of failed and of invalid runs, each once."""
    failed = [f"{_title(row)}: FAILED. {reason}" for row in rows for reason in row.failures]
    invalid = [
        f"{_title(row)}: INVALID. {' '.join(summary['validity']['reasons'])}"
        for row in rows
        for summary in row.summaries
        if not summary["validity"]["valid"]
    ]
    return list(dict.fromkeys(failed + invalid))


def _title(row: SweepRow) -> str:
    return f"{row.settings.get('engine', 'neo')} at {row.settings.get('rate', ABSENT)} req/s"


def _figure(summaries: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [summary[key] for summary in summaries if summary[key] is not None]
    return _rounded(median(values)) if values else ABSENT


def _spread(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Of mean TTFT over the repeats: (highest - lowest) / median."""
    values = [summary["mean_ttft_ms"] for summary in summaries if summary["mean_ttft_ms"]]
    return f"{(max(values) - min(values)) / median(values):.0%}" if len(values) > 1 else ABSENT


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _state(row: SweepRow) -> str:
    invalid = sum(not summary["validity"]["valid"] for summary in row.summaries)
    missing = row.repeats - len(row.summaries) - len(row.failures)
    states = {"FAILED": len(row.failures), "INVALID": invalid, "not measured": missing}
    return ", ".join(f"{count} {state}" for state, count in states.items() if count) or "valid"
