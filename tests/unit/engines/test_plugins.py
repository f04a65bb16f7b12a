"""Engines of other packages: what the page on adding one says, done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "add-an-engine.md"


def fenced(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def install(site: Path, package: str, entry_points: str) -> None:
    """As pip leaves a package: a folder of metadata beside its modules."""
    metadata = site / f"{package.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[neobench.engines]\n{entry_points}\n")


def neobench(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "neobench", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The engine of the page, installed."""
    site = tmp_path / "site"
    section, *lines = fenced("toml").strip().splitlines()
    assert section == '[project.entry-points."neobench.engines"]'
    install(site, "sleepy-engine", "\n".join(lines).replace('"', ""))
    (site / "sleepy.py").write_text(fenced("python"))
    return site


def test_the_example_is_as_short_as_the_page_wants() -> None:
    assert len([line for line in fenced("python").splitlines() if line.strip()]) <= 40


def test_the_engine_of_the_page_is_listed_and_measured(site: Path, tmp_path: Path) -> None:
    listed = neobench(site, "list", "engines").stdout
    assert re.search(r"^sleepy +sleeps a fixed time for each token \(sleepy-engine 1\.0\)$", listed, re.MULTILINE)
    folder = tmp_path / "runs"
    options = ["--engine-option", "token_ms=20", "--rate", "50", "--num-requests", "10", "--workload", "synthetic:20,8"]
    options = [*options, "--num-warmup", "0", "--seed", "1", "--output", str(folder)]
    done = neobench(site, "run", "--engine", "sleepy,null", *options)
    assert done.returncode in (0, 4), done.stderr
    run = json.loads((folder / "sleepy-rate-50" / "run.json").read_text())
    summary = json.loads((folder / "sleepy-rate-50" / "summary.json").read_text())
    assert run["spec"]["engine"] == {"name": "sleepy", "options": {"token_ms": 20}}
    assert run["engine"]["token_s"] == 0.02
    assert summary["completed"] == 10
    assert summary["median_tpot_ms"] >= 20
    assert json.loads((folder / "null-rate-50" / "run.json").read_text())["spec"]["engine"]["options"] == {}


def test_a_class_alone_is_an_engine(site: Path) -> None:
    install(site, "plain", "plain = neobench.engines.null:NullEngine")
    assert re.search(r"^plain +.*\(plain 1\.0\)$", neobench(site, "list", "engines").stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ("broken = nowhere_to_be_found:Engine", "No module named 'nowhere_to_be_found'"),
        ("broken = sleepy:NoSuchThing", "has no attribute 'NoSuchThing'"),
        ("broken = sleepy:__doc__", "neither an EngineEntry nor a callable"),
    ],
)
def test_a_broken_one_is_reported_and_harms_nobody(site: Path, point: str, reason: str) -> None:
    install(site, "bad-engine", point)
    listed = neobench(site, "list", "engines")
    assert listed.returncode == 0
    lines = re.sub(r"\n +", " ", listed.stdout)
    assert re.search(rf"^broken +BROKEN: .*{re.escape(reason)}.*\(bad-engine 1\.0\)$", lines, re.MULTILINE)
    assert "\nsleepy " in listed.stdout
    refused = neobench(site, "run", "--engine", "broken", "--dry-run")
    assert refused.returncode == 2
    assert "engine broken of bad-engine 1.0 is broken" in refused.stderr
    assert neobench(site, "run", "--engine", "null", "--dry-run").returncode == 0


def test_a_name_of_ours_cannot_be_taken(site: Path) -> None:
    install(site, "thief", "neo = sleepy:ENTRY")
    assert "BROKEN: neobench has an engine of that name (thief 1.0)" in neobench(site, "list", "engines").stdout


def test_a_misspelt_name_finds_the_nearest_plugin(site: Path) -> None:
    assert "did you mean sleepy" in neobench(site, "run", "--engine", "sleepi", "--dry-run").stderr
