"""The jobs under examples/ci are read by others' machines; what can be checked here is their form and commands."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from neobench.cli import main

CI = Path(__file__).parents[3] / "examples/ci"


@pytest.mark.parametrize("name", ["action.yml", "gitlab-ci.yml"])
def test_jobs_use_options_that_exist(name):
    text = (CI / name).read_text()
    assert yaml.safe_load(text)
    used = re.findall(
        r"neobench (gate|sweep)((?:[^\n]|\\\n)*)", "\n".join(line for line in text.splitlines() if "#" not in line)
    )
    assert {command for command, _ in used} == {"gate", "sweep"}
    for command, arguments in used:
        taught = CliRunner().invoke(main, [command, "--help"]).output
        assert [flag for flag in re.findall(r"--[a-z-]+", arguments) if flag not in taught] == []


def test_composite_action_has_what_github_asks_for():
    action = yaml.safe_load((CI / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    assert all("shell" in step for step in action["runs"]["steps"] if "run" in step)
    inputs = set(re.findall(r"inputs\.([\w-]+)", (CI / "action.yml").read_text()))
    assert inputs == set(action["inputs"])


def test_the_sweep_of_the_gate_can_be_planned(tmp_path):
    result = CliRunner().invoke(main, ["sweep", str(CI / "gate.yaml"), "--dry-run", "--output", str(tmp_path / "r")])
    assert result.exit_code == 0, result.output
    assert "5 of 5 measurements to do" in result.output
