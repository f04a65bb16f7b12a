import json

import pytest

from neobench.reports.telemetry import save_telemetry, telemetry_figure
from neobench.results.telemetry import Telemetry

S = 1_000_000_000
CPU_ROWS = [
    {"at_ns": k * S, "cpu_percent": 40.0, "core_percent": [70.0, 10.0], "client_cpu_percent": 5.0} for k in range(1, 5)
]
GPU = {"gpu_utilization_percent": [90.0, 5.0], "gpu_power_w": [300.0, None], "gpu_throttle_reasons": ["sw_power_cap"]}


def labels_of(figure):
    return [axes.get_ylabel() for axes in figure.axes]


def test_only_what_was_sampled_has_a_panel(make_run):
    figure = telemetry_figure(make_run("null", 4.0, 0.1), Telemetry(CPU_ROWS))
    assert labels_of(figure) == ["CPU (%)", "CPUs used"]
    client = figure.axes[1].lines[0]
    assert client.get_xdata().tolist() == [1, 2, 3, 4]
    assert client.get_ydata() == pytest.approx([0.05] * 4)
    assert figure.axes[-1].get_xlabel() == "Time since the start of the schedule (s)"


def test_gpus_and_the_engine_have_panels_of_their_own(make_run):
    rows = [{**row, **GPU, "running_requests": 3.0, "host_kv_used_fraction": 0.25} for row in CPU_ROWS]
    figure = telemetry_figure(make_run("neo", 4.0, 0.1), Telemetry(rows))
    assert labels_of(figure) == ["CPU (%)", "CPUs used", "Requests", "KV used (%)", "GPU busy (%)", "Power (W)"]
    assert [text.get_text() for text in figure.axes[4].get_legend().get_texts()] == ["GPU 0", "GPU 1"]
    assert "slowed down" in [text.get_text() for text in figure.axes[5].get_legend().get_texts()]
    assert figure.axes[3].lines[0].get_ydata() == pytest.approx([25.0] * 4)


def test_an_invalid_run_is_stamped_and_says_why(make_run):
    stamps = {}
    for valid in (True, False):
        figure = telemetry_figure(make_run("neo", None, 0.1, valid=valid), Telemetry(CPU_ROWS, {"gpu": "none here"}))
        stamps[valid] = [text.get_text() for text in figure.texts]
        assert "gpu: none here" in figure.get_supxlabel()
    assert "INVALID" in stamps[False]
    assert "INVALID" not in stamps[True]
    assert "fell behind" in figure.get_supxlabel()


def test_saved_in_three_formats_and_nothing_without_telemetry(make_run, tmp_path):
    assert save_telemetry(make_run("neo", 4.0, 0.1), tmp_path) == []
    (tmp_path / "telemetry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CPU_ROWS))
    paths = save_telemetry(make_run("neo", 4.0, 0.1), tmp_path)
    assert [path.name for path in paths] == ["telemetry.png", "telemetry.pdf", "telemetry.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)
