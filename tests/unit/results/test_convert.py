"""Real files of other tools (data/ORIGIN.md) become runs whose figures are those that the tools computed themselves."""

import copy
import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from neobench.cli import main
from neobench.results.store import load_run

DATA = Path(__file__).parent / "data"
VLLM_DETAILED = DATA / "vllm-bench-0.32.json"
VLLM_SHORT = DATA / "vllm-bench-0.32-short.json"
GUIDELLM_POISSON = DATA / "guidellm-0.8.1-poisson.json.gz"
GUIDELLM_CONCURRENT = DATA / "guidellm-0.8.1-concurrent.json.gz"
STATISTICS = ("mean", "median", "std", "p99")


def document(path):
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


def convert(folder, *arguments):
    return CliRunner().invoke(main, ["convert", *map(str, arguments), "-o", str(folder)])


@pytest.fixture
def converted(tmp_path):
    """Converts files and reads the runs that come of them, by folder name."""

    def run(*arguments):
        folder = tmp_path / "runs"
        result = convert(folder, *arguments)
        assert result.exit_code in (0, 4), result.output
        runs = {path.name: load_run(path) for path in sorted(folder.iterdir()) if path.is_dir()}
        invalid = [run for run in runs.values() if not run.summary["validity"]["valid"]]
        assert result.exit_code == (4 if invalid else 0)
        assert (f"invalid runs: {len(invalid)} of {len(runs)}; " in result.output) == bool(invalid)
        return runs

    return run


def test_figures_of_a_detailed_vllm_file_are_those_that_vllm_computed(converted):
    theirs = document(VLLM_DETAILED)
    (run,) = converted(VLLM_DETAILED, "--percentiles", "99.9").values()
    ours = run.summary
    for statistic in (*STATISTICS, "p99.9"):
        for name, key in (("ttft", "ttft_from_issue"), ("tpot", "tpot"), ("itl", "itl"), ("e2el", "e2el_from_issue")):
            assert ours[f"{statistic}_{key}_ms"] == pytest.approx(theirs[f"{statistic}_{name}_ms"], abs=1e-5)
        including_queue = theirs[f"{statistic}_e2el_including_client_queue_ms"]
        assert ours[f"{statistic}_e2el_ms"] == pytest.approx(including_queue, abs=1e-5)
    assert ours["mean_client_queue_ms"] == pytest.approx(theirs["mean_client_queue_time_ms"], abs=1e-5)
    for key in ("completed", "failed", "total_input_tokens", "total_output_tokens", "request_rate"):
        assert ours[key] == theirs[key]
    # Ours ends with the last answer, vLLM's when its client has tidied up.
    assert theirs["duration"] * 0.95 < ours["duration"] <= theirs["duration"]
    assert run.info.engine["reported"]["duration"] == theirs["duration"]


def test_what_vllm_did_not_record_is_null_and_said(converted):
    (run,) = converted(VLLM_DETAILED).values()
    assert run.summary["lag_p99_ms"] is run.summary["offered_request_rate"] is None
    assert run.summary["provenance"]["tool"] == "vllm bench serve"
    assert "does not say when requests were due" in " ".join(run.summary["validity"]["warnings"])
    assert run.info.spec["arrival"] == {"kind": "poisson", "rate": 20.0, "concurrency": 2}


def test_a_vllm_file_exported_again_has_vllms_peaks(converted):
    (run,) = converted(VLLM_DETAILED).values()
    result = CliRunner().invoke(main, ["export", str(run.path), "--format", "vllm"])
    again, theirs = json.loads(result.stdout), document(VLLM_DETAILED)
    for key in ("max_output_tokens_per_s", "max_concurrent_requests", "max_concurrency", "date", "input_lens"):
        assert again[key] == theirs[key]


def test_a_vllm_file_without_requests_keeps_its_own_figures(converted):
    theirs = document(VLLM_SHORT)
    (run,) = converted(VLLM_SHORT, "--engine", "vllm", "--workload", "sharegpt").values()
    assert (run.summary["backend"], run.summary["workload"]) == ("vllm", "sharegpt")
    for key in ("duration", "completed", "output_throughput", "mean_tpot_ms", "p99_itl_ms", "mean_ttft_ms"):
        assert run.summary[key] == theirs[key]
    assert run.summary["mean_e2el_ms"] is run.summary["mean_normalized_latency_ms"] is None
    assert run.summary["request_rate"] == "inf"
    assert run.summary["percentile_support"]["p99"] == {
        "required_requests": 459,
        "requests": 10,
        "supported": False,
    }
    assert run.summary["validity"]["valid"]


def test_failed_requests_of_vllm(tmp_path, converted):
    theirs = document(VLLM_DETAILED)
    theirs["errors"][3], theirs["latencies"][3], theirs["ttfts"][3], theirs["itls"][3] = "Bad Request", 0.0, 0.0, []
    file = tmp_path / "failed.json"
    file.write_text(json.dumps(theirs))
    (run,) = converted(file).values()
    assert run.summary["outcomes"]["unknown_error"] == 1
    assert "counts 10 completed requests, its lists show 9" in " ".join(run.summary["validity"]["warnings"])
    assert not run.summary["validity"]["valid"]
    assert run.columns.to_arrow()["error"][3].as_py() == "Bad Request"


def test_results_that_vllm_appended_are_runs_each(tmp_path, converted):
    file = tmp_path / "appended.json"
    file.write_text(VLLM_SHORT.read_text() + "\n" + VLLM_SHORT.read_text())
    assert list(converted(file)) == ["openai-all-at-once", "openai-all-at-once-2"]


def test_figures_of_guidellm_are_those_that_it_computed(converted):
    runs = converted(GUIDELLM_POISSON)
    assert list(runs) == ["openai_http-rate-10", "openai_http-rate-5"]
    for theirs, name in zip(document(GUIDELLM_POISSON)["benchmarks"], reversed(runs), strict=True):
        ours, metrics = runs[name].summary, theirs["metrics"]
        for key, their_key, scale in (
            ("ttft_from_issue_ms", "time_to_first_token_ms", 1),
            ("e2el_from_issue_ms", "request_latency", 1e3),
            ("e2el_ms", "request_scheduled_latency", 1e3),
        ):
            assert ours[f"mean_{key}"] == pytest.approx(metrics[their_key]["successful"]["mean"] * scale, rel=1e-4)
        assert ours["total_output_tokens"] == 64
        assert ours["mean_itl_ms"] is ours["steady_output_throughput"] is None
    assert runs["openai_http-rate-5"].info.request_rate == 5
    # Four of its eight requests left 0.1 to 0.4 s late, as its own timestamps say.
    (reason,) = runs["openai_http-rate-10"].summary["validity"]["reasons"]
    assert "fell behind its schedule" in reason


def test_a_schedule_that_guidellm_lost_makes_its_run_invalid(tmp_path, converted):
    """Targets counted from -1 s of the Unix epoch, as 0.8.1 writes them when a worker is ahead of its clock."""
    theirs = document(GUIDELLM_POISSON)
    del theirs["benchmarks"][1]
    start_s = theirs["benchmarks"][0]["scheduler_metrics"]["start_time"]
    for request in theirs["benchmarks"][0]["requests"]["successful"][:3]:
        request["info"]["timings"]["targeted_start"] -= start_s + 1
    file = tmp_path / "lost.json"
    file.write_text(json.dumps(theirs))
    (run,) = converted(file).values()
    assert "3 requests were due long before the benchmark began" in run.summary["validity"]["reasons"][0]
    assert 0 < run.summary["mean_e2el_ms"] < 1_000
    assert (run.path / "latency.png").exists()


def test_requests_that_guidellm_cut_off_make_its_run_invalid(converted):
    (run,) = converted(GUIDELLM_CONCURRENT).values()
    assert run.info.spec["arrival"] == {"kind": "all_at_once", "concurrency": 2}
    assert run.summary["outcomes"]["interrupted"] == 2
    assert run.summary["completed"] == 12
    assert "2 of 14 requests" in run.summary["validity"]["reasons"][0]


def test_a_guidellm_file_with_some_of_its_requests_keeps_its_own_figures(tmp_path, converted):
    theirs = document(GUIDELLM_POISSON)
    theirs["benchmarks"] = theirs["benchmarks"][:1]
    del theirs["benchmarks"][0]["requests"]["successful"][2:]
    file = tmp_path / "sampled.json"
    file.write_text(json.dumps(theirs))
    (run,) = converted(file).values()
    ours, metrics = run.summary, theirs["benchmarks"][0]["metrics"]
    assert ours["completed"] == 8
    assert ours["mean_ttft_from_issue_ms"] == metrics["time_to_first_token_ms"]["successful"]["mean"]
    assert ours["mean_ttft_ms"] is ours["mean_tpot_ms"] is None
    assert "2 of 8 requests only" in " ".join(ours["validity"]["warnings"])
    assert convert(tmp_path / "other", file, "--goodput", "ttft:100").exit_code == 1


def test_goodput_and_percentiles_are_computed_anew(converted):
    (run,) = converted(VLLM_DETAILED, "--goodput", "e2el:400", "--percentiles", "90").values()
    waits = zip(document(VLLM_DETAILED)["latencies"], document(VLLM_DETAILED)["queue_times"], strict=True)
    assert run.summary["good_requests"] == sum(latency + wait <= 0.4 for latency, wait in waits)
    assert run.summary["p90_ttft_ms"] is not None
    assert "p90 needs 44" in " ".join(run.summary["validity"]["reasons"])


def test_an_invalid_run_stays_invalid_through_a_vllm_file(tmp_path, converted):
    (run,) = converted(GUIDELLM_CONCURRENT).values()
    exported = CliRunner().invoke(main, ["export", str(run.path), "--format", "vllm"]).stdout
    file = tmp_path / "exported.json"
    file.write_text(exported)
    result = convert(tmp_path / "again", file)
    assert result.exit_code == 4, result.output
    again = load_run(next(path for path in (tmp_path / "again").iterdir() if path.is_dir()))
    assert set(run.summary["validity"]["reasons"]) <= set(again.summary["validity"]["reasons"])


def test_vllms_constant_rate_is_read_though_it_is_no_json(converted, tmp_path):
    """It writes `--burstiness inf` as Infinity."""
    file = tmp_path / "constant.json"
    file.write_text(json.dumps(document(VLLM_DETAILED) | {"burstiness": float("inf")}))
    assert b"Infinity" in file.read_bytes()
    (run,) = converted(file).values()
    assert run.info.spec["arrival"]["kind"] == "constant"


def test_what_is_broken_beside_an_infinity_is_an_error(tmp_path):
    file = tmp_path / "broken.json"
    file.write_text('{"burstiness": Infinity')
    result = convert(tmp_path / "runs", file)
    assert result.exit_code == 1
    assert "it is not JSON" in result.output


def _without_one_ttft(theirs):
    theirs["ttfts"].pop()


def _with_text_as_duration(theirs):
    theirs["duration"] = "long"


def _of_an_unknown_rate(theirs):
    theirs["request_rate"] = "fast"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_one_ttft, "differ in length: input_lens 10, output_lens 10, ttfts 9"),
        (_with_text_as_duration, "Expected `float`, got `str` - at `$.duration`"),
        (_of_an_unknown_rate, "request_rate is 'fast'"),
    ],
)
def test_a_malformed_vllm_file_is_told_what_is_wrong(tmp_path, spoil, message):
    theirs = document(VLLM_DETAILED)
    spoil(theirs)
    file = tmp_path / "spoiled.json"
    file.write_text(json.dumps(theirs))
    result = convert(tmp_path / "runs", VLLM_SHORT, file)
    assert result.exit_code == 1
    assert f"{file}: " in result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "runs").exists()


def _old(theirs):
    theirs["metadata"]["guidellm_version"] = "0.3.1"


def _empty(theirs):
    theirs["benchmarks"] = []


def _without_strategy(theirs):
    del theirs["benchmarks"][1]["config"]["strategy"]


def _of_an_unknown_strategy(theirs):
    theirs["benchmarks"][0]["config"]["strategy"]["type_"] = "storm"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_old, "GuideLLM 0.3.1; files of 0.8 and later are read"),
        (_empty, "it holds no benchmark"),
        (_without_strategy, "missing required field `strategy` - at `$[1].config`"),
        (_of_an_unknown_strategy, "its strategy 'storm' is not known"),
    ],
)
def test_a_malformed_guidellm_file_is_told_what_is_wrong(tmp_path, spoil, message):
    theirs = copy.deepcopy(document(GUIDELLM_POISSON))
    spoil(theirs)
    file = tmp_path / "spoiled.json"
    file.write_text(json.dumps(theirs))
    result = convert(tmp_path / "runs", file)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"{nonsense", "it is not JSON"),
        (b"[]", "it is an empty list"),
        (b"3", "it is a JSON int"),
        (b'{"tag": "sglang", "backend": "sglang"}', "it is an object with the keys tag, backend"),
        (b"\x1f\x8bnot gzip at all", "it cannot be read"),
    ],
)
def test_a_file_of_nothing_known_is_named(tmp_path, content, message):
    file = tmp_path / "what.json"
    file.write_bytes(content)
    result = convert(tmp_path / "runs", file)
    assert result.exit_code == 1
    assert str(file) in result.output
    assert message in " ".join(result.output.split())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    result = convert(tmp_path / "kept", VLLM_SHORT)
    assert result.exit_code == 2
    assert "never overwritten" in " ".join(result.output.split())


def test_plot_puts_runs_of_several_tools_into_one_table_and_figure(tmp_path, converted):
    runs = converted(VLLM_DETAILED, GUIDELLM_POISSON)
    result = CliRunner().invoke(main, ["plot", *(str(run.path) for run in runs.values()), "-o", str(tmp_path / "all")])
    assert result.exit_code == 0, result.output
    table = (tmp_path / "all" / "table.md").read_text()
    assert "measured: openai by vllm bench serve; openai_http by guidellm 0.8.1." in table
    assert table.count("INVALID‡") == len(runs)
    assert (tmp_path / "all" / "load-latency.png").stat().st_size > 1_000
    assert "guidellm 0.8.1" in (tmp_path / "all" / "load-latency.csv").read_text()


def test_plot_names_a_folder_that_is_no_run(tmp_path):
    result = CliRunner().invoke(main, ["plot", str(tmp_path), "-o", str(tmp_path / "all")])
    assert result.exit_code == 2
    assert "has no summary.json" in " ".join(result.output.split())
