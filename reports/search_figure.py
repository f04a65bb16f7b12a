"""The figure of a search: every measurement, as a share of its limit, against the rate."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from neobench.reports.figures import save_figure, stamp_invalid
from neobench.reports.style import CAPTION_POINTS, FIGURE_SIZE_INCHES, paper_style, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOT_TO_BE_RELIED_ON = ("client_limit", "interrupted")
"""Ways for a search to end that say nothing sure of the engine."""
SHARE_CAP = 100.0
"""Where what is further from its limit is drawn, and what has no value because requests failed."""


def save_search(document: Mapping[str, Any], stem: Path) -> list[Path]:
    """Write stem.png, .pdf and .svg from what search.json holds; the paths written."""
    return save_figure(search_figure(document), stem, description=shlex.join(document["command"]))


def search_figure(document: Mapping[str, Any]) -> Figure:
    """Each figure over its limit (of a lower bound the inverse) against the rate: below 1 it is met.

    Filled points met all objectives, hollow ones missed one. The band is the bracket. A search that the client, an
    interruption or a contradiction spoiled is stamped INVALID.
    """
    with paper_style():
        figure = Figure(figsize=FIGURE_SIZE_INCHES)
        axes = figure.add_subplot()
        for index, slo in enumerate(document["slos"]):
            _draw_objective(axes, document["points"], slo, index)
        axes.axhline(1, color="0.2", linewidth=0.8, linestyle="--")
        low, high = document["low"], document["high"]
        if low and high:
            axes.axvspan(low["rate"], high["rate"], color="0.85", zorder=0, label="bracket")
        axes.plot([], [], linestyle="none", marker="o", markerfacecolor="white", color="0.3", label="misses")
        axes.set_xlabel("Request rate (req/s)")
        axes.set_ylabel("Share of the limit")
        _log_axes(axes)
        axes.legend()
        caption = f"{document['engine']} · {document['model']} · {document['workload']}\n{document['answer'][0]}"
        if document["contradictions"] or document["status"] in NOT_TO_BE_RELIED_ON:
            stamp_invalid(figure)
        figure.supxlabel(caption, fontsize=CAPTION_POINTS, color="0.25", wrap=True)
    return figure


def _draw_objective(axes: Axes, points: list[Mapping[str, Any]], slo: Mapping[str, Any], index: int) -> None:
    style = series_style(index)
    for point in points:
        share = _share_of_limit(slo, point)
        fill = style.color if point["meets"] else "white"
        axes.plot([point["rate"]], [share], color=style.color, marker=style.marker, markerfacecolor=fill, zorder=3)
    axes.plot([], [], color=style.color, marker=style.marker, linestyle="none", label=slo["text"])


def _share_of_limit(slo: Mapping[str, Any], point: Mapping[str, Any]) -> float:
    value = point["values"].get(slo["key"])
    if value is None:
        return SHARE_CAP
    limit = slo["limit"] * (point["rate"] if slo["of_offered"] else 1)
    share = value / limit if slo["operator"].startswith("<") else limit / value if value else SHARE_CAP
    return float(min(share, SHARE_CAP))


def _log_axes(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_xscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
