"""Figures in the style of the papers, drawn without pyplot so that no state is shared."""

from __future__ import annotations

import csv
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from neobench.reports.load_panels import PANEL_HEIGHT_INCHES, draw_load_panel, known_panels
from neobench.reports.run import ReportRun
from neobench.reports.style import (
    CAPTION_CHARACTERS_A_LINE,
    CAPTION_POINTS,
    FIGURE_SIZE_INCHES,
    INVALID_COLOR,
    LINE_STYLE_OF_PROVENANCE,
    paper_style,
    series_style,
)
from neobench.results.store import OWN_TOOL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG_SCALE_FROM_RATIO = 20.0
CSV_COLUMNS = (
    "engine",
    "model",
    "workload",
    "request_rate",
    "mean_per_token_latency_s",
    "valid",
    "reasons",
    "provenance",
    "machine",
    "commit",
    "command",
    "tool",
)
FORMATS = ("png", "pdf", "svg")
# A date would make the bytes of every drawing differ.
_NO_DATE = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
_DESCRIPTION_KEY = {"png": "Description", "pdf": "Subject", "svg": "Description"}


def load_latency(runs: Sequence[ReportRun], *, latency_cap_s: float | None = None) -> Figure:
    """Average per-token latency (s) against request rate (requests/s), one line for each engine, as in NEO's Fig. 6.

    The rate of runs whose requests are turns is that of their sessions. A line goes through the median of the runs at
    each rate. It never joins measured, emulated and modelled runs, nor those of different tools. Invalid runs have
    hollow markers; where no run is valid the figure is stamped INVALID. What cannot be drawn, or lies above
    `latency_cap_s`, is named in the caption. Below it, on the same rates, what telemetry knows of machine and engine.
    """
    drawn = [run for run in runs if _is_drawable(run)]
    panels = known_panels(drawn)
    width, height = FIGURE_SIZE_INCHES
    with paper_style():
        figure = Figure(figsize=(width, height + PANEL_HEIGHT_INCHES * len(panels)))
        axes, *below = figure.subplots(
            *(1 + len(panels), 1),
            sharex=True,
            squeeze=False,
            height_ratios=[height, *[PANEL_HEIGHT_INCHES] * len(panels)],
        )[:, 0]
        for index, (label, series) in enumerate(_series(drawn).items()):
            _draw_series(axes, label, series, index)
        if any(not run.valid for run in drawn):
            axes.plot([], [], linestyle="none", marker="o", markerfacecolor="white", color="0.3", label="invalid run")
        scale_latency(
            axes, [latency for run in drawn if (latency := run.per_token_latency_s) is not None], latency_cap_s
        )
        axes.set_xlim(left=0)
        for panel, panel_axes in zip(panels, below, strict=True):
            draw_load_panel(panel_axes, panel, _series(drawn))
        figure.axes[-1].set_xlabel(_rate_label(drawn))
        figure.align_ylabels()
        axes.set_ylabel("Average per-token latency (s)")
        if drawn:
            axes.legend()
        if runs and not any(run.valid for run in runs):
            stamp_invalid(figure)
        write_caption(figure, _caption(runs, latency_cap_s))
    return figure


def save_load_latency(runs: Sequence[ReportRun], stem: Path, *, latency_cap_s: float | None = None) -> list[Path]:
    """Draw and write stem.png, .pdf, .svg and .csv; the paths written."""
    figure = load_latency(runs, latency_cap_s=latency_cap_s)
    description = "; ".join(dict.fromkeys(f"{_command(run)} (commit {_commit(run)})" for run in runs))
    images = save_figure(figure, stem, description=description)
    return [*images, save_data(runs, stem.with_name(stem.name + ".csv"))]


def save_figure(figure: Figure, stem: Path, *, description: str) -> list[Path]:
    """PNG, PDF and SVG with the description in their metadata; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    with paper_style():
        for file_format in FORMATS:
            path = stem.with_name(f"{stem.name}.{file_format}")
            metadata = {**_NO_DATE[file_format], "Title": stem.name, _DESCRIPTION_KEY[file_format]: description}
            figure.savefig(path, format=file_format, metadata=metadata)
            paths.append(path)
    return paths


def save_data(runs: Sequence[ReportRun], path: Path) -> Path:
    """The points of the figure and where each comes from, as CSV: one row a run, also for those not drawn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for run in runs:
            where = (run.engine, run.model, run.workload, run.request_rate, run.per_token_latency_s)
            trust = (run.valid, " ".join(run.reasons), run.provenance_kind, run.machine, _commit(run), _command(run))
            writer.writerow((*where, *trust, run.foreign_tool or OWN_TOOL))
    return path


def _commit(run: ReportRun) -> str:
    return str(run.summary["provenance"].get("commit") or "unknown")


def _command(run: ReportRun) -> str:
    return shlex.join(run.summary["provenance"]["command"])


def _is_drawable(run: ReportRun) -> bool:
    return run.request_rate is not None and run.per_token_latency_s is not None


def _rate_label(runs: Sequence[ReportRun]) -> str:
    units = sorted({run.rate_unit for run in runs})
    return "Session rate (sessions/s)" if units == ["sessions/s"] else f"Request rate ({' or '.join(units) or 'req/s'})"


def _series(runs: Sequence[ReportRun]) -> Mapping[str, list[ReportRun]]:
    """Label -> runs; a label says no more than it takes to tell its line from the others."""
    several_models = len({run.model for run in runs}) > 1
    several_workloads = len({run.workload for run in runs}) > 1
    some_sessions = len({run.of_sessions for run in runs}) > 1
    series: dict[str, list[ReportRun]] = {}
    for run in runs:
        parts = [run.engine]
        parts += [run.model] if several_models else []
        parts += [run.workload] if several_workloads else []
        parts += ["sessions"] if some_sessions and run.of_sessions else []
        marks = [] if run.provenance_kind == "measured" else [run.provenance_kind]
        marks += [run.foreign_tool] if run.foreign_tool else []
        series.setdefault(", ".join(parts) + (f" ({', '.join(marks)})" if marks else ""), []).append(run)
    return series


def _draw_series(axes: Axes, label: str, runs: Sequence[ReportRun], index: int) -> None:
    style = series_style(index)
    line_style = LINE_STYLE_OF_PROVENANCE[runs[0].provenance_kind]
    latencies_at: dict[float, list[float]] = {}
    for run in runs:
        assert run.request_rate is not None
        assert run.per_token_latency_s is not None
        latencies_at.setdefault(run.request_rate, []).append(run.per_token_latency_s)
        fill = style.color if run.valid else "white"
        point = ([run.request_rate], [run.per_token_latency_s])
        axes.plot(*point, color=style.color, marker=style.marker, markerfacecolor=fill, zorder=3)
    rates = sorted(latencies_at)
    axes.plot(rates, [median(latencies_at[rate]) for rate in rates], color=style.color, linestyle=line_style)
    # The legend shows line and marker together, whether or not the first point is a valid one.
    axes.plot([], [], color=style.color, marker=style.marker, linestyle=line_style, label=label)


def scale_latency(axes: Axes, latencies: Sequence[float], latency_cap: float | None = None) -> None:
    """The y axis from 0, or logarithmic where what is shown spans more than a factor of 20."""
    shown = [latency for latency in latencies if latency_cap is None or latency <= latency_cap]
    if shown and min(shown) > 0 and max(shown) > LOG_SCALE_FROM_RATIO * min(shown):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(bottom=0)
        if shown and max(shown) > 0:
            # The default margin is a share of what lies between the points, which may leave none.
            axes.set_ylim(top=1.08 * max(shown))
    if latency_cap is not None:
        axes.set_ylim(top=latency_cap)


def stamp_invalid(figure: Figure) -> None:
    """Across it, in red."""
    stamp = figure.text(0.45, 0.5, "INVALID", rotation=25, ha="center", va="center", zorder=10)
    stamp.set(fontsize=26, color=INVALID_COLOR, alpha=0.3)


def _caption(runs: Sequence[ReportRun], latency_cap_s: float | None) -> list[str]:
    facts = [
        ", ".join(sorted({value for value in values if value})) for values in zip(*map(_setting, runs), strict=True)
    ]
    kinds = " and ".join(sorted({run.provenance_kind for run in runs}))
    lines = [" · ".join(fact for fact in [*facts, kinds] if fact)]
    drawn = [run for run in runs if _is_drawable(run)]
    notes = {
        "Hollow: INVALID, not to be relied on": [run for run in drawn if not run.valid],
        "Not drawn, for want of a rate or of a completed request": [run for run in runs if not _is_drawable(run)],
    }
    if latency_cap_s is not None:
        above = [run for run in drawn if (run.per_token_latency_s or 0) > latency_cap_s]
        notes[f"Above {latency_cap_s:g} s"] = above
    lines += [note for run in runs if (note := run.cap_note)]
    return lines + [f"{note}: {_names(noted)}" for note, noted in notes.items() if noted]


def _setting(run: ReportRun) -> tuple[str, str, str]:
    return run.model, run.workload, run.machine


def _names(runs: Sequence[ReportRun]) -> str:
    """For a note: neo at 2, 4 req/s; gpu_only at inf req/s."""
    return "; ".join(
        f"{label} at {', '.join(dict.fromkeys(_rate(run) for run in series))} {series[0].rate_unit}"
        for label, series in _series(runs).items()
    )


def _rate(run: ReportRun) -> str:
    return "inf" if run.request_rate is None else f"{run.request_rate:g}"


def write_caption(figure: Figure, lines: Sequence[str]) -> None:
    """Below the figure, small, in full lines."""
    wrapped = "\n".join(textwrap.fill(line, CAPTION_CHARACTERS_A_LINE) for line in lines)
    figure.supxlabel(wrapped, fontsize=CAPTION_POINTS, color="0.25")
