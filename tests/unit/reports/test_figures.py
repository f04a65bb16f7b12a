"""What a figure shows, asserted through its axes; and what is written beside it."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from neobench.reports.figures import load_latency, save_load_latency
from neobench.reports.run import ReportRun

from .conftest import REASON, MakeRun

GPU_ONLY = [(0.2, 0.08), (0.4, 0.135), (0.5, 0.46)]
NEO = [(0.5, 0.115), (2.5, 0.283), (3.5, 1.05)]


@pytest.fixture
def two_engines(make_run: MakeRun) -> list[ReportRun]:
    # Out of order, as a list of folders may be.
    return [make_run("gpu_only", *point) for point in GPU_ONLY[::-1]] + [make_run("neo", *point) for point in NEO]


def curves(figure: Figure) -> list[list[tuple[float, float]]]:
    """The lines that join points."""
    lines: list[Any] = list(figure.axes[0].lines)
    return [list(zip(*line.get_data(), strict=True)) for line in lines if len(line.get_xdata()) > 1]


def legend(figure: Figure) -> list[str]:
    drawn = figure.axes[0].get_legend()
    return [] if drawn is None else [text.get_text() for text in drawn.get_texts()]


def caption(figure: Figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def fills(figure: Figure) -> list[Any]:
    points: list[Any] = list(figure.axes[0].lines)
    return [point.get_markerfacecolor() for point in points if len(point.get_xdata()) == 1]


def test_one_line_an_engine_through_its_points_in_order(two_engines: list[ReportRun]) -> None:
    figure = load_latency(two_engines)
    assert curves(figure) == [GPU_ONLY, NEO]
    assert legend(figure) == ["gpu_only", "neo"]
    axes = figure.axes[0]
    assert axes.get_xlabel() == "Request rate (req/s)"
    assert axes.get_ylabel() == "Average per-token latency (s)"
    assert caption(figure) == "tiny-llama · carperai · Tesla T4, 8 cores · measured"
    assert tuple(figure.get_size_inches()) == (4, 3)
    assert "white" not in fills(figure)


def test_invalid_runs_are_hollow_and_named(make_run: MakeRun) -> None:
    figure = load_latency([make_run("neo", 1, 0.1), make_run("neo", 2, 0.2, valid=False)])
    assert fills(figure).count("white") == 1
    assert legend(figure) == ["neo", "invalid run"]
    assert "Hollow: INVALID, not to be relied on: neo at 2 req/s" in caption(figure)


def test_modelled_points_are_never_joined_to_measured_ones(make_run: MakeRun) -> None:
    runs = [make_run("neo", rate, 0.1, kind=kind) for kind in ("measured", "modelled", "emulated") for rate in (1, 2)]
    figure = load_latency(runs)
    assert legend(figure) == ["neo", "neo (modelled)", "neo (emulated)"]
    lines: list[Any] = list(figure.axes[0].lines)
    styles = [line.get_linestyle() for line in lines if len(line.get_xdata()) > 1]
    assert styles == ["-", ":", "--"]
    assert "emulated and measured and modelled" in caption(figure)


def test_repeated_runs_are_joined_by_their_median(make_run: MakeRun) -> None:
    runs = [make_run("neo", 1, latency) for latency in (0.1, 0.5, 0.2)] + [make_run("neo", 2, 0.4)]
    figure = load_latency(runs)
    assert curves(figure) == [[(1, 0.2), (2, 0.4)]]
    assert len(fills(figure)) == 4


def test_labels_tell_models_and_workloads_apart_only_if_they_differ(make_run: MakeRun) -> None:
    runs = [make_run("neo", 1, 0.1, model=model) for model in ("7B", "8B")]
    assert legend(load_latency(runs)) == ["neo, 7B", "neo, 8B"]
    runs = [make_run("neo", 1, 0.1, workload=workload) for workload in ("carperai", "synthetic:8,8")]
    assert legend(load_latency(runs)) == ["neo, carperai", "neo, synthetic:8,8"]


@pytest.mark.parametrize(("highest_s", "scale"), [(1.9, "linear"), (2.1, "log")])
def test_the_scale_is_logarithmic_beyond_a_factor_of_20(make_run: MakeRun, highest_s: float, scale: str) -> None:
    axes = load_latency([make_run("neo", 1, 0.1), make_run("neo", 2, highest_s)]).axes[0]
    assert axes.get_yscale() == scale
    assert axes.get_xlim()[0] == 0
    assert scale == "log" or axes.get_ylim()[0] == 0


def test_the_cap_cuts_the_axis_and_says_what_is_above(make_run: MakeRun) -> None:
    figure = load_latency([make_run("neo", 1, 0.5), make_run("neo", 2, 40)], latency_cap_s=2)
    assert figure.axes[0].get_ylim() == (0, 2)
    assert "Above 2 s: neo at 2 req/s" in caption(figure)


def test_what_cannot_be_drawn_is_named(make_run: MakeRun) -> None:
    figure = load_latency([make_run("neo", None, 0.5), make_run("neo", 4, None, valid=False), make_run("neo", 1, 1)])
    assert "Not drawn, for want of a rate or of a completed request: neo at inf, 4 req/s" in caption(figure)
    assert not curves(load_latency([make_run("neo", None, 0.5)]))
    assert not curves(load_latency([]))


def test_files_are_the_same_bytes_each_time_and_say_where_they_come_from(
    two_engines: list[ReportRun], tmp_path: Path
) -> None:
    first = save_load_latency(two_engines, tmp_path / "one" / "load.latency")
    second = save_load_latency(two_engines, tmp_path / "two" / "load.latency")
    assert [path.name for path in first] == [f"load.latency.{kind}" for kind in ("png", "pdf", "svg", "csv")]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    for path in first[:3]:
        assert b"neobench run --engine neo" in path.read_bytes()


def test_the_figure_is_stamped_where_no_run_is_valid(make_run: MakeRun) -> None:
    runs = [make_run("neo", 2, 0.25, valid=False), make_run("neo", 4, 0.3, valid=False)]
    assert "INVALID" in [text.get_text() for text in load_latency(runs).texts]
    assert "INVALID" not in [text.get_text() for text in load_latency([*runs, make_run("neo", 8, 0.4)]).texts]


def test_the_data_lie_beside_the_figure(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("neo", 2, 0.25, valid=False), make_run("neo", None, None)]
    with save_load_latency(runs, tmp_path / "figure")[-1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "engine": "neo",
        "model": "tiny-llama",
        "workload": "carperai",
        "request_rate": "2",
        "mean_per_token_latency_s": "0.25",
        "valid": "False",
        "reasons": REASON,
        "provenance": "measured",
        "machine": "Tesla T4, 8 cores",
        "commit": "abc1234",
        "command": "neobench run --engine neo",
        "tool": "neobench",
    }
    assert (rows[1]["request_rate"], rows[1]["mean_per_token_latency_s"]) == ("", "")


def test_pyplot_and_its_global_state_are_not_used(two_engines: list[ReportRun]) -> None:
    load_latency(two_engines)
    assert "matplotlib.pyplot" not in sys.modules


def test_rates_of_sessions_are_named_and_not_joined_with_those_of_requests(make_run: MakeRun) -> None:
    alone = [make_run("neo", rate, 0.1) for rate in (1.0, 2.0)]
    talks = [replace(run, of_sessions=True) for run in alone]
    assert load_latency(talks).axes[0].get_xlabel() == "Session rate (sessions/s)"
    both = load_latency([*alone, *talks])
    assert both.axes[0].get_xlabel() == "Request rate (req/s or sessions/s)"
    assert legend(both) == ["neo", "neo, sessions"]
    assert talks[0].title == "neo at 1 sessions/s"


def test_what_telemetry_knows_is_drawn_below_on_the_same_rates(make_run: MakeRun) -> None:
    def machine(cpu: float, kv: float, **more: Any) -> dict[str, Any]:
        return {"cpu_percent": cpu, "max_device_kv_used_fraction": kv, "gpu_utilization_percent": None, **more}

    runs = [
        make_run("neo", 1, 0.1, machine=machine(40, 0.25, max_waiting_requests=0.0)),
        make_run("neo", 1, 0.1, machine=machine(60, 0.75)),
        make_run("neo", 2, 0.2, machine=machine(80, 1.0, gpu_utilization_percent=[20.0, 60.0])),
    ]
    figure = load_latency(runs)
    latency, cpu, gpu, kv = figure.axes
    assert [axes.get_ylabel() for axes in (cpu, gpu, kv)] == ["CPU (%)", "GPU (%)", "Peak KV,\ndevice (%)"]
    lines: list[Any] = [axes.lines[0] for axes in (cpu, gpu, kv)]
    points = [list(zip(*line.get_data(), strict=True)) for line in lines]
    assert points == [[(1, 50), (2, 80)], [(2, 40)], [(1, 50), (2, 100)]]
    assert (latency.get_xlabel(), kv.get_xlabel()) == ("", "Request rate (req/s)")
    assert latency.get_xlim() == kv.get_xlim()
