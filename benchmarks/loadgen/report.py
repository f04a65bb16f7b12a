"""The comparison as Markdown tables and as a figure, from the rows of table.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from neobench.reports.figures import save_figure
from neobench.reports.style import paper_style, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
BEGIN, END = "<!-- The tables below are written by benchmarks/loadgen/run.py. -->", "<!-- End of the tables. -->"
FIGURE_SIZE_INCHES = (6.5, 2.6)
LEAST_ERROR_MS = 0.01
"""Where smaller ones are drawn."""
MOST_CHARACTERS = 160
"""Of what a tool says against its run."""


def median_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One for each tool and load, in the order of `rows`: the median of every figure over its repeats.

    A row that failed counts only where all its repeats did. What tools say is taken from the first repeat.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["tool"], row["load"]), []).append(row)
    medians = []
    for group in groups.values():
        whole = [row for row in group if not row["failure"]] or group
        medians.append(
            {**_median(whole), "repeats": len(group), "failures": sum(bool(row["failure"]) for row in group)}
        )
    return medians


def _median(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _median([value[key] for value in values]) for key in first}
    numbers = [value for value in values if isinstance(value, (int, float))]
    return statistics.median(numbers) if len(numbers) == len(values) else first


def format_tables(rows: Sequence[Row]) -> str:
    shown = median_rows(rows)
    opened = [row for row in shown if row["rate"]]
    closed = [row for row in shown if not row["rate"]]
    parts = []
    if opened:
        parts += ["### Schedules: what arrived at the server", _table(_SCHEDULE_COLUMNS, opened), *_chance_note(opened)]
        parts += ["### Latencies: what was reported less what the server did, in ms", _table(_ERROR_COLUMNS, opened)]
    if closed:
        parts += ["### Ceilings: a closed loop against a server without delays", _table(_CEILING_COLUMNS, closed)]
    parts.append(_others_note(rows))
    if said := _objections(shown):
        parts += ["### What the tools say against their own runs", said]
    return "\n\n".join(parts) + "\n"


def _number(digits: int, *path: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value: Any = row
        for key in path:
            value = None if value is None else value.get(key)
        return "–" if value is None else f"{value:,.{digits}f}"

    return cell


def _tool(row: Row) -> str:
    if row["failures"] == row["repeats"]:
        return f"{row['tool']} (failed)"
    return f"{row['tool']} ({row['failures']} of {row['repeats']} failed)" if row["failures"] else str(row["tool"])


def _load(row: Row) -> str:
    return f"{row['arrival']} {row['rate']:,g}"


def _sent_to_last_token(row: Row) -> str:
    true = row["true"]
    return f"{true['completed']:,.0f} / {row['num_requests']:,.0f}"


def _cpu_us(row: Row) -> str:
    return f"{row['cpu_s'] * 1e6 / row['num_requests']:,.0f}"


_SCHEDULE_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "asked, req/s": _load,
    "tool": _tool,
    "delivered": _number(1, "true", "delivered_rate"),
    "delivered / asked": _number(3, "delivered_ratio"),
    "CV of gaps": _number(2, "true", "gap_cv"),
    "reported lag p99, ms": _number(1, "reported", "lag_p99_ms"),
    "reported req/s": _number(1, "reported", "requests_per_s"),
    "answered / asked": _sent_to_last_token,
    "start-up, s": _number(1, "start_up_s"),
    "whole command, s": _number(1, "wall_s"),
    "CPU, s": _number(1, "cpu_s"),
}
_ERROR_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "asked, req/s": _load,
    "tool": _tool,
    "true TTFT p50": _number(2, "true", "ttft_p50_ms"),
    "TTFT p50": _number(2, "error", "ttft_p50_ms"),
    "TTFT p99": _number(2, "error", "ttft_p99_ms"),
    "from sending: p50": _number(2, "error", "sent_ttft_p50_ms"),
    "p99": _number(2, "error", "sent_ttft_p99_ms"),
    "true TPOT p50": _number(2, "true", "tpot_p50_ms"),
    "TPOT p50": _number(3, "error", "tpot_p50_ms"),
    "true ITL p99": _number(2, "true", "itl_p99_ms"),
    "ITL p99": _number(2, "error", "itl_p99_ms"),
}
_CEILING_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "tokens of a reply": _number(0, "output_tokens"),
    "tool": _tool,
    "in flight": _number(0, "concurrency"),
    "requests": _number(0, "num_requests"),
    "req/s": _number(0, "true", "requests_per_s"),
    "tokens/s": _number(0, "true", "tokens_per_s"),
    "CPU of the command, µs a request": _cpu_us,
    "true TTFT p50, ms": _number(3, "true", "ttft_p50_ms"),
    "reported TTFT p50, ms": _number(3, "reported", "sent_ttft_p50_ms"),
}


def _table(columns: Mapping[str, Callable[[Row], str]], rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows]
    return "\n".join(lines)


def _chance_note(rows: Sequence[Row]) -> list[str]:
    chances = {row["rate"]: row["num_requests"] ** -0.5 for row in rows if row["arrival"] == "poisson"}
    if not chances:
        return []
    told = ", ".join(f"{100 * chance:.1f} % at {rate:,g}" for rate, chance in sorted(chances.items()))
    return [
        "The rate of n arrivals of a Poisson process strays from the one asked for by 1/√n (one standard deviation): "
        f"{told}. A tool that hits it exactly has scaled its gaps to do so."
    ]


def _others_note(rows: Sequence[Row]) -> str:
    shares = [100 * row["others_cpu_share"] for row in rows]
    median, most = statistics.median(shares), max(shares)
    return (
        f"Meanwhile other programs took {median:.0f} % of the machine's CPU (median of the runs; at most {most:.0f} %)."
    )


def _objections(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        where = f"- {row['tool']}, {row['load']}: "
        if row["failure"]:
            lines.append(where + "failed: " + str(row["failure"]).splitlines()[0])
        elif row["reported"]["objections"]:
            said = "; ".join(" ".join(text.split()) for text in row["reported"]["objections"])
            lines.append(where + (said if len(said) <= MOST_CHARACTERS else said[:MOST_CHARACTERS] + "..."))
    return "\n".join(lines)


def write_tables(rows: Sequence[Row], readme: Path) -> None:
    """Into `readme`, between its marks; a new file holds nothing else."""
    text = readme.read_text(encoding="utf-8") if readme.exists() else f"# Load generators compared\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        text += f"\n{BEGIN}\n{END}\n"
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n\n{format_tables(rows)}\n{END}{after}", encoding="utf-8")


def save_comparison(rows: Sequence[Row], stem: Path, *, command: str) -> list[Path]:
    """stem.png, .pdf and .svg: requested against delivered rate, and the error of the reported TTFT."""
    return save_figure(comparison_figure(rows), stem, description=command)


def comparison_figure(rows: Sequence[Row]) -> Figure:
    shown = [row for row in median_rows(rows) if row["rate"]]
    with paper_style():
        figure = Figure(figsize=FIGURE_SIZE_INCHES)
        left, right = figure.subplots(1, 2)
        for index, tool in enumerate(dict.fromkeys(row["tool"] for row in shown)):
            style = series_style(index)
            for arrival, line in (("poisson", "-"), ("constant", "--")):
                points = [row for row in shown if (row["tool"], row["arrival"]) == (tool, arrival)]
                look = {"color": style.color, "marker": style.marker, "linestyle": line}
                left.plot(*_points(points, _delivered_ratio), **look)
            poisson = [row for row in shown if (row["tool"], row["arrival"]) == (tool, "poisson")]
            for name, fill in (("sent_ttft_p50_ms", style.color), ("sent_ttft_p99_ms", "white")):
                look = {"color": style.color, "marker": style.marker, "markerfacecolor": fill}
                right.plot(*_points(poisson, partial(_drawn_error, name)), **look)
            left.plot([], [], color=style.color, marker=style.marker, label=tool)
        left.axhline(1, color="0.2", linewidth=0.8)
        left.set_ylabel("Delivered / asked rate")
        left.margins(y=0.1)
        left.set_ylim(bottom=0)
        left.plot([], [], color="0.3", linestyle="-", label="Poisson")
        left.plot([], [], color="0.3", linestyle="--", label="constant rate")
        right.set_ylabel("Error of reported TTFT (ms)")
        right.set_yscale("log")
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for fill, name in (("0.3", "median"), ("white", "p99")):
            right.plot([], [], color="0.3", marker="o", linestyle="none", markerfacecolor=fill, label=name)
        for axes in (left, right):
            _rate_axis(axes, sorted({row["rate"] for row in shown}))
            axes.legend()
    return figure


def _points(rows: Sequence[Row], value: Callable[[Row], float | None]) -> tuple[list[float], list[float]]:
    found = [(row["rate"], number) for row in rows if (number := value(row)) is not None]
    return [rate for rate, _ in found], [number for _, number in found]


def _delivered_ratio(row: Row) -> float | None:
    ratio: float | None = row["delivered_ratio"]
    return ratio


def _drawn_error(name: str, row: Row) -> float | None:
    error_ms = row["error"][name]
    return None if error_ms is None else max(abs(error_ms), LEAST_ERROR_MS)


def _rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    axes.set_xlabel("Asked rate (req/s)")
    axes.set_xscale("log")
    axes.set_xticks(rates)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
