"""Serving benchmarks as tests: `neobench_run` measures, `neobench_gate` judges against a saved baseline.

Registered as the entry point `neobench` of pytest11; nothing heavy is imported before a fixture is used.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from neobench.results.compare import Comparison
    from neobench.results.store import Run

_SHOWN_LINES = 12


@pytest.fixture
def neobench_run(tmp_path: Path) -> Callable[..., list[Run]]:
    """neobench_run(repeats=1, engine="null", rate=5, ...) -> the runs, read; options are those of `neobench run`.

    Repeats differ in their seeds. The test fails when a run does; an invalid run is returned with its reasons.
    """
    calls = 0

    def measure(*, repeats: int = 1, seed: int = 0, **options: Any) -> list[Run]:
        nonlocal calls
        calls += 1
        folders = [tmp_path / f"neobench-{calls}" / f"repeat-{repeat}" for repeat in range(repeats)]
        for repeat, folder in enumerate(folders):
            _measure([*_arguments(options), "--seed", str(seed + repeat), "--output", str(folder)])
        return _read(folders)

    return measure


@pytest.fixture
def neobench_gate(request: pytest.FixtureRequest) -> Callable[..., Comparison]:
    """neobench_gate(runs, "main", mean_tpot_ms=0.05): fails the test on a regression or an incomparable metric.

    Metrics are given with their thresholds as shares; without any, those of `neobench gate` with 3 %. Baselines are
    read from baselines/ in pytest's root folder. Inconclusive metrics let the test pass; the comparison tells them.
    """

    def judge(runs: Sequence[Run], baseline: str, **thresholds: float) -> Comparison:
        from neobench.reports.compare_table import comparison_markdown
        from neobench.results.baseline import load_baseline
        from neobench.results.compare import DEFAULT_THRESHOLD, Rules, Verdict, compare
        from neobench.results.directions import GATED
        from neobench.results.points import read_side

        base = load_baseline(baseline, request.config.rootpath / "baselines")
        rules = Rules(thresholds=thresholds or dict.fromkeys(GATED, DEFAULT_THRESHOLD))
        comparison = compare(base, read_side("this test", [run.path for run in runs]), rules)
        refused = [*comparison.with_verdict(Verdict.REGRESSED), *comparison.with_verdict(Verdict.INCOMPARABLE)]
        if refused or comparison.missing:
            pytest.fail(comparison_markdown(comparison), pytrace=False)
        return comparison

    return judge


def _arguments(options: dict[str, Any]) -> list[str]:
    arguments: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is not False and value is not None:
            arguments += [flag] if value is True else [flag, str(value)]
    return arguments


def _measure(arguments: list[str]) -> None:
    from neobench.cli.run import EXIT_INVALID

    command = [sys.executable, "-m", "neobench", "run", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, EXIT_INVALID):
        said = "\n".join(done.stderr.splitlines()[-_SHOWN_LINES:])
        pytest.fail(f"neobench run {' '.join(arguments)} failed (exit code {done.returncode}):\n{said}", pytrace=False)


def _read(folders: Sequence[Path]) -> list[Run]:
    from neobench.results.points import run_folders
    from neobench.results.store import load_run

    return [load_run(path) for folder in folders for path in run_folders(folder)]
