"""The rows of `neobench bench-cpu` as a table, on the screen and in Markdown: the same cells in both.

"Read" is the machine's bandwidth around the samples of the row, "% of read" the median over them with its quartiles;
"Tokens/s" are decode tokens of one layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neobench.reports.run import describe_machine

if TYPE_CHECKING:
    from rich.table import Table

BUSY_MARK = "†"
_HEADERS = ("Shape", "Dtype", "Threads", "Batch", "Ctx", "Kernel", "GB/s", "Read", "% of read", "Tokens/s")
_TEXT_HEADERS = ("Shape", "Dtype", "Kernel")


def bandwidth_table(document: Mapping[str, Any]) -> Table:
    """For `rich.print`, from the contents of rows.json."""
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=Text("\n".join(_notes(document))), caption_justify="left", padding=0)
    for header in _HEADERS:
        table.add_column(header, justify="left" if header in _TEXT_HEADERS else "right", no_wrap=True)
    for row in document["rows"]:
        style = "bold red" if row["busy"] else ""
        table.add_row(*(Text(cell, style=style) for cell in _cells(row)))
    return table


def bandwidth_markdown(document: Mapping[str, Any]) -> str:
    lines = [
        list(_HEADERS),
        ["---" if header in _TEXT_HEADERS else "---:" for header in _HEADERS],
        *map(_cells, document["rows"]),
    ]
    return "\n\n".join(["\n".join(f"| {' | '.join(line)} |" for line in lines), *_notes(document)]) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    percent = f"{row['percent_of_read']:.0f} ({row['percent_of_read_p25']:.0f}–{row['percent_of_read_p75']:.0f})"
    percent += BUSY_MARK if row["busy"] else ""
    where = [row["shape"], row["dtype"], str(row["threads"]), str(row["batch"]), str(row["context"]), row["kernel"]]
    return [*where, _rounded(row["gbps"]), _rounded(row["read_gbps"]), percent, f"{row['tokens_per_s']:,.0f}"]


def _rounded(gbps: float) -> str:
    return f"{gbps:.0f}" if gbps >= 100 else f"{gbps:.3g}"


def _notes(document: Mapping[str, Any]) -> list[str]:
    roof = "; ".join(
        f"{read['threads']}: {read['gbps']:.1f} ({read['gbps_p25']:.1f}–{read['gbps_p75']:.1f})"
        f"{BUSY_MARK if read['busy'] else ''}"
        for read in document["read"]
    )
    notes = [f"Read bandwidth in GB/s by threads: {roof}. {describe_machine(document['fingerprint'])}."]
    busy = [row["busy"] for row in document["rows"] if row["busy"]]
    return [*notes, f"{BUSY_MARK} The machine was BUSY, e.g. {busy[0]}."] if busy else notes
