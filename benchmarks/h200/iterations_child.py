"""Decode iterations by themselves, in a process of their own: made-up rows through the executor, no scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np

from benchmarks.h200.jobs import Result, child_main
from benchmarks.h200.neo_child import engine_config, host_read_gbps, token_bytes
from benchmarks.h200.profiled import add_timeline, iterations_timeline
from neobench.neo_engine.batch import DecodeRow, Mode, StageTimes, SubBatch
from neobench.neo_engine.build import build_executor
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.executor.base import Executor, SampleRow
from neobench.neo_engine.executor.inputs import BatchInputs, DecodeInput
from neobench.neo_engine.profiler import load_or_measure
from neobench.neo_engine.request import SamplingParams

WARM_UP = 3
ITERATIONS = 12


@dataclass(frozen=True)
class Split:
    """Rows of one iteration: those on the device, and so many on the host in each of two sub-batches, or none."""

    device_rows: int
    host_rows: int
    context: int

    @property
    def mode(self) -> Mode:
        return Mode.ASYMMETRIC if self.host_rows else Mode.GPU_ONLY

    @property
    def tokens(self) -> int:
        return self.device_rows + 2 * self.host_rows

    def sub_batches(self) -> tuple[SubBatch, ...]:
        row = DecodeRow(0, self.context)
        first = SubBatch(device_decodes=(row,) * self.device_rows, host_decodes=(row,) * self.host_rows)
        return (first, SubBatch(host_decodes=(row,) * self.host_rows)) if self.host_rows else (first,)


def measure(settings: dict[str, Any]) -> Result:
    """Tokens a second of the best of the splits; all of them are among the raw series."""
    config = engine_config(settings)
    executor = build_executor(config, say=print)
    costs = CostModel(load_or_measure(config, executor).tables, config.shape.num_layers)
    splits = [Split(settings["device_rows"], rows, settings["context"]) for rows in settings["host_rows"]]
    series = [_run(executor, config, split) for split in splits]
    medians = [float(np.median([wall_ns for wall_ns, _ in runs])) for runs in series]
    best = max(range(len(splits)), key=lambda i: splits[i].tokens / medians[i])
    times = [stages for _, stages in series[best]]
    errors = [
        abs(costs.predict_plan(split.mode, split.sub_batches()).total_ns - stages.total_ns) / stages.total_ns
        for split, runs in zip(splits, series, strict=True)
        for _, stages in runs
    ]
    metrics = {
        "decode_tokens_per_s": 1e9 * splits[best].tokens / medians[best],
        "iteration_ms": medians[best] / 1e6,
        "device_rows": float(splits[best].device_rows),
        "host_rows": 2.0 * splits[best].host_rows,
        "prediction_error_median": float(np.median(errors)),
        "prediction_error_p95": float(np.percentile(errors, 95)),
    }
    if splits[best].host_rows:
        metrics |= _host_metrics(config, splits[best], times)
    raw = {
        f"{split.host_rows}+{split.host_rows}": [ns for ns, _ in runs]
        for split, runs in zip(splits, series, strict=True)
    }
    result = Result(metrics, {"engine": executor.describe()}, raw)
    result.rest = lambda: _rest(result, executor, config, splits[best])
    return result


def _rest(result: Result, executor: Executor, config: EngineConfig, split: Split) -> None:
    """The timeline of the best split, where there is a GPU; then, the executor closed, what the host's memory gives."""
    if split.host_rows and config.device == "cuda":
        iterate = _iteration(executor, config, split)
        add_timeline(vars(result), lambda: iterations_timeline(iterate))
    executor.close()
    if split.host_rows:
        result.metrics["host_read_gbps"] = host_read_gbps(result.facts["engine"]["host_threads"])


def _run(executor: Executor, config: EngineConfig, split: Split) -> list[tuple[int, StageTimes]]:
    """(nanoseconds of the whole call, stage times) of each iteration."""
    iterate = _iteration(executor, config, split)
    runs = []
    for _ in range(WARM_UP + ITERATIONS):
        start_ns = perf_counter_ns()
        stages = iterate()
        runs.append((perf_counter_ns() - start_ns, stages))
    return runs[WARM_UP:]


def _iteration(executor: Executor, config: EngineConfig, split: Split) -> Callable[[], StageTimes]:
    """Runs one."""
    batches = [_inputs(config, split, split.device_rows, first_host_row=0)]
    if split.host_rows:
        batches.append(_inputs(config, split, 0, first_host_row=split.host_rows))
    sampling = [SampleRow(SamplingParams(temperature=0.0), seed=0, position=0)] * split.tokens
    return lambda: executor.execute(split.mode, batches, (), sampling)[1]


def _inputs(config: EngineConfig, split: Split, device_rows: int, *, first_host_row: int) -> BatchInputs:
    rows = device_rows + split.host_rows
    return BatchInputs(
        token_ids=[1] * rows,
        positions=[split.context - 1] * rows,
        prefills=(),
        device=_rows(config, split.context, device_rows, config.device_blocks, first=0),
        host=_rows(config, split.context, split.host_rows, config.host_blocks, first=first_host_row),
    )


def _rows(config: EngineConfig, context: int, count: int, num_blocks: int, *, first: int) -> DecodeInput:
    """Rows with blocks of their own. Raises ValueError where the tier has too few."""
    blocks = config.blocks_for(context)
    if (first + count) * blocks > num_blocks:
        raise ValueError(
            f"{first + count} rows of {context} tokens need {(first + count) * blocks} of {num_blocks} blocks"
        )
    starts = range(first * blocks, (first + count) * blocks, blocks)
    return DecodeInput(tuple(range(start, start + blocks) for start in starts), (context,) * count)


def _host_metrics(config: EngineConfig, split: Split, times: Sequence[StageTimes]) -> dict[str, float]:
    host_ns = sum(stages.host_decode_ns for stages in times)
    attended_bytes = len(times) * 2 * split.host_rows * split.context * token_bytes(config)
    return {
        "hidden_fraction": 1 - sum(stages.host_wait_ns for stages in times) / host_ns,
        "host_gbps": attended_bytes / host_ns,
    }


if __name__ == "__main__":
    child_main(measure)
