"""Driving an engine in process, and what is made of its steps; the engine is the real one on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from benchmarks.h200.check_child import Output, first_differences, offloading_tables  # noqa: E402
from benchmarks.h200.drive import Step, decode_window, drive, read_prompts  # noqa: E402
from benchmarks.h200.jobs import MeasurementError  # noqa: E402
from benchmarks.h200.neo_child import host_metrics, prediction_errors, single_stream, weight_bytes_read  # noqa: E402
from benchmarks.h200.prompts import draw  # noqa: E402
from neobench.neo_engine.build import build_executor  # noqa: E402
from neobench.neo_engine.config import NAMED_SHAPES, EngineConfig  # noqa: E402
from neobench.neo_engine.cost_model import CostModel  # noqa: E402
from neobench.neo_engine.engine import NeoEngine  # noqa: E402
from neobench.neo_engine.model.llama import allocate_weights  # noqa: E402

IDLE = Step(
    wall_ns=10,
    tokens=0,
    first_tokens=0,
    finished=0,
    predicted_ns=9,
    measured_ns=10,
    prefill_tokens=0,
    device_decodes=0,
    host_decodes=0,
)


def steps(prefills: int, decodes: int, rows: int = 2) -> list[Step]:
    """`rows` requests start one a step, all decode together, then one ends."""
    start = [replace(IDLE, tokens=number + 1, first_tokens=1, prefill_tokens=5) for number in range(prefills)]
    middle = [replace(IDLE, tokens=rows, device_decodes=rows)] * decodes
    return [*start, *middle, replace(IDLE, tokens=rows, finished=1)]


def small_engine(policy: str) -> NeoEngine:
    config = EngineConfig(policy=policy, device_blocks=24, host_memory_bytes=2**26, device_threads=1, host_threads=1)
    return NeoEngine(config, build_executor(config), CostModel(offloading_tables(), config.shape.num_layers))


def test_the_window_lies_between_the_last_first_token_and_the_first_end() -> None:
    window = decode_window(steps(prefills=2, decodes=9), 2)
    assert [step.tokens for step in window] == [2] * 9
    assert all(step.prefill_tokens == 0 for step in window)


def test_a_window_that_proves_nothing_is_refused() -> None:
    with pytest.raises(MeasurementError, match="only 7 steps in which all 2"):
        decode_window(steps(prefills=2, decodes=7), 2)
    with pytest.raises(MeasurementError, match="only 0 steps in which all 3"):
        decode_window(steps(prefills=2, decodes=20), 3)
    made = steps(prefills=2, decodes=9)
    made[5] = replace(made[5], prefill_tokens=64)
    with pytest.raises(MeasurementError, match="64 tokens were prefilled again"):
        decode_window(made, 2)


def test_prediction_errors_are_relative_to_what_was_measured() -> None:
    made = [replace(IDLE, predicted_ns=number, measured_ns=100) for number in (100, 90, 130, 100, 100)]
    errors = prediction_errors([*made, replace(IDLE, measured_ns=0)])
    assert errors["prediction_error_median"] == 0.0
    assert errors["prediction_error_p95"] == pytest.approx(0.26)
    with pytest.raises(MeasurementError):
        prediction_errors([])


def test_host_metrics_count_hidden_time_and_bytes() -> None:
    config = EngineConfig(model="llama-3.1-8b", dtype="bfloat16")
    counters: dict[str, Any] = {
        "measured_host_decode_ns": 1_000_000_000,
        "measured_host_wait_ns": 150_000_000,
        "cpu_attended_tokens": 500_000,
        "cpu_decode_tokens": 30,
        "gpu_decode_tokens": 10,
    }
    metrics = host_metrics(counters, config)
    assert metrics["hidden_fraction"] == pytest.approx(0.85)
    assert metrics["host_gbps"] == pytest.approx(500_000 * 131_072 / 1e9)
    assert metrics["host_share"] == 0.75


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_reads_every_weight_but_the_rest_of_the_embedding_table(tied: bool) -> None:
    shape = replace(NAMED_SHAPES["tiny"], tied_embeddings=tied)
    weights = allocate_weights(shape, dtype=torch.bfloat16, device=torch.device("meta"))
    layers = sum(tensor.nbytes for layer in weights.layers for tensor in vars(layer).values() if tensor is not None)
    assert weight_bytes_read(shape, "bfloat16") == layers + weights.final_norm.nbytes + weights.head.nbytes


def test_first_difference_of_each_request_counts() -> None:
    left = [Output([1, 2, 3]), Output([4, 5]), Output([6])]
    right = [Output([1, 9, 8]), Output([4, 5]), Output([7])]
    assert first_differences(left, right) == {0: 1, 2: 0}


@pytest.mark.parametrize("policy", ["gpu_only", "asymmetric_pipeline"])
def test_a_drive_accounts_for_every_token_and_step(policy: str) -> None:
    requests = [([index + 1] * 60, 10 + index) for index in range(9)]
    engine = small_engine(policy)
    try:
        drive(engine, requests[:2])
        driven = drive(engine, requests)
    finally:
        engine.close()
    assert driven.output_tokens == sum(output for _, output in requests)
    assert driven.counters["finished_requests"] == sum(step.finished for step in driven.steps) == 9
    assert sum(step.first_tokens for step in driven.steps) == 9
    decodes = sum(step.device_decodes + step.host_decodes for step in driven.steps)
    assert decodes == driven.counters["gpu_decode_tokens"] + driven.counters["cpu_decode_tokens"]
    assert sum(step.measured_ns for step in driven.steps) == driven.counters["measured_iteration_ns"]
    assert sum(step.wall_ns for step in driven.steps) <= driven.wall_ns
    assert set(driven.series()) == set(vars(IDLE))
    if policy == "asymmetric_pipeline":
        assert driven.counters["cpu_attended_tokens"] >= 60 * driven.counters["cpu_decode_tokens"] > 0


def test_a_wrong_number_of_tokens_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine("gpu_only")
    step = engine.step
    try:
        monkeypatch.setattr(engine, "step", lambda: step()[:1])
        with pytest.raises(MeasurementError, match="1 of 2 requests got another number"):
            drive(engine, [([1, 2], 3), ([3, 4], 3)])
    finally:
        engine.close()


def test_a_single_stream_is_read_against_the_weights_of_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    draw(tmp_path / "p.json", workload="exact:20,24", num_requests=1, num_warmup=1, model="tiny")
    engine = {"policy": "gpu_only", "device_blocks": 24, "host_memory_bytes": 2**20}
    parts = [{"case": "2-single", "path": str(tmp_path / "p.json")}]
    result = single_stream({"parts": parts, "measurements": 2, "engine": engine})
    assert result.again == []
    assert result.rest is not None
    result.rest()
    metrics = result.metrics
    (again,) = result.again
    assert again["case"] == "2-single"
    assert again["metrics"].keys() == metrics.keys()
    tokens_ms = [wall_ns / 1e6 for wall_ns in result.raw["steps"]["wall_ns"]]
    assert min(tokens_ms) <= metrics["ms_per_token"] <= max(tokens_ms)
    read = weight_bytes_read(NAMED_SHAPES["tiny"], "float32")
    assert metrics["weight_floor_ms"] == pytest.approx(1e3 * read / (1e9 * metrics["copy_gbps"]))
    assert "hidden_fraction" not in metrics, "nothing ran on the host"


def test_requests_files_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"warmup": [[[1], 2]], "requests": [[[3, 4], 5]], "facts": {}}')
    assert read_prompts(str(tmp_path / "p.json"))["requests"] == [([3, 4], 5)]
