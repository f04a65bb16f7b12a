"""Verdicts, and by simulation how often they are right: repeated runs with lognormal noise of 1.5 %."""

from collections import Counter

import msgspec
import numpy as np
import pytest

from neobench.results.compare import Comparison, Rules, Verdict, compare, repeats_needed
from neobench.results.directions import GATED, direction_of
from neobench.results.points import Point, RunFigures, Side

NOISE = 0.015
IDENTITY = {
    "workload": "carperai x 100 abc",
    "load": "2 req/s, poisson",
    "model": "tiny",
    "dtype": "bfloat16",
    "hardware": "one CPU",
    "provenance": "modelled",
    "tool": "neobench",
}
TRUE_FIGURES = {"output_throughput": 1000.0, "mean_ttft_ms": 200.0, "mean_tpot_ms": 30.0, "mean_e2el_ms": 4000.0}


def side(name, values, **identity):
    """`values`: metric -> one value a run."""
    count = len(next(iter(values.values())))
    runs = [
        RunFigures(
            name=f"{name}-{index}",
            started_at=f"2026-01-01T00:00:{index:02}",
            commit=None,
            draw=str(index),
            valid=True,
            reasons=[],
            metrics={metric: float(series[index]) for metric, series in values.items()},
        )
        for index in range(count)
    ]
    return Side(name=name, points=[Point(engine="neo", settings="s", identity=IDENTITY | identity, runs=runs)])


def simulated(rng, slowdown=0.0, repeats=5, noise=NOISE):
    """A run's speed is off by one factor, and each figure by another of its own, together of deviation `noise`."""
    shared = rng.normal(0, noise * 0.6, repeats)
    values = {}
    for metric, true in TRUE_FIGURES.items():
        logs = shared + rng.normal(0, noise * 0.8, repeats) + np.log1p(slowdown)
        values[metric] = true * np.exp(-logs if direction_of(metric).bigger_is_better else logs)
    return values


def gates(count, *, slowdown=0.0, repeats=5, noise=NOISE, metrics=GATED, threshold=0.03, paired=False):
    rng = np.random.default_rng(2026)
    for seed in range(count):
        rules = Rules(thresholds=dict.fromkeys(metrics, threshold), seed=seed, paired=paired)
        base = side("base", simulated(rng, repeats=repeats, noise=noise))
        yield compare(base, side("current", simulated(rng, slowdown, repeats, noise)), rules)


def verdict_of(comparison: Comparison) -> Verdict:
    return comparison.points[0].metrics[0].verdict


def test_equal_sides_are_called_regressed_in_no_more_than_one_of_a_hundred_gates():
    """A thousand gates of four metrics each, one of which is enough for an alarm."""
    alarms = sum(bool(gate.with_verdict(Verdict.REGRESSED)) for gate in gates(1_000))
    assert alarms <= 10


def test_equal_sides_with_much_more_noise_than_the_threshold_raise_no_more_alarms():
    """Here the threshold protects from nothing, and the interval alone has to."""
    alarms = sum(verdict_of(gate) == Verdict.REGRESSED for gate in gates(1_000, noise=0.06, metrics=GATED[:1]))
    assert alarms <= 10 + 2 * 3.2


@pytest.mark.parametrize("metric", ["output_throughput", "mean_ttft_ms"])
def test_a_slowdown_of_five_percent_is_found(metric):
    found = sum(verdict_of(gate) == Verdict.REGRESSED for gate in gates(1_000, slowdown=0.05, metrics=[metric]))
    assert found >= 950


def test_a_slowdown_of_one_percent_that_cannot_be_seen_is_inconclusive_and_not_passed():
    verdicts = Counter(verdict_of(gate) for gate in gates(1_000, slowdown=0.01, metrics=GATED[:1], threshold=0.01))
    assert verdicts[Verdict.PASS] <= 10
    assert verdicts[Verdict.INCONCLUSIVE] >= 900


def turns(count, slowdown, pairs=7):
    """`count` comparisons of runs in turns on a machine that drifts by 20 %, with 5 % of noise that a turn shares."""
    rng = np.random.default_rng(8)
    rules = Rules(thresholds={"mean_ttft_ms": 0.03}, paired=True)
    for _ in range(count):
        shared = np.linspace(0, 0.2, pairs) + rng.normal(0, 0.05, pairs)
        base = np.exp(shared + rng.normal(0, NOISE, pairs))
        current = np.exp(shared + rng.normal(0, NOISE, pairs)) * (1 + slowdown)
        yield compare(side("a", {"mean_ttft_ms": base}), side("b", {"mean_ttft_ms": current}), rules)


def test_in_turns_a_drift_of_the_machine_cancels():
    assert sum(verdict_of(one) == Verdict.REGRESSED for one in turns(1_000, 0.0)) <= 10
    assert sum(verdict_of(one) == Verdict.REGRESSED for one in turns(1_000, 0.05)) >= 950


def test_a_slowdown_within_a_threshold_that_is_finer_than_the_noise_is_seldom_passed():
    """The noise of ten runs looks by chance small enough for a threshold of 3 % in one gate of ten."""
    verdicts = Counter(verdict_of(gate) for gate in gates(500, slowdown=0.01, metrics=GATED[:1]))
    assert verdicts[Verdict.PASS] <= 0.15 * 500
    assert verdicts[Verdict.REGRESSED] <= 0.05 * 500


def test_with_the_repeats_asked_for_equal_sides_pass_and_a_change_of_the_threshold_does_not():
    rules = Rules(thresholds={"mean_ttft_ms": 0.03})
    rng = np.random.default_rng(1)
    first = compare(side("base", simulated(rng)), side("current", simulated(rng)), rules)
    needed = first.points[0].metrics[0].repeats_needed
    assert needed is not None
    assert 6 <= needed <= 30
    # Half more than is needed on average, for the noise is known from few runs only.
    plenty = 15
    passed = sum(verdict_of(gate) == Verdict.PASS for gate in gates(200, repeats=plenty, metrics=["mean_ttft_ms"]))
    assert passed >= 0.85 * 200
    slower = gates(200, slowdown=0.035, repeats=plenty, metrics=["mean_ttft_ms"])
    assert sum(verdict_of(gate) == Verdict.PASS for gate in slower) <= 0.01 * 200


def test_repeats_needed_follow_from_noise_and_threshold():
    assert repeats_needed(0.0, 0.03) == 2
    assert repeats_needed(0.015, 0.05) == 5
    assert repeats_needed(0.015, 0.03) == 10
    assert repeats_needed(0.5, 0.01) is None
    assert repeats_needed(0.015, 0.03, paired=True) < 10


def changed(values, factor):
    return {metric: np.array(series) * factor for metric, series in values.items()}


STEADY = {"output_throughput": [1000, 1001, 999, 1000, 1002], "mean_ttft_ms": [200, 201, 199, 200, 202]}


def test_every_metric_knows_which_way_is_better():
    slower = compare(side("base", STEADY), side("current", changed(STEADY, 1.1)), Rules())
    verdicts = {metric.metric: metric.verdict for metric in slower.points[0].metrics}
    assert verdicts == {"output_throughput": Verdict.IMPROVED, "mean_ttft_ms": Verdict.REGRESSED}
    metric = slower.points[0].metrics[1]
    assert metric.ratio == pytest.approx(1.1)
    assert metric.low < 1.1 < metric.high
    assert 0.005 < metric.detectable < 0.02
    assert slower.points[0].verdict == Verdict.REGRESSED


def test_steady_runs_without_a_change_pass():
    same = compare(side("base", STEADY), side("current", STEADY), Rules())
    assert {metric.verdict for metric in same.points[0].metrics} == {Verdict.PASS}


def test_one_run_a_side_decides_nothing_however_large_the_change():
    one = {metric: series[:1] for metric, series in STEADY.items()}
    comparison = compare(side("base", one), side("current", changed(one, 0.5)), Rules(allowed=frozenset(["draws"])))
    assert {metric.verdict for metric in comparison.points[0].metrics} == {Verdict.INCONCLUSIVE}
    assert comparison.points[0].metrics[0].low is None


@pytest.mark.parametrize("field", sorted(IDENTITY))
def test_a_field_that_differs_makes_the_sides_incomparable_unless_allowed(field):
    base, other = side("base", STEADY), side("current", STEADY, **{field: "another x 1 def"})
    refused = compare(base, other, Rules()).points[0]
    assert {metric.verdict for metric in refused.metrics} == {Verdict.INCOMPARABLE}
    assert refused.differing == {field: (IDENTITY[field], "another x 1 def")}
    allowed = compare(base, other, Rules(allowed=frozenset([field]))).points[0]
    assert {metric.verdict for metric in allowed.metrics} == {Verdict.PASS}
    assert list(allowed.allowed) == [field]


def test_invalid_runs_are_incomparable_with_their_reasons():
    other = side("current", STEADY)
    broken = msgspec.structs.replace(other.points[0].runs[2], valid=False, reasons=["The client fell behind."])
    other.points[0].runs[2] = broken
    point = compare(side("base", STEADY), other, Rules()).points[0]
    assert point.verdict == Verdict.INCOMPARABLE
    assert point.differing == {"validity": ("valid", "1 of 5 runs invalid")}
    assert point.invalid == ["current-2: The client fell behind."]


def test_another_sample_of_the_workload_that_all_runs_share_is_no_repeat_of_it():
    def drawn(draw):
        found = side("x", STEADY)
        runs = [msgspec.structs.replace(run, draw=draw) for run in found.points[0].runs]
        return msgspec.structs.replace(found, points=[msgspec.structs.replace(found.points[0], runs=runs)])

    assert list(compare(drawn("one"), drawn("other"), Rules()).points[0].differing) == ["draws"]
    assert not compare(drawn("one"), drawn("one"), Rules()).points[0].differing


def test_pairs_are_found_by_their_requests_whatever_their_order():
    """The draws differ by 30 %, the engines by 5 %."""
    base = np.array([100.0, 130.0, 90.0, 120.0, 110.0])
    current = side("current", {"mean_ttft_ms": base * [1.05, 1.051, 1.049, 1.05, 1.052]})
    current.points[0].runs.reverse()
    for index, run in enumerate(current.points[0].runs):
        current.points[0].runs[index] = msgspec.structs.replace(run, started_at=f"2026-01-02T00:00:{index:02}")
    alone = compare(side("base", {"mean_ttft_ms": base}), current, Rules())
    paired = compare(side("base", {"mean_ttft_ms": base}), current, Rules(paired=True))
    assert (verdict_of(alone), verdict_of(paired)) == (Verdict.INCONCLUSIVE, Verdict.REGRESSED)


def test_points_are_matched_by_engine_and_load():
    def many(name, rates):
        found = [side(name, STEADY, load=f"{rate} req/s").points[0] for rate in rates]
        return Side(name=name, points=found)

    comparison = compare(many("base", [2, 4, 8]), many("current", [8, 2, 16]), Rules())
    # 4 and 16 are the ones left of each side, and say that their loads differ.
    assert [sorted(point.differing) for point in comparison.points] == [[], ["load"], []]
    lonely = compare(many("base", [2, 4, 8]), many("current", [2]), Rules())
    assert len(lonely.points) == 1
    assert len(lonely.missing) == 2


def test_a_figure_without_a_value_is_no_verdict():
    base, current = side("base", STEADY), side("current", {**STEADY, "mean_ttft_ms": [0.0] * 5})
    result = compare(base, current, Rules(thresholds={"mean_ttft_ms": 0.03})).points[0].metrics[0]
    assert (result.verdict, result.note) == (Verdict.INCOMPARABLE, "a run has no value above 0")


def test_the_nearest_metric_is_named():
    with pytest.raises(ValueError, match="'p99_ttft_ms'"):
        direction_of("p99_tft_ms")
