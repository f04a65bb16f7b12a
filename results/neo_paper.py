"""The metrics of the NEO paper as its artifact takes them, from the records of a run.

docs/model.md, "Against the paper", says how they are read.
They stand beside those of docs/metrics.md, which differ in the requests and completions that they count.
"""

from __future__ import annotations

import numpy as np

from neobench.results.columns import Float64Array, RecordColumns
from neobench.results.record import Outcome

LATENCY_SKIPPED_SHARE = 0.25
"""Of the requests, the first to arrive, are in no latency (the artifact's illustrator.py)."""
WINDOW = (0.3, 0.7)
"""Shares of the completions between which throughput is taken."""


def per_token_latencies_s(columns: RecordColumns) -> Float64Array:
    """[num_counted] from arrival to end over output tokens, of completed requests but the first quarter to arrive."""
    counted = ~columns.warmup & columns.ended_with(Outcome.OK)
    arrived_ms = columns.instants_ms("scheduled_ns")[counted]
    order = np.argsort(arrived_ms, kind="stable")[int(LATENCY_SKIPPED_SHARE * len(arrived_ms)) :]
    e2el_ms = columns.instants_ms("ended_ns")[counted] - arrived_ms
    latencies_s: Float64Array = (e2el_ms / columns.integers("output_tokens")[counted] / 1e3)[order]
    return latencies_s


def window_throughput(columns: RecordColumns) -> float | None:
    """Requests per second: the inverse of the mean gap between completions from 30 to 70 % of them.

    No steady state unless the engine has filled all its memory by 30 %. None where no time passes in the window.
    """
    counted = ~columns.warmup & columns.ended_with(Outcome.OK)
    ended_s = np.sort(columns.instants_ms("ended_ns")[counted]) / 1e3
    first, last = (int(share * len(ended_s)) for share in WINDOW)
    if last <= first or ended_s[last] <= ended_s[first]:
        return None
    return float((last - first) / (ended_s[last] - ended_s[first]))
