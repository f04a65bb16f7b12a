"""Drives a NeoEngine in process: all requests at once, step by step, with what each step did and took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from benchmarks.h200.jobs import MeasurementError
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.request import SamplingParams

Requests = Sequence[tuple[list[int], int]]
"""(prompt token ids, output tokens that must come)."""

_STEP_COUNTERS = {
    "predicted_ns": "predicted_iteration_ns",
    "measured_ns": "measured_iteration_ns",
    "prefill_tokens": "prefill_tokens",
    "device_decodes": "gpu_decode_tokens",
    "host_decodes": "cpu_decode_tokens",
}


@dataclass(frozen=True)
class Step:
    """One call of NeoEngine.step: `wall_ns` is the whole call, `measured_ns` what its executor measured."""

    wall_ns: int
    tokens: int
    first_tokens: int
    """Requests that got their first token."""
    finished: int
    predicted_ns: int
    measured_ns: int
    prefill_tokens: int
    device_decodes: int
    host_decodes: int


@dataclass(frozen=True)
class Drive:
    """What came of it. `wall_ns` is from the first request added to the last token, statistics not counted."""

    wall_ns: int
    steps: list[Step]
    counters: dict[str, int | float]
    """Differences of the engine's counters over the drive."""

    @property
    def output_tokens(self) -> int:
        return sum(step.tokens for step in self.steps)

    def series(self) -> dict[str, list[int]]:
        """The steps as columns, for a run file."""
        return {part.name: [getattr(step, part.name) for step in self.steps] for part in fields(Step)}


def read_prompts(path: str) -> dict[str, Any]:
    """{"warmup": Requests, "requests": Requests, "facts"} of a file that `prompts.draw` wrote."""
    content = json.loads(Path(path).read_text())
    for part in ("warmup", "requests"):
        content[part] = [(prompt, output_tokens) for prompt, output_tokens in content[part]]
    return dict(content)


def drive(engine: NeoEngine, requests: Requests) -> Drive:
    """Add all requests, step until none is left. Raises MeasurementError if one got another number of tokens."""
    before = last = engine.stats()
    steps: list[Step] = []
    tokens: dict[int, int] = {}
    wanted: dict[int, int] = {}
    wall_ns = 0
    start_ns = perf_counter_ns()
    for prompt, output_tokens in requests:
        params = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        wanted[engine.add_request(prompt, params)] = output_tokens
    while engine.has_work:
        step_start_ns = perf_counter_ns()
        outputs = engine.step()
        step_end_ns = perf_counter_ns()
        for output in outputs:
            tokens[output.request_id] = tokens.get(output.request_id, 0) + 1
        # What follows is for us: a server does not read its statistics in every step.
        wall_ns += perf_counter_ns() - start_ns
        now = engine.stats()
        deltas = {name: int(now[counter] - last[counter]) for name, counter in _STEP_COUNTERS.items()}
        steps.append(
            Step(
                wall_ns=step_end_ns - step_start_ns,
                tokens=len(outputs),
                first_tokens=sum(tokens[output.request_id] == 1 for output in outputs),
                finished=sum(output.finish_reason is not None for output in outputs),
                **deltas,
            )
        )
        last = now
        start_ns = perf_counter_ns()
    if tokens != wanted:
        wrong = sum(tokens.get(request_id) != count for request_id, count in wanted.items())
        raise MeasurementError(f"{wrong} of {len(wanted)} requests got another number of tokens than asked for")
    return Drive(wall_ns, steps, {name: last[name] - before[name] for name in before})


def decode_window(steps: Sequence[Step], num_requests: int) -> list[Step]:
    """Steps in which every request decodes: after the last first token, before the first request ends.

    Raises MeasurementError where there are fewer than 8 such steps, or prompts were computed again among them.
    """
    started = 0
    window: list[Step] = []
    for step in steps:
        if step.finished:
            break
        if started == num_requests:
            window.append(step)
        started += step.first_tokens
    if len(window) < 8:
        raise MeasurementError(f"only {len(window)} steps in which all {num_requests} requests decode")
    if again := sum(step.prefill_tokens for step in window):
        raise MeasurementError(f"{again} tokens were prefilled again while all requests were decoding")
    return window
