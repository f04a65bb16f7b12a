"""The bandwidth figure through its axes, and the table beside it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from neobench.reports.bandwidth_table import bandwidth_markdown, bandwidth_table
from neobench.reports.roofline import PEER, roofline, save_roofline

ROOF = {1: 10.0, 2: 19.0, 4: 30.0}
BUSY = "other processes used 40% of the CPU under test"


def row(kernel: str, shape: str, dtype: str, threads: int, batch: int, percent: float) -> dict[str, Any]:
    gbps = ROOF[threads] * percent / 100
    return {
        "kernel": kernel,
        "shape": shape,
        "dtype": dtype,
        "threads": threads,
        "batch": batch,
        "context": 1024,
        "gbps": gbps,
        "read_gbps": ROOF[threads],
        "percent_of_read": percent,
        "tokens_per_s": 1234.5,
        "percent_of_read_p25": percent - 1,
        "percent_of_read_p75": percent + 1,
        "busy": None,
    }


def document(
    threads: Sequence[int] = (1, 2, 4),
    dtypes: Sequence[str] = ("bfloat16", "int8"),
    kernels: Sequence[str] = ("avx512_bf16", PEER),
) -> dict[str, Any]:
    rows = [
        row(kernel, shape, dtype, count, batch, 5 if kernel == PEER else percent + offset)
        for dtype, count, (shape, percent), (batch, offset), kernel in itertools.product(
            dtypes, threads, (("mha", 90), ("gqa4", 80)), ((1, -10), (16, 0), (64, 4)), kernels
        )
        if dtype != "int8" or kernel != PEER
    ]
    read = [
        {"threads": n, "gbps": ROOF[n], "gbps_p25": ROOF[n] - 1, "gbps_p75": ROOF[n] + 1, "busy": False}
        for n in threads
    ]
    provenance = {"kind": "measured", "command": ["neobench", "bench-cpu"], "commit": "abc1234", "started_at": ""}
    fingerprint = {"cpu": {"model": "AMD EPYC", "available_cores": 4}}
    return {"rows": rows, "read": read, "provenance": provenance, "fingerprint": fingerprint}


def lines(figure: Figure, panel: int) -> list[list[tuple[float, float]]]:
    drawn: list[Any] = list(figure.axes[panel].lines)
    return [list(zip(*line.get_data(), strict=True)) for line in drawn if len(line.get_xdata()) > 1]


def texts(figure: Figure, panel: int) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def caption(figure: Figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def test_the_roof_is_above_a_line_for_each_shape() -> None:
    figure = roofline(document())
    assert [axes.get_title() for axes in figure.axes] == ["bfloat16: avx512_bf16", "int8: avx512_bf16"]
    assert lines(figure, 1)[0] == list(ROOF.items())
    shapes = lines(figure, 1)[1:]
    assert [[round(y, 3) for _, y in line] for line in shapes] == [[9, 17.1, 27], [8, 15.2, 24]]
    assert texts(figure, 1) == ["80 %", "90 %"]
    assert figure.axes[0].get_xlabel() == "Threads"
    assert figure.axes[0].get_ylabel() == "Bandwidth (GB/s)"
    assert legend(figure) == ["read bandwidth", "MHA 32/32", "GQA 32/8", "torch SDPA"]
    for fact in ("batch 1, 16, 64", "context 1024", "AMD EPYC, 4 cores", "measured", "abc1234", "neobench bench-cpu"):
        assert fact in caption(figure)


def test_the_peer_is_a_thin_line_without_a_percentage() -> None:
    figure = roofline(document(dtypes=("bfloat16",)))
    assert len(lines(figure, 0)) == 1 + 4
    assert len(texts(figure, 0)) == 2


def test_percentages_never_overlap() -> None:
    close = document(dtypes=("int8",))
    for one in close["rows"]:
        one["gbps"] = 0.5 * ROOF[one["threads"]]
    figure = roofline(close)
    heights = [text.get_position()[1] for text in figure.axes[0].texts]
    assert abs(heights[0] - heights[1]) >= 0.045 * figure.axes[0].get_ylim()[1]


def test_one_thread_count_makes_bars_under_a_line() -> None:
    measured = document(threads=(2,))
    # Ctrl-C came before the rows of the other thread counts.
    figure = roofline({**measured, "read": document()["read"]})
    bars: list[Any] = [
        bar for container in figure.axes[0].containers for bar in container if hasattr(bar, "get_height")
    ]
    assert [round(bar.get_height(), 3) for bar in bars] == [17.1, 0.95, 15.2, 0.95]
    assert {"90 %", "80 %", "5 %"} == set(texts(figure, 0))
    assert "2 threads" in caption(figure)
    roof: Any = figure.axes[0].lines[-1]
    assert set(roof.get_ydata()) == {19.0}


def test_kernels_that_are_compared_are_in_the_legend() -> None:
    for threads in ((1, 2), (2,)):
        assert {"avx512_bf16", "cpp"} <= set(legend(roofline(document(threads, kernels=("avx512_bf16", "cpp")))))


@pytest.mark.parametrize("threads", [(1, 2), (2,)])
def test_busy_points_are_hollow_and_said_to_be(threads: tuple[int, ...]) -> None:
    disturbed = document(threads)
    assert "Hollow" not in caption(roofline(disturbed))
    disturbed["rows"][0]["busy"] = BUSY
    figure = roofline(disturbed)
    assert "Hollow: the machine was busy" in caption(figure)
    markers: list[Any] = list(figure.axes[0].lines)
    patches: list[Any] = list(figure.axes[0].patches)
    disturbed["read"][0]["busy"] = True
    assert "busy during all reads" in caption(roofline(disturbed))
    whites = [line for line in markers if line.get_markerfacecolor() == "white"]
    whites += [bar for bar in patches if bar.get_facecolor()[:3] == (1, 1, 1)]
    assert len(whites) == 1


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (save_roofline(document(), tmp_path / name / "roofline") for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert all(b"neobench bench-cpu" in path.read_bytes() for path in first)


def test_the_table_fits_a_terminal_and_marks_what_was_busy() -> None:
    disturbed = document()
    disturbed["rows"][0] |= {"busy": BUSY, "tokens_per_s": 1234567.0, "context": 4096}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(bandwidth_table(disturbed))
    shown = console.export_text()
    assert "…" not in shown
    assert "80 (79–81)†" in shown
    assert f"† The machine was BUSY, e.g. {BUSY}." in shown
    assert "1: 10.0 (9.0–11.0); 2: 19.0 (18.0–20.0)" in shown
    markdown = bandwidth_markdown(disturbed).splitlines()
    assert markdown[2] == "| mha | bfloat16 | 1 | 1 | 4096 | avx512_bf16 | 8 | 10 | 80 (79–81)† | 1,234,567 |"
    assert markdown[-1] == f"† The machine was BUSY, e.g. {BUSY}."


def test_limits_stand_in_the_table_and_not_in_the_figure() -> None:
    one = document(threads=(1,), dtypes=("bfloat16",))
    plain_top = roofline(one).axes[0].get_ylim()[1]
    one["rows"] += [
        row("read_runs", "mha", "bfloat16", 1, 16, 97),
        row("amx_bf16 in_cache", "mha", "bfloat16", 1, 16, 400),
    ]
    figure = roofline(one)
    assert figure.axes[0].get_ylim()[1] == plain_top
    assert "in_cache" in bandwidth_markdown(one)
    assert "in_cache" not in "".join(text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text")))
