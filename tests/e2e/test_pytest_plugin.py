"""The plugin in a pytest of its own, as a project that serves a model would use it."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

PLUGIN = "neobench.cli.pytest_plugin"
PROJECT = """
def measured(neobench_run, repeats):
    return neobench_run(
        engine="null", workload="synthetic:8,4", rate=200, num_requests=10, num_warmup=0, telemetry_interval=0,
        repeats=repeats,
    )

def test_measures(neobench_run):
    (run,) = measured(neobench_run, 1)
    assert run.summary["completed"] == 10

def test_gate(neobench_run, neobench_gate):
    from pathlib import Path
    from neobench.results.baseline import save_baseline
    from neobench.results.points import read_side

    runs = measured(neobench_run, 2)
    if all(run.summary["validity"]["valid"] for run in runs):
        save_baseline("main", read_side("first", [run.path for run in runs]), Path("baselines"))
        assert neobench_gate(runs, "main", output_throughput=0.05).points[0].metrics[0].ratio == 1

def test_says_what_failed(neobench_run):
    neobench_run(engine="nul")
"""


@pytest.mark.slow
def test_fixtures_measure_and_judge(tmp_path):
    (tmp_path / "test_project.py").write_text(PROJECT)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # An environment made before the entry point was does not have it, and to load a plugin twice is an error.
    is_registered = any(entry.value == PLUGIN for entry in entry_points(group="pytest11"))
    plugin = [] if is_registered else ["-p", PLUGIN]
    done = subprocess.run([*command, *plugin], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "neobench run --engine nul" in done.stdout
    assert "did you mean null" in done.stdout
