"""`neobench sweep` with the engine that answers at once: kill, failure, retry, errors of the file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from neobench.cli import main
from neobench.cli.sweep_points import run_options

POINTS = """
defaults: {workload: "synthetic:8,4", num-warmup: 0, num-requests: 40}
matrix:
  engine: ["null"]
  rate: [40, 50, 60]
repeats: 2
"""


def sweep(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["sweep", str(file), "--output", str(file.parent / "out"), *arguments])


def written(folder: Path, text: str) -> Path:
    file = folder / "points.yaml"
    file.write_text(text)
    return file


def statuses(folder: Path) -> dict[Path, dict[str, Any]]:
    return {path: json.loads(path.read_text()) for path in sorted((folder / "out" / "points").glob("*/point.json"))}


def test_goes_on_after_a_kill_and_measures_nothing_twice(tmp_path: Path) -> None:
    file = written(tmp_path, POINTS)
    command = [sys.executable, "-m", "neobench", "sweep", str(file), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(statuses(tmp_path)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in statuses(tmp_path)}
    assert 2 <= len(before) < 6
    done = sweep(file, "--json")
    assert done.exit_code in (0, 4), done.output
    after = statuses(tmp_path)
    assert len(after) == 6
    assert all(path.stat().st_mtime_ns == instant for path, instant in before.items())
    # Round by round: the first repeat of all rates comes before the second of any.
    order = sorted(after, key=lambda path: path.stat().st_mtime_ns)
    assert [(after[path]["repeat"], after[path]["rate"]) for path in order] == [
        (repeat, rate) for repeat in (0, 1) for rate in (40.0, 50.0, 60.0)
    ]
    assert [len(point["summaries"]) for point in json.loads(done.stdout)] == [2, 2, 2]
    assert all((path.parent / "latency.png").stat().st_size > 1000 for path in after)
    assert "0 of 6 measurements to do" in sweep(file, "--dry-run").output


def test_a_failing_engine_leaves_the_others_alone_and_is_retried_on_demand(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = 'defaults: {workload: "synthetic:8,4", num-requests: 5}\n'
    text += f'include:\n  - {{engine: neo, rate: 99, profile: "{tmp_path / "tables.json"}"}}\n'
    file = written(tmp_path, text + '  - {engine: "null", rate: 99}\n')
    (tmp_path / "tables.json").write_text("no tables")
    done = sweep(file)
    assert done.exit_code == 1, done.output
    by_engine = {status["engine"]: status for status in statuses(tmp_path).values()}
    assert by_engine["null"]["status"] == "done"
    assert by_engine["neo"]["status"] == "failed"
    assert "tables.json" in by_engine["neo"]["reason"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "neo at 99 req/s: FAILED." in table
    assert "0 of 2 measurements to do" in sweep(file, "--dry-run").output
    # On a busy machine the other point may be invalid, and is then to be measured again too.
    assert re.search(r"^to do .*engine neo,", sweep(file, "--dry-run", "--retry-failed").output, re.MULTILINE)
    assert sweep(file, "--retry-failed").exit_code == 1
    assert len(list((tmp_path / "out" / "points").glob("neo-*/point.retried.json"))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matrix:\n  engine: [ne0]", "line 2: unknown engine 'ne0'"),
        ("matrix:\n  engine: [neo]\n  device-blocks: [0]", "line 2: Invalid value for '--device-blocks'"),
        ("matrix:\n  engine: ['null']\n  device-blocks: [4]", "line 2: --device-blocks is no option of null"),
        ("matrix: {rate: ['1,2']}", "line 1: a point has one engine and one rate"),
        ("matrix: {ouput: [x]}", "line 1: unknown setting 'ouput'"),
        ("matrix: {workload: [carperay]}", "carperai"),
    ],
)
def test_errors_of_the_file(tmp_path: Path, text: str, message: str) -> None:
    done = sweep(written(tmp_path, text))
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_settings_that_an_engine_does_not_take_are_left_out_of_its_points(tmp_path: Path) -> None:
    text = 'matrix: {engine: [neo, "null"], device-blocks: [24, 48], workload: ["synthetic:8,4"]}'
    done = sweep(written(tmp_path, text), "--dry-run")
    assert "3 of 3 measurements to do" in done.output, "null is there once"


def test_values_of_headers_are_stored_nowhere(tmp_path: Path) -> None:
    # Nobody listens there, so the point fails, which is stored too.
    text = """
include:
  - engine: openai
    base-url: http://127.0.0.1:9
    header: ["Authorization=Bearer hush"]
    workload: "synthetic:8,4"
    rate: 9
"""
    done = sweep(written(tmp_path, text))
    assert done.exit_code == 1, done.output
    (status,) = statuses(tmp_path).values()
    assert status["settings"]["header"] == ["Authorization=***"]
    stored = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert stored
    assert not any("hush" in content for content in [*stored, done.output])


def test_flags_are_true_or_false(tmp_path: Path) -> None:
    text = 'include: [{engine: openai, base-url: "http://127.0.0.1:9", rate: 9, exact-output: false}]'
    assert sweep(written(tmp_path, text), "--dry-run").exit_code == 0
    with run_options({"exact-output": False}) as options:
        assert options["exact_output"] is False
    with run_options({"exact-output": True}) as options:
        assert options["exact_output"] is True


def test_the_example_is_a_sweep() -> None:
    example = Path(__file__).parents[3] / "examples" / "sweep.yaml"
    done = CliRunner().invoke(main, ["sweep", str(example), "--dry-run", "--output", "/nonexistent/out"])
    assert done.exit_code == 0, done.output
    assert "16 of 16 measurements to do" in done.output
