from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

from rich.console import Console

from neobench.reports.figures import load_latency
from neobench.reports.run import ReportRun
from neobench.reports.tables import runs_markdown, runs_table

from .conftest import REASON, MakeRun

UNSUPPORTED = {"p99": {"supported": False, "required_requests": 459, "requests": 100}}


def on_screen(runs: Sequence[ReportRun], width: int = 200) -> str:
    screen = io.StringIO()
    Console(width=width, file=screen).print(runs_table(runs))
    return screen.getvalue()


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_a_row_has_the_numbers_of_its_run(make_run: MakeRun) -> None:
    row = runs_markdown([make_run("gpu_only", 2, 0.25)]).splitlines()[2]
    assert row == "| gpu_only | 2 | 500/502 | 1.99 | 89.7 | 123 | 1,834 | 43.2 | 0.25 | valid |"


def test_the_screen_shows_the_cells_of_the_markdown(make_run: MakeRun) -> None:
    runs = [make_run("[neo]", 2, 0.25, valid=False), make_run("gpu_only", None, None, mean_ttft_ms=None)]
    screen = on_screen(runs)
    for row in runs_markdown(runs).splitlines()[2:4]:
        for cell in row.strip("| ").split(" | "):
            assert cell in screen


def test_an_invalid_run_is_marked_and_its_reason_given(make_run: MakeRun) -> None:
    runs = [make_run("neo", 2, 0.25, valid=False)]
    for text in (runs_markdown(runs), on_screen(runs)):
        assert "INVALID" in text
        assert f"neo at 2 req/s: INVALID. {REASON}" in unwrapped(text)


def test_an_unsupported_p99_is_marked_and_explained(make_run: MakeRun) -> None:
    runs = [make_run("neo", 2, 0.25, percentile_support=UNSUPPORTED)]
    for text in (runs_markdown(runs), on_screen(runs)):
        assert "1,834†" in text
        assert "needs 459 completed" in unwrapped(text)
    assert "†" not in runs_markdown([make_run("neo", 2, 0.25)])


def test_the_share_on_the_host_has_a_column_only_if_an_engine_reports_it(make_run: MakeRun) -> None:
    neo = make_run("neo", 2, 0.25, engine_stats={"cpu_decode_tokens": 31, "gpu_decode_tokens": 69})
    other = make_run("null", 2, 0.25)
    rows = runs_markdown([neo, other]).splitlines()
    assert rows[0].endswith("| On host | Run |")
    assert rows[2].endswith("| 31% | valid |")
    assert rows[3].endswith("| - | valid |")
    assert "On host" not in runs_markdown([other])


def test_provenance_and_what_is_absent_are_shown(make_run: MakeRun) -> None:
    run = make_run("neo", None, None, kind="modelled", p99_ttft_ms=None, percentile_support=UNSUPPORTED)
    row = runs_markdown([run]).splitlines()[2]
    assert row == "| neo | all at once | 500/502 | 1.99 | 89.7 | 123 | - | 43.2 | - | valid, modelled |"


def test_the_table_fits_a_terminal_of_80_columns(make_run: MakeRun) -> None:
    stats = {"cpu_decode_tokens": 31, "gpu_decode_tokens": 69}
    latencies = {"mean_ttft_ms": 12345.6, "p99_ttft_ms": 123456.7, "percentile_support": UNSUPPORTED}
    wide = make_run("vllm-paper:256", 12.5, 0.0123, valid=False, kind="emulated", engine_stats=stats, **latencies)
    screen = on_screen([wide, make_run("null", None, 0.00123, kind="modelled")], width=80)
    assert max(map(len, screen.splitlines())) <= 80
    row = next(line for line in screen.splitlines() if "12.5" in line)
    for cell in ("500/502", "89.7", "12,346", "123,457†", "43.2", "0.0123", "31%", "INVALID"):
        assert cell in row
    assert "0.00123" in screen
    assert "…" not in screen
    for word in ("TTFT", "mean", "TPOT", "token", "(s)", "host"):
        assert word in screen


def test_a_limit_on_concurrency_is_told_with_its_queue(make_run: MakeRun) -> None:
    run = dataclasses.replace(make_run("neo", 2, 0.25, mean_client_queue_ms=12.345), concurrency=8)
    assert "neo at 2 req/s: capped at 8, client queue mean 12.3 ms." in runs_markdown([run])
    assert "capped" not in runs_markdown([make_run("neo", 2, 0.25)])
    (caption,) = (text.get_text() for text in load_latency([run]).texts if "capped" in text.get_text())
    assert "capped at 8, client queue mean 12.3 ms" in unwrapped(caption)
