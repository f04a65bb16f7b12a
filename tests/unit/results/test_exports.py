import csv
import io
import json
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from neobench.cli import main
from neobench.results.record import Outcome
from neobench.results.store import RunFolder, build_summary

# Written by `vllm bench serve` 0.32.0 with --max-concurrency, against guidellm 0.8.1's mock server.
VLLM_FILE = Path(__file__).parent / "data" / "vllm-bench-0.32.json"


@pytest.fixture
def run_path(tmp_path, run_info, make_record):
    path = tmp_path / "null-rate-10"
    folder = RunFolder.create(path)
    spec = {**run_info.spec, "arrival": {"kind": "poisson", "rate": 10.0, "concurrency": 4}, "percentiles": [99.9]}
    info = msgspec.structs.replace(run_info, spec={**spec, "goodput_ms": {"ttft": 150.0}})
    folder.write_run(info)
    folder.append(make_record(0, lag=1, tokens_at=(100, 120, 160), ended=170))
    folder.append(make_record(1, scheduled=200, lag=3, tokens_at=(400, 430)))
    folder.append(make_record(2, scheduled=300, tokens_at=(), outcome=Outcome.HTTP_ERROR, error='said "no"'))
    folder.finish(build_summary(info, folder.columns, engine_stats={}))
    return path


def exported(*arguments):
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_vllm_names_and_types_are_those_of_a_real_file(run_path):
    ours, real = json.loads(exported(run_path, "--format", "vllm")), json.loads(VLLM_FILE.read_text())
    # Its p50 is a median under another name, there because it was asked for.
    expected = {key: value for key, value in real.items() if not key.startswith("p50")}
    assert expected.keys() <= ours.keys()
    for key, value in expected.items():
        if value is not None:
            assert isinstance(ours[key], type(value)), key


def test_vllm_figures_start_at_issue_and_ours_stand_beside_them(run_path):
    ours = json.loads(exported(run_path, "--format", "vllm"))
    assert ours["ttfts"] == pytest.approx([0.099, 0.197, 0])
    assert ours["latencies"] == pytest.approx([0.169, 0.227, 0])
    assert ours["itls"][0] == pytest.approx([0.02, 0.04])
    assert ours["errors"] == ["", "", 'said "no"']
    assert ours["mean_ttft_ms"] == pytest.approx((99 + 197) / 2)
    assert ours["mean_ttft_from_schedule_ms"] == pytest.approx(150)
    assert ours["mean_client_queue_time_ms"] == pytest.approx(2)
    assert ours["mean_e2el_including_client_queue_ms"] == pytest.approx((170 + 230) / 2)
    assert (ours["max_output_tokens_per_s"], ours["max_concurrent_requests"]) == (5.0, 2)
    assert ours["valid"] is False


def test_vllm_peaks_are_those_that_vllm_computes(tmp_path, run_info, make_record):
    """Requests of 2.5 s, one a second: at most three touch the same second since the first was sent."""
    folder = RunFolder.create(tmp_path / "run")
    folder.write_run(run_info)
    for index in range(4):
        issued = 1_000 * index + 500
        instants = (issued + 900, issued + 1_900, issued + 1_950, issued + 2_400)
        folder.append(make_record(index, scheduled=issued, tokens_at=instants))
    folder.finish(build_summary(run_info, folder.columns, engine_stats={}))
    ours = json.loads(exported(tmp_path / "run", "--format", "vllm"))
    # Seconds of the tokens of request i: i, i + 1 twice, i + 2.
    assert (ours["max_output_tokens_per_s"], ours["max_concurrent_requests"]) == (4.0, 3)


def test_csv_has_a_row_a_request_or_a_row_a_run(run_path):
    rows = list(csv.DictReader(io.StringIO(exported(run_path, run_path, "--format", "csv"))))
    assert [row["index"] for row in rows] == ["0", "1", "2"] * 2
    assert rows[0]["events"] == "3"
    (run,) = csv.DictReader(io.StringIO(exported(run_path, "--format", "csv", "--summary")))
    assert (run["completed"], run["valid"], run["machine_telemetry_samples"]) == ("2", "False", "0")


def test_parquet_has_a_row_a_request_or_a_row_a_run(run_path, tmp_path):
    exported(run_path, run_path, "--format", "parquet", "-o", tmp_path / "requests.parquet")
    table = pq.read_table(tmp_path / "requests.parquet")
    assert table["index"].to_pylist() == [0, 1, 2] * 2
    assert table["token_ns"][0].as_py() == [100_000_000, 120_000_000, 160_000_000]
    assert table["valid"].to_pylist() == [False] * 6
    exported(run_path, "--format", "parquet", "--summary", "-o", tmp_path / "runs.parquet")
    (row,) = pq.read_table(tmp_path / "runs.parquet").to_pylist()
    assert (row["completed"], row["request_rate"], row["p99.9_ttft_ms"]) == (2, 10.0, pytest.approx(199.9))


def test_parquet_does_not_go_to_the_terminal(run_path):
    result = CliRunner().invoke(main, ["export", str(run_path), "--format", "parquet"])
    assert result.exit_code == 2
    assert "--output FILE" in result.output


def test_prometheus_text_reads_back(run_path):
    families = {
        family.name: family for family in text_string_to_metric_families(exported(run_path, "--format", "prometheus"))
    }
    assert families["neobench_completed"].samples[0].value == 2
    assert families["neobench_valid"].samples[0].value == 0
    assert families["neobench_mean_ttft_ms"].samples[0].labels["backend"] == "null"


def test_github_action_benchmark_entries(run_path):
    bigger = json.loads(exported(run_path, "--format", "github-action-benchmark"))
    smaller = json.loads(exported(run_path, "--format", "github-action-benchmark", "--smaller-is-better"))
    assert {entry["unit"] for entry in bigger} == {"requests/s", "tokens/s"}
    assert {entry["unit"] for entry in smaller} == {"ms"}
    assert all(entry["extra"].startswith("INVALID") for entry in bigger)
    assert not any("range" in entry for entry in bigger)


def test_repeats_are_one_entry_with_their_spread(run_path):
    once = json.loads(exported(run_path, "--format", "github-action-benchmark"))
    twice = json.loads(exported(run_path, run_path, "--format", "github-action-benchmark"))
    assert [(entry["name"], entry["value"]) for entry in twice] == [(entry["name"], entry["value"]) for entry in once]
    assert {entry["range"] for entry in twice} == {"± 0"}


def test_nothing_is_overwritten_and_a_folder_that_is_no_run_is_named(run_path, tmp_path):
    result = CliRunner().invoke(main, ["export", str(tmp_path), "--format", "csv"])
    assert result.exit_code == 1
    assert "is not a run folder" in result.output
    existing = run_path / "run.json"
    result = CliRunner().invoke(main, ["export", str(run_path), "--format", "csv", "-o", str(existing)])
    assert result.exit_code == 2
    assert "nothing is overwritten" in result.output
