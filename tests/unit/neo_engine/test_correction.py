"""Cost tables that learn: convergence to the machine at hand, whatever it is, and nothing learnt from nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.neo_engine.batch import DecodeRow, Mode, Prefill, StageTimes, SubBatch
from neobench.neo_engine.correction import Correction, PredictionErrors
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.request import SamplingParams, Tier

factors = st.floats(0.3, 3.5)
Plan = tuple[Mode, tuple[SubBatch, ...], int]


def plan(prompt: int, device: int, host: int, context: int, moved_blocks: int) -> Plan:
    batch0 = SubBatch((Prefill(0, prompt, Tier.DEVICE),), tuple(DecodeRow(1 + i, context) for i in range(device)))
    batch1 = SubBatch(host_decodes=tuple(DecodeRow(1000 + i, context) for i in range(host)))
    return Mode.ASYMMETRIC, (batch0, batch1), moved_blocks


plans = st.builds(
    plan, st.integers(1, 900), st.integers(1, 60), st.integers(1, 60), st.integers(2, 3000), st.integers(0, 50)
)


def only_total(times: StageTimes) -> StageTimes:
    return StageTimes(total_ns=times.total_ns)


def learn(model: CostModel, machine: CostModel, plans: list[Plan], *, stages: bool = True) -> CostModel:
    for step in plans:
        measured = machine.predict_plan(*step)
        model = model.corrected_by(model.predict_plan(*step), measured if stages else only_total(measured))
    return model


@settings(max_examples=50, deadline=None)
@given(k=st.tuples(factors, factors, factors, factors), some=st.lists(plans, min_size=1, max_size=5))
def test_predictions_converge_to_a_machine_with_other_factors(costs: CostModel, k: tuple[float, ...], some) -> None:
    machine = dataclasses.replace(costs, correction=Correction(*k))
    learnt = learn(costs, machine, some * 80)
    for step in some:
        expected = machine.predict_plan(*step)
        for field in ("total_ns", "linear_ns", "prefill_attention_ns", "device_decode_ns", "host_decode_ns"):
            assert getattr(learnt.predict_plan(*step), field) == pytest.approx(getattr(expected, field), rel=1e-3)
    assert learnt == learn(costs, machine, some * 80), "deterministic"


@settings(max_examples=30, deadline=None)
@given(k=factors, some=st.lists(plans, min_size=1, max_size=5))
def test_the_total_alone_is_enough_where_all_is_k_times_the_prediction(costs: CostModel, k: float, some) -> None:
    machine = dataclasses.replace(costs, correction=Correction(k, k, k, k))
    learnt = learn(costs, machine, some * 80, stages=False)
    for step in some:
        assert learnt.predict_plan(*step).total_ns == pytest.approx(machine.predict_plan(*step).total_ns, rel=1e-3)


def test_one_disturbed_step_moves_a_factor_by_a_seventh_at_most_and_none_leaves_its_bounds(costs: CostModel) -> None:
    predicted = costs.predict_plan(*plan(100, 5, 5, 300, 0))
    disturbed = dataclasses.replace(predicted, linear_ns=1000 * predicted.linear_ns)
    correction = Correction().after(predicted, disturbed)
    assert 1.1 < correction.linear < 1.15
    assert correction.device_attention == correction.host_attention == 1.0
    for _ in range(100):
        correction = correction.after(predicted, disturbed)
    assert correction.linear == 4.0


def test_a_kind_that_did_not_run_keeps_its_factor() -> None:
    known = Correction(1.1, 1.2, 1.3, 1.4)
    predicted = StageTimes(total_ns=150, linear_ns=100)
    learnt = known.after(predicted, StageTimes(total_ns=300, linear_ns=200))
    assert (learnt.device_attention, learnt.host_attention) == (1.2, 1.3)
    assert learnt.linear > 1.1
    assert learnt.fixed > 1.4
    assert known.after(StageTimes(), StageTimes()) == known


@pytest.mark.parametrize(("corrects", "error", "factor"), [(True, 0.0, 2.0), (False, 0.5, 1.0)])
def test_an_engine_on_a_machine_half_as_fast_learns_it(
    make_engine, costs: CostModel, monkeypatch: pytest.MonkeyPatch, corrects: bool, error: float, factor: float
) -> None:
    engine = make_engine("chunked_prefill", device_blocks=100, max_batch_tokens=64, correct_costs=corrects)
    execute = engine._executor.execute
    real = dataclasses.replace(costs, correction=Correction(2.0, 2.0, 2.0, 2.0))

    def measure(*step: Any) -> tuple[list[int], StageTimes]:
        plan = engine._policy.last_plan
        return execute(*step)[0], real.predict_plan(plan.mode, plan.sub_batches)

    monkeypatch.setattr(engine._executor, "execute", measure)
    for length in (10, 300, 77):
        engine.add_request([1] * length, SamplingParams(max_tokens=200, ignore_eos=True))
    while engine.has_work:
        engine.step()
    stats = engine.stats()
    assert stats["prediction_error_median"] == pytest.approx(error, abs=1e-3)
    if corrects:
        assert 0.01 < stats["prediction_error_p95"] < 0.35, "the first iterations count as they were predicted"
    else:
        assert stats["prediction_error_p95"] == pytest.approx(0.5)
    for kind in ("linear", "device_attention", "fixed"):
        assert stats[f"correction_{kind}"] == pytest.approx(factor, rel=1e-3)
    assert stats["correction_host_attention"] == 1.0
    assert stats["iteration_error_ns"] <= stats["measured_iteration_ns"] - stats["predicted_iteration_ns"] + 10


def test_errors_are_ranked_over_the_last_iterations() -> None:
    errors = PredictionErrors(capacity=20)
    assert errors.percentile(50) == 0.0
    errors.add(5, 0)
    for number in range(30):
        errors.add(100 + number, 100)
    assert errors.percentile(50) == pytest.approx(0.19)
    assert errors.percentile(95) == pytest.approx(0.28)
    assert errors.percentile(100) == pytest.approx(0.29)
    assert errors.percentile(0) == pytest.approx(0.10)


def test_the_hosts_time_counts_by_itself_where_of_the_others_only_the_total_is_known() -> None:
    predicted = StageTimes(total_ns=1000, linear_ns=600, host_decode_ns=400)
    learnt = Correction().after(predicted, StageTimes(total_ns=2000, host_decode_ns=200))
    assert learnt.linear == pytest.approx(2**0.1)
    assert learnt.host_attention == pytest.approx(0.5**0.1)
