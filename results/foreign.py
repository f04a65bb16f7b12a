"""Runs that other tools measured, on their way into run folders. One module a tool reads its files: foreign_*.py."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from neobench.results.metrics import DEFAULT_PERCENTILES, percentile_name, percentile_support
from neobench.results.record import Outcome, RequestRecord
from neobench.results.store import Provenance, RunFolder, RunInfo, build_summary

NOT_RECORDED = "not recorded"


class ConvertError(Exception):
    """A file that cannot be converted; the message says what is wrong with it, and where."""


@dataclass(frozen=True, kw_only=True)
class ForeignRun:
    """One run of another tool in this project's terms."""

    tool: str
    engine: str
    model: str
    workload: str
    arrival: dict[str, Any]
    """As an ArrivalSpec."""
    request_rate: float | None
    started_at: str
    """ISO 8601."""
    records: list[RequestRecord] = field(default_factory=list)
    """Empty where the file has no figures of single requests."""
    known: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the summary that the file gives; used where there are no records."""
    missing: Sequence[str] = ()
    """Keys of the summary that the tool did not record."""
    notes: Sequence[str] = ()
    """Sentences on how its figures differ from what docs/metrics.md says."""
    incidents: Sequence[str] = ()
    """Reasons for which the file itself calls the run invalid."""
    reported: Mapping[str, Any] = field(default_factory=dict)
    """The tool's own figures, under its own names."""


def known_counts(completed: int, failed: int, percentiles: Sequence[float] = ()) -> dict[str, Any]:
    """The counts of a summary, and which percentiles they support."""
    reported = sorted({*DEFAULT_PERCENTILES, *percentiles})
    return {
        "num_prompts": completed + failed,
        "completed": completed,
        "failed": failed,
        "outcomes": {outcome.value: 0 for outcome in Outcome}
        | {Outcome.OK.value: completed, Outcome.UNKNOWN_ERROR.value: failed},
        "percentile_support": {
            percentile_name(percentile): percentile_support(percentile, completed) for percentile in reported
        },
    }


def to_ns(instant_s: float, origin_s: float) -> int:
    return round((instant_s - origin_s) * 1e9)


def write_foreign(
    run: ForeignRun,
    path: Path,
    *,
    command: Sequence[str],
    source: bytes,
    percentiles: Sequence[float] = (),
    goodput_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Write `run` into a new run folder; its summary. `source` is the content of the file it comes from.

    Raises StoreError when the folder cannot be written, and ConvertError when figures are asked for that would take
    the single requests, and the file has none.
    """
    if (percentiles or goodput_ms) and not run.records:
        raise ConvertError("it has no figures of single requests, so no other percentiles and no goodput")
    spec: dict[str, Any] = {
        "engine": {"name": run.engine, "options": {}},
        "workload": {"name": run.workload, "options": {}},
        "arrival": run.arrival,
        "model": run.model,
        "percentiles": list(percentiles),
        "goodput_ms": dict(goodput_ms or {}),
    }
    info = RunInfo(
        spec=spec,
        spec_hash=hashlib.sha256(msgspec.json.encode(spec, order="sorted")).hexdigest(),
        num_requests=len(run.records) or run.known.get("num_prompts", 0),
        request_rate=run.request_rate,
        provenance=Provenance(
            kind="measured",
            command=list(command),
            commit=None,
            started_at=run.started_at,
            tool=run.tool,
            missing=list(run.missing),
            notes=list(run.notes),
        ),
        fingerprint={},
        engine={"name": run.engine, "reported": dict(run.reported)},
        workload={"source_sha256": hashlib.sha256(source).hexdigest()},
    )
    folder = RunFolder.create(path)
    try:
        folder.write_run(info)
        for record in run.records:
            folder.append(record)
        known = {} if run.records else run.known
        summary = build_summary(info, folder.columns, engine_stats={}, incidents=run.incidents, known=known)
        folder.finish(summary)
    finally:
        folder.close()
    return summary
