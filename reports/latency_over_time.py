"""TTFT and E2EL of each request of one run against its arrival: warming up, a growing queue and stalls show here."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from neobench.reports.figures import save_figure, scale_latency, stamp_invalid, write_caption
from neobench.reports.run import ReportRun
from neobench.reports.style import INVALID_COLOR, paper_style, series_style
from neobench.results.record import Outcome
from neobench.results.store import PARQUET_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE_SIZE_INCHES = (5.6, 3.6)
MEDIANS = 30
FEWEST_IN_A_MEDIAN = 5
FEWEST_MEDIANS = 4
RASTER_FROM = 2_000
"""Points beyond which PDF and SVG hold an image of them: a dot each would make files that no viewer opens."""
_STEADY: dict[str, Any] = {"color": "#009E73", "alpha": 0.10, "linewidth": 0, "zorder": 0}

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RequestLatencies:
    """Of the measured requests that were sent, in the order of their arrival: [num_requests] each."""

    scheduled_s: Float64Array
    ttft_s: Float64Array
    """NaN for one that failed, as `e2el_s`."""
    e2el_s: Float64Array

    @classmethod
    def read(cls, folder: Path) -> RequestLatencies:
        """From a run folder's requests.parquet. Raises OSError."""
        import pyarrow.parquet as pq

        names = ("scheduled_ns", "issued_ns", "first_token_ns", "ended_ns")
        table = pq.read_table(folder / PARQUET_FILE, columns=[*names, "outcome", "warmup"])
        scheduled, issued, first, ended = (
            table[name].cast("float64", safe=False).to_numpy(zero_copy_only=False) / 1e9 for name in names
        )
        ok = np.array(table["outcome"].to_pylist()) == Outcome.OK.value
        sent = ~table["warmup"].to_numpy(zero_copy_only=False).astype(bool) & ~np.isnan(issued)
        order = np.flatnonzero(sent)[np.argsort(scheduled[sent], kind="stable")]
        ttft, e2el = np.where(ok, first - scheduled, np.nan), np.where(ok, ended - scheduled, np.nan)
        return cls(scheduled[order], ttft[order], e2el[order])


def latency_figure(run: ReportRun, latencies: RequestLatencies) -> Figure:
    """TTFT above, E2EL below: a dot a completed request, the running median, a red mark where one failed.

    The steady window is shaded; an invalid run is stamped INVALID.
    """
    with paper_style():
        figure = Figure(figsize=FIGURE_SIZE_INCHES)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for index, (axes, name, values_s) in enumerate(
            ((upper, "TTFT", latencies.ttft_s), (lower, "E2EL", latencies.e2el_s))
        ):
            _draw(axes, latencies.scheduled_s, values_s, name, color=series_style(index).color)
            _shade(axes, run)
            legend: dict[str, Any] = {"bbox_to_anchor": (1.0, 1.03), "borderaxespad": 0.2, "handlelength": 1.4}
            axes.legend(loc="upper left", **legend, markerscale=2 if len(values_s) > RASTER_FROM else 1)
        lower.set_xlabel("Arrival: time since the start of the schedule (s)")
        lower.set_xlim(left=0)
        upper.set_title(run.title, fontsize=8)
        figure.align_ylabels([upper, lower])
        if not run.valid:
            stamp_invalid(figure)
        write_caption(figure, _caption(run, latencies))
    return figure


def save_latency(run: ReportRun, folder: Path) -> list[Path]:
    """Draw the requests of the run in `folder` as latency.png, .pdf and .svg there; nothing where none was sent."""
    try:
        latencies = RequestLatencies.read(folder)
    except OSError:
        return []
    if not len(latencies.scheduled_s):
        return []
    provenance = run.summary["provenance"]
    description = f"{shlex.join(provenance['command'])} (commit {provenance.get('commit') or 'unknown'})"
    return save_figure(latency_figure(run, latencies), folder / "latency", description=description)


def _draw(axes: Axes, scheduled_s: Float64Array, values_s: Float64Array, name: str, *, color: str) -> None:
    done = ~np.isnan(values_s)
    in_ms = not done.any() or float(np.nanmedian(values_s)) < 1
    values = values_s * (1e3 if in_ms else 1)
    many = len(values) > RASTER_FROM
    axes.plot(
        scheduled_s[done],
        values[done],
        linestyle="none",
        marker=".",
        markersize=2 if many else 5,
        markeredgewidth=0,
        alpha=0.35 if many else 0.6,
        color=color,
        rasterized=many,
        label="request",
    )
    middles_s, medians = running_median(scheduled_s, values)
    if len(medians) >= FEWEST_MEDIANS:
        axes.plot(middles_s, medians, color="black", linewidth=1.0, label="running median")
    scale_latency(axes, values[done].tolist())
    if not done.any():
        axes.set_yticks([])
    if not done.all():
        # On the upper edge, whatever the axis shows: a failure has no latency.
        edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(scheduled_s[~done], np.ones(int((~done).sum())), "|", color=INVALID_COLOR, label="failed", **edge)
    axes.set_ylabel(f"{name} ({'ms' if in_ms else 's'})")


def running_median(at_s: Float64Array, values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Median arrival and median value of neighbouring requests, in up to 30 groups of equal size and of 5 or more.

    A group with fewer than 5 values that are not NaN has NaN: most of its requests failed, and a line would lie.
    """
    num_groups = min(MEDIANS, len(values) // FEWEST_IN_A_MEDIAN)
    if not num_groups:
        return np.array([]), np.array([])
    groups = zip(np.array_split(at_s, num_groups), np.array_split(values, num_groups), strict=True)
    medians = [(np.median(at), _median(group)) for at, group in groups]
    return np.array([at for at, _ in medians]), np.array([value for _, value in medians])


def _median(values: Float64Array) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) >= FEWEST_IN_A_MEDIAN else np.nan


def _shade(axes: Axes, run: ReportRun) -> None:
    start_s, end_s = (run.summary.get(f"steady_window_{end}_s") for end in ("start", "end"))
    if start_s is not None and end_s is not None:
        axes.axvspan(start_s, end_s, label="steady window", **_STEADY)


def _caption(run: ReportRun, latencies: RequestLatencies) -> list[str]:
    lines = [" · ".join(part for part in (run.model, run.workload, run.machine, run.provenance_kind) if part)]
    num_failed = int(np.isnan(latencies.e2el_s).sum())
    count = len(latencies.scheduled_s)
    lines.append(f"{count} requests" + (f", {num_failed} of them failed" if num_failed else "") + ".")
    if run.foreign_tool:
        lines.append(f"Converted, measured by {run.foreign_tool}.")
    if run.cap_note:
        lines.append(run.cap_note)
    if not run.valid:
        lines.append(f"INVALID, not to be relied on: {' '.join(run.reasons)}")
    return lines
