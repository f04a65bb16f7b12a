"""Runs as tables, as Prometheus text and for github-action-benchmark. vLLM's result file is in export_vllm.py.

Every function takes runs as `load_run` reads them; docs/metrics.md has the names. Every format says what is invalid.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from neobench.results.store import Run

if TYPE_CHECKING:
    import pyarrow as pa

_TRACKED = {
    "request_throughput": ("requests/s", True),
    "request_goodput": ("requests/s", True),
    "output_throughput": ("tokens/s", True),
    "mean_ttft_ms": ("ms", False),
    "p99_ttft_ms": ("ms", False),
    "mean_tpot_ms": ("ms", False),
    "p99_e2el_ms": ("ms", False),
}
"""Key of the summary -> its unit, and whether more is better."""


def action_benchmark_document(runs: Sequence[Run], *, bigger_is_better: bool) -> list[dict[str, Any]]:
    """For github-action-benchmark's customBiggerIsBetter or customSmallerIsBetter; figures without a value left out.

    Runs of the same engine, model, workload and rate are repeats: their median, and half their spread as `range`.
    """
    repeats: dict[str, list[Run]] = {}
    for run in runs:
        summary = run.summary
        where = f"{summary['backend']} {summary['model_id']} {summary['workload']} at {summary['request_rate']} req/s"
        repeats.setdefault(where, []).append(run)
    entries = []
    for where, same in repeats.items():
        reasons = [reason for run in same for reason in run.summary["validity"]["reasons"]]
        for key, (unit, is_bigger_better) in _TRACKED.items():
            values = [run.summary[key] for run in same if run.summary.get(key) is not None]
            if is_bigger_better != bigger_is_better or not values:
                continue
            entry = {"name": f"{where}: {key}", "unit": unit, "value": median(values)}
            if len(values) > 1:
                entry["range"] = f"± {(max(values) - min(values)) / 2:.4g}"
            entries.append({**entry, "extra": f"INVALID: {' '.join(reasons)}" if reasons else "valid"})
    return entries


def summary_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row a run: every plain value of its summary and of the machine, and whether to believe it."""
    return [
        {
            "run": str(run.path),
            "valid": run.summary["validity"]["valid"],
            "reasons": " ".join(run.summary["validity"]["reasons"]),
            "provenance": run.summary["provenance"]["kind"],
            **dict(_plain_values(run)),
        }
        for run in runs
    ]


def _plain_values(run: Run) -> Iterator[tuple[str, Any]]:
    for key, value in run.summary.items():
        if not isinstance(value, (dict, list)):
            yield key, value
    for key, value in (run.summary.get("machine") or {}).items():
        if not isinstance(value, (dict, list)):
            yield f"machine_{key}", value
    yield from (run.summary.get("sessions") or {}).items()


def requests_table(runs: Sequence[Run]) -> pa.Table:
    """One row a request: the run, whether it is valid, and the fields of RequestRecord."""
    import pyarrow as pa

    tables = []
    for run in runs:
        table = run.columns.to_arrow()
        count = table.num_rows
        named = table.add_column(0, "run", pa.array([str(run.path)] * count, pa.string()))
        tables.append(named.add_column(1, "valid", pa.array([bool(run.summary["validity"]["valid"])] * count)))
    return pa.concat_tables(tables)


def summary_table(runs: Sequence[Run]) -> pa.Table:
    """One row a run. "inf" would make a column of rates text, so an unlimited rate is null here."""
    import pyarrow as pa

    rows = summary_rows(runs)
    for row in rows:
        row["request_rate"] = None if row["request_rate"] == "inf" else row["request_rate"]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def requests_csv(runs: Sequence[Run]) -> str:
    """One row a request; of the token instants only their number."""
    import pyarrow as pa

    events = np.concatenate([np.diff(run.columns.token_offsets) for run in runs])
    table = requests_table(runs).drop_columns(["token_ns"]).append_column("events", pa.array(events))
    return rows_csv(table.to_pylist())


def rows_csv(rows: Sequence[dict[str, Any]]) -> str:
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
        for key, value in {**dict(_plain_values(run)), "valid": summary["validity"]["valid"]}.items():
            if isinstance(value, (int, float)):
                # A metric's name has no point: p99.9 is p99_9.
                samples.setdefault(f"neobench_{key.replace('.', '_')}", []).append(f"{{{shown}}} {float(value)!r}")
    lines = []
    for name, values in samples.items():
        lines += [f"# TYPE {name} gauge", *(name + value for value in values)]
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
