from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from neobench.cli import main
from neobench.cli.paper_figures import Figure, Machine, chosen_figures, paper_figures
from neobench.cli.reproduce_plans import points_of
from neobench.cli.reproduce_points import Point, PointResult
from neobench.cli.reproduce_rows import crossing, rows_and_panels
from neobench.neo_engine.hardware.catalogue import resolve_machine

ROW_KEYS = {"figure", "quantity", "x", "paper", "ours", "ratio"}


def result(throughput: float, latency_s: float = 0.1) -> PointResult:
    return PointResult(
        run="",
        valid=True,
        completed=8,
        mean_per_token_latency_s=latency_s,
        per_token_latency_quantiles_s=[latency_s] * 101,
        window_throughput=2 * throughput,
        whole_throughput=throughput,
    )


def options(point: Point) -> dict[str, str]:
    return dict(point.options)


def test_settings_are_those_of_the_artifact() -> None:
    figures = paper_figures()
    t4, a10g = figures["fig6c"], figures["fig10a"]
    assert t4.settings["device-blocks"] * 16 == 864
    assert a10g.settings["device-blocks"] * 16 == 26_400
    # 20 GiB of Llama-2-7B at 2 * 32 layers * 32 heads * 128 * 2 bytes; 120 GiB of Llama-3.1-8B with 8 heads.
    assert t4.machines[0].host_memory == "20GiB"
    assert 20 * 2**30 // (2 * 32 * 32 * 128 * 2) == 40_960
    assert a10g.machines[3].host_memory == "120GiB"
    assert 120 * 2**30 // (2 * 32 * 8 * 128 * 2) == 983_040


def test_every_machine_is_in_the_catalogue_and_every_known_point_has_a_curve() -> None:
    for figure in paper_figures().values():
        labels = {machine.label for machine in figure.machines}
        for machine in figure.machines:
            resolve_machine(machine.hardware)
        for known in (*figure.known_ratios, *figure.known_latencies):
            assert known.machine is None or known.machine in labels
            assert known.engine in figure.engines
            assert known.x in (figure.rates.get(known.engine) or figure.outputs)
        assert set(figure.known_machine_peaks) <= labels


def test_help_names_every_figure() -> None:
    text = CliRunner().invoke(main, ["reproduce", "--help"]).output
    assert set(paper_figures()) <= set(re.findall(r"fig\w+", text))


def test_a_group_of_figures_has_one_name() -> None:
    assert list(chosen_figures(("fig9",))) == ["fig9a", "fig9b", "fig9c"]
    assert list(chosen_figures(("fig10a", "fig6c"))) == ["fig6c", "fig10a"]
    assert chosen_figures(("all",)) == paper_figures()


def test_an_engine_without_a_host_is_modelled_beside_one_machine() -> None:
    points = points_of(paper_figures()["fig10a"], {})
    by_engine = {engine: {p for p in points if options(p)["engine"] == engine} for engine in ("neo", "gpu_only")}
    assert len(by_engine["neo"]) == 4 * 5
    assert len(by_engine["gpu_only"]) == 5


def test_rates_of_a_capacity_come_in_a_second_round() -> None:
    figure = Figure(
        title="",
        kind="load_latency",
        model="tiny",
        machines=[Machine(hardware="g5.2xlarge", label="a"), Machine(hardware="g5.4xlarge", label="b")],
        engines=["neo", "vllm"],
        workload="carperai",
        rates_of_capacity=[0.5, 1.0],
        requests=8,
        paper_requests=8,
    )
    first = points_of(figure, {})
    assert [(options(point)["engine"], options(point)["hardware"]) for point in first] == [
        ("neo", "g5.2xlarge"),
        ("neo", "g5.4xlarge"),
        ("vllm", "g5.2xlarge"),
    ]
    second = points_of(figure, {point: result(4.0) for point in first})
    rates = [options(point)["rate"] for point in second if "rate" in options(point)]
    assert rates == ["2", "4"] * 3


def test_latency_crosses_its_limit_between_two_rates() -> None:
    # Half of the way from 0.25 to 4 in logarithms.
    assert crossing({3.0: 4.0, 1.0: 0.25}, 1.0) == pytest.approx(2.0)
    assert crossing({1.0: 0.25, 2.0: 0.5}, 1.0) is None
    assert crossing({1.0: 2.0, 2.0: 4.0}, 1.0) is None


def test_ratios_peaks_and_the_papers_points() -> None:
    figure = Figure(
        title="",
        kind="relative_throughput",
        model="tiny",
        machines=[Machine(hardware="g5.2xlarge", label="box")],
        engines=["neo"],
        baseline="gpu_only",
        inputs=[100],
        outputs=[10, 20],
        known_machine_peaks={"box": 2.0},
        known_ratios=[],
        requests=8,
        paper_requests=8,
    )
    speeds = {("neo", "10"): 3.0, ("neo", "20"): 5.0, ("gpu_only", "10"): 2.0, ("gpu_only", "20"): 2.0}
    results = {
        point: result(speeds[options(point)["engine"], options(point)["workload"].split(",")[1]])
        for point in points_of(figure, {})
    }
    rows, panels = rows_and_panels("figx", figure, results)
    peaks = [row for row in rows if row.quantity.startswith("peak")]
    assert [(row.x, row.paper, row.ours, row.ratio) for row in peaks] == [(20.0, 2.0, 2.5, 1.25)] * 2
    assert [list(panel.lines[0].ys) for panel in panels] == [[1.5, 2.5]] * 2


def test_figures_table_and_rows_of_small_runs(tmp_path: Path) -> None:
    arguments = ["reproduce", "fig6c", "fig7", "--requests", "8", "-o", str(tmp_path), "--processes", "1", "--json"]
    first = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    rows = json.loads(first.stdout)
    assert all(row.keys() == ROW_KEYS for row in rows)
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    for name in ("fig6c", "fig7"):
        assert {tmp_path / f"{name}.{suffix}" for suffix in ("png", "pdf", "svg")} <= set(tmp_path.iterdir())
    known = [row for row in rows if row["quantity"] == "mean per-token latency (s), neo, g4dn.4xlarge" and row["paper"]]
    assert [row["x"] for row in known] == [0.5, 1.5, 2.5, 3.1, 3.3, 3.5, 3.7]
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["paper"]) for row in known)
    runs = sorted((tmp_path / "points").iterdir())
    again = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert again.stdout == first.stdout
    assert sorted((tmp_path / "points").iterdir()) == runs


def test_two_processes_model_what_one_does(tmp_path: Path) -> None:
    tables = []
    for processes in ("1", "2"):
        folder = tmp_path / processes
        arguments = ["reproduce", "fig10b", "--requests", "8", "-o", str(folder), "--processes", processes, "--json"]
        tables.append(CliRunner().invoke(main, arguments, catch_exceptions=False).stdout)
    assert tables[0] == tables[1]


def test_an_unknown_figure_is_answered_with_the_nearest(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["reproduce", "fig6d", "-o", str(tmp_path / "out")])
    assert outcome.exit_code == 2
    assert "unknown figure 'fig6d'; did you mean 'fig6" in outcome.output
    assert not (tmp_path / "out").exists()
