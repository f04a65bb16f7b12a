"""A run as the result file of `vllm bench serve`. docs/metrics.md says where names and meanings come from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np

from neobench.results.columns import BoolArray, Float64Array, RecordColumns
from neobench.results.record import Outcome
from neobench.results.store import Run

_TIMES = {"ttft": "ttft_from_issue", "tpot": "tpot", "itl": "itl", "e2el": "e2el_from_issue"}
"""vLLM's name -> ours with vLLM's meaning: its clock starts when a request is sent."""
_SAME = (
    "num_prompts",
    "request_rate",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
)


def vllm_document(run: Run) -> dict[str, Any]:
    """What `vllm bench serve --save-result --save-detailed` writes, times in it from issue as vLLM takes them.

    Beside vLLM's keys stand `*_from_schedule_ms`, `valid` and `invalid_reasons`. Texts of answers are not kept: "".
    """
    summary, arrival = run.summary, run.info.spec.get("arrival", {})
    percentiles = [name for name in summary["percentile_support"] if name != "p50"]
    statistics = ["mean", "median", "std", *percentiles]
    times = {f"{stat}_{name}_ms": summary[f"{stat}_{ours}_ms"] for name, ours in _TIMES.items() for stat in statistics}
    own = {
        f"{stat}_{name}_from_schedule_ms": summary[f"{stat}_{name}_ms"]
        for name in ("ttft", "e2el")
        for stat in statistics
    }
    return {
        "date": _date(summary["provenance"]["started_at"]),
        "endpoint_type": summary["backend"],
        "backend": summary["backend"],
        "label": run.path.name,
        "model_id": summary["model_id"],
        "tokenizer_id": summary["model_id"],
        **{name: summary.get(name) for name in _SAME},
        "burstiness": "inf" if arrival.get("kind") == "constant" else arrival.get("burstiness") or 1.0,
        "max_concurrency": arrival.get("concurrency"),
        **_rows(run.columns),
        **_peaks(run.columns),
        "rtfx": 0.0,
        **times,
        **_queueing(run, percentiles),
        **own,
        "valid": summary["validity"]["valid"],
        "invalid_reasons": summary["validity"]["reasons"],
    }


def _date(started_at: str) -> str:
    try:
        return f"{datetime.fromisoformat(started_at.replace('Z', '+00:00')):%Y%m%d-%H%M%S}"
    except ValueError:
        return started_at


def _instants_s(columns: RecordColumns, name: str) -> Float64Array:
    return columns.instants_ms(name) / 1e3


def _rows(columns: RecordColumns) -> dict[str, list[Any]]:
    """Lists over the measured requests, in seconds; 0 where a failed request has no such instant, as vLLM writes it."""
    measured = np.flatnonzero(~columns.warmup)
    ok = columns.ended_with(Outcome.OK)
    issued, first, scheduled = (_instants_s(columns, name) for name in ("issued_ns", "first_token_ns", "scheduled_ns"))
    latency = np.where(ok, _instants_s(columns, "ended_ns") - issued, 0.0)
    offsets, token_s = columns.token_offsets, columns.token_ns / 1e9
    rows = columns.to_arrow().select(["error", "outcome"]).to_pylist()
    return {
        "input_lens": columns.integers("prompt_tokens")[measured].tolist(),
        "output_lens": columns.integers("output_tokens")[measured].tolist(),
        "ttfts": np.nan_to_num(first - issued)[measured].tolist(),
        "itls": [np.diff(token_s[offsets[row] : offsets[row + 1]]).tolist() for row in measured],
        "latencies": latency[measured].tolist(),
        "start_times": np.nan_to_num(issued)[measured].tolist(),
        "queue_times": np.nan_to_num(issued - scheduled)[measured].tolist(),
        "generated_texts": [""] * len(measured),
        "errors": ["" if ok[row] else rows[row]["error"] or rows[row]["outcome"] for row in measured.tolist()],
    }


def _completed(columns: RecordColumns) -> BoolArray:
    return ~columns.warmup & columns.ended_with(Outcome.OK)


def _peaks(columns: RecordColumns) -> dict[str, float | int]:
    """Most events, and most requests in flight, in any whole second since the first completed request was sent.

    vLLM counts a request in every second that it touches, so many short ones can exceed its limit on concurrency.
    """
    completed = _completed(columns)
    if not completed.any():
        return {"max_output_tokens_per_s": 0.0, "max_concurrent_requests": 0}
    issued_s = _instants_s(columns, "issued_ns")
    start_s = float(issued_s[completed].min())
    owner = np.repeat(np.arange(len(columns)), np.diff(columns.token_offsets))
    event_seconds = (columns.token_ns[completed[owner]] / 1e9 - start_s).astype(np.int64)
    starts = (issued_s[completed] - start_s).astype(np.int64)
    ends = (_instants_s(columns, "ended_ns")[completed] - start_s).astype(np.int64)
    changes = np.bincount(starts, minlength=ends.max() + 2) - np.bincount(ends + 1, minlength=ends.max() + 2)
    return {
        "max_output_tokens_per_s": float(np.bincount(event_seconds).max()) if len(event_seconds) else 0.0,
        "max_concurrent_requests": int(np.cumsum(changes).max()),
    }


def _queueing(run: Run, percentiles: list[str]) -> Mapping[str, Any]:
    """What vLLM reports with a limit on concurrency, here from when a request was due; vLLM starts a little later."""
    arrival = run.info.spec.get("arrival", {})
    completed = _completed(run.columns)
    if arrival.get("concurrency") is None or not completed.any():
        return {}
    issued, due, ended = (
        run.columns.instants_ms(name)[completed] for name in ("issued_ns", "scheduled_ns", "ended_ns")
    )
    samples_ms = {"client_queue_time": issued - due}
    if run.summary["request_rate"] != "inf":
        samples_ms["e2el_including_client_queue"] = ended - due
    figures: dict[str, float] = {}
    for name, values in samples_ms.items():
        basic = {"mean": values.mean(), "median": np.median(values), "std": values.std()}
        ranked = {percentile: np.percentile(values, float(percentile[1:])) for percentile in percentiles}
        figures |= {f"{stat}_{name}_ms": float(value) for stat, value in {**basic, **ranked}.items()}
    return figures
