"""Runs as a table, on the screen and in Markdown: the same cells in both.

"Done" is completed of all requests; "Tok/s" counts output tokens; "On host" is the share of decode tokens whose
attention ran on the host CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from neobench.reports.run import ReportRun

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "-"
UNSUPPORTED_MARK = "†"
CONVERTED_MARK = "‡"
INVALID = "INVALID"


class _Column(NamedTuple):
    header: str
    cell: Callable[[ReportRun], str]
    is_number: bool = True


def runs_table(runs: Sequence[ReportRun]) -> Table:
    """For `rich.print`: one row a run, the reasons of invalid runs and other notes below."""
    from rich.table import Table
    from rich.text import Text

    columns, rows = _cells(runs)
    notes = _notes(runs)
    table = Table(caption=Text("\n".join(notes)) if notes else None, caption_justify="left", padding=0)
    for column in columns:
        # A word a line in headers, and only words may wrap: a number that is cut is another number.
        wraps = not column.is_number or column is _RATE
        header = column.header.replace(" ", "\n")
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(header, justify=justify, no_wrap=not wraps, overflow="fold")
    for row in rows:
        # Text, because an engine's name in square brackets would be taken for markup.
        table.add_row(*(Text(cell, style="bold red" if cell.startswith(INVALID) else "") for cell in row))
    return table


def runs_markdown(runs: Sequence[ReportRun]) -> str:
    columns, rows = _cells(runs)
    lines = [
        [column.header for column in columns],
        ["---:" if column.is_number else "---" for column in columns],
        *([cell.replace("|", "\\|") for cell in row] for row in rows),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *_notes(runs)]) + "\n"


def _cells(runs: Sequence[ReportRun]) -> tuple[list[_Column], list[list[str]]]:
    columns = list(_COLUMNS)
    if any(run.host_decode_share is not None for run in runs):
        columns.insert(-1, _HOST_SHARE)
    return columns, [[column.cell(run) for column in columns] for run in runs]


def _notes(runs: Sequence[ReportRun]) -> list[str]:
    notes = [f"{run.title}: INVALID. {' '.join(run.reasons)}" for run in runs if not run.valid]
    slowed = {run.engine: ", ".join(run.handicaps) for run in runs if run.handicaps}
    notes += [f"{engine} is slowed on purpose by {handicaps}." for engine, handicaps in slowed.items()]
    notes += [note for run in runs if (note := run.cap_note)]
    talking = dict.fromkeys(run.title for run in runs if run.of_sessions and run.request_rate is not None)
    notes += [f"A rate of sessions, all else over their turns: {'; '.join(talking)}."] if talking else []
    foreign = dict.fromkeys(f"{run.engine} by {run.foreign_tool}" for run in runs if run.foreign_tool)
    notes += [f"{CONVERTED_MARK} Converted, measured: {'; '.join(foreign)}."] if foreign else []
    support = [run.summary["percentile_support"]["p99"] for run in runs]
    if not all(entry["supported"] for entry in support):
        required = max(entry.get("required_requests", 0) for entry in support)
        notes.append(
            f"{UNSUPPORTED_MARK} Too few requests for a p99: a claim with 99 % confidence needs {required} completed."
        )
    return notes


def _rate(run: ReportRun) -> str:
    return "all at once" if run.request_rate is None else f"{run.request_rate:g}"


def _number(run: ReportRun, key: str) -> str:
    value = run.summary[key]
    return ABSENT if value is None else _rounded(value)


def _rounded(value: float) -> str:
    """Three digits that mean something, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _done(run: ReportRun) -> str:
    completed = run.summary["completed"]
    return f"{completed}/{completed + run.summary['failed']}"


def _ttft_p99(run: ReportRun) -> str:
    cell = _number(run, "p99_ttft_ms")
    supported = run.summary["percentile_support"]["p99"]["supported"]
    return cell if supported or cell == ABSENT else cell + UNSUPPORTED_MARK


def _per_token_latency(run: ReportRun) -> str:
    return ABSENT if run.per_token_latency_s is None else _rounded(run.per_token_latency_s)


def _host_share(run: ReportRun) -> str:
    return ABSENT if run.host_decode_share is None else f"{run.host_decode_share:.0%}"


def _validity(run: ReportRun) -> str:
    kind = "" if run.provenance_kind == "measured" else f", {run.provenance_kind}"
    converted = CONVERTED_MARK if run.foreign_tool else ""
    return ("valid" if run.valid else INVALID) + kind + converted


_ENGINE = _Column("Engine", lambda run: run.engine, is_number=False)
_RATE = _Column("Rate", _rate)
_COLUMNS = (
    _ENGINE,
    _RATE,
    _Column("Done", _done),
    _Column("Req/s", lambda run: _number(run, "request_throughput")),
    _Column("Tok/s", lambda run: _number(run, "output_throughput")),
    _Column("TTFT mean (ms)", lambda run: _number(run, "mean_ttft_ms")),
    _Column("TTFT p99 (ms)", _ttft_p99),
    _Column("TPOT (ms)", lambda run: _number(run, "mean_tpot_ms")),
    _Column("Per token (s)", _per_token_latency),
    _Column("Run", _validity, is_number=False),
)
_HOST_SHARE = _Column("On host", _host_share)
