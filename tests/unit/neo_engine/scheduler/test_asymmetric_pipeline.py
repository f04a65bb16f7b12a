"""NEO's rules, each on plans made from queues and costs alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.neo_engine.batch import BatchLimits, KvView, Mode, QueuesView, RequestView, StepPlan, SubBatch
from neobench.neo_engine.cost_model import CostModel, Curve
from neobench.neo_engine.request import Tier
from neobench.neo_engine.scheduler.asymmetric_pipeline import (
    _MAX_IDLE_STEPS,
    _MAX_SHOWN,
    _SWITCHING_GAIN,
    AsymmetricPipeline,
    progress_rate,
)

LIMITS = BatchLimits(max_batch_tokens=2048, max_batch_rows=256)
BLOCK = 16


def view(request_id: int, num_tokens: int, *, running: bool = True, idle_steps: int = 1) -> RequestView:
    """A request as the engine shows it; a running one holds the blocks of all but its newest token."""
    blocks = -(-(num_tokens - 1) // BLOCK) if running else 0
    return RequestView(request_id, num_tokens, blocks, idle_steps, num_tokens - 1 if running else 0)


def begun(request_id: int, num_tokens: int, computed: int) -> RequestView:
    return RequestView(request_id, num_tokens, -(-computed // BLOCK), 1, computed)


def kv_view(queues: QueuesView, *, device_total: int, host_total: int) -> KvView:
    device_used = sum(request.num_blocks for request in (*queues.on_device, *queues.prefilling_on_device))
    host_used = sum(request.num_blocks for request in (*queues.on_host, *queues.prefilling_on_host))
    return KvView(BLOCK, device_total, device_total - device_used, host_total, host_total - host_used)


def make_queues(waiting: list[int], on_device: list[int], on_host: list[int], idle_steps: int = 1) -> QueuesView:
    sizes = [*on_device, *on_host, *waiting]
    first_host, first_waiting = len(on_device), len(on_device) + len(on_host)
    requests = [view(i, size, running=i < first_waiting, idle_steps=idle_steps) for i, size in enumerate(sizes)]
    return QueuesView(requests[first_waiting:], requests[:first_host], requests[first_host:first_waiting])


def plan_for(queues: QueuesView, costs: CostModel, *, device_total: int, host_total: int = 100_000) -> StepPlan:
    kv = kv_view(queues, device_total=device_total, host_total=host_total)
    return AsymmetricPipeline(LIMITS).next_step(queues, kv, costs)


tokens = st.lists(st.integers(2, 2000), max_size=30)
chunks = st.lists(st.tuples(st.integers(1, 1500), st.integers(2, 1500)), max_size=3)


@st.composite
def situations(draw: st.DrawFn) -> tuple[QueuesView, KvView]:
    queues = make_queues(draw(tokens), draw(tokens), draw(tokens))
    queues = dataclasses.replace(
        queues,
        prefilling_on_device=[begun(1000 + i, done + more, done) for i, (done, more) in enumerate(draw(chunks))],
        prefilling_on_host=[begun(2000 + i, done + more, done) for i, (done, more) in enumerate(draw(chunks))],
        last_mode=draw(st.sampled_from(Mode)),
    )
    kv = kv_view(queues, device_total=0, host_total=0)
    free_device, free_host = draw(st.integers(1, 400)), draw(st.integers(0, 4000))
    return queues, KvView(BLOCK, free_device - kv.device_free, free_device, free_host - kv.host_free, free_host)


def blocks_moved(plan: StepPlan, queues: QueuesView, kv: KvView) -> int:
    running = (*queues.on_device, *queues.on_host, *queues.prefilling_on_device, *queues.prefilling_on_host)
    moved = sum(r.num_blocks for r in running if r.request_id in {*plan.swap_in, *plan.swap_out})
    prefills = [prefill for batch in plan.sub_batches for prefill in batch.prefills]
    return moved + sum(kv.blocks_for(p.start_tokens) for p in prefills if p.tier is Tier.HOST)


@settings(max_examples=300, deadline=None)
@given(situation=situations())
def test_greedy_hiding_and_deterministic(costs: CostModel, situation: tuple[QueuesView, KvView]) -> None:
    queues, kv = situation
    plan = AsymmetricPipeline(LIMITS).next_step(queues, kv, costs)
    assert plan == AsymmetricPipeline(LIMITS).next_step(queues, kv, costs)
    assert not (plan.swap_in and plan.swap_out)
    if not plan.sub_batches:
        return
    decoded = {row.request_id for batch in plan.sub_batches for row in batch.device_decodes}
    still_on_device = {r.request_id for r in queues.on_device} - set(plan.swap_out) - set(plan.preempt)
    device_work = plan.sub_batches[0].device_decodes or plan.sub_batches[0].prefills
    if device_work:
        assert decoded == still_on_device | set(plan.swap_in), "every decode on the device runs, in sub-batch 0"
    if plan.mode is Mode.ASYMMETRIC and device_work:
        assert not plan.sub_batches[1].device_decodes
        assert not plan.sub_batches[1].prefills
        loads = [costs.load(batch) for batch in plan.sub_batches]
        shown = max(0, -min(costs.hides_host_attention(*loads)))
        host = sum(map(costs.host_attention_per_layer, loads))
        assert shown <= _MAX_SHOWN * host, "the host is hidden, but for a part of its time"
        rival = SubBatch(plan.sub_batches[0].prefills, plan.sub_batches[0].device_decodes)
        predicted = costs.predict_plan(Mode.GPU_ONLY, (rival,), blocks_moved(plan, queues, kv))
        margin = _SWITCHING_GAIN if queues.last_mode is Mode.ASYMMETRIC else 1.0
        gpu_only = StepPlan(Mode.GPU_ONLY, (rival,), predicted=predicted)
        assert progress_rate(plan) * margin >= progress_rate(gpu_only), "never worse than GPU-only"


@settings(max_examples=300, deadline=None)
@given(situation=situations())
def test_a_plan_keeps_what_every_plan_must(
    costs: CostModel, check_plan: Callable[..., None], situation: tuple[QueuesView, KvView]
) -> None:
    queues, kv = situation
    plan = AsymmetricPipeline(LIMITS).next_step(queues, kv, costs)
    check_plan(plan, queues, kv, LIMITS, cuts_prompts=True)
    staying = {r.request_id for r in queues.prefilling_on_device} - {*plan.swap_out, *plan.preempt}
    if staying:
        chunks = [prefill for batch in plan.sub_batches for prefill in batch.prefills]
        assert chunks[0].request_id == min(staying), "the oldest prompt begun goes on"


@settings(max_examples=200, deadline=None)
@given(situation=situations())
def test_a_mode_is_left_only_for_a_gain(costs: CostModel, situation: tuple[QueuesView, KvView]) -> None:
    """Never worse than GPU-only beyond the margin, and the same mode twice where another gains less than the margin."""
    queues, kv = situation

    def plan_after(last_mode: Mode) -> StepPlan:
        return AsymmetricPipeline(LIMITS).next_step(dataclasses.replace(queues, last_mode=last_mode), kv, costs)

    unbiased = plan_after(Mode.IDLE)
    for last_mode in (Mode.GPU_ONLY, Mode.SERIAL, Mode.ASYMMETRIC):
        plan = plan_after(last_mode)
        if unbiased.mode is last_mode:
            assert plan.mode is last_mode
            assert progress_rate(plan) >= progress_rate(unbiased)
        elif plan.mode is last_mode:
            assert progress_rate(plan) * _SWITCHING_GAIN >= progress_rate(unbiased)
        else:
            assert plan == unbiased


def test_a_prompt_is_cut_to_the_budget_and_goes_on(costs: CostModel) -> None:
    queues = make_queues([5000], [300] * 48, [])
    plan = plan_for(queues, costs, device_total=2000)
    (first,) = plan.sub_batches[0].prefills
    assert (first.num_tokens, first.start_tokens, first.remaining_tokens) == (2000, 0, 3000)
    queues = QueuesView(on_device=queues.on_device, prefilling_on_device=[begun(48, 5000, 2000)])
    (second,) = plan_for(queues, costs, device_total=2000).sub_batches[0].prefills
    assert (second.num_tokens, second.start_tokens, second.remaining_tokens) == (2000, 2000, 1000)


def test_a_prompt_within_the_budget_stays_whole_beside_a_host_that_it_hides(costs: CostModel) -> None:
    """Cut to the shortest iteration that hides the host, few rows would decode at a time, for the same weights read."""
    plan = plan_for(make_queues([2000], [300] * 20, [400] * 40), costs, device_total=20 * 20 + 126)
    assert plan.mode is Mode.ASYMMETRIC
    assert sum(len(batch.host_decodes) for batch in plan.sub_batches) == 40 - len(plan.swap_in) > 30
    (chunk,) = plan.sub_batches[0].prefills
    assert (chunk.num_tokens, chunk.remaining_tokens) == (2000, 0)
    assert min(costs.hides_host_attention(*[costs.load(batch) for batch in plan.sub_batches])) >= 0


def test_a_begun_prompt_leaves_a_full_device_with_its_kv(costs: CostModel) -> None:
    queues = dataclasses.replace(make_queues([], [17, 17], []), prefilling_on_device=[begun(7, 100, 40)])
    plan = plan_for(queues, costs, device_total=5)
    assert plan.swap_out == (7,)
    (chunk,) = plan.sub_batches[0].prefills
    assert (chunk.tier, chunk.start_tokens, chunk.num_tokens) == (Tier.HOST, 40, 60)
    assert plan_for(queues, costs, device_total=5, host_total=1).preempt == (7,)


def test_newcomers_leave_alone_what_a_begun_prompt_will_need(costs: CostModel) -> None:
    queues = dataclasses.replace(make_queues([100], [17], []), prefilling_on_device=[begun(7, 4000, 1600)])
    for device_total, tier in ((2 + 251 + 7, Tier.DEVICE), (2 + 251 + 6, None)):
        limits = BatchLimits(max_batch_tokens=4000, max_batch_rows=256)
        kv = kv_view(queues, device_total=device_total, host_total=0)
        plan = AsymmetricPipeline(limits).next_step(queues, kv, costs)
        assert [p.tier for p in plan.sub_batches[0].prefills if p.request_id != 7] == [tier] * (tier is not None)


def test_a_device_with_room_for_all_stays_gpu_only(costs: CostModel) -> None:
    plan = plan_for(make_queues([300, 200], [400, 500], []), costs, device_total=1000)
    assert plan.mode is Mode.GPU_ONLY
    assert [prefill.tier for prefill in plan.sub_batches[0].prefills] == [Tier.DEVICE] * 2


def test_few_waiting_prompts_do_not_pay_for_a_second_pass_over_the_weights(costs: CostModel) -> None:
    plan = plan_for(make_queues([370], [370] * 30, []), costs, device_total=30 * 24 + 4)
    assert plan.mode is Mode.GPU_ONLY
    assert not plan.sub_batches[0].prefills


def test_many_waiting_prompts_go_to_the_host_once_the_device_is_full(costs: CostModel) -> None:
    plan = plan_for(make_queues([370] * 20, [370, 370], []), costs, device_total=54)
    prefills = plan.sub_batches[0].prefills
    assert {prefill.tier for prefill in prefills} == {Tier.HOST}
    assert sum(prefill.num_tokens for prefill in prefills) == LIMITS.max_batch_tokens - 2


@pytest.mark.parametrize(("num_waiting", "taken_up"), [(1, 0), (4, 0), (60, 1)])
def test_one_prompt_an_iteration_goes_to_the_host_if_enough_wait_to_make_it_pay(
    costs: CostModel, num_waiting: int, taken_up: int
) -> None:
    """A few host rows never pay for a second pass over the weights; the many that wait will."""
    queues = make_queues([370] * num_waiting, [370] * 16, [])
    limits = BatchLimits(max_batch_tokens=16 + 370, max_batch_rows=256)
    kv = kv_view(queues, device_total=16 * 24 + 4, host_total=100_000)
    plan = AsymmetricPipeline(limits).next_step(queues, kv, costs)
    assert [prefill.tier for prefill in plan.sub_batches[0].prefills] == [Tier.HOST] * taken_up


def test_host_rows_that_cannot_all_be_hidden_take_turns(costs: CostModel) -> None:
    policy = AsymmetricPipeline(LIMITS)
    on_device = tuple(view(i, 300) for i in range(10))
    idle = {1000 + i: 1 for i in range(60)}
    longest = 0
    for _ in range(50):
        queues = QueuesView((), on_device, [view(i, 1000, idle_steps=steps) for i, steps in idle.items()])
        plan = policy.next_step(queues, kv_view(queues, device_total=10 * 19, host_total=10**6), costs)
        ran = {row.request_id for batch in plan.sub_batches for row in batch.host_decodes}
        assert 10 < len(ran) < 60
        idle = {i: 1 if i in ran else steps + 1 for i, steps in idle.items()}
        longest = max(longest, *idle.values())
    assert longest <= 1 + 60 // 10


def test_prompts_for_the_host_are_trimmed_while_it_has_all_it_can_hide(costs: CostModel) -> None:
    busy_host = [2000] * 14
    plan = plan_for(make_queues([370] * 5, [370, 370], busy_host), costs, device_total=54)
    with_prompts = [len(batch.prefills) for batch in plan.sub_batches]
    idle = plan_for(make_queues([370] * 5, [370, 370], []), costs, device_total=54)
    assert with_prompts[0] < len(idle.sub_batches[0].prefills)


def test_host_decodes_balance_over_both_sub_batches_behind_a_prompt(costs: CostModel) -> None:
    plan = plan_for(make_queues([300], [100] * 60, [500] * 60), costs, device_total=60 * 8 + 30)
    assert plan.mode is Mode.ASYMMETRIC
    assert all(batch.host_decodes for batch in plan.sub_batches)


def test_a_full_device_swaps_its_newest_request_out(costs: CostModel) -> None:
    queues = make_queues([], [17, 17, 17], [])
    plan = plan_for(queues, costs, device_total=3)
    assert plan.swap_out == (2, 1)
    assert not plan.preempt
    without_host = plan_for(queues, costs, device_total=3, host_total=1)
    assert without_host.preempt == (2, 1)
    assert not without_host.swap_out


def test_requests_come_back_oldest_first_while_the_device_keeps_a_reserve(costs: CostModel) -> None:
    plan = plan_for(make_queues([], [33], [160, 160, 160]), costs, device_total=40)
    assert plan.swap_in == (1, 2, 3)
    plan = plan_for(make_queues([], [33], [160, 160, 160]), costs, device_total=33)
    assert plan.swap_in == (1, 2)


@pytest.mark.parametrize("context", [100, 5000])
def test_an_overdue_host_request_runs_although_it_cannot_be_hidden(costs: CostModel, context: int) -> None:
    def queues(idle_steps: int) -> QueuesView:
        on_device = [view(i, 300) for i in range(200)]
        return QueuesView((), on_device, [view(200, context, idle_steps=idle_steps), view(201, 50_000)])

    device_total = 200 * 19 + 100
    early = plan_for(queues(_MAX_IDLE_STEPS - 1), costs, device_total=device_total, host_total=10**6)
    assert early.mode is Mode.GPU_ONLY or context == 100
    late = plan_for(queues(_MAX_IDLE_STEPS), costs, device_total=200 * 19, host_total=10**6)
    rows = [row.request_id for batch in late.sub_batches for row in batch.host_decodes]
    assert 200 in rows


def test_no_host_request_waits_longer_than_the_bound(costs: CostModel) -> None:
    """A stream of newcomers keeps the device full; long host requests must still advance."""
    policy = AsymmetricPipeline(LIMITS)
    on_device = tuple(view(i, 300) for i in range(100))
    hosts = {1000 + i: [30_000, 0] for i in range(12)}
    longest = 0
    for _ in range(400):
        on_host = [view(i, size, idle_steps=idle) for i, (size, idle) in hosts.items()]
        queues = QueuesView((), on_device, on_host)
        plan = policy.next_step(queues, kv_view(queues, device_total=100 * 19, host_total=10**6), costs)
        ran = {row.request_id for batch in plan.sub_batches for row in batch.host_decodes}
        for request_id, state in hosts.items():
            state[1] = 0 if request_id in ran else state[1] + 1
            longest = max(longest, state[1])
    assert 0 < longest <= _MAX_IDLE_STEPS + len(hosts)


def test_a_host_alone_runs_everything_it_has(costs: CostModel) -> None:
    plan = plan_for(make_queues([], [], [600] * 9), costs, device_total=1)
    assert sum(len(batch.host_decodes) for batch in plan.sub_batches) == 9
    assert plan.sub_batches != (SubBatch(),)


def test_a_serial_plan_has_no_more_rows_than_a_batch_may_have(costs: CostModel) -> None:
    one_batch_only = CostModel(dataclasses.replace(costs.tables, sub_batch_fixed_ns=1e12), costs.num_layers)
    limits = BatchLimits(max_batch_tokens=2048, max_batch_rows=3)
    on_host = [view(10 + i, 60, idle_steps=_MAX_IDLE_STEPS + (i == 4)) for i in range(9)]
    queues = QueuesView((), [view(0, 2000)], on_host)
    plan = AsymmetricPipeline(limits).next_step(
        queues, kv_view(queues, device_total=126, host_total=1000), one_batch_only
    )
    assert plan.mode is Mode.SERIAL
    rows = [row.request_id for row in plan.sub_batches[0].host_decodes]
    assert len(rows) == 3
    assert 14 in rows, "the one that has waited longest"


def test_a_row_may_show_where_that_advances_requests_faster(costs: CostModel) -> None:
    """Few rows on the device, whose time for a layer three rows of the host would fill and leave a third idle."""
    linear = Curve((1, 256), (160_000.0, 200_000.0))
    tables = dataclasses.replace(costs.tables, linear=linear, handover_ns=40_000.0)
    costs = CostModel(tables, costs.num_layers)
    plan = plan_for(make_queues([], [400, 400], [410] * 40), costs, device_total=54)
    assert plan.mode is Mode.ASYMMETRIC
    loads = [costs.load(batch) for batch in plan.sub_batches]
    host = sum(map(costs.host_attention_per_layer, loads))
    shown = -min(costs.hides_host_attention(*loads))
    assert 0 < shown <= _MAX_SHOWN * host
    rows = [len(batch.host_decodes) for batch in plan.sub_batches]
    for fewer in ((rows[0] - 1, rows[1]), (rows[0], rows[1] - 1)):
        batches = [
            dataclasses.replace(batch, host_decodes=batch.host_decodes[:count])
            for batch, count in zip(plan.sub_batches, fewer, strict=True)
        ]
        predicted = costs.predict_plan(Mode.ASYMMETRIC, batches)
        rival = StepPlan(Mode.ASYMMETRIC, tuple(batches), predicted=predicted)
        assert progress_rate(rival) < progress_rate(plan)
