from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from neobench.cli import main
from neobench.engines.launch import Launch
from neobench.engines.registry import create
from neobench.harness.engine import EngineError
from neobench.neo_engine.cost_model import CostTables, Curve, Profile, Surface


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    surface = Surface((1, 256), (16, 4096), ((20_000.0, 40_000.0), (60_000.0, 9_000_000.0)))
    flat = Curve((1, 2048), (400_000.0, 7_000_000.0))
    tables = CostTables(flat, flat, surface, surface, flat, flat, 200_000.0, 100_000.0)
    Profile({}, tables).save(tmp_path / "box.json")
    return tmp_path / "box.json"


def run(profile: Path, output: Path, *more: str) -> list[dict[str, object]]:
    options = ["--hardware", str(profile), "--workload", "synthetic:64,16", "--num-requests", "30", "--rate", "2"]
    engines = "neo,gpu_only,full_offload,vllm:256"
    result = CliRunner().invoke(
        main, ["run", "--engine", engines, *options, "--output", str(output), "--json", *more], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    summaries: list[dict[str, object]] = json.loads(result.stdout)
    return summaries


def test_two_modelled_runs_leave_the_same_bytes(profile: Path, tmp_path: Path) -> None:
    first, second = (run(profile, tmp_path / name) for name in ("a", "b"))
    assert len(first) == 4
    for one, other in zip(first, second, strict=True):
        assert one["completed"] == 30
        assert one.pop("provenance")["kind"] == "modelled"  # type: ignore[index]
        del other["provenance"]
        assert one == other
    rows = sorted((tmp_path / "a").glob("*/requests.jsonl"))
    assert len(rows) == 4
    for path in rows:
        assert path.read_bytes() == (tmp_path / "b" / path.parent.name / path.name).read_bytes()


def test_noise_changes_the_times(profile: Path, tmp_path: Path) -> None:
    quiet, noisy = run(profile, tmp_path / "a"), run(profile, tmp_path / "b", "--noise", "0.2")
    assert all(one["mean_tpot_ms"] != other["mean_tpot_ms"] for one, other in zip(quiet, noisy, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hardware", "t5"], "unknown machine 't5'"),
        (["--hardware", "x.json", "--engine", "null"], "vllm-neo-paper; not with null"),
        (["--hardware", "x.json", "--device", "cuda"], "--device is no option of neo"),
        (["--hardware", "x.json"], "cannot use profile x.json"),
        (["--noise", "0.1"], "--noise is no option of neo"),
    ],
)
def test_what_cannot_be_modelled_is_told(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["run", *arguments, "--output", str(tmp_path / "runs")])
    assert result.exit_code == 2
    assert message in result.output


def test_a_token_budget_is_a_number(profile: Path, tmp_path: Path) -> None:
    launch = Launch(model="tiny", options={"hardware": str(profile)}, log_path=tmp_path / "log")
    with pytest.raises(EngineError, match="'many' is not a number of tokens"):
        create("vllm:many", launch)
