"""`neobench bench-cpu` without measuring: plans, errors, and what becomes of busy and interrupted points."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from neobench.cli import main

pytest.importorskip("neobench.pacpu._pacpu")

from neobench.cli import bench_session
from neobench.pacpu import targets
from neobench.pacpu.bench import Measurement, Point, Spread

Measure = Callable[[Point], str | None]
SMALL = ("--batch", "1", "--context", "128", "--threads", "1", "--memory", "64MiB")
ROOF = Spread(10.0, 9.0, 11.0)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench-cpu", *arguments])


def plan(*arguments: str) -> list[dict[str, Any]]:
    result = invoke("--dry-run", "--json", *arguments)
    assert result.exit_code == 0, result.output
    points: list[dict[str, Any]] = json.loads(result.stdout)["points"]
    return points


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Measure], None]:
    """Replaces the measuring by a function that gives `busy` for a point."""

    def use(measure: Measure) -> None:
        class FakeBench:
            def __init__(self, kv_bytes: int, *, max_threads: int) -> None:
                assert (kv_bytes, max_threads) == (64 * 2**20, 1)

            def __enter__(self) -> FakeBench:
                return self

            def __exit__(self, *_: object) -> None: ...

            def measure_read(self, threads: int) -> Spread:
                return self.read_gbps(threads)[0]

            def read_gbps(self, _threads: int) -> tuple[Spread, bool]:
                return ROOF, False

            def estimate_s(self, _point: Point) -> float:
                return 1.0

            def measure(self, point: Point) -> Measurement:
                busy = measure(point)
                spread = Spread(5.0, 4.0, 6.0)
                return Measurement(point, "cpp", spread, ROOF, Spread(50.0, 40.0, 60.0), 5, busy)

        monkeypatch.setattr(bench_session, "Bench", FakeBench)

    return use


def test_the_whole_matrix_is_the_default() -> None:
    points = plan("--threads", "1", "--memory", "8GiB")
    assert len(points) == 3 * 3 * 3 * 3 + 3 * 2 * 3 * 3
    assert {point["dtype"] for point in points if point["kernel"] == "torch_sdpa"} == {"float16", "bfloat16"}


def test_options_choose_a_part() -> None:
    points = plan("--shape", "gqa4", "--dtype", "fp16,bf16,float16", "--no-peer", *SMALL)
    assert [(point["shape"], point["dtype"], point["kernel"]) for point in points] == [
        ("gqa4", "float16", "auto"),
        ("gqa4", "bfloat16", "auto"),
    ]
    kernels = plan("--shape", "mha", "--dtype", "int8", "--kernel", "auto,cpp", *SMALL)
    assert [point["kernel"] for point in kernels] == ["auto", "cpp"]


def test_limits_join_every_point() -> None:
    points = plan("--shape", "gqa4", "--dtype", "bf16", "--limits", *SMALL)
    assert [point["kernel"] for point in points] == ["auto", "read_runs", "in_cache", "torch_sdpa"]


def test_points_that_do_not_fit_are_left_out_with_a_note() -> None:
    result = invoke("--dry-run", "--threads", "1", "--no-peer", "--shape", "mha", "--dtype", "bf16", "--memory", "1GiB")
    assert result.exit_code == 0
    assert "1 of 9 points are left out" in result.stderr
    assert "batch=64 context=4096" not in result.stdout
    assert "8 points over 1 GiB" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "gqa16"], "'gqa16' is not one of mha, gqa4, gqa8"),
        (["--dtype", "fp8"], "not one of float16, fp16, bfloat16, bf16, int8"),
        (["--threads", "0"], "numbers above 0"),
        (["--threads", "4096"], "this process may use"),
        (["--batch", "few"], "e.g. 16 or 1,16,64"),
        (["--context", "128,128"], "different numbers"),
        (["--kernel", "sse9"], f"auto, {targets()[0]}"),
        (["--memory", "some"], "512MiB"),
        (["--memory", "1MiB", "--shape", "mha", "--batch", "64"], "one layer needs"),
    ],
)
def test_wrong_input_is_a_usage_error_that_says_the_fix(arguments: list[str], message: str) -> None:
    result = invoke("--dry-run", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_quiet_points_make_files_and_rows_alone_on_stdout(measured: Callable[[Measure], None], tmp_path: Path) -> None:
    measured(lambda _point: None)
    folder = tmp_path / "bench"
    result = invoke("--shape", "gqa4", "--dtype", "bf16", "--json", "--output", str(folder), *SMALL)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    document = json.loads((folder / "rows.json").read_text())
    assert document["rows"] == rows
    assert len(rows) == 2
    assert document["read"] == [{"threads": 1, "gbps": 10.0, "gbps_p25": 9.0, "gbps_p75": 11.0, "busy": False}]
    assert document["kv_bytes"] == 64 * 2**20
    assert document["provenance"]["kind"] == "measured"
    assert {path.name for path in folder.iterdir()} == {
        *("rows.json", "table.md", "roofline.png", "roofline.pdf", "roofline.svg")
    }


def test_busy_points_are_marked_and_the_run_is_invalid(measured: Callable[[Measure], None], tmp_path: Path) -> None:
    sentence = "other processes used 40% of the CPU under test"
    measured(lambda point: sentence if point.shape == "mha" else None)
    result = invoke(*("--shape", "mha,gqa4", "--dtype", "int8", "--output", str(tmp_path)), *SMALL)
    assert result.exit_code == 4
    assert f"during 1 of 2 points, also when they were repeated (once {sentence})" in result.stderr
    assert result.stdout.count("†") == 2
    assert (tmp_path / "table.md").read_text().count("†") == 2


def test_ctrl_c_keeps_what_is_done(measured: Callable[[Measure], None], tmp_path: Path) -> None:
    def stop_at_gqa4(point: Point) -> None:
        if point.shape == "gqa4":
            raise KeyboardInterrupt

    measured(stop_at_gqa4)
    result = invoke(*("--shape", "mha,gqa4", "--dtype", "int8", "--json", "--output", str(tmp_path)), *SMALL)
    assert result.exit_code == 4
    assert "1 of 2 points are done and kept" in result.stderr
    assert [row["shape"] for row in json.loads(result.stdout)] == ["mha"]
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 1


def test_a_kernel_that_cannot_do_a_point_is_left_out(measured: Callable[[Measure], None], tmp_path: Path) -> None:
    def refuse_int8(point: Point) -> None:
        if point.dtype == "int8":
            raise ValueError("target: no int8")

    measured(refuse_int8)
    arguments = ("--shape", "mha", "--dtype", "bf16,int8", "--no-peer", "--json", "--output", str(tmp_path))
    result = invoke(*arguments, *SMALL)
    assert result.exit_code == 0
    assert "auto left out for int8: target: no int8" in result.stderr
    assert [row["dtype"] for row in json.loads(result.stdout)] == ["bfloat16"]


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    result = invoke("--output", str(tmp_path), *SMALL)
    assert result.exit_code == 2
    assert "never overwritten" in result.output
