"""Figures of a paper with its known points: ours as lines, the paper's as hollow markers of the same colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from neobench.reports.figures import save_figure, write_caption
from neobench.reports.style import FIGURE_SIZE_INCHES, LINE_STYLE_OF_PROVENANCE, paper_style, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BAND_ALPHA = 0.12


@dataclass(frozen=True)
class Line:
    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    paper: Mapping[float, float]
    """Known points of the same curve."""
    highs: Sequence[float] = ()
    """Of a band: its upper edge; `ys` is the lower one."""


@dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    reference_y: float | None = None
    log_x: bool = False
    log_y: bool = False
    markers: bool = True
    bands: Sequence[Line] = field(default_factory=list)


def save_reproduction(panels: Sequence[Panel], caption: Sequence[str], stem: Path, *, description: str) -> list[Path]:
    """Write stem.png, .pdf and .svg; the paths written."""
    return save_figure(reproduction_figure(panels, caption), stem, description=description)


def reproduction_figure(panels: Sequence[Panel], caption: Sequence[str]) -> Figure:
    """Panels side by side, with one scale of y; ours is modelled, so its lines are dotted."""
    width, height = FIGURE_SIZE_INCHES
    with paper_style():
        figure = Figure(figsize=(width * len(panels), height))
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw(axes, panel)
        all_axes[0].set_ylabel(panels[0].y_label)
        all_axes[-1].legend(fontsize=6)
        write_caption(figure, caption)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for index, band in enumerate(panel.bands):
        color = series_style(index).color
        axes.fill_between(band.xs, band.ys, band.highs, color=color, alpha=BAND_ALPHA, linewidth=0)
    if panel.reference_y is not None:
        axes.axhline(panel.reference_y, color="0.2", linewidth=0.8, linestyle="--")
    for index, line in enumerate(panel.lines):
        style = series_style(index)
        marker = style.marker if panel.markers else ""
        line_style = LINE_STYLE_OF_PROVENANCE["modelled"]
        axes.plot(line.xs, line.ys, color=style.color, marker=marker, linestyle=line_style, label=line.label)
        if line.paper:
            points = (list(line.paper), list(line.paper.values()))
            axes.plot(*points, color=style.color, marker=style.marker, markerfacecolor="white", linestyle="none")
    if any(line.paper for line in panel.lines):
        axes.plot([], [], color="0.3", marker="o", markerfacecolor="white", linestyle="none", label="paper")
    axes.set_title(panel.title, fontsize=8)
    axes.set_xlabel(panel.x_label)
    if panel.log_x:
        axes.set_xscale("log")
        _label_plainly(axes.xaxis)
    if panel.log_y:
        axes.set_yscale("log")
        _label_plainly(axes.yaxis)


def _label_plainly(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
