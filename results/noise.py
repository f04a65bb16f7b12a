"""How much equal runs differ, and which thresholds a gate can stand at that noise."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from neobench.results.compare import ERROR, POWER
from neobench.results.directions import COMPARED
from neobench.results.points import Point, RunFigures
from neobench.results.statistics import detectable

REPEATS = (3, 5, 10)
"""For which thresholds are recommended."""


class MetricNoise(msgspec.Struct, frozen=True, kw_only=True):
    metric: str
    deviation: float
    """Standard deviation of the log over runs, with other requests each."""
    paired_deviation: float
    """Standard deviation of the difference of logs between two runs with the same requests."""

    def threshold(self, repeats: int, *, paired: bool) -> float:
        """The finest threshold, as a share, that a gate of so many repeats can pass: the smallest visible change."""
        deviation = self.paired_deviation if paired else self.deviation * math.sqrt(2)
        freedom = repeats - 1 if paired else 2 * (repeats - 1)
        return math.expm1(detectable(deviation / math.sqrt(repeats), freedom, error=ERROR, power=POWER))


def measured_noise(a: Point, b: Point) -> list[MetricNoise]:
    """Of two sides that are the same; run i of both had the same requests. Metrics without a value are left out."""
    first = sorted(a.runs, key=lambda run: run.draw)
    second = sorted(b.runs, key=lambda run: run.draw)
    runs = [*first, *second]
    return [_noise(metric, first, second) for metric in COMPARED if all(run.metrics.get(metric, 0) > 0 for run in runs)]


def _noise(metric: str, first: list[RunFigures], second: list[RunFigures]) -> MetricNoise:
    logs = np.log([[run.metrics[metric] for run in runs] for runs in (first, second)])
    return MetricNoise(
        metric=metric,
        deviation=float(np.sqrt(logs.var(axis=1, ddof=1).mean())),
        paired_deviation=float((logs[1] - logs[0]).std(ddof=1)),
    )
