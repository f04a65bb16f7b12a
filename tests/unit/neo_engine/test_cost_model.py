"""Interpolation, the paper's arithmetic, and profiles on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neobench.neo_engine.batch import DecodeRow, Mode, Prefill, SubBatch
from neobench.neo_engine.cost_model import (
    MEASURED_SPREAD,
    BatchLoad,
    CostModel,
    Curve,
    Profile,
    ProfileError,
    Raggedness,
    Surface,
)
from neobench.neo_engine.request import Tier


def test_curve_is_exact_at_its_points_linear_between_and_goes_on_by_the_last_slope() -> None:
    curve = Curve((1, 10, 20), (100.0, 190.0, 490.0))
    assert [curve(size) for size in (1, 10, 20)] == [100.0, 190.0, 490.0]
    assert curve(4) == pytest.approx(130.0)
    assert curve(30) == pytest.approx(790.0)
    assert curve(0) == 0.0


def test_a_falling_last_slope_is_noise_and_never_predicts_less() -> None:
    curve = Curve((1, 10, 20), (100.0, 190.0, 180.0))
    assert curve(1000) == 180.0


@pytest.mark.parametrize(
    ("sizes", "times"),
    [((), ()), ((1, 2), (1.0,)), ((2, 1), (1.0, 2.0)), ((1, 1), (1.0, 2.0)), ((0, 1), (1.0, 2.0)), ((1,), (-1.0,))],
)
def test_malformed_curves_are_refused(sizes: tuple[int, ...], times: tuple[float, ...]) -> None:
    with pytest.raises(ProfileError):
        Curve(sizes, times)


@given(rows=st.integers(1, 600), context=st.integers(1, 20_000))
def test_surface_reproduces_a_bilinear_law_inside_and_outside_its_grid(rows: int, context: int) -> None:
    def law(r: float, c: float) -> float:
        return 1000.0 + 50.0 * r + 3.0 * r * c

    grid_rows, grid_contexts = (1, 8, 64), (1, 100, 1000)
    surface = Surface(grid_rows, grid_contexts, tuple(tuple(law(r, c) for c in grid_contexts) for r in grid_rows))
    assert surface(rows, rows * context) == pytest.approx(law(rows, context))
    assert surface(0, 0) == 0.0


@pytest.mark.parametrize(
    ("contexts0", "contexts1", "binding"),
    [
        ((10,), (10,), "device"),
        ((700, 900), (4000,) * 8, "batch1"),
        ((4000,) * 8, (10,), "batch0"),
        ((2800,) * 9, (3900,) * 9, "host"),
    ],
)
def test_two_sub_batches_take_as_long_as_what_binds_plus_the_terms_the_paper_leaves_out(
    costs: CostModel, contexts0: tuple[int, ...], contexts1: tuple[int, ...], binding: str
) -> None:
    batch0 = SubBatch(
        prefills=(Prefill(0, 300, Tier.DEVICE),),
        device_decodes=(DecodeRow(1, 500),),
        host_decodes=tuple(DecodeRow(2 + i, context) for i, context in enumerate(contexts0)),
    )
    batch1 = SubBatch(host_decodes=tuple(DecodeRow(20 + i, context) for i, context in enumerate(contexts1)))
    costs = CostModel(replace(costs.tables, handover_ns=7e4), costs.num_layers)
    tables = costs.tables
    l0, l1 = tables.linear(301 + len(contexts0)), tables.linear(len(contexts1))
    ga0 = tables.prefill_attention(300) + tables.device_decode(1, 500)
    ca0, ca1 = (tables.host_decode(len(contexts), sum(contexts)) for contexts in (contexts0, contexts1))
    predicted = costs.predict_plan(Mode.ASYMMETRIC, (batch0, batch1), moved_blocks=5)
    ways = {"device": l0 + l1 + ga0, "host": ca0 + ca1, "batch0": l0 + ca0 + 7e4, "batch1": l1 + ca1 + 7e4}
    assert max(ways, key=lambda way: ways[way]) == binding, "the example must show this one"
    expected = costs.num_layers * ways[binding]
    expected += tables.head(len(contexts0) + 2) + tables.head(len(contexts1))
    expected += tables.move(5) + tables.step_fixed_ns + tables.sub_batch_fixed_ns
    assert predicted.total_ns == pytest.approx(expected, abs=1)
    assert predicted.host_decode_ns == pytest.approx(costs.num_layers * (ca0 + ca1), abs=1)
    assert predicted.host_wait_ns == pytest.approx(costs.num_layers * (ways[binding] - ways["device"]), abs=1)


def test_one_sub_batch_hides_host_attention_behind_device_attention_only(costs: CostModel) -> None:
    batch = SubBatch(device_decodes=(DecodeRow(0, 4000),), host_decodes=(DecodeRow(1, 4000),))
    tables = costs.tables
    wait = tables.host_decode(1, 4000) - tables.device_decode(1, 4000)
    layer = tables.linear(2) + tables.device_decode(1, 4000) + wait
    predicted = costs.predict_plan(Mode.SERIAL, (batch,))
    assert predicted.total_ns == pytest.approx(costs.num_layers * layer + tables.head(2) + tables.step_fixed_ns, abs=1)


def test_slack_is_what_the_device_has_left_beside_each_of_the_other_ways(costs: CostModel) -> None:
    load0 = BatchLoad(rows=10, device_rows=8, device_context=4000, host_rows=2, host_context=2000)
    load1 = BatchLoad(rows=5, host_rows=5, host_context=5000)
    costs = CostModel(replace(costs.tables, handover_ns=7e4), costs.num_layers)
    tables = costs.tables
    attention, host0, host1 = (
        tables.device_decode(8, 4000),
        tables.host_decode(2, 2000),
        tables.host_decode(5, 5000),
    )
    slack0, slack1, both = costs.hides_host_attention(load0, load1)
    assert slack0 == pytest.approx(tables.linear(5) + attention - host0 - 7e4)
    assert slack1 == pytest.approx(tables.linear(10) + attention - host1 - 7e4)
    assert both == pytest.approx(tables.linear(5) + tables.linear(10) + attention - host0 - host1)
    nothing = costs.hides_host_attention(BatchLoad(rows=10), BatchLoad())
    assert nothing == pytest.approx((0.0, tables.linear(10), tables.linear(10)))


def test_ragged_rows_cost_their_factor_in_proportion_and_no_more_than_measured(costs: CostModel) -> None:
    tables = replace(costs.tables, raggedness=Raggedness(device_decode=1.2, host_decode=1.4))
    ragged = CostModel(tables, costs.num_layers)
    for contexts, part in (((1000, 1000), 0.0), ((700, 1300), 0.3 / MEASURED_SPREAD), ((100, 1900), 1.0)):
        rows = tuple(DecodeRow(i, context) for i, context in enumerate(contexts))
        device, host = (ragged.load(batch) for batch in (SubBatch(device_decodes=rows), SubBatch(host_decodes=rows)))
        expected = (1 + 0.2 * part) * tables.device_decode(2, 2000)
        assert ragged.device_attention_per_layer(device) == pytest.approx(expected)
        expected = (1 + 0.4 * part) * tables.host_decode(2, 2000)
        assert ragged.host_attention_per_layer(host) == pytest.approx(expected)
        assert BatchLoad().plus_host_decode(contexts[1]).plus_host_decode(contexts[0]) == host
    unknown = BatchLoad(host_rows=2, host_context=2000)
    assert ragged.host_attention_per_layer(unknown) == tables.host_decode(2, 2000)
    assert ragged.host_attention_per_layer(BatchLoad()) == 0.0


def test_several_prompts_cost_their_factor_and_one_does_not(costs: CostModel) -> None:
    model = CostModel(replace(costs.tables, raggedness=Raggedness(several_prompts=0.8)), costs.num_layers)
    prompts = (Prefill(0, 300, Tier.DEVICE), Prefill(1, 40, Tier.HOST))
    curve = costs.tables.prefill_attention
    for batch, expected in ((prompts, 0.8 * (curve(300) + curve(40))), (prompts[:1], curve(300))):
        load = model.load(SubBatch(batch, device_decodes=(DecodeRow(2, 500),)))
        decode = costs.tables.device_decode(1, 500)
        assert model.device_attention_per_layer(load) == pytest.approx(expected + decode)
        predicted = model.predict(Mode.GPU_ONLY, [load])
        assert predicted.prefill_attention_ns == pytest.approx(costs.num_layers * expected, abs=1)
        assert predicted.device_decode_ns == pytest.approx(costs.num_layers * decode, abs=1)


def test_profile_survives_the_disk_and_bad_files_name_the_fix(costs: CostModel, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "profile.json"
    profile = Profile({"cpu": "made up"}, replace(costs.tables, raggedness=Raggedness(1.1, 1.2, 0.9)))
    profile.save(path)
    assert Profile.load(path) == profile
    before_raggedness = path.read_text().replace("profile/v2", "profile/v1")
    incomplete = '{"schema": "neobench/profile/v2", "key": {}, "tables": {"linear": {}}}'
    for bad in ("", "[]", "{}", incomplete, before_raggedness):
        path.write_text(bad)
        with pytest.raises(ProfileError, match="neobench profile"):
            Profile.load(path)
    with pytest.raises(ProfileError, match=r"nowhere\.json"):
        Profile.load(tmp_path / "nowhere.json")
