"""`neobench show`: a run as a person wants to read it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neobench.cli.run import EXIT_ERROR

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from neobench.results.columns import RecordColumns
    from neobench.results.store import RunInfo

SPARK_WIDTH = 44
MOST_ERRORS = 5
LATENCIES = ("ttft", "tpot", "itl", "e2el", "normalized_latency")
RATES = {
    "request_throughput": "requests/s",
    "request_goodput": "requests/s",
    "output_throughput": "tokens/s",
    "total_token_throughput": "tokens/s",
    "steady_output_throughput": "tokens/s",
}
READ_ERRORS = (KeyError, TypeError, ValueError, AttributeError)
"""What a summary that another hand wrote may cause; its schema alone is checked."""


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
def show(runs: tuple[str, ...]) -> None:
    """Print runs as a person reads them: what was run, whether to believe it, figures, the run over time, errors.

    RUN is a run folder, a folder of runs or a pattern in quotation marks. What cannot be read is told in a line, and
    the rest is shown; the exit code is then 1.

    \b
    neobench show runs/today/neo-rate-4
    neobench show runs/today
    """
    from rich.console import Console

    from neobench.results.points import expand, run_folders

    folders = []
    for argument in runs:
        found = expand(argument)
        if not found:
            raise click.UsageError(f"{argument!r} is no folder and no pattern that matches one")
        folders += [folder for path in found for folder in run_folders(path)]
    console = Console()
    shown = [_show(console, folder) for folder in dict.fromkeys(folders)]
    if not all(shown):
        sys.exit(EXIT_ERROR)


def _show(console: Console, folder: Path) -> bool:
    """Whether all of it could be read."""
    from neobench.results.store import StoreError, read_run_info

    try:
        info = read_run_info(folder)
    except StoreError as error:
        click.echo(f"neobench: {printable(str(error))}", err=True)
        return False
    problems: list[str] = []
    columns, summary = _read(folder, info, problems)
    for part in _parts(folder, info, columns, summary, problems):
        console.print(part)
    for problem in problems:
        click.echo(f"neobench: {printable(problem)}", err=True)
    console.print()
    return not problems


def _read(folder: Path, info: RunInfo, problems: list[str]) -> tuple[RecordColumns | None, dict[str, Any] | None]:
    from neobench.results.columns import RecordColumns
    from neobench.results.store import SUMMARY_FILE, StoreError, build_summary, iter_records, read_summary

    columns, summary = None, None
    try:
        columns = RecordColumns(iter_records(folder, problems))
    except StoreError as error:
        problems.append(str(error))
    try:
        if (folder / SUMMARY_FILE).exists():
            summary = read_summary(folder)
        elif columns is not None:
            num_measured = int((~columns.warmup).sum())
            cut_short = f"The run was cut short: {num_measured} of {info.num_requests} requests were recorded."
            summary = build_summary(info, columns, engine_stats={}, incidents=[cut_short])
    except (StoreError, *READ_ERRORS) as error:
        problems.append(f"{folder}: no figures: {error}")
    return columns, summary


def _parts(
    folder: Path, info: RunInfo, columns: RecordColumns | None, summary: dict[str, Any] | None, problems: list[str]
) -> Iterator[RenderableType]:
    """Each by itself, so that what fails to be read leaves the others."""
    from rich.rule import Rule
    from rich.text import Text

    yield Rule(Text(printable(str(folder))), align="left", style="dim")
    sections: list[Callable[[], RenderableType | None]] = [partial(_about, info)]
    if summary is not None:
        sections += [partial(part, summary) for part in (_validity, _rates, _latencies)]
    if columns is not None and len(columns):
        sections += [partial(_over_time, columns), partial(_errors, folder)]
    sections.append(partial(_files, folder))
    for section in sections:
        try:
            found = section()
        except READ_ERRORS as error:
            problems.append(f"{folder}: a part of it is not what neobench writes: {type(error).__name__}: {error}")
            continue
        if found is not None:
            yield found


def _about(info: RunInfo) -> RenderableType:
    from neobench.reports.run import describe_machine

    spec, provenance = info.spec, info.provenance
    unit = "sessions/s" if spec["workload"].get("sessions") else "requests/s"
    rate = "all at once" if info.request_rate is None else f"{info.request_rate:g} {unit}"
    return _pairs(
        {
            "Engine": str(spec["engine"]["name"]),
            "Model": str(spec["model"]),
            "Workload": f"{spec['workload']['name']}, {info.num_requests} requests, {rate}",
            "Machine": describe_machine(info.fingerprint) or "not told",
            "Numbers": f"{provenance.kind}, by {provenance.tool}, started {provenance.started_at}",
            "Commit": provenance.commit or "not told",
            "Command": shlex.join(provenance.command),
        }
    )


def _validity(summary: Mapping[str, Any]) -> RenderableType:
    from rich.text import Text

    validity = summary["validity"]
    text = Text()
    text.append("valid" if validity["valid"] else "INVALID", style="bold green" if validity["valid"] else "bold red")
    for reason in validity["reasons"]:
        text.append(f"\n  {printable(reason)}", style="red")
    for warning in validity.get("warnings", ()):
        text.append(f"\n  Note: {printable(warning)}", style="yellow")
    return text


def _rates(summary: Mapping[str, Any]) -> RenderableType:
    done = f"{summary['completed']} of {summary['num_prompts']} requests"
    duration = summary.get("duration")
    pairs = {"Completed": done if duration is None else f"{done} in {duration:.4g} s"}
    for key, unit in RATES.items():
        if summary.get(key) is not None:
            pairs[key] = f"{summary[key]:,.4g} {unit}" if summary[key] < 1000 else f"{summary[key]:,.0f} {unit}"
    return _pairs({**pairs, **_sessions(summary.get("sessions"))})


def _sessions(sessions: Mapping[str, Any] | None) -> dict[str, str]:
    if sessions is None:
        return {}
    shown = {"Sessions": f"{sessions['completed_sessions']} of {sessions['num_sessions']} completed"}
    if sessions["median_session_s"] is not None:
        shown["Sessions"] += f", {sessions['median_session_s']:.3g} s (median, thinking included)"
    for turn in ("first", "later"):
        if (ttft_ms := sessions[f"median_{turn}_turn_ttft_ms"]) is not None:
            shown[f"TTFT of {turn} turns"] = (
                f"{ttft_ms:,.4g} ms (median)" if ttft_ms < 1000 else f"{ttft_ms:,.0f} ms (median)"
            )
    return shown


def _latencies(summary: Mapping[str, Any]) -> RenderableType:
    from rich.table import Table

    kinds = [key.removesuffix("_ttft_ms") for key in summary if key.endswith("_ttft_ms")]
    table = Table(padding=(0, 1), box=None)
    table.add_column("ms", style="dim")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for name in LATENCIES:
        values = [summary.get(f"{kind}_{name}_ms") for kind in kinds]
        if any(value is not None for value in values):
            table.add_row(name, *("-" if value is None else f"{value:,.4g}" for value in values))
    return table


def _over_time(columns: RecordColumns) -> RenderableType:
    import numpy as np

    from neobench.reports.over_time import (
        in_flight_over_time,
        output_throughput_over_time,
        sparkline,
        ttft_over_time_ms,
    )

    pairs = {}
    for title, series, unit in (
        ("TTFT (median)", ttft_over_time_ms, "ms"),
        ("Output", output_throughput_over_time, "tokens/s"),
        ("In flight", in_flight_over_time, "requests"),
    ):
        values = series(columns, SPARK_WIDTH)
        if np.isfinite(values).any():
            pairs[title] = f"{sparkline(values)} up to {np.nanmax(values):,.4g} {unit}"
    return _pairs(pairs)


def _errors(folder: Path) -> RenderableType | None:
    from neobench.cli.failures import frequent_errors

    errors = frequent_errors(folder)
    if not errors:
        return None
    lines = {f"{count} x {outcome}": error for (outcome, error), count in errors.most_common(MOST_ERRORS)}
    return _pairs({"Failed": f"{errors.total()} requests; most often:", **lines})


def _files(folder: Path) -> RenderableType:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return _pairs({"Files": ", ".join(f"{path.name} ({_size(path.stat().st_size)})" for path in files)})


def _size(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} B"
    return f"{size_bytes / 1e3:.3g} kB" if size_bytes < 1e6 else f"{size_bytes / 1e6:.3g} MB"


def _pairs(pairs: Mapping[str, str]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(printable(name)), Text(printable(value)))
    return table


def printable(text: str) -> str:
    """Without control characters: what an engine answered must not move the cursor or colour the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
