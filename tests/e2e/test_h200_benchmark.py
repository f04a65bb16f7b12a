"""The benchmark of the GPU machine, start to end, on tiny shapes and the CPU: same script, same children."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neobench.neo_engine.scheduler.policy import POLICIES

SCRIPT = Path(__file__).parents[2] / "benchmarks/h200/run.py"


def run_script(env: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    flags = ["-S"] if sys.flags.no_site else []
    command = [sys.executable, *flags, str(SCRIPT), "--out", str(folder), "--device", "cpu", "--scale", "tiny"]
    return subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, check=False)


def rows_of(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    document = json.loads((folder / "table.json").read_text())
    assert (document["scale"], document["device"]) == ("tiny", "cpu")
    return {(row["case"], row["system"], row["metric"]): row for row in document["rows"]}


def runs_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "runs").iterdir()}


@pytest.mark.slow
def test_speed_cases_fill_their_rows_and_are_not_judged_on_a_laptop(
    neobench_env: dict[str, str], tmp_path: Path
) -> None:
    """Whether NEO uses the host for a tiny model depends on what this machine measures; both are fine."""
    done = run_script(neobench_env, tmp_path, "--cases", "5,6", "--repeats", "1", "--only", "^5/|6-out50/")
    missing = {"chunked_prefill"} - set(POLICIES)
    assert done.returncode == (1 if missing else 0), done.stdout + done.stderr
    rows, runs = rows_of(tmp_path), runs_of(tmp_path)
    assert {run["job"]["system"] for run in runs.values() if run["outcome"] == "failed"} == missing
    for case, system in (("5", "asymmetric_pipeline"), ("6-out50", "asymmetric_pipeline-2t")):
        run, row = runs[f"{case}-{system}-1"], rows[case, system, "output_tokens_per_s"]
        assert row["value"] == run["metrics"]["output_tokens_per_s"] > 0
        assert (row["runs"], row["spread"], row["passed"], row["provenance"]) == (1, None, None, "measured")
        assert row["commit"] == str(run["provenance"]["commit"])
        assert run["facts"]["engine"]["device"] == "emulated in RAM"
        assert run["facts"]["prompts"]["output_tokens"] == sum(run["raw"]["steps"]["tokens"])
        assert len(run["raw"]["steps"]["wall_ns"]) == run["raw"]["counters"]["steps"]
        assert run["fingerprint"]["cpu"]["logical_cores"] >= 1
        assert (tmp_path / f"logs/{case}-{system}-1.log").stat().st_size > 0
    used_host = runs["6-out50-asymmetric_pipeline-2t-1"]["raw"]["counters"]["cpu_decode_tokens"] > 0
    bandwidth = rows["6-out50", "asymmetric_pipeline-2t", "host_gbps"]
    assert (bandwidth["ratio"] is not None) == used_host
    assert (bandwidth["note"] is None) == used_host
    assert runs["6-out50-asymmetric_pipeline-2t-1"]["facts"]["engine"]["host_threads"] == 2
    assert rows["6-out400", "asymmetric_pipeline-2t", "output_tokens_per_s"]["runs"] == 1, "of the same process"


@pytest.mark.slow
def test_a_second_call_adds_runs_and_a_crash_loses_nothing(neobench_env: dict[str, str], tmp_path: Path) -> None:
    first = run_script(neobench_env, tmp_path, "--cases", "4a", "--repeats", "1", "--only", "gpu_only")
    assert first.returncode == 0, first.stdout + first.stderr
    second = run_script(
        neobench_env,
        tmp_path,
        *("--cases", "2,4a", "--repeats", "1", "--only", "gpu_only|vllm", "--vllm-python", "/no/python"),
    )
    assert second.returncode == 1
    rows = rows_of(tmp_path)
    assert rows["4a", "gpu_only", "decode_tokens_per_s"]["runs"] == 2
    assert rows["4a", "gpu_only", "decode_tokens_per_s"]["spread"] is not None
    assert "exit status 1: cannot run /no/python" in rows["2", "vllm", "output_tokens_per_s"]["note"]
    assert json.loads((tmp_path / "runs/2-vllm-1.json").read_text())["outcome"] == "failed"
    other_scale = subprocess.run(
        [sys.executable, *(["-S"] if sys.flags.no_site else []), str(SCRIPT), "--out", str(tmp_path), "--cases", "5"],
        env=neobench_env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "has runs of scale tiny on cpu" in other_scale.stderr


@pytest.mark.slow
def test_correctness_is_judged_at_any_scale(neobench_env: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    only = "asymmetric_pipeline-float32|(gpu_only|asymmetric_pipeline)-stress"
    done = run_script(neobench_env, tmp_path, "--cases", "1", "--repeats", "1", "--only", only)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path)
    for metric in ("logit_error", "unexplained_differences"):
        assert rows["1", "asymmetric_pipeline-float32", metric]["passed"] is True
    assert rows["1", "asymmetric_pipeline-float32", "logit_error"]["value"] > 0
    for policy in ("gpu_only", "asymmetric_pipeline"):
        assert rows["1", f"{policy}-stress", "finished_requests"]["passed"] is True
    assert rows["1", "asymmetric_pipeline-stress", "swaps"]["value"] >= 1
    assert rows["1", "gpu_only-stress", "preemptions"]["value"] >= 1


def test_what_does_not_fit_the_time_limit_is_left_out_and_said(neobench_env: dict[str, str], tmp_path: Path) -> None:
    done = run_script(neobench_env, tmp_path, "--cases", "2,4a", "--repeats", "1", "--time-limit-s", "1")
    assert done.returncode == 0, done.stderr
    assert "4a/gpu_only: left out, no time left" in done.stdout
    assert "2/vllm: left out, neither --vllm-site nor --vllm-python is given" in done.stdout
    assert rows_of(tmp_path)["4a", "gpu_only", "decode_tokens_per_s"]["note"] == "no run of gpu_only"
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--cases", "7"], "unknown case '7'"), (["--repeats", "0"], "at least 1")]
)
def test_wrong_arguments_are_refused(
    neobench_env: dict[str, str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run_script(neobench_env, tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_jobs_can_be_listed_without_starting_any(neobench_env: dict[str, str], tmp_path: Path) -> None:
    done = run_script(neobench_env, tmp_path / "out", "--list", "--cases", "3", "--repeats", "2")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * 5
    assert lines[0].startswith("3/vllm ")
    assert not (tmp_path / "out").exists()
