"""What was sampled beside one run, over time: processors, the engine's queues and KV use, GPUs where there are any."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from neobench.reports.figures import save_figure, stamp_invalid, write_caption
from neobench.reports.run import ReportRun
from neobench.reports.style import paper_style, series_style
from neobench.results.telemetry import Telemetry, read_telemetry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 5.6
PANEL_HEIGHT_INCHES = 1.15
MARGIN_INCHES = 0.7
_Panel = Callable[["Axes", Telemetry], bool]


def telemetry_figure(run: ReportRun, telemetry: Telemetry) -> Figure:
    """One panel under the other on a common time axis (s since the schedule's start); those without data are left out.

    An invalid run is stamped INVALID.
    """
    panels = [panel for panel in _PANELS if panel(Figure().add_subplot(), telemetry)]
    with paper_style():
        figure = Figure(figsize=(WIDTH_INCHES, MARGIN_INCHES + PANEL_HEIGHT_INCHES * max(1, len(panels))))
        columns = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(columns, panels, strict=False):
            panel(axes, telemetry)
            # Beside the panel, where a legend hides no line.
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), borderaxespad=0.2, handlelength=1.4)
        columns[-1].set_xlabel("Time since the start of the schedule (s)")
        columns[-1].set_xlim(left=0)
        figure.align_ylabels(list(columns))
        columns[0].set_title(run.title, fontsize=8)
        if not run.valid:
            stamp_invalid(figure)
        write_caption(figure, _caption(run, telemetry))
    return figure


def save_telemetry(run: ReportRun, folder: Path) -> list[Path]:
    """Draw the telemetry of the run in `folder` as telemetry.png, .pdf and .svg there; nothing where there is none."""
    telemetry = read_telemetry(folder)
    if telemetry is None or not telemetry.rows:
        return []
    provenance = run.summary["provenance"]
    description = f"{shlex.join(provenance['command'])} (commit {provenance.get('commit') or 'unknown'})"
    return save_figure(telemetry_figure(run, telemetry), folder / "telemetry", description=description)


def _caption(run: ReportRun, telemetry: Telemetry) -> list[str]:
    lines = [" · ".join(part for part in (run.model, run.workload, run.machine, run.provenance_kind) if part)]
    if not run.valid:
        lines.append(f"INVALID, not to be relied on: {' '.join(run.reasons)}")
    return lines + [f"{sampler}: {note}" for sampler, note in telemetry.notes.items()]


def _draw(axes: Axes, telemetry: Telemetry, series: dict[str, str], *, scale: float = 1.0) -> bool:
    """`series`: name -> label; a list is drawn as a line for each entry. False if there is nothing of any."""
    index = 0
    for name, label in series.items():
        at_s, values = telemetry.series(name)
        if not len(at_s):
            continue
        columns = values.T if values.ndim == 2 else [values]
        for entry, column in enumerate(columns):
            numbered = f"{label} {entry}" if len(columns) > 1 else label
            axes.plot(at_s, column * scale, color=series_style(index).color, label=numbered)
            index += 1
    return index > 0


def _cores(axes: Axes, telemetry: Telemetry) -> bool:
    """All CPUs thin and grey, their mean and what is not ours on top of them."""
    at_s, cores = telemetry.series("core_percent")
    if not len(at_s):
        return False
    for number, core in enumerate(cores.T):
        label = f"each of {cores.shape[1]} CPUs" if number == 0 else None
        axes.plot(at_s, core, color="0.6", linewidth=0.5, alpha=max(0.25, min(1.0, 8 / cores.shape[1])), label=label)
    names = {"cpu_percent": "mean", "other_cpu_percent": "other processes", "cpu_steal_percent": "steal"}
    _draw(axes, telemetry, names)
    axes.set_ylabel("CPU (%)")
    axes.set_ylim(0, 103)
    return True


def _processes(axes: Axes, telemetry: Telemetry) -> bool:
    drawn = _draw(axes, telemetry, {"engine_cpu_percent": "engine", "client_cpu_percent": "client"}, scale=0.01)
    axes.set_ylabel("CPUs used")
    axes.set_ylim(bottom=0)
    return drawn


def _queues(axes: Axes, telemetry: Telemetry) -> bool:
    drawn = _draw(axes, telemetry, {"running_requests": "running", "waiting_requests": "waiting"})
    axes.set_ylabel("Requests")
    axes.set_ylim(bottom=0)
    return drawn


def _kv_use(axes: Axes, telemetry: Telemetry) -> bool:
    names = {"device_kv_used_fraction": "device", "host_kv_used_fraction": "host"}
    drawn = _draw(axes, telemetry, names, scale=100)
    axes.set_ylabel("KV used (%)")
    axes.set_ylim(0, 103)
    return drawn


def _gpu(axes: Axes, telemetry: Telemetry) -> bool:
    drawn = _draw(axes, telemetry, {"gpu_utilization_percent": "GPU"})
    axes.set_ylabel("GPU busy (%)")
    axes.set_ylim(0, 103)
    return drawn


def _gpu_power(axes: Axes, telemetry: Telemetry) -> bool:
    """With a mark at each sample at which something slowed a GPU down."""
    drawn = _draw(axes, telemetry, {"gpu_power_w": "GPU"})
    throttled_s = [row["at_ns"] / 1e9 for row in telemetry.rows if row.get("gpu_throttle_reasons")]
    axes.set_ylabel("Power (W)")
    axes.set_ylim(bottom=0)
    if throttled_s:
        axes.plot(throttled_s, np.zeros(len(throttled_s)), "|", color="black", markersize=8, label="slowed down")
    return drawn


def _bandwidth(axes: Axes, telemetry: Telemetry) -> bool:
    names = {"host_memory_read_bytes_per_s": "read", "host_memory_write_bytes_per_s": "write"}
    drawn = _draw(axes, telemetry, names, scale=1e-9)
    axes.set_ylabel("RAM (GB/s)")
    axes.set_ylim(bottom=0)
    return drawn


_PANELS: tuple[_Panel, ...] = (_cores, _processes, _queues, _kv_use, _gpu, _gpu_power, _bandwidth)
