"""Result files of `vllm bench serve`, with and without --save-detailed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from neobench.results.foreign import NOT_RECORDED, ConvertError, ForeignRun, known_counts, to_ns
from neobench.results.record import Outcome, RequestRecord

TOOL = "vllm bench serve"
_MARKS = frozenset({"request_throughput", "duration", "completed", "total_input_tokens"})
_LISTS = ("input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "errors")
_SAME = (
    "duration",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
)
_SCHEDULE = ("lag_p50_ms", "lag_p99_ms", "lag_max_ms", "offered_request_rate")
_STATISTIC = re.compile(r"(mean|median|std|p(?!50_)[0-9.]+)_(ttft|tpot|itl|e2el)_ms")
_NOTE = (
    "Converted from a file of `vllm bench serve`, which does not say when requests were due: latencies start when its "
    "client had a request at hand, and a client that fell behind its schedule does not show."
)


class _File(msgspec.Struct):
    """The keys that are read. Lists have an entry a request, times in seconds."""

    duration: float
    completed: int
    total_input_tokens: int
    request_throughput: float
    total_output_tokens: int = 0
    failed: int | None = None
    num_prompts: int | None = None
    date: str | None = None
    backend: str | None = None
    endpoint_type: str | None = None
    model_id: str | None = None
    request_rate: float | str = "inf"
    burstiness: float | str = 1.0
    max_concurrency: int | None = None
    ramp_up_strategy: str | None = None
    ramp_up_start_rps: float | None = None
    ramp_up_end_rps: float | None = None
    input_lens: list[int] | None = None
    output_lens: list[int] | None = None
    ttfts: list[float] | None = None
    itls: list[list[float]] | None = None
    latencies: list[float] | None = None
    start_times: list[float] | None = None
    queue_times: list[float] | None = None
    errors: list[str | None] | None = None
    valid: bool = True
    invalid_reasons: list[str] = []
    """These two are written by `neobench export`."""


def looks_like_vllm(document: object) -> bool:
    return isinstance(document, Mapping) and document.keys() >= _MARKS


def read_vllm(document: Mapping[str, Any]) -> ForeignRun:
    """Raises ConvertError."""
    try:
        file = msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        raise ConvertError(str(error)) from None
    records = _records(file)
    rate, arrival = _arrival(file)
    notes = [_NOTE]
    num_completed = sum(record.outcome is Outcome.OK for record in records)
    if records and num_completed != file.completed:
        notes.append(f"The file counts {file.completed} completed requests, its lists show {num_completed}.")
    return ForeignRun(
        tool=TOOL,
        engine=file.backend or file.endpoint_type or NOT_RECORDED,
        model=file.model_id or NOT_RECORDED,
        workload=NOT_RECORDED,
        arrival=arrival,
        request_rate=rate,
        started_at=_date(file.date),
        records=records,
        known=_known(file, document),
        missing=_SCHEDULE,
        notes=notes,
        incidents=[] if file.valid else file.invalid_reasons or ["The file says that the run is invalid."],
        reported={key: value for key, value in document.items() if not isinstance(value, (list, dict))},
    )


class _Row(NamedTuple):
    """One request; the fields are those of _LISTS, and the wait in the client."""

    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    gaps_s: list[float]
    latency_s: float
    start_s: float
    error: str | None
    queue_s: float

    @property
    def due_s(self) -> float:
        return self.start_s - self.queue_s


def _records(file: _File) -> list[RequestRecord]:
    """Empty where the file lacks one of the lists, as without --save-detailed or from releases that had no start."""
    lists = {name: values for name in _LISTS if (values := getattr(file, name)) is not None}
    if lists.keys() < set(_LISTS):
        return []
    count = len(lists["start_times"])
    lists["queue_times"] = [0.0] * count if file.queue_times is None else file.queue_times
    if any(len(values) != count for values in lists.values()):
        sizes = ", ".join(f"{name} {len(values)}" for name, values in lists.items())
        raise ConvertError(f"its lists should have one entry a request, but differ in length: {sizes}")
    rows = [_Row(*values) for values in zip(*lists.values(), strict=True)]
    origin_s = min((row.due_s for row in rows if row.start_s), default=0.0)
    return [_record(row, index, origin_s, capped=file.max_concurrency is not None) for index, row in enumerate(rows)]


def _record(row: _Row, index: int, origin_s: float, *, capped: bool) -> RequestRecord:
    # A request that failed keeps the latency of 0 that it began with, and one that was never sent its start of 0.
    completed = not row.error and row.latency_s > 0
    issued_ns = to_ns(row.start_s, origin_s) if row.start_s else None
    instants_s = accumulate(row.gaps_s, initial=row.start_s + row.ttft_s) if row.ttft_s else ()
    token_ns = [to_ns(instant_s, origin_s) for instant_s in instants_s]
    return RequestRecord(
        index=index,
        prompt_tokens=row.prompt_tokens,
        requested_output_tokens=row.output_tokens,
        output_tokens=row.output_tokens,
        scheduled_ns=to_ns(row.due_s, origin_s) if row.start_s else 0,
        ready_ns=issued_ns if capped else None,
        issued_ns=issued_ns,
        first_token_ns=token_ns[0] if token_ns else None,
        token_ns=token_ns,
        ended_ns=to_ns(row.start_s + row.latency_s, origin_s) if completed else None,
        outcome=Outcome.OK if completed else Outcome.UNKNOWN_ERROR,
        error=None if completed else row.error or "the file gives no reason",
    )


def _arrival(file: _File) -> tuple[float | None, dict[str, Any]]:
    """Rate, and the arrival as a spec says it."""
    cap = {"concurrency": file.max_concurrency}
    if file.ramp_up_strategy == "linear":
        return file.ramp_up_start_rps, {
            "kind": "poisson",
            "rate": file.ramp_up_start_rps,
            "end_rate": file.ramp_up_end_rps,
            **cap,
        }
    try:
        rate, burstiness = float(file.request_rate), float(file.burstiness)
    except ValueError:
        raise ConvertError(f"its request_rate is {file.request_rate!r}, neither a number nor inf") from None
    if rate == float("inf"):
        return None, {"kind": "all_at_once", **cap}
    if burstiness == float("inf"):
        return rate, {"kind": "constant", "rate": rate, **cap}
    if burstiness == 1:
        return rate, {"kind": "poisson", "rate": rate, **cap}
    return rate, {"kind": "gamma", "rate": rate, "burstiness": burstiness, **cap}


def _known(file: _File, document: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics under our names: vLLM's TTFT and E2EL start at issue, which is all there is without a limit."""
    failed = file.failed if file.failed is not None else max(0, (file.num_prompts or 0) - file.completed)
    figures: dict[str, Any] = {name: document[name] for name in _SAME if document.get(name) is not None}
    percentiles = set()
    for key, value in document.items():
        found = _STATISTIC.fullmatch(key)
        if found is None or not isinstance(value, (int, float)):
            continue
        statistic, metric = found.groups()
        if statistic.startswith("p"):
            percentiles.add(float(statistic[1:]))
        if metric in ("ttft", "e2el"):
            figures[f"{statistic}_{metric}_from_issue_ms"] = value
        if metric in ("tpot", "itl") or file.max_concurrency is None:
            figures[key] = value
    return {**known_counts(file.completed, failed, tuple(percentiles)), **figures}


def _date(text: str | None) -> str:
    try:
        return datetime.strptime(text or "", "%Y%m%d-%H%M%S").isoformat()
    except ValueError:
        return text or NOT_RECORDED
