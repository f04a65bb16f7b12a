"""Runs in the formats of other tools. Every function takes runs as `load_run` reads them; docs/metrics.md has names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from neobench.results.columns import RecordColumns
from neobench.results.record import Outcome
from neobench.results.store import Run

_VLLM_TIMES = {"ttft": "ttft_from_issue", "tpot": "tpot", "itl": "itl", "e2el": "e2el_from_issue"}
"""vLLM's name -> ours with vLLM's meaning: its clock starts when a request is sent."""
_TRACKED = {
    "request_throughput": ("requests/s", True),
    "output_throughput": ("tokens/s", True),
    "mean_ttft_ms": ("ms", False),
    "p99_ttft_ms": ("ms", False),
    "mean_tpot_ms": ("ms", False),
    "p99_e2el_ms": ("ms", False),
}
"""Key of the summary -> its unit, and whether more is better."""


def vllm_document(run: Run) -> dict[str, Any]:
    """What `vllm bench serve --save-result --save-detailed` writes, times in it from issue as vLLM takes them.

    Beside vLLM's keys stand `*_from_schedule_ms`, `valid` and `invalid_reasons`. Texts of answers are not kept: "".
    """
    summary, spec = run.summary, run.info.spec
    arrival = spec.get("arrival", {})
    started = datetime.fromisoformat(summary["provenance"]["started_at"].replace("Z", "+00:00"))
    statistics = ["mean", "median", "std", *(name for name in summary["percentile_support"] if name != "p50")]
    times = {
        f"{stat}_{name}_ms": summary[f"{stat}_{ours}_ms"] for name, ours in _VLLM_TIMES.items() for stat in statistics
    }
    own = {
        f"{stat}_{name}_from_schedule_ms": summary[f"{stat}_{name}_ms"]
        for name in ("ttft", "e2el")
        for stat in statistics
    }
    same = [
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
    ]
    return {
        "date": f"{started:%Y%m%d-%H%M%S}",
        "endpoint_type": summary["backend"],
        "backend": summary["backend"],
        "label": run.path.name,
        "model_id": summary["model_id"],
        "tokenizer_id": summary["model_id"],
        **{name: summary.get(name) for name in same},
        "burstiness": arrival.get("burstiness") or 1.0,
        "max_concurrency": arrival.get("concurrency"),
        **_vllm_rows(run.columns),
        **times,
        **own,
        "valid": summary["validity"]["valid"],
        "invalid_reasons": summary["validity"]["reasons"],
    }


def _vllm_rows(columns: RecordColumns) -> dict[str, list[Any]]:
    """Lists over the measured requests, in seconds."""
    measured = np.flatnonzero(~columns.warmup)
    ok = columns.ended_with(Outcome.OK)
    issued, first, ended, scheduled = (
        columns.instants_ms(name) / 1e3 for name in ("issued_ns", "first_token_ns", "ended_ns", "scheduled_ns")
    )
    offsets, token_s = columns.token_offsets, columns.token_ns / 1e9
    gaps = [np.diff(token_s[offsets[row] : offsets[row + 1]]).tolist() for row in measured]
    rows = columns.to_arrow()
    return {
        "input_lens": columns.integers("prompt_tokens")[measured].tolist(),
        "output_lens": columns.integers("output_tokens")[measured].tolist(),
        "ttfts": np.nan_to_num(first - issued)[measured].tolist(),
        "itls": gaps,
        "latencies": np.nan_to_num(ended - issued)[measured].tolist(),
        "start_times": np.nan_to_num(issued)[measured].tolist(),
        "queue_times": np.nan_to_num(issued - scheduled)[measured].tolist(),
        "generated_texts": [""] * len(measured),
        "errors": [
            "" if ok[row] else rows["error"][int(row)].as_py() or rows["outcome"][int(row)].as_py() for row in measured
        ],
    }


def action_benchmark_document(runs: Sequence[Run], *, bigger_is_better: bool) -> list[dict[str, Any]]:
    """For github-action-benchmark's customBiggerIsBetter or customSmallerIsBetter; figures without a value left out."""
    entries = []
    for run in runs:
        summary = run.summary
        where = f"{summary['backend']} {summary['workload']} at {summary['request_rate']} req/s"
        trust = "valid" if summary["validity"]["valid"] else f"INVALID: {' '.join(summary['validity']['reasons'])}"
        for key, (unit, is_bigger_better) in _TRACKED.items():
            if is_bigger_better == bigger_is_better and summary[key] is not None:
                entries.append({"name": f"{where}: {key}", "unit": unit, "value": summary[key], "extra": trust})
    return entries


def summary_csv(runs: Sequence[Run]) -> str:
    """One row a run: every plain value of its summary, and whether to believe it."""
    rows = [
        {
            "run": str(run.path),
            "valid": run.summary["validity"]["valid"],
            "reasons": " ".join(run.summary["validity"]["reasons"]),
            "provenance": run.summary["provenance"]["kind"],
            **{key: value for key, value in run.summary.items() if not isinstance(value, (dict, list))},
        }
        for run in runs
    ]
    return _csv(rows)


def requests_csv(runs: Sequence[Run]) -> str:
    """One row a request; of the token instants only their number."""
    rows = []
    for run in runs:
        for row in run.columns.to_arrow().to_pylist():
            row["events"] = len(row.pop("token_ns"))
            rows.append({"run": str(run.path), **row})
    return _csv(rows)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def prometheus_text(runs: Sequence[Run]) -> str:
    """Text exposition format: a gauge `neobench_<key>` for each number of the summary, one sample a run."""
    samples: dict[str, list[str]] = {}
    for run in runs:
        summary = run.summary
        labels = {name: summary[name] for name in ("backend", "model_id", "workload", "request_rate")}
        labels = {"run": run.path, **labels, "provenance": summary["provenance"]["kind"]}
        shown = ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items())
        figures = {**summary, "valid": summary["validity"]["valid"]}
        for key, value in figures.items():
            if isinstance(value, (int, float)):
                # A metric's name has no point: p99.9 is p99_9.
                samples.setdefault(f"neobench_{key.replace('.', '_')}", []).append(f"{{{shown}}} {float(value)!r}")
    lines = []
    for name, values in samples.items():
        lines += [f"# TYPE {name} gauge", *(name + value for value in values)]
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
