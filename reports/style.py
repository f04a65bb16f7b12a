"""The one look of all figures: the size and serif face of the papers they are set beside, readable in grey print."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib as mpl

FIGURE_SIZE_INCHES = (4.0, 3.0)
CAPTION_POINTS = 5.5
INVALID_COLOR = "#B00020"
CAPTION_CHARACTERS_A_LINE = 92

_RC_PARAMS: dict[Any, Any] = {
    "font.family": "serif",
    # The face that comes with matplotlib, so that the same data give the same bytes on every machine.
    "font.serif": ["DejaVu Serif"],
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "neobench",
}

LINE_STYLE_OF_PROVENANCE: Mapping[str, str] = {"measured": "-", "emulated": "--", "modelled": ":"}


def paper_style() -> AbstractContextManager[None]:
    """Draw and save within it: some settings count when text is made, some when the file is written."""
    return mpl.rc_context(_RC_PARAMS)


class SeriesStyle(NamedTuple):
    color: str
    marker: str


# Okabe and Ito's palette, which colour-blind readers can tell apart; the shapes tell the lines apart without colour.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def series_style(index: int) -> SeriesStyle:
    """7 colours and 8 markers: 56 series before a pair comes again."""
    return SeriesStyle(_COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)])
