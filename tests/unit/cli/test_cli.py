"""The command line without an engine behind it: help, plans, errors, exit codes, the null engine end to end."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from neobench.cli import _COMMANDS, main
from neobench.cli.session import provenance_kind
from neobench.engines.registry import ENGINES
from neobench.neo_engine.scheduler.policy import POLICIES


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def run_null(folder: Path, *arguments: str) -> Result:
    return invoke(
        "run", "--engine", "null", "--rate", "400", "--num-requests", "60", "--output", str(folder), *arguments
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in _COMMANDS)],
)
def test_help_needs_no_heavy_import(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom neobench.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'aiohttp', 'pyarrow', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "Did you mean 'run'?"),
        (["run", "--engine", "ne0"], "neo"),
        (
            ["run", "--engine", "null", "--device-blocks", "9"],
            "no option of null; engines that take it: chunked_prefill, ",
        ),
        (
            ["run", "--engine", "chunked_prefill_256", "--max-batch-tokens", "9"],
            "take it: chunked_prefill, full_offload",
        ),
        (["run", "--engine", "null", "--model", "tiny"], "--model is no option of null"),
        (["run", "--engine-option", "speed=9"], "--engine-option speed is no option of neo; no engine takes it"),
        (
            ["run", "--engine", "modelled", "--engine-option", "service=9"],
            "did you mean --service-ms or",
        ),
        (["run", "--engine-option", "speed"], "is not NAME=VALUE"),
        (["run", "--engine-option", "sms=8"], "has a flag of its own: --sms 8"),
        (["run", "--engine", "neo:256"], "neo takes nothing behind a colon"),
        (["run", "--workload", "carperay"], "carperai"),
        (["run", "--model", "llama-3-8b"], "llama-3.1-8b"),
        (["run", "--rate", "fast"], "not a rate"),
        (["run", "--rate", "1,0"], "above 0"),
        (["run", "--rate", "1,1"], "twice"),
        (["run", "--arrival", "gamma"], "burstiness must be a positive number"),
        (["run", "--burstiness", "2"], "left out for others"),
        (["run", "--concurrency", "0"], "x>=1"),
        (["run", "--speed", "2"], "--speed goes with --arrival trace"),
        (["run", "--arrival", "trace", "--rate", "2"], "use --speed instead of --rate"),
        (["run", "--engine", "null", "--arrival", "trace"], "carperai does not know when its requests arrived"),
        (["run", "--workload-option", "sigma"], "NAME=VALUE"),
        (["run", "--prefix-groups", "2"], "--prefix-groups and --prefix-tokens go together"),
        (["run", "--workload-option", "sigma=1", "--workload-option", "sigma=2"], "given twice"),
        (["run", "--engine", "null", "--workload", "synthetic:zipf:9,9", "--workload-option", "exp=2"], "exponent"),
        (["run", "--turns", "4-2"], "such as 4, or a range of them, such as 1-8"),
        (["run", "--turns", "some"], "not a number of turns"),
        (["run", "--think-time", "2"], "--think-time goes with --turns"),
        (["run", "--turns", "2", "--think-time", "2:exp"], "did you mean exponential"),
        (["run", "--turns", "2", "--think-time", "soon"], "such as 2 or 0.5:fixed"),
        (["run", "--engine", "null", "--turns", "2", "--arrival", "trace"], "exclude each other"),
        (["run", "--engine", "null", "--client-processes", "9", "--num-requests", "2"], "only 2 requests to send"),
        (["run", "--host-memory", "much"], "512MiB"),
        (["run", "--device-blocks", "0"], "x>=1"),
        (["run", "--max-model-tokens", "100000"], "between 2 and 2048"),
        (["run", "--emulate", "a100"], "'a10g'"),
        (["serve", "--sms", "12"], "multiple of 8, not 12"),
        (["run", "--emulate", "t4", "--model", "llama-3.1-8b"], "15.0 GiB of weights in 16 bits"),
        (["serve", "--policy", "gpu-only"], "did you mean gpu_only"),
        (["list", "colours"], "engines"),
    ],
)
def test_wrong_input_is_a_usage_error_that_says_the_fix(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_every_policy_is_an_engine() -> None:
    assert {entry.settings["policy"] for entry in ENGINES.values() if "policy" in entry.settings} == set(POLICIES)


def test_the_kind_of_a_run_follows_from_its_engine_and_options() -> None:
    assert provenance_kind("neo", {"sms": 8}) == provenance_kind("neo", {"emulate": "t4"}) == "emulated"
    assert provenance_kind("neo", {"device_blocks": 8}) == provenance_kind("null_server", {}) == "measured"
    assert provenance_kind("neo", {"hardware": "t4"}) == provenance_kind("modelled", {}) == "modelled"


def test_each_engine_gets_the_options_that_it_takes() -> None:
    plan = json.loads(
        invoke(
            "run", "--engine", "neo,chunked_prefill_256,null", "--max-batch-tokens", "300", "--dry-run", "--json"
        ).output
    )
    options = {run["engine"]["name"]: run["engine"]["options"] for run in plan["runs"]}
    assert options == {"neo": {"max_batch_tokens": 300}, "chunked_prefill_256": {}, "null": {}}


def test_list_names_everything() -> None:
    assert {"neo", "gpu_only", "chunked_prefill_256", "full_offload", "null"} <= set(
        invoke("list", "engines").output.split()
    )
    assert "carperai" in invoke("list", "workloads").output
    assert "g4dn.4xlarge" in invoke("list", "hardware").output
    models = invoke("list", "models").output
    assert "llama-3.1-70b" in models
    assert "70.6 B" in models


def test_dry_run_starts_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shown = run_null(folder, "--dry-run")
    assert shown.exit_code == 0
    assert "60 requests at 400 req/s" in shown.output
    plan = json.loads(run_null(folder, "--dry-run", "--json").output)
    assert plan["runs"][0]["engine"]["name"] == "null"
    assert plan["workload"]["scaling"] is None
    assert not folder.exists()


def test_one_run_leaves_all_its_files_and_json_is_alone_on_stdout(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    result = run_null(folder, "--json")
    summary: dict[str, Any] = json.loads(result.stdout)
    run = folder / "null-rate-400"
    assert summary == json.loads((run / "summary.json").read_text())
    tables = {"requests.jsonl", "requests.parquet", "telemetry.jsonl", "telemetry.parquet"}
    figures = {f"{figure}.{kind}" for figure in ("latency", "telemetry") for kind in ("png", "pdf", "svg")}
    assert {path.name for path in run.iterdir()} == {"run.json", "summary.json"} | tables | figures
    assert summary["machine"]["client_cpu_percent"] is not None
    assert summary["completed"] == 60
    assert summary["backend"] == "null"
    assert result.exit_code == (0 if summary["validity"]["valid"] else 4)
    stored = json.loads((run / "run.json").read_text())
    assert stored["workload"]["workload"]["name"] == "carperai"
    assert stored["spec"]["num_warmup"] == 4


def test_percentiles_and_goodput_that_are_asked_for(tmp_path: Path) -> None:
    limits = ("--goodput", "ttft:5000", "--goodput", "e2el:10000 tpot:500")
    result = run_null(tmp_path / "runs", "--json", "--percentiles", "90,99.9", *limits)
    summary = json.loads(result.stdout)
    assert summary["p90_ttft_ms"] <= summary["p99_ttft_ms"] <= summary["p99.9_ttft_ms"]
    assert summary["good_requests"] == summary["completed"] == 60
    assert summary["request_goodput"] == summary["request_throughput"]
    assert result.exit_code == 4
    assert "p99.9 needs 4603; 60 completed" in " ".join(summary["validity"]["reasons"])
    stored = json.loads((tmp_path / "runs" / "null-rate-400" / "run.json").read_text())
    assert stored["spec"]["goodput_ms"] == {"ttft": 5000.0, "e2el": 10000.0, "tpot": 500.0}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--percentiles", "50,p90", "is not a list of percentiles, e.g. 50,90,99.9"),
        ("--percentiles", "100", "lie between 0 and 100"),
        ("--goodput", "tftt:500", "ttft"),
        ("--goodput", "ttft", "is not a metric and its limit in ms, e.g. ttft:500"),
        ("--goodput", "ttft:0", "ttft"),
        ("--goodput", "ttft:5 ttft:6", "ttft has two limits"),
    ],
)
def test_percentiles_and_goodput_that_cannot_be_are_told(tmp_path: Path, option: str, value: str, message: str) -> None:
    result = run_null(tmp_path / "runs", option, value)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_several_rates_make_a_figure_and_a_list(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    result = run_null(folder, "--json", "--rate", "300,600")
    assert [summary["request_rate"] for summary in json.loads(result.stdout)] == [300.0, 600.0]
    for suffix in ("png", "pdf", "svg", "csv"):
        assert (folder / f"load-latency.{suffix}").stat().st_size > 0
    assert "null" in (folder / "table.md").read_text()


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    result = run_null(tmp_path)
    assert result.exit_code == 2
    assert "never overwritten" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_lengths_are_scaled_to_a_short_context_and_the_run_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    result = run_null(folder, "--max-model-tokens", "128")
    assert "Note:" in result.stderr
    scaling = json.loads((folder / "null-rate-400" / "run.json").read_text())["workload"]["scaling"]
    assert scaling["max_model_tokens"] == 128
    assert 0 < scaling["factor"] < 1


def test_workload_file_replaces_the_shipped_table(tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.json"
    lengths.write_text(json.dumps([{"prompt": 10, "max_tokens": 3}] * 80))
    result = run_null(tmp_path / "runs", "--json", "--workload-file", str(lengths))
    assert json.loads(result.stdout)["total_output_tokens"] == 180
    lengths.write_text('[{"prompt": 10}]')
    broken = run_null(tmp_path / "again", "--workload-file", str(lengths))
    assert broken.exit_code == 2
    assert "max_tokens" in broken.output


def write_trace(path: Path) -> Path:
    """Mooncake's columns, 20 ms apart but for one gap of 200 ms; line 3 is malformed."""
    rows = [
        {"timestamp": 20 * index + (180 if index > 5 else 0), "input_length": 10 + index, "output_length": 2}
        for index in range(12)
    ]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join([*lines[:2], "oops", *lines[2:]]))
    return path


def test_a_trace_is_replayed_at_its_own_times_at_several_speeds(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.jsonl")
    arguments = ["run", "--engine", "null", "--workload", f"trace:{trace}", "--arrival", "trace"]
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert f"{trace}: malformed rows\n  line 3: not JSON" in refused.stderr

    folder = tmp_path / "out"
    sizes = ["--speed", "1,2", "--num-requests", "12", "--num-warmup", "1", "--skip-malformed"]
    done = invoke(*arguments, *sizes, "--output", str(folder))
    assert "1 malformed rows of the workload's file were left out" in done.stderr
    for speed in (1, 2):
        run = json.loads((folder / f"null-speed-{speed}" / "run.json").read_text())
        assert run["workload"]["workload"]["malformed_rows_left_out"] == 1
        assert run["request_rate"] == pytest.approx(speed * 11 / 0.4)
        rows = [
            json.loads(line)
            for line in (folder / f"null-speed-{speed}" / "requests.jsonl").read_text().split("\n")
            if line
        ]
        measured = sorted((row for row in rows if not row.get("warmup")), key=lambda row: row["index"])
        assert [row["prompt_tokens"] for row in measured] == list(range(10, 22))
        wanted_ns = [(20 * index + (180 if index > 5 else 0)) * 1_000_000 // speed for index in range(12)]
        assert [row["scheduled_ns"] for row in measured] == wanted_ns


def test_seeds_of_lengths_order_and_arrivals_are_separate(tmp_path: Path) -> None:
    def rows(name: str, *seeds: str) -> list[tuple[int, int]]:
        folder = tmp_path / name
        run_null(folder, "--num-warmup", "0", *seeds)
        lines = (folder / "null-rate-400" / "requests.jsonl").read_text().splitlines()
        records = sorted((json.loads(line) for line in lines), key=lambda row: row["index"])
        return [(record["prompt_tokens"], record["scheduled_ns"]) for record in records]

    def columns(table: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
        return [row[0] for row in table], [row[1] for row in table]

    lengths, arrivals = columns(rows("plain"))
    reordered, same_arrivals = columns(rows("order", "--order-seed", "5"))
    assert same_arrivals == arrivals
    assert reordered != lengths
    assert sorted(reordered) == sorted(lengths)
    same_lengths, other_arrivals = columns(rows("arrivals", "--arrival-seed", "5"))
    assert same_lengths == lengths
    assert other_arrivals != arrivals
    assert sorted(columns(rows("lengths", "--length-seed", "5"))[0]) != sorted(lengths)


def test_prompts_may_share_prefixes_when_asked(tmp_path: Path) -> None:
    done = run_null(tmp_path, "--prefix-groups", "2", "--prefix-tokens", "30", "--workload", "synthetic:fixed:50,4")
    # 4 where something else keeps this machine busy.
    assert done.exit_code in (0, 4), done.stderr
    run = json.loads((tmp_path / "null-rate-400" / "run.json").read_text())
    assert run["spec"]["workload"]["prefix_groups"] == 2
    assert run["workload"]["shared_prefixes"] == {"groups": 2, "tokens": 30}
    assert run["workload"]["prompt_tokens"]["mean"] == 80


SESSIONS = ("--turns", "2-4", "--think-time", "0.02", "--workload", "synthetic:fixed:20,4", "--rate", "60")


def test_requests_are_turns_of_sessions_when_asked(tmp_path: Path) -> None:
    done = run_null(tmp_path / "out", *SESSIONS)
    assert done.exit_code in (0, 4), done.stderr
    assert "60 requests are the turns of" in done.stderr
    assert "A rate of sessions, all else over their turns" in done.output
    folder = tmp_path / "out" / "null-rate-60"
    run = json.loads((folder / "run.json").read_text())
    assert run["spec"]["workload"]["sessions"] == {
        "fewest_turns": 2,
        "most_turns": 4,
        "think_time_s": 0.02,
        "think_time_kind": "exponential",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sessions"]["completed_sessions"] == run["workload"]["sessions"]["sessions"]
    exported = invoke("export", str(folder), "--format", "csv", "-o", str(tmp_path / "rows.csv"))
    assert exported.exit_code == 0, exported.output
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert {row["turn"] for row in rows if row["session"]} == {"0", "1", "2", "3"}
    assert sum(row["session"] == "" for row in rows) == 4  # warm-up
    shown = invoke("show", str(folder))
    assert "60 sessions/s" in shown.output
    assert "TTFT of later turns" in shown.output


def test_the_plan_of_sessions_counts_their_thinking(tmp_path: Path) -> None:
    plan = invoke(
        *("run", "--engine", "null", "--dry-run", "--turns", "5", "--think-time", "10:fixed", "--rate", "1"),
        *("--num-requests", "50", "--output", str(tmp_path / "out")),
    )
    assert plan.exit_code == 0, plan.output
    assert "50 requests at 1 sessions/s" in plan.output
    assert "Arrivals alone take 50 s" in plan.output  # 10 sessions in 10 s, and four times 10 s to think
