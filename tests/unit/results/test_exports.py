import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from neobench.cli import main
from neobench.results.record import Outcome
from neobench.results.store import RunFolder, build_summary

# Written by `vllm bench serve` 0.32.0 against guidellm 0.8.1's mock server.
VLLM_FILE = Path(__file__).parent / "data" / "vllm-bench-0.32.json"
NOT_MEASURED = {"max_output_tokens_per_s", "max_concurrent_requests", "rtfx"}
ONLY_WITH_A_CAP = ("client_queue_time", "e2el_including_client_queue")


@pytest.fixture
def run_path(tmp_path, run_info, make_record):
    path = tmp_path / "null-rate-10"
    folder = RunFolder.create(path)
    folder.write_run(run_info)
    folder.append(make_record(0, lag=1, tokens_at=(100, 120, 160), ended=170))
    folder.append(make_record(1, scheduled=200, lag=3, tokens_at=(400, 430)))
    folder.append(make_record(2, scheduled=300, tokens_at=(), outcome=Outcome.HTTP_ERROR, error='said "no"'))
    folder.finish(build_summary(run_info, folder.columns, engine_stats={}))
    return path


def exported(*arguments):
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_vllm_names_and_types_are_those_of_a_real_file(run_path):
    ours, real = json.loads(exported(run_path, "--format", "vllm")), json.loads(VLLM_FILE.read_text())
    expected = {
        key: value
        for key, value in real.items()
        if key not in NOT_MEASURED
        and not any(name in key for name in ONLY_WITH_A_CAP)
        and "p99.9" not in key
        and "p50" not in key
    }
    assert expected.keys() <= ours.keys()
    for key, value in expected.items():
        if ours[key] is not None and value is not None:
            assert isinstance(ours[key], type(value)), key
    assert ours["ttfts"] == pytest.approx([0.099, 0.197, 0])
    assert ours["itls"][0] == pytest.approx([0.02, 0.04])
    assert ours["errors"] == ["", "", 'said "no"']
    assert ours["mean_ttft_ms"] == pytest.approx((99 + 197) / 2)
    assert ours["mean_ttft_from_schedule_ms"] == pytest.approx(150)
    assert ours["valid"] is False


def test_csv_has_a_row_a_request_or_a_row_a_run(run_path):
    rows = list(csv.DictReader(io.StringIO(exported(run_path, run_path, "--format", "csv"))))
    assert [row["index"] for row in rows] == ["0", "1", "2"] * 2
    assert rows[0]["events"] == "3"
    (run,) = csv.DictReader(io.StringIO(exported(run_path, "--format", "csv", "--summary")))
    assert (run["completed"], run["valid"]) == ("2", "False")


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


def test_nothing_is_overwritten_and_a_folder_that_is_no_run_is_named(run_path, tmp_path):
    result = CliRunner().invoke(main, ["export", str(tmp_path), "--format", "csv"])
    assert result.exit_code == 1
    assert "is not a run folder" in result.output
    existing = run_path / "run.json"
    result = CliRunner().invoke(main, ["export", str(run_path), "--format", "csv", "-o", str(existing)])
    assert result.exit_code == 2
    assert "nothing is overwritten" in result.output
