"""Under a load-latency figure: how busy each run kept its machine and the engine's KV, on the same axis of rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple

from neobench.reports.run import ReportRun
from neobench.reports.style import series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_HEIGHT_INCHES = 0.75


class LoadPanel(NamedTuple):
    """One fact of summary.json's `machine` by rate."""

    label: str
    key: str
    """Of several GPUs the mean."""
    scale: float = 1.0
    full: float | None = None
    """Where the axis ends; None: at the largest value."""


PANELS = (
    LoadPanel("CPU (%)", "cpu_percent", full=100.0),
    LoadPanel("GPU (%)", "gpu_utilization_percent", full=100.0),
    LoadPanel("Host read\n(GB/s)", "host_memory_read_bytes_per_s", scale=1e-9),
    LoadPanel("Peak KV,\ndevice (%)", "max_device_kv_used_fraction", scale=100.0, full=100.0),
    LoadPanel("Peak KV,\nhost (%)", "max_host_kv_used_fraction", scale=100.0, full=100.0),
    LoadPanel("Peak\nwaiting", "max_waiting_requests"),
)


def known_panels(runs: Sequence[ReportRun]) -> list[LoadPanel]:
    """Those with something to show: not of runs without telemetry, nor of what is 0 in all of them."""
    return [panel for panel in PANELS if any(_value(run, panel) for run in runs)]


def draw_load_panel(axes: Axes, panel: LoadPanel, series: Mapping[str, Sequence[ReportRun]]) -> None:
    """A line for each series in its colour, through the median of the runs at each rate."""
    for index, runs in enumerate(series.values()):
        style = series_style(index)
        values_at: dict[float, list[float]] = {}
        for run in runs:
            value = _value(run, panel)
            if value is not None and run.request_rate is not None:
                values_at.setdefault(run.request_rate, []).append(value)
        rates = sorted(values_at)
        medians = [median(values_at[rate]) for rate in rates]
        axes.plot(rates, medians, color=style.color, marker=style.marker, markersize=3, linewidth=0.9)
    axes.set_ylabel(panel.label, fontsize=6)
    axes.tick_params(labelsize=6)
    axes.set_ylim(bottom=0, top=panel.full and 1.05 * panel.full)


def _value(run: ReportRun, panel: LoadPanel) -> float | None:
    value = (run.summary.get("machine") or {}).get(panel.key)
    if isinstance(value, list):
        known = [one for one in value if one is not None]
        value = fmean(known) if known else None
    return None if value is None else panel.scale * float(value)
