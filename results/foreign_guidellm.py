"""Result files of GuideLLM 0.8, JSON; one of them may hold several benchmarks, each a run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import msgspec

from neobench.results.foreign import NOT_RECORDED, ConvertError, ForeignRun, known_counts, to_ns
from neobench.results.record import Outcome, RequestRecord

OLDEST_VERSION = (0, 8)
_ITL = ("itl_ms", "steady_output_throughput")
_LAG = ("lag_p50_ms", "lag_p99_ms", "lag_max_ms", "offered_request_rate")
_DISTRIBUTIONS = {
    "time_to_first_token_ms": ("ttft_from_issue_ms", 1.0),
    "request_latency": ("e2el_from_issue_ms", 1e3),
    "request_scheduled_latency": ("e2el_ms", 1e3),
}
"""GuideLLM's metric -> our figure, and what turns it into milliseconds. Its others are weighted by tokens."""
_NOTE = "Converted from a file of GuideLLM, which keeps no instants between a request's first and last token: no ITL."
_SAMPLED_NOTE = "The file has figures of {rows} of {total} requests only, so these are GuideLLM's own figures."
_CUT_NOTE = "GuideLLM cut off what was in flight at its time limit; limit the number of requests instead."
_LOST = (
    "By its file, {lost} requests were due long before the benchmark began: GuideLLM lost its schedule and sent them "
    "at once, whatever rate was asked for. Their latencies start when they were sent."
)
LONG_BEFORE_S = 60.0
_COOLDOWN_NOTE = "GuideLLM's cool-down is in these figures."


class _Timings(msgspec.Struct):
    """Unix times in seconds."""

    targeted_start: float | None = None
    request_start: float | None = None
    first_token_iteration: float | None = None
    request_end: float | None = None


class _Info(msgspec.Struct):
    timings: _Timings
    error: str | None = None


class _Request(msgspec.Struct):
    info: _Info
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


class _Requests(msgspec.Struct):
    successful: list[_Request] | None = None
    errored: list[_Request] | None = None
    incomplete: list[_Request] | None = None

    def of(self, outcome: Outcome) -> list[_Request]:
        kinds = {
            Outcome.OK: self.successful,
            Outcome.UNKNOWN_ERROR: self.errored,
            Outcome.INTERRUPTED: self.incomplete,
        }
        return kinds[outcome] or []


class _Strategy(msgspec.Struct):
    type_: str
    rate: float | None = None
    streams: int | None = None


class _Profile(msgspec.Struct):
    max_concurrency: int | None = None
    """The limit that was asked for; the strategy's own is there always."""


class _Backend(msgspec.Struct):
    kind: str = NOT_RECORDED
    model: str | None = None


class _Config(msgspec.Struct):
    strategy: _Strategy
    profile: _Profile
    backend: _Backend


class _Times(msgspec.Struct):
    start_time: float
    measure_start_time: float | None = None


class _Benchmark(msgspec.Struct):
    config: _Config
    scheduler_metrics: _Times
    requests: _Requests
    metrics: dict[str, Any]
    duration: float
    warmup_duration: float = 0.0
    cooldown_duration: float = 0.0


def looks_like_guidellm(document: object) -> bool:
    return isinstance(document, Mapping) and "benchmarks" in document and "guidellm_version" in _metadata(document)


def _metadata(document: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = document.get("metadata")
    return metadata if isinstance(metadata, Mapping) else {}


def read_guidellm(document: Mapping[str, Any]) -> list[ForeignRun]:
    """Raises ConvertError."""
    version = str(_metadata(document)["guidellm_version"])
    if _numbers(version) < OLDEST_VERSION:
        raise ConvertError(f"it was written by GuideLLM {version}; files of 0.8 and later are read")
    try:
        benchmarks = msgspec.convert(document["benchmarks"], list[_Benchmark])
    except msgspec.ValidationError as error:
        raise ConvertError(f"benchmarks: {error}") from None
    if not benchmarks:
        raise ConvertError("it holds no benchmark")
    return [_run(benchmark, tool=f"guidellm {version}", workload=_workload(document)) for benchmark in benchmarks]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _workload(document: Mapping[str, Any]) -> str:
    """Kind of the data and, where lengths are set, those."""
    try:
        data = document["config"]["spec"]["data"][0]
        lengths = [data.get(name) for name in ("prompt_tokens", "output_tokens")]
        shown = ",".join(str(length) for length in lengths if length is not None)
        return f"{data['kind']}:{shown}" if shown else str(data["kind"])
    except (KeyError, IndexError, TypeError, AttributeError):
        return NOT_RECORDED


def _run(benchmark: _Benchmark, *, tool: str, workload: str) -> ForeignRun:
    totals = benchmark.metrics.get("request_totals") or {}
    records = _records(benchmark)
    num_requests = totals.get("total", len(records))
    if len(records) != num_requests:
        notes = [_SAMPLED_NOTE.format(rows=len(records), total=num_requests)]
        records = []
    else:
        notes = [_NOTE]
    if totals.get("incomplete"):
        notes.append(_CUT_NOTE)
    if benchmark.cooldown_duration:
        notes.append(_COOLDOWN_NOTE)
    rate, arrival = _arrival(benchmark, records)
    # Between target and start lies the wait for a free slot, where there is a limit that does not move the target.
    lag_is_known = "concurrency" not in arrival or benchmark.config.strategy.type_ in ("concurrent", "synchronous")
    return ForeignRun(
        tool=tool,
        engine=benchmark.config.backend.kind,
        model=benchmark.config.backend.model or NOT_RECORDED,
        workload=workload,
        arrival=arrival,
        request_rate=rate,
        started_at=_utc(benchmark.scheduler_metrics.start_time),
        records=records,
        known=_known(benchmark, totals),
        missing=[*_ITL, *([] if lag_is_known else _LAG)],
        notes=notes,
        incidents=_incidents(benchmark),
        reported=_reported(benchmark),
    )


def _incidents(benchmark: _Benchmark) -> list[str]:
    kinds = (Outcome.OK, Outcome.UNKNOWN_ERROR, Outcome.INTERRUPTED)
    num_lost = sum(_is_lost(request, benchmark) for outcome in kinds for request in benchmark.requests.of(outcome))
    return [_LOST.format(lost=num_lost)] if num_lost else []


def _records(benchmark: _Benchmark) -> list[RequestRecord]:
    """In the order of their targets, from the benchmark's start or the first of them."""
    kinds = (Outcome.OK, Outcome.UNKNOWN_ERROR, Outcome.INTERRUPTED)
    found = [(request, outcome) for outcome in kinds for request in benchmark.requests.of(outcome)]
    found.sort(key=lambda entry: _due_s(entry[0], benchmark))
    origin_s = min((_due_s(request, benchmark) for request, _ in found), default=0.0)
    origin_s = min(origin_s, benchmark.scheduler_metrics.start_time)
    return [_record(request, outcome, index, benchmark, origin_s) for index, (request, outcome) in enumerate(found)]


def _due_s(request: _Request, benchmark: _Benchmark) -> float:
    timings = request.info.timings
    due_s = timings.request_start if timings.targeted_start is None else timings.targeted_start
    if _is_lost(request, benchmark):
        due_s = timings.request_start
    return benchmark.scheduler_metrics.start_time if due_s is None else due_s


def _is_lost(request: _Request, benchmark: _Benchmark) -> bool:
    """Due long before the benchmark began: a worker of GuideLLM 0.8.1 may draw targets before its clock is set."""
    target_s = request.info.timings.targeted_start
    return target_s is not None and target_s < benchmark.scheduler_metrics.start_time - LONG_BEFORE_S


def _record(request: _Request, outcome: Outcome, index: int, benchmark: _Benchmark, origin_s: float) -> RequestRecord:
    timings = request.info.timings
    measured_from_s = benchmark.scheduler_metrics.measure_start_time

    def instant_ns(instant_s: float | None) -> int | None:
        return None if instant_s is None else to_ns(instant_s, origin_s)

    due_s = _due_s(request, benchmark)
    in_warmup = bool(benchmark.warmup_duration and measured_from_s and due_s < measured_from_s)
    return RequestRecord(
        index=index,
        warmup=in_warmup,
        prompt_tokens=request.prompt_tokens or 0,
        requested_output_tokens=request.output_tokens or 0,
        output_tokens=request.output_tokens or 0,
        scheduled_ns=to_ns(due_s, origin_s),
        issued_ns=instant_ns(timings.request_start),
        first_token_ns=instant_ns(timings.first_token_iteration),
        ended_ns=instant_ns(timings.request_end),
        outcome=outcome,
        cached_tokens=request.cached_tokens,
        error=None if outcome is Outcome.OK else request.info.error or "the file gives no reason",
    )


def _arrival(benchmark: _Benchmark, records: list[RequestRecord]) -> tuple[float | None, dict[str, Any]]:
    """Rate, and the arrival as a spec says it."""
    strategy = benchmark.config.strategy
    limit = benchmark.config.profile.max_concurrency
    cap = {} if limit is None else {"concurrency": limit}
    if strategy.type_ in ("constant", "poisson"):
        return strategy.rate, {"kind": strategy.type_, "rate": strategy.rate, **cap}
    if strategy.type_ == "trace":
        span_s = (records[-1].scheduled_ns - records[0].scheduled_ns) / 1e9 if records else 0.0
        return (len(records) - 1) / span_s if span_s else None, {"kind": "trace", **cap}
    if strategy.type_ == "synchronous":
        return None, {"kind": "all_at_once", "concurrency": 1}
    if strategy.type_ == "concurrent":
        return None, {"kind": "all_at_once", "concurrency": strategy.streams}
    if strategy.type_ == "throughput":
        return None, {"kind": "all_at_once", **cap}
    raise ConvertError(f"its strategy {strategy.type_!r} is not known")


def _known(benchmark: _Benchmark, totals: Mapping[str, int]) -> dict[str, Any]:
    completed = totals.get("successful", 0)
    figures: dict[str, Any] = {
        "duration": benchmark.duration,
        "request_throughput": completed / benchmark.duration if benchmark.duration else None,
    }
    for theirs, ours in (("prompt_token_count", "total_input_tokens"), ("output_token_count", "total_output_tokens")):
        figures[ours] = round((_successful(benchmark, theirs) or {}).get("total_sum", 0))
    tokens = figures["total_output_tokens"]
    figures["output_throughput"] = tokens / benchmark.duration if benchmark.duration else None
    for theirs, (name, scale) in _DISTRIBUTIONS.items():
        if values := _successful(benchmark, theirs):
            theirs_of = {"mean": values.get("mean"), "median": values.get("median"), "std": values.get("std_dev")}
            theirs_of["p99"] = (values.get("percentiles") or {}).get("p99")
            figures |= {f"{stat}_{name}": value * scale for stat, value in theirs_of.items() if value is not None}
    return {**known_counts(completed, totals.get("total", completed) - completed), **figures}


def _successful(benchmark: _Benchmark, name: str) -> Mapping[str, Any] | None:
    """Statistics of a metric over the completed requests."""
    metric = benchmark.metrics.get(name)
    found = metric.get("successful") if isinstance(metric, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _reported(benchmark: _Benchmark) -> dict[str, Any]:
    """Means under GuideLLM's names."""
    means = {name: (_successful(benchmark, name) or {}).get("mean") for name in benchmark.metrics}
    return {name: mean for name, mean in means.items() if isinstance(mean, (int, float))}


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="seconds")
