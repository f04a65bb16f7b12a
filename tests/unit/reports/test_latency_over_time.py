import numpy as np
import pytest

from neobench.reports.latency_over_time import RequestLatencies, latency_figure, running_median, save_latency
from neobench.results.record import Outcome, RequestRecord
from neobench.results.store import Provenance, RunFolder, RunInfo, build_summary

SECOND = 1_000_000_000


def record(index, scheduled_s, ttft_s, e2el_s, **fields):
    scheduled_ns = round(scheduled_s * SECOND)
    return RequestRecord(
        index=index,
        prompt_tokens=5,
        requested_output_tokens=2,
        output_tokens=2,
        scheduled_ns=scheduled_ns,
        **{
            "issued_ns": scheduled_ns,
            "first_token_ns": scheduled_ns + round(ttft_s * SECOND),
            "ended_ns": scheduled_ns + round(e2el_s * SECOND),
            "outcome": Outcome.OK,
            **fields,
        },
    )


@pytest.fixture
def run_folder(tmp_path):
    """A queue that grows by 10 ms a request, the last one failed, and what must not be drawn."""
    info = RunInfo(
        spec={"engine": {"name": "neo"}, "workload": {"name": "carperai"}, "model": "tiny", "arrival": {}},
        spec_hash="abc",
        num_requests=50,
        request_rate=10.0,
        provenance=Provenance(kind="measured", command=["neobench"], commit=None, started_at="2026-01-01T00:00:00Z"),
        fingerprint={},
        engine={},
    )
    folder = RunFolder.create(tmp_path / "run")
    folder.write_run(info)
    folder.append(record(99, 0.0, 8.0, 9.0, warmup=True))
    folder.append(record(98, 0.0, 8.0, 9.0, outcome=Outcome.INTERRUPTED, issued_ns=None))
    for index in reversed(range(49)):
        folder.append(record(index, index / 10, 0.01 * index, 0.01 * index + 0.1))
    folder.append(record(49, 4.9, 3.0, 3.0, outcome=Outcome.TIMEOUT))
    folder.finish(build_summary(info, folder.columns, engine_stats={}))
    return tmp_path / "run"


def test_measured_requests_that_were_sent_in_the_order_of_their_arrival(run_folder):
    latencies = RequestLatencies.read(run_folder)
    assert latencies.scheduled_s == pytest.approx(np.arange(50) / 10)
    assert latencies.ttft_s[:49] == pytest.approx(np.arange(49) / 100)
    assert latencies.e2el_s[:49] == pytest.approx(np.arange(49) / 100 + 0.1)
    assert np.isnan(latencies.ttft_s[49])
    assert np.isnan(latencies.e2el_s[49])


def test_the_running_median_takes_groups_of_equal_size():
    at_s, values = np.arange(10.0), np.array([1.0, 2, 3, 4, 100, 5, 6, 7, 8, -100])
    middles_s, medians = running_median(at_s, values)
    assert middles_s.tolist() == [2, 7]
    assert medians.tolist() == [3, 6]
    values[1] = np.nan
    assert np.isnan(running_median(at_s, values)[1]).tolist() == [True, False]
    assert len(running_median(at_s[:4], values[:4])[1]) == 0
    assert len(running_median(np.arange(10_000.0), np.arange(10_000.0))[1]) == 30


def test_the_figure_shades_the_steady_window_and_marks_failures(run_folder, make_run):
    run = make_run("neo", 10.0, 0.1, steady_window_start_s=1.225, steady_window_end_s=4.9)
    figure = latency_figure(run, RequestLatencies.read(run_folder))
    for axes, unit in zip(figure.axes, ("TTFT (ms)", "E2EL (ms)"), strict=True):
        assert axes.get_ylabel() == unit
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["request", "running median", "failed", "steady window"]
        assert [line.get_xdata().tolist() for line in axes.lines if line.get_label() == "failed"] == [[4.9]]
        (window,) = axes.patches
        assert window.get_extents().transformed(axes.transData.inverted()).intervalx == pytest.approx([1.225, 4.9])
    assert "50 requests, 1 of them failed." in figure.get_supxlabel()


def test_an_invalid_run_is_stamped_and_says_why(run_folder, make_run):
    latencies = RequestLatencies.read(run_folder)
    for valid in (True, False):
        figure = latency_figure(make_run("neo", 10.0, 0.1, valid=valid), latencies)
        assert ("INVALID" in [text.get_text() for text in figure.texts]) is not valid
        assert ("fell behind its schedule" in figure.get_supxlabel()) is not valid


def test_without_a_sent_request_there_is_nothing_to_draw(tmp_path, run_folder, make_run):
    run = make_run("neo", 10.0, 0.1)
    assert save_latency(run, tmp_path) == []
    assert [path.name for path in save_latency(run, run_folder)] == ["latency.png", "latency.pdf", "latency.svg"]
