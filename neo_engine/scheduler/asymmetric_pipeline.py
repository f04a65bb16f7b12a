"""NEO: two asymmetric sub-batches, so that host attention of one hides behind the device's work for the other.

An iteration is put together in the steps of the paper (arXiv 2411.01142, section 4): the device's decodes and then
prompts into sub-batch 0; host decodes into either while the host stays hidden (`CostModel.hides_host_attention`);
prompts bound for the host trimmed where the host would idle; and of the result and the GPU-only plan the one that
advances more requests per predicted time. Against the published scheduler, time is the whole iteration's, host
included, and no request starves: see `_MAX_IDLE_STEPS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from neobench.neo_engine.batch import (
    BatchLimits,
    DecodeRow,
    KvView,
    Mode,
    Prefill,
    QueuesView,
    RequestView,
    StepPlan,
    SubBatch,
)
from neobench.neo_engine.cost_model import BatchLoad, CostModel
from neobench.neo_engine.request import Tier
from neobench.neo_engine.scheduler.admission import (
    TokenBudget,
    admission_blocks,
    admit_to_device,
    decode_rows,
    growth_blocks,
    non_empty,
    split_at_capacity,
)

_MAX_IDLE_STEPS = 32
"""A host decode that has waited so long goes next whether or not it is hidden, the longest waiting first. One such
row a step bounds every wait by this plus the number of host requests, and costs at most its own attention."""

_SWAP_IN_MAX_USE = 0.95
"""Requests come back to the device only while at least a twentieth of it stays free for growth (as published)."""


@dataclass
class _Residency:
    """Where every request's KV is during this iteration, and what has to move for it."""

    on_device: list[RequestView]
    on_host: list[RequestView]
    device_free: int
    host_free: int
    device_is_short: bool
    swap_out: list[RequestView]
    swap_in: list[RequestView]
    preempt: list[RequestView]

    @property
    def moved_blocks(self) -> int:
        return sum(request.num_blocks for request in (*self.swap_out, *self.swap_in))


@dataclass
class _Draft:
    """A plan in the making. Sub-batch 0 is the device's work plus `host_rows0`; sub-batch 1 is `host_rows1`."""

    device_part: SubBatch
    host_bound: list[Prefill]
    load0: BatchLoad
    load1: BatchLoad
    host_rows0: list[DecodeRow]
    host_rows1: list[DecodeRow]
    has_overdue_row: bool = False

    @property
    def prefills(self) -> tuple[Prefill, ...]:
        return (*self.device_part.prefills, *self.host_bound)

    def batch0(self, host_rows: Sequence[DecodeRow]) -> SubBatch:
        return SubBatch(self.prefills, self.device_part.device_decodes, tuple(host_rows))


class AsymmetricPipeline:
    """NEO's load-aware scheduling."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits

    def next_step(self, queues: QueuesView, kv: KvView, costs: CostModel) -> StepPlan:
        home = self._settle(queues, kv)
        draft = self._admit(queues.waiting, kv, home, costs)
        self._place_host_decodes(home.on_host, draft, costs)
        self._trim_host_bound(home.on_host, draft, kv, costs)
        candidates = self._candidates(home.on_host, draft)
        moved = home.moved_blocks
        best = StepPlan(Mode.IDLE)
        for mode, batches in candidates:
            plan = StepPlan(mode, batches, predicted=costs.predict_plan(mode, batches, moved))
            if _rate(plan) > _rate(best):
                best = plan
        return replace(
            best,
            swap_out=tuple(request.request_id for request in home.swap_out),
            swap_in=tuple(request.request_id for request in home.swap_in),
            preempt=tuple(request.request_id for request in home.preempt),
        )

    def _settle(self, queues: QueuesView, kv: KvView) -> _Residency:
        """Make every running request fit its tier, its next token included; bring back to the device what fits."""
        on_host, no_host_room, host_free = split_at_capacity(queues.on_host, kv, kv.host_free)
        on_device, leaving, device_free = split_at_capacity(queues.on_device, kv, kv.device_free)
        home = _Residency(on_device, on_host, device_free, host_free, bool(leaving), [], [], list(no_host_room))
        for request in leaving:
            needed = kv.blocks_for(request.num_tokens)
            if needed <= home.host_free:
                home.swap_out.append(request)
                home.on_host.append(request)
                home.host_free -= needed
            else:
                home.preempt.append(request)
        if not leaving:
            self._swap_in(home, kv)
        return home

    def _swap_in(self, home: _Residency, kv: KvView) -> None:
        reserve = kv.device_total - int(_SWAP_IN_MAX_USE * kv.device_total)
        for request in list(home.on_host):
            needed = kv.blocks_for(request.num_tokens)
            if needed > kv.device_total - reserve:
                continue
            if home.device_free - needed < reserve or len(home.on_device) >= self._limits.max_batch_rows:
                break
            home.swap_in.append(request)
            home.on_host.remove(request)
            home.on_device.append(request)
            home.device_free -= needed
            home.host_free += request.num_blocks + growth_blocks(request, kv)

    def _admit(self, waiting: Sequence[RequestView], kv: KvView, home: _Residency, costs: CostModel) -> _Draft:
        """Prompts to the device while it has room, then to the host: once one goes there, all later ones do."""
        budget = TokenBudget(self._limits, used_tokens=len(home.on_device))
        on_device: list[Prefill] = []
        if not home.device_is_short:
            on_device, home.device_free = admit_to_device(
                waiting,
                kv,
                free_blocks=home.device_free,
                free_rows=self._limits.max_batch_rows - len(home.on_device),
                budget=budget,
            )
        host_bound = []
        for request in waiting[len(on_device) :]:
            needed = admission_blocks(request, kv)
            if needed > home.host_free or not budget.admits(request.num_tokens):
                break
            home.host_free -= needed
            budget.take(request.num_tokens)
            host_bound.append(Prefill(request.request_id, request.num_tokens, Tier.HOST))
        device_part = SubBatch(prefills=tuple(on_device), device_decodes=decode_rows(home.on_device))
        draft = _Draft(device_part, host_bound, BatchLoad(), BatchLoad(), [], [])
        draft.load0 = costs.load(draft.batch0(()))
        return draft

    def _place_host_decodes(self, on_host: Sequence[RequestView], draft: _Draft, costs: CostModel) -> None:
        """Add host decodes to the sub-batch with more slack while no condition breaks, or a broken one gets worse."""
        overdue = max(on_host, key=lambda request: request.idle_steps, default=None)
        if overdue is not None and overdue.idle_steps >= _MAX_IDLE_STEPS:
            draft.has_overdue_row = True
            draft.load1 = draft.load1.plus_host_decode(overdue.num_tokens)
            draft.host_rows1.append(DecodeRow(overdue.request_id, overdue.num_tokens))
        slack = costs.hides_host_attention(draft.load0, draft.load1)
        shortest_refused = None
        for request in on_host:
            if draft.has_overdue_row and request is overdue:
                continue
            if shortest_refused is not None and request.num_tokens >= shortest_refused:
                continue
            for into_batch1 in (slack[1] >= slack[0], slack[1] < slack[0]):
                accepted = self._try_host_decode(request, into_batch1, slack, draft, costs)
                if accepted is not None:
                    slack = accepted
                    break
            else:
                shortest_refused = request.num_tokens

    def _try_host_decode(
        self,
        request: RequestView,
        into_batch1: bool,
        slack: tuple[float, float],
        draft: _Draft,
        costs: CostModel,
    ) -> tuple[float, float] | None:
        """Place the request and return the new slack, or return None where it cannot be hidden."""
        load0, load1, rows = draft.load0, draft.load1, draft.host_rows1 if into_batch1 else draft.host_rows0
        if len(rows) >= self._limits.max_batch_rows:
            return None
        if into_batch1:
            load1 = load1.plus_host_decode(request.num_tokens)
        else:
            load0 = load0.plus_host_decode(request.num_tokens)
        new = costs.hides_host_attention(load0, load1)
        if not _no_worse(new, slack):
            return None
        draft.load0, draft.load1 = load0, load1
        rows.append(DecodeRow(request.request_id, request.num_tokens))
        return new

    def _trim_host_bound(self, on_host: Sequence[RequestView], draft: _Draft, kv: KvView, costs: CostModel) -> None:
        """Drop host-bound prompts, last first, unless they hide host attention now or will keep the host busy later.

        A prompt is compute-bound, so it hides host attention for free: those needed for that stay. Beyond them it is
        an investment: it stays while the host could hide more decodes than it will have, and only if such decode-only
        iterations would beat GPU-only ones. The first prompt stays in any case if the device could never hold it.
        """
        while draft.host_bound:
            last = draft.host_bound[-1]
            device_cannot_hold = kv.blocks_for(last.num_tokens + 1) > kv.device_total
            if len(draft.host_bound) == 1 and device_cannot_hold:
                return
            shorter = _without_prefill(draft.load0, last, costs)
            slack = costs.hides_host_attention(draft.load0, draft.load1)
            if not _no_worse(costs.hides_host_attention(shorter, draft.load1), slack):
                return
            if self._host_needs(last, on_host, draft, costs):
                return
            draft.host_bound.pop()
            draft.load0 = shorter

    def _host_needs(self, last: Prefill, on_host: Sequence[RequestView], draft: _Draft, costs: CostModel) -> bool:
        """Whether the host would have less to do than can be hidden without `last`, and offloading pays with it."""
        device = draft.device_part
        decodes = len(device.device_decodes) + len(device.prefills)
        context = sum(row.context_tokens for row in device.device_decodes)
        context += sum(prefill.num_tokens for prefill in device.prefills)
        device_load = BatchLoad(rows=decodes, requests=decodes, device_rows=decodes, device_context=context)
        rows = len(on_host) + len(draft.host_bound)
        host_context = sum(request.num_tokens for request in on_host)
        host_context += sum(prefill.num_tokens for prefill in draft.host_bound)

        hideable = 2 * costs.tables.linear(max(1, decodes)) + costs.device_attention_per_layer(device_load)
        if costs.tables.host_decode(rows - 1, host_context - last.num_tokens) >= hideable:
            return False
        if not decodes:
            return True
        half = rows // 2
        share = half / rows
        loads = [
            replace(device_load, rows=decodes + half, requests=decodes + half),
            BatchLoad(rows=rows - half, requests=rows - half),
        ]
        loads[0] = replace(loads[0], host_rows=half, host_context=round(host_context * share))
        loads[1] = replace(loads[1], host_rows=rows - half, host_context=round(host_context * (1 - share)))
        offloading = (decodes + rows) / costs.predict(Mode.ASYMMETRIC, loads).total_ns
        return offloading > decodes / costs.predict(Mode.GPU_ONLY, [device_load]).total_ns

    def _candidates(self, on_host: Sequence[RequestView], draft: _Draft) -> list[tuple[Mode, tuple[SubBatch, ...]]]:
        """The plans to choose from by rate. GPU-only is one of them unless a row is overdue."""
        # The overdue row is the first of sub-batch 1.
        placed = (*draft.host_rows1, *draft.host_rows0)[: self._limits.max_batch_rows]
        candidates = []
        gpu_only = non_empty(draft.batch0(()))
        if gpu_only and not draft.has_overdue_row:
            candidates.append((Mode.GPU_ONLY, gpu_only))
        if draft.host_rows1 and draft.batch0(draft.host_rows0).num_requests:
            batches = (draft.batch0(draft.host_rows0), SubBatch(host_decodes=tuple(draft.host_rows1)))
            candidates.append((Mode.ASYMMETRIC, batches))
        if draft.has_overdue_row:
            candidates.append((Mode.SERIAL, (draft.batch0(placed),)))
        if not gpu_only and on_host:
            # Nothing on the device hides anything: the host's requests run by themselves, in one batch or in halves.
            longest_idle_first = sorted(on_host, key=lambda request: -request.idle_steps)
            rows = decode_rows(longest_idle_first[: self._limits.max_batch_rows])
            candidates.append((Mode.SERIAL, (SubBatch(host_decodes=rows),)))
            if len(rows) > 1:
                halves = (SubBatch(host_decodes=rows[::2]), SubBatch(host_decodes=rows[1::2]))
                candidates.append((Mode.ASYMMETRIC, halves))
        return candidates


def _rate(plan: StepPlan) -> float:
    """Requests advanced per predicted nanosecond."""
    return plan.num_requests / plan.predicted.total_ns if plan.num_requests else 0.0


def _no_worse(new: tuple[float, float], old: tuple[float, float]) -> bool:
    """No condition that held breaks, and none that is broken gets worse."""
    return new[0] >= min(0.0, old[0]) and new[1] >= min(0.0, old[1])


def _without_prefill(load: BatchLoad, prefill: Prefill, costs: CostModel) -> BatchLoad:
    return replace(
        load,
        rows=load.rows - prefill.num_tokens,
        requests=load.requests - 1,
        prefill_attention_ns=max(0.0, load.prefill_attention_ns - costs.tables.prefill_attention(prefill.num_tokens)),
    )
