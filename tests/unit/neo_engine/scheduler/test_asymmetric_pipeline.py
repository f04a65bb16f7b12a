"""NEO's rules, each on plans made from queues and costs alone."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.neo_engine.batch import BatchLimits, KvView, Mode, QueuesView, RequestView, StepPlan, SubBatch
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.request import Tier
from neobench.neo_engine.scheduler.asymmetric_pipeline import _MAX_IDLE_STEPS, AsymmetricPipeline

LIMITS = BatchLimits(max_batch_tokens=2048, max_batch_rows=256)
BLOCK = 16


def view(request_id: int, num_tokens: int, *, running: bool = True, idle_steps: int = 1) -> RequestView:
    """A request as the engine shows it; a running one holds the blocks of all but its newest token."""
    blocks = -(-(num_tokens - 1) // BLOCK) if running else 0
    return RequestView(request_id, num_tokens, blocks, idle_steps, num_tokens - 1 if running else 0)


def kv_view(queues: QueuesView, *, device_total: int, host_total: int) -> KvView:
    device_used = sum(request.num_blocks for request in queues.on_device)
    host_used = sum(request.num_blocks for request in queues.on_host)
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


@st.composite
def situations(draw: st.DrawFn) -> tuple[QueuesView, int, int]:
    queues = make_queues(draw(tokens), draw(tokens), draw(tokens))
    used = sum(request.num_blocks for request in queues.on_device)
    host_used = sum(request.num_blocks for request in queues.on_host)
    return queues, used + draw(st.integers(1, 400)), host_used + draw(st.integers(0, 4000))


def rate(plan: StepPlan) -> float:
    return plan.num_requests / plan.predicted.total_ns


@settings(max_examples=300, deadline=None)
@given(situation=situations())
def test_greedy_hiding_and_deterministic(costs: CostModel, situation: tuple[QueuesView, int, int]) -> None:
    queues, device_total, host_total = situation
    plan = plan_for(queues, costs, device_total=device_total, host_total=host_total)
    assert plan == plan_for(queues, costs, device_total=device_total, host_total=host_total)
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
        assert min(costs.hides_host_attention(*loads)) >= 0, "the host is always hidden"
        without_host = dataclasses.replace(plan.sub_batches[0], host_decodes=())
        moved = {*plan.swap_in, *plan.swap_out}
        blocks = sum(r.num_blocks for r in (*queues.on_device, *queues.on_host) if r.request_id in moved)
        gpu_only = costs.predict_plan(Mode.GPU_ONLY, (without_host,), blocks)
        assert rate(plan) >= without_host.num_requests / gpu_only.total_ns, "never worse than GPU-only"


@settings(max_examples=300, deadline=None)
@given(situation=situations())
def test_a_plan_fits_the_blocks_it_was_given(costs: CostModel, situation: tuple[QueuesView, int, int]) -> None:
    queues, device_total, host_total = situation
    kv = kv_view(queues, device_total=device_total, host_total=host_total)
    plan = AsymmetricPipeline(LIMITS).next_step(queues, kv, costs)
    size = {r.request_id: r for r in (*queues.waiting, *queues.on_device, *queues.on_host)}
    held = {Tier.DEVICE: {r.request_id: r.num_blocks for r in queues.on_device}}
    held[Tier.HOST] = {r.request_id: r.num_blocks for r in queues.on_host}
    for request_id in plan.preempt:
        held[Tier.DEVICE].pop(request_id, None)
        held[Tier.HOST].pop(request_id, None)
    for request_id in plan.swap_out:
        held[Tier.HOST][request_id] = held[Tier.DEVICE].pop(request_id)
    for request_id in plan.swap_in:
        held[Tier.DEVICE][request_id] = held[Tier.HOST].pop(request_id)
    for batch in plan.sub_batches:
        for prefill in batch.prefills:
            held[prefill.tier][prefill.request_id] = kv.blocks_for(prefill.num_tokens)
        for tier, rows in ((Tier.DEVICE, batch.device_decodes), (Tier.HOST, batch.host_decodes)):
            for row in rows:
                assert row.request_id in held[tier], "a decode runs where its KV lives"
                assert row.context_tokens == size[row.request_id].num_tokens
                held[tier][row.request_id] = kv.blocks_for(row.context_tokens)
    assert sum(held[Tier.DEVICE].values()) <= device_total
    assert sum(held[Tier.HOST].values()) <= host_total


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
    tiers = [prefill.tier for prefill in plan.sub_batches[0].prefills]
    assert set(tiers) == {Tier.HOST}
    assert len(tiers) * 370 <= LIMITS.max_batch_tokens


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
