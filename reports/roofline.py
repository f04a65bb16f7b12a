"""GB/s of CPU attention under the machine's read bandwidth, from the contents of bench-cpu's rows.json."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from neobench.reports.figures import save_figure
from neobench.reports.run import describe_machine
from neobench.reports.style import (
    CAPTION_CHARACTERS_A_LINE,
    CAPTION_POINTS,
    FIGURE_SIZE_INCHES,
    paper_style,
    series_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PEER = "torch_sdpa"
SHAPE_LABELS = {"mha": "MHA 32/32", "gqa4": "GQA 32/8", "gqa8": "GQA 64/8"}
PANEL_WIDTH_INCHES = 1.9
FRAME_WIDTH_INCHES = 0.7

_LEGEND_ENTRY_INCHES = 1.2
_LABEL_POINTS = 6
_LABEL_HEIGHT = 0.05
"""Of the axis."""
_WHISKER_WIDTH = 0.7
_TICK_DISTANCE = 0.09
"""Of the axis between the first and the last thread count."""
_ROOF_COLOR = "0.15"
_PEER_STYLE: Any = (0, (3, 1.5))
_PEER_ALPHA = 0.35
_KERNEL_STYLES: tuple[Any, ...] = ("-", "-.", ":")
_PEER_LABEL = "torch SDPA"

Row = Mapping[str, Any]


class _Series(NamedTuple):
    """One shape and kernel in one panel."""

    shape: str
    color: str
    marker: str
    kernel: str
    line_style: Any
    rows: Sequence[Row]

    def at(self, threads: int) -> list[Row]:
        return [row for row in self.rows if row["threads"] == threads]


def roofline(document: Mapping[str, Any]) -> Figure:
    """A panel for each dtype: GB/s against threads, or bars when there is one thread count.

    Lines and bars are medians over batches and contexts, whiskers reach from the lowest to the highest of them; the
    percentage is the median percent of read at the most threads. Hollow: the machine was busy during one of them.
    """
    rows = _attention(document)
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    thread_counts = sorted({row["threads"] for row in rows})
    roof = [read for read in document["read"] if read["threads"] in thread_counts]
    with paper_style():
        width = max(FIGURE_SIZE_INCHES[0], FRAME_WIDTH_INCHES + PANEL_WIDTH_INCHES * len(dtypes))
        figure = Figure(figsize=(width, FIGURE_SIZE_INCHES[1]))
        panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
        top = max(*(row["gbps"] for row in rows), *(read["gbps_p75"] for read in roof))
        panels[0].set_ylim(0, 1.05 * top)
        for axes, dtype in zip(panels, dtypes, strict=True):
            series = _series([row for row in rows if row["dtype"] == dtype], rows)
            if len(thread_counts) > 1:
                _draw_lines(axes, series, roof, thread_counts)
            else:
                _draw_bars(axes, series, roof)
            axes.set_title(_title(dtype, series), fontsize=7)
        panels[0].set_ylabel("Bandwidth (GB/s)")
        handles = _legend_handles(rows, with_lines=len(thread_counts) > 1)
        columns = int(width / _LEGEND_ENTRY_INCHES)
        figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)), columnspacing=1.2)
        wrap_at = int(CAPTION_CHARACTERS_A_LINE * width / FIGURE_SIZE_INCHES[0])
        caption = "\n".join(textwrap.fill(line, wrap_at) for line in _caption(document))
        figure.supxlabel(caption, fontsize=CAPTION_POINTS, color="0.25")
    return figure


def _attention(document: Mapping[str, Any]) -> list[Row]:
    """Without the rows of what bounds it, which stand in the table."""
    return [row for row in document["rows"] if not row["kernel"].endswith(("read_runs", "in_cache"))]


def save_roofline(document: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw and write stem.png, .pdf and .svg; the paths written."""
    provenance = document["provenance"]
    description = f"{shlex.join(provenance['command'])} (commit {provenance['commit'] or 'unknown'})"
    return save_figure(roofline(document), stem, description=description)


def _series(rows: Sequence[Row], all_rows: Sequence[Row]) -> list[_Series]:
    """A shape has one colour in all panels, a kernel one line style in its own."""
    shapes = list(dict.fromkeys(row["shape"] for row in all_rows))
    kernels = _kernels(rows)
    series = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        style = series_style(shapes.index(shape))
        for kernel in dict.fromkeys(row["kernel"] for row in rows if row["shape"] == shape):
            own = [row for row in rows if (row["shape"], row["kernel"]) == (shape, kernel)]
            rank = kernels.index(kernel) if kernel != PEER else 0
            line_style = _PEER_STYLE if kernel == PEER else _KERNEL_STYLES[rank % len(_KERNEL_STYLES)]
            series.append(_Series(shape, style.color, style.marker, kernel, line_style, own))
    return series


def _kernels(rows: Sequence[Row]) -> list[str]:
    """pacpu's own, in order."""
    return list(dict.fromkeys(row["kernel"] for row in rows if row["kernel"] != PEER))


def _draw_lines(axes: Axes, series: Sequence[_Series], roof: Sequence[Row], thread_counts: Sequence[int]) -> None:
    span = thread_counts[-1] - thread_counts[0]
    axes.set_xticks(_apart(thread_counts, _TICK_DISTANCE * span))
    # Room on the right for the percentages.
    axes.set_xlim(thread_counts[0] - 0.08 * span, thread_counts[-1] + 0.28 * span)
    axes.set_xlabel("Threads")
    threads = [read["threads"] for read in roof]
    axes.plot(threads, [read["gbps"] for read in roof], color=_ROOF_COLOR, linewidth=1.6, zorder=4)
    low, high = ([read[key] for read in roof] for key in ("gbps_p25", "gbps_p75"))
    axes.fill_between(threads, low, high, color=_ROOF_COLOR, alpha=0.12, linewidth=0)
    labels = []
    for index, one in enumerate(series):
        counts = [count for count in thread_counts if one.at(count)]
        # Whiskers of different lines stand beside each other.
        shift = 0.012 * span * (index - (len(series) - 1) / 2)
        width = 0.7 if one.kernel == PEER else 1.2
        xs = [count + shift for count in counts]
        axes.plot(xs, [_middle(one.at(count)) for count in counts], color=one.color, linestyle=one.line_style, lw=width)
        for x, count in zip(xs, counts, strict=True):
            _draw_point(axes, x, one, one.at(count))
        if one.line_style == _KERNEL_STYLES[0] and counts:
            labels.append((_middle(one.at(counts[-1])), _percent(one.at(counts[-1])), one.color))
    _write_percentages(axes, thread_counts[-1] + 0.07 * span, labels)


def _apart(counts: Sequence[int], distance: float) -> list[int]:
    """The last and, going down, those of the others whose labels do not run into one another."""
    kept = [counts[-1]]
    for count in reversed(counts[:-1]):
        if kept[-1] - count >= distance:
            kept.append(count)
    return kept[::-1]


def _draw_point(axes: Axes, x: float, series: _Series, rows: Sequence[Row]) -> None:
    y = _middle(rows)
    is_peer = series.kernel == PEER
    axes.errorbar([x], [y], _reach(rows), color=series.color, elinewidth=_WHISKER_WIDTH, capsize=1.5, alpha=0.8)
    fill = "white" if any(row["busy"] for row in rows) else series.color
    marker_size = 2.5 if is_peer else 4.5
    axes.plot(
        [x], [y], color=series.color, marker=series.marker, markerfacecolor=fill, markersize=marker_size, zorder=5
    )


def _draw_bars(axes: Axes, series: Sequence[_Series], roof: Sequence[Row]) -> None:
    shapes = list(dict.fromkeys(one.shape for one in series))
    kernels = list(dict.fromkeys(one.kernel for one in series))
    width = 0.8 / len(kernels)
    for one in series:
        x = shapes.index(one.shape) + width * (kernels.index(one.kernel) - (len(kernels) - 1) / 2)
        is_hollow = any(row["busy"] for row in one.rows)
        alpha = _PEER_ALPHA if one.kernel == PEER else _alpha(kernels.index(one.kernel))
        face = "white" if is_hollow else one.color
        axes.bar(
            [x], [_middle(one.rows)], 0.92 * width, facecolor=face, edgecolor=one.color, alpha=alpha, linewidth=0.8
        )
        error = _reach(one.rows)
        axes.errorbar([x], [_middle(one.rows)], error, color="0.3", elinewidth=_WHISKER_WIDTH, capsize=1.5)
        rotation = 90 if len(kernels) > 1 else 0
        _write_percentage_on_bar(axes, x, one, is_dark=alpha > 0.5 and not is_hollow, rotation=rotation)
    axes.axhline(roof[0]["gbps"], color=_ROOF_COLOR, linewidth=1.6)
    axes.axhspan(roof[0]["gbps_p25"], roof[0]["gbps_p75"], color=_ROOF_COLOR, alpha=0.12, linewidth=0)
    axes.set_xticks(range(len(shapes)), [SHAPE_LABELS[shape] for shape in shapes], fontsize=_LABEL_POINTS)
    axes.set_xlim(-0.6, len(shapes) - 0.4)
    axes.grid(visible=False, axis="x")


def _write_percentage_on_bar(axes: Axes, x: float, series: _Series, *, is_dark: bool, rotation: int) -> None:
    """At its foot, or above its whisker where the bar is too low."""
    is_high = _middle(series.rows) - _reach(series.rows)[0][0] > 3 * _LABEL_HEIGHT * axes.get_ylim()[1]
    y = 0.0 if is_high else max(row["gbps"] for row in series.rows)
    axes.annotate(
        _percent(series.rows),
        (x, y),
        color="white" if is_dark and is_high else "black",
        fontsize=_LABEL_POINTS,
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        rotation=rotation if is_high else 0,
        zorder=6,
    )


def _write_percentages(axes: Axes, x: float, labels: Sequence[tuple[float, str, str]]) -> None:
    """Beside the last points, moved apart where they would overlap."""
    gap = _LABEL_HEIGHT * (axes.get_ylim()[1] - axes.get_ylim()[0])
    lowest = 0.0
    for y, text, color in sorted(labels):
        lowest = max(y, lowest + gap)
        axes.text(x, lowest, text, color=color, fontsize=_LABEL_POINTS, va="center")


def _middle(rows: Sequence[Row]) -> float:
    return float(median(row["gbps"] for row in rows))


def _reach(rows: Sequence[Row]) -> list[list[float]]:
    gbps = [row["gbps"] for row in rows]
    return [[_middle(rows) - min(gbps)], [max(gbps) - _middle(rows)]]


def _percent(rows: Sequence[Row]) -> str:
    return f"{median(row['percent_of_read'] for row in rows):.0f} %"


def _title(dtype: str, series: Sequence[_Series]) -> str:
    kernels = list(dict.fromkeys(one.kernel for one in series if one.kernel != PEER))
    return f"{dtype}: {', '.join(kernels)}" if kernels else dtype


def _legend_handles(rows: Sequence[Row], *, with_lines: bool) -> list[Any]:
    handles: list[Any] = [Line2D([], [], color=_ROOF_COLOR, linewidth=1.6, label="read bandwidth")]
    for index, shape in enumerate(dict.fromkeys(row["shape"] for row in rows)):
        style = series_style(index)
        label = SHAPE_LABELS[shape]
        handles.append(
            Line2D([], [], color=style.color, marker=style.marker, label=label)
            if with_lines
            else Patch(facecolor=style.color, label=label)
        )
    kernels = _most_kernels(rows)
    for rank, kernel in enumerate(kernels if len(kernels) > 1 else ()):
        handles.append(
            Line2D([], [], color="0.4", linestyle=_KERNEL_STYLES[rank % len(_KERNEL_STYLES)], label=kernel)
            if with_lines
            else Patch(facecolor="0.4", alpha=_alpha(rank), label=kernel)
        )
    if any(row["kernel"] == PEER for row in rows):
        handles.append(
            Line2D([], [], color="0.4", linestyle=_PEER_STYLE, linewidth=0.7, label=_PEER_LABEL)
            if with_lines
            else Patch(facecolor="0.4", alpha=_PEER_ALPHA, label=_PEER_LABEL)
        )
    return handles


def _alpha(rank: int) -> float:
    return max(0.5, 1 - 0.25 * rank)


def _most_kernels(rows: Sequence[Row]) -> list[str]:
    """Of the dtype with the most; which is the same for all where kernels are compared by name."""
    by_dtype = [_kernels([row for row in rows if row["dtype"] == dtype]) for dtype in {row["dtype"] for row in rows}]
    return max(by_dtype, key=len)


def _caption(document: Mapping[str, Any]) -> list[str]:
    rows, provenance = _attention(document), document["provenance"]
    batches, contexts = (", ".join(map(str, sorted({row[key] for row in rows}))) for key in ("batch", "context"))
    threads = {row["threads"] for row in rows}
    facts = [
        f"batch {batches}",
        f"context {contexts}",
        "head_dim 128",
        *([_in_words(max(threads))] if len(threads) == 1 else []),
        describe_machine(document["fingerprint"]),
        f"{provenance['kind']} at commit {str(provenance['commit'] or 'unknown')[:12]}",
    ]
    lines = [" · ".join(fact for fact in facts if fact)]
    most = "" if len(threads) == 1 else f"at {max(threads)} threads, "
    lines.append(f"Percentages: {most}of the read bandwidth just before and after.")
    if len({(row["batch"], row["context"]) for row in rows}) > 1:
        lines.append("Medians over batches and contexts; whiskers from the lowest to the highest.")
    if any(read["busy"] for read in document["read"]):
        lines.append("The machine was busy during all reads of a thread count.")
    if any(row["busy"] for row in rows):
        lines.append("Hollow: the machine was busy with something else, not to be relied on.")
    return [*lines, shlex.join(provenance["command"])]


def _in_words(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
