"""Verdicts on two sides of repeated runs: pass, regressed, improved, inconclusive or incomparable.

docs/compare-and-gate.md writes the rule out and says what it costs; change both together.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

import numpy as np

from neobench.results import statistics
from neobench.results.directions import COMPARED, direction_of
from neobench.results.points import Point, RunFigures, Side

ERROR = 0.01
"""Of each end of an interval."""
POWER = 0.95
RANK_ERROR = 0.05
RANKED_RUNS = 5
"""With so many runs on both sides the ranks have to agree."""
MOST_REPEATS = 200
DEFAULT_THRESHOLD = 0.03
IDENTITY_FIELDS = ("workload", "load", "model", "dtype", "hardware", "provenance", "tool")
COMPARED_FIELDS = (*IDENTITY_FIELDS, "draws", "validity")


class Verdict(str, enum.Enum):
    PASS = "pass"
    REGRESSED = "regressed"
    IMPROVED = "improved"
    INCONCLUSIVE = "inconclusive"
    INCOMPARABLE = "incomparable"


@dataclass(frozen=True, kw_only=True)
class Rules:
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Metric -> share of the baseline that a change has to exceed; without any, the usual metrics are compared."""
    default_threshold: float = DEFAULT_THRESHOLD
    allowed: AbstractSet[str] = frozenset()
    """Fields that may differ."""
    paired: bool = False
    """Runs of both sides belong together two by two: by their draws, where those are the same, else by their starts."""
    seed: int = 0
    """Of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    metric: str
    unit: str
    bigger_is_better: bool
    threshold: float
    base_runs: int
    current_runs: int
    base: float | None
    """Geometric mean over the runs; None where a run has no value above 0."""
    current: float | None
    ratio: float | None
    """current / base"""
    low: float | None
    """Ends of the interval of the ratio; None where a side has one run."""
    high: float | None
    p_value: float | None
    """One-sided, of the ranks (of the signs, paired), in the direction of the change; None with less than 5 runs."""
    detectable: float | None
    """The smallest change for the worse that this data would have shown, as a share of the baseline."""
    repeats_needed: int | None
    """Runs on each side that would show a change of the threshold's size at this noise; None where unknown."""
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PointResult:
    title: str
    base: str
    current: str
    differing: dict[str, tuple[str, str]]
    """Field -> its values on both sides, where they differ and this is not allowed."""
    allowed: dict[str, tuple[str, str]]
    """As `differing`, where it was allowed."""
    invalid: list[str]
    """Reasons of invalid runs, with the run in front."""
    could_pair: bool
    """Run by run both sides had the same requests, and were not compared in pairs."""
    metrics: list[MetricResult]

    @property
    def verdict(self) -> Verdict:
        """The worst of its metrics."""
        order = (Verdict.REGRESSED, Verdict.INCOMPARABLE, Verdict.INCONCLUSIVE, Verdict.IMPROVED, Verdict.PASS)
        found = {metric.verdict for metric in self.metrics}
        return next((verdict for verdict in order if verdict in found), Verdict.INCOMPARABLE)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    base: str
    current: str
    points: list[PointResult]
    missing: list[str]
    """Points of the baseline that the other side lacks."""
    added: list[str]
    problems: list[str]
    """What could not be read, a line each."""

    def with_verdict(self, verdict: Verdict) -> list[tuple[PointResult, MetricResult]]:
        return [(point, metric) for point in self.points for metric in point.metrics if metric.verdict == verdict]


def compare(base: Side, current: Side, rules: Rules) -> Comparison:
    pairs, missing, added = _matched(base.points, current.points)
    return Comparison(
        base=base.name,
        current=current.name,
        points=[_compare_points(one, other, rules) for one, other in pairs],
        missing=[point.title for point in missing],
        added=[point.title for point in added],
        problems=[*base.problems, *current.problems],
    )


def _matched(
    base: Sequence[Point], current: Sequence[Point]
) -> tuple[list[tuple[Point, Point]], list[Point], list[Point]]:
    """Pairs by ever coarser keys, each only where it is unambiguous: at last the one left of each side."""
    keys = (
        lambda point: (point.engine, point.settings, tuple(point.identity.items())),
        lambda point: (point.engine, point.settings, point.identity["workload"], point.identity["load"]),
        lambda point: (point.engine, point.identity["workload"], point.identity["load"]),
        lambda point: (point.identity["workload"], point.identity["load"]),
        lambda _: (),
    )
    left, right = list(base), list(current)
    found: dict[int, Point] = {}
    for key in keys:
        for one in list(left):
            same = [other for other in right if key(other) == key(one)]
            if len(same) == 1 and sum(key(another) == key(one) for another in left) == 1:
                found[id(one)] = same[0]
                left.remove(one)
                right.remove(same[0])
    return [(one, found[id(one)]) for one in base if id(one) in found], left, right


def _compare_points(base: Point, current: Point, rules: Rules) -> PointResult:
    differing = _differing(base, current)
    refused = {name: values for name, values in differing.items() if name not in rules.allowed}
    metrics = rules.thresholds or dict.fromkeys(_shared_metrics(base, current), rules.default_threshold)
    return PointResult(
        title=base.title if base.title == current.title else f"{base.title} against {current.title}",
        base=", ".join(dict.fromkeys(run.name for run in base.runs)),
        current=", ".join(dict.fromkeys(run.name for run in current.runs)),
        differing=refused,
        allowed={name: values for name, values in differing.items() if name in rules.allowed},
        invalid=[
            f"{run.name}: {' '.join(run.reasons)}" for point in (base, current) for run in point.runs if not run.valid
        ],
        could_pair=not rules.paired and len(base.runs) > 1 and _same_draws(base.runs, current.runs),
        metrics=[_compare_metric(name, limit, base, current, refused, rules) for name, limit in metrics.items()],
    )


def _shared_metrics(base: Point, current: Point) -> list[str]:
    runs = [*base.runs, *current.runs]
    return [name for name in COMPARED if all(name in run.metrics for run in runs)]


def _differing(base: Point, current: Point) -> dict[str, tuple[str, str]]:
    fields = {
        name: (base.identity.get(name, "not told"), current.identity.get(name, "not told")) for name in IDENTITY_FIELDS
    }
    differing = {name: values for name, values in fields.items() if values[0] != values[1]}
    if not _draws_agree(base.runs, current.runs):
        differing["draws"] = (_draws(base.runs), _draws(current.runs))
    if not all(run.valid for run in (*base.runs, *current.runs)):
        differing["validity"] = (_validity(base.runs), _validity(current.runs))
    return differing


def _draws_agree(base: Sequence[RunFigures], current: Sequence[RunFigures]) -> bool:
    """The same samples of the workload on both sides, or samples that vary from run to run on both.

    A sample that all runs of one side share is no part of their spread, so another one on the other side would pass
    for a change of the engine.
    """
    one, other = {run.draw for run in base}, {run.draw for run in current}
    return one == other or (len(one) == len(base) > 1 and len(other) == len(current) > 1)


def _draws(runs: Sequence[RunFigures]) -> str:
    return f"{len({run.draw for run in runs})} in {len(runs)} runs, first {runs[0].draw}"


def _validity(runs: Sequence[RunFigures]) -> str:
    invalid = sum(not run.valid for run in runs)
    return f"{invalid} of {len(runs)} runs invalid" if invalid else "valid"


def _compare_metric(
    name: str, threshold: float, base: Point, current: Point, refused: Mapping[str, object], rules: Rules
) -> MetricResult:
    direction = direction_of(name)
    by_draw = rules.paired and _same_draws(base.runs, current.runs)
    values, others = _values(name, base.runs, by_draw=by_draw), _values(name, current.runs, by_draw=by_draw)
    common = MetricResult(
        metric=name,
        unit=direction.unit,
        bigger_is_better=direction.bigger_is_better,
        threshold=threshold,
        base_runs=len(base.runs),
        current_runs=len(current.runs),
        base=_geometric_mean(values),
        current=_geometric_mean(others),
        ratio=None,
        low=None,
        high=None,
        p_value=None,
        detectable=None,
        repeats_needed=None,
        verdict=Verdict.INCOMPARABLE,
    )
    if values is None or others is None:
        return _with(common, note="a run has no value above 0")
    worse = -1.0 if direction.bigger_is_better else 1.0
    judged = _judge(common, worse * np.log(values), worse * np.log(others), rules)
    if refused:
        return _with(judged, verdict=Verdict.INCOMPARABLE)
    return judged


def _judge(
    result: MetricResult, base: statistics.Float64Array, current: statistics.Float64Array, rules: Rules
) -> MetricResult:
    """Of logs in which more is worse."""
    estimate = float(current.mean() - base.mean())
    found = _difference(base, current, rules)
    worse_limit, better_limit = _limits(result)
    result = _with(result, ratio=_ratio(result, estimate))
    if found is None:
        unpaired = rules.paired and len(base) != len(current)
        note = "not as many runs on both sides, so no pairs" if unpaired else "one run a side says nothing of its noise"
        return _with(result, verdict=Verdict.INCONCLUSIVE, note=note)
    ends = sorted((_ratio(result, found.low), _ratio(result, found.high)))
    smallest = statistics.detectable(found.standard_error, found.degrees_of_freedom, error=ERROR, power=POWER)
    p_value = _p_value(base, current, estimate, rules)
    result = _with(
        result,
        low=ends[0],
        high=ends[1],
        p_value=p_value,
        detectable=abs(_ratio(result, smallest) - 1),
        repeats_needed=_repeats_needed(found, worse_limit, len(base), len(current), rules),
    )
    ranks_agree = p_value is None or p_value <= RANK_ERROR
    if estimate > worse_limit and found.low > 0 and ranks_agree:
        return _with(result, verdict=Verdict.REGRESSED)
    if estimate < -better_limit and found.high < 0 and ranks_agree:
        return _with(result, verdict=Verdict.IMPROVED)
    if found.high < worse_limit and smallest <= worse_limit:
        return _with(result, verdict=Verdict.PASS)
    return _with(result, verdict=Verdict.INCONCLUSIVE)


def _difference(
    base: statistics.Float64Array, current: statistics.Float64Array, rules: Rules
) -> statistics.Difference | None:
    if not rules.paired:
        return statistics.difference(base, current, error=ERROR, seed=rules.seed)
    if len(base) != len(current):
        return None
    return statistics.paired_difference(base, current, error=ERROR, seed=rules.seed)


def _p_value(
    base: statistics.Float64Array, current: statistics.Float64Array, estimate: float, rules: Rules
) -> float | None:
    if min(len(base), len(current)) < RANKED_RUNS:
        return None
    sign = 1.0 if estimate >= 0 else -1.0
    if rules.paired:
        return statistics.sign_flips(sign * (current - base))
    return statistics.mann_whitney(sign * base, sign * current)


def _limits(result: MetricResult) -> tuple[float, float]:
    """Logs of the threshold, for the worse and for the better."""
    up, down = math.log1p(result.threshold), -math.log1p(-result.threshold)
    return (down, up) if result.bigger_is_better else (up, down)


def _ratio(result: MetricResult, worse: float) -> float:
    return math.exp(-worse if result.bigger_is_better else worse)


def _repeats_needed(
    found: statistics.Difference, limit: float, base_runs: int, current_runs: int, rules: Rules
) -> int | None:
    weight = 1 / base_runs if rules.paired else 1 / base_runs + 1 / current_runs
    return repeats_needed(found.standard_error / math.sqrt(weight), limit, paired=rules.paired)


def repeats_needed(deviation: float, limit: float, *, paired: bool = False) -> int | None:
    """Runs a side with which a change of `limit` shows, runs (or pairs) spreading by `deviation`; both in logs.

    None when 200 are too few.
    """
    for runs in range(2, MOST_REPEATS + 1):
        standard_error = deviation * math.sqrt((1 if paired else 2) / runs)
        freedom = runs - 1 if paired else 2 * (runs - 1)
        if statistics.detectable(standard_error, freedom, error=ERROR, power=POWER) <= limit:
            return runs
    return None


def _same_draws(base: Sequence[RunFigures], current: Sequence[RunFigures]) -> bool:
    """Whether each run has exactly one on the other side that had the same requests."""
    one, other = {run.draw for run in base}, {run.draw for run in current}
    return one == other and len(one) == len(base) == len(current)


def _values(name: str, runs: Sequence[RunFigures], *, by_draw: bool) -> statistics.Float64Array | None:
    """[runs] in the order of their draws or of their starts."""
    ordered = sorted(runs, key=lambda run: run.draw if by_draw else run.started_at)
    found = [run.metrics.get(name, 0.0) for run in ordered]
    return np.array(found) if found and min(found) > 0 and math.isfinite(max(found)) else None


def _geometric_mean(values: statistics.Float64Array | None) -> float | None:
    return None if values is None else float(np.exp(np.log(values).mean()))


def _with(result: MetricResult, **changes: object) -> MetricResult:
    return replace(result, **changes)  # type: ignore[arg-type]
