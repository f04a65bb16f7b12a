"""NEO: two asymmetric sub-batches, so that host attention of one hides behind the device's work for the other.

An iteration is put together in the steps of the paper (arXiv 2411.01142, section 4): the device's decodes and then
prompts into sub-batch 0; host decodes into either while the host stays hidden (`CostModel.hides_host_attention`);
prompts bound for the host trimmed where the host would idle; and of the result and the GPU-only plan the one that
advances more requests per predicted time. Against the published scheduler, time is the whole iteration's, host
included, no request starves (see `_MAX_IDLE_STEPS`), prompts are cut to the token budget, and some host decodes may
show (see `_MAX_SHOWN`). docs/decisions/0004 and 0008 say why.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
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
    admit,
    decode_rows,
    ids,
    next_chunks,
    non_empty,
)
from neobench.neo_engine.scheduler.residency import Residency, settle

_MAX_IDLE_STEPS = 32
"""A host decode that has waited so long goes next whether or not it is hidden, the longest waiting first. One such
row a step bounds every wait by this plus the number of host requests, and costs at most its own attention."""

_MAX_SHOWN = 0.15
"""Of the host's time in an iteration, which may keep the device waiting where a row more advances requests faster all
the same. Rows are few and coarse where the device's own time is short: to stop at the last that is hidden would leave a
third of the host's time unused."""

_SWITCHING_GAIN = 1.03
"""Another mode than the last iteration's must promise so many times its rate: predictions are no better than a few
percent, and each switch throws away what the caches of host and device hold."""


@dataclass
class _Draft:
    """A plan in the making. Sub-batch 0 is the device's work plus `host_rows0`; sub-batch 1 is `host_rows1`.

    Prompts begun are part of the device's work, whichever tier takes their KV; `host_bound` are new ones.
    """

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

    @property
    def num_decodes(self) -> int:
        return len(self.device_part.device_decodes) + len(self.host_rows0) + len(self.host_rows1)

    def batch0(self, host_rows: Sequence[DecodeRow]) -> SubBatch:
        return SubBatch(self.prefills, self.device_part.device_decodes, tuple(host_rows))

    def has_room(self, in_batch1: bool, limits: BatchLimits) -> bool:
        return len(self.host_rows1 if in_batch1 else self.host_rows0) < limits.max_batch_rows

    def loads_with(self, request: RequestView, in_batch1: bool) -> tuple[BatchLoad, BatchLoad]:
        """Of the sub-batches, were the request one of the host's rows in one of them."""
        if in_batch1:
            return self.load0, self.load1.plus_host_decode(request.num_tokens)
        return self.load0.plus_host_decode(request.num_tokens), self.load1

    def place(self, request: RequestView, in_batch1: bool, loads: tuple[BatchLoad, BatchLoad]) -> None:
        self.load0, self.load1 = loads
        rows = self.host_rows1 if in_batch1 else self.host_rows0
        rows.append(DecodeRow(request.request_id, request.num_tokens))


class AsymmetricPipeline:
    """NEO's load-aware scheduling."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits

    def next_step(self, queues: QueuesView, kv: KvView, costs: CostModel) -> StepPlan:
        home = settle(queues, kv, self._limits)
        draft = self._admit(queues.waiting, kv, home, costs)
        self._place_host_decodes(home.on_host, draft, costs)
        self._trim_host_bound(queues, home, draft, kv, costs)
        self._place_shown_decodes(home.on_host, draft, costs)

        def rate(plan: StepPlan) -> float:
            return progress_rate(plan) * (_SWITCHING_GAIN if plan.mode is queues.last_mode else 1.0)

        candidates = [StepPlan(Mode.IDLE)]
        for mode, batches in self._candidates(home.on_host, draft):
            moved_blocks = home.moved_blocks + sum(_blocks_read_back(batch, kv) for batch in batches)
            candidates.append(StepPlan(mode, batches, predicted=costs.predict_plan(mode, batches, moved_blocks)))
        return replace(
            max(candidates, key=rate),
            swap_out=ids(home.swap_out),
            swap_in=ids(home.swap_in),
            preempt=ids(home.preempt),
        )

    def _admit(self, waiting: Sequence[RequestView], kv: KvView, home: Residency, costs: CostModel) -> _Draft:
        """Prompts begun go on; new ones to the device while it has room, then to the host, and no other way round."""
        budget = TokenBudget(self._limits.max_batch_tokens - len(home.on_device), chunked=True)
        begun: list[Prefill] = []
        for requests, tier, free_blocks in (
            (home.begun_on_device, Tier.DEVICE, home.device_free),
            (home.begun_on_host, Tier.HOST, home.host_free),
        ):
            begun += next_chunks(requests, tier, kv, free_blocks=free_blocks, budget=budget)[0]
        on_device: list[Prefill] = []
        if not home.device_is_short:
            on_device, _ = admit(
                waiting,
                Tier.DEVICE,
                kv,
                free_blocks=home.device_free - home.device_promised,
                free_rows=self._limits.max_batch_rows - len(home.on_device) - len(home.begun_on_device),
                budget=budget,
            )
        later = waiting[len(on_device) :]
        free_blocks = home.host_free - home.host_promised
        host_bound, _ = admit(later, Tier.HOST, kv, free_blocks=free_blocks, free_rows=len(later), budget=budget)
        device_part = SubBatch((*begun, *on_device), decode_rows(home.on_device))
        draft = _Draft(device_part, host_bound, BatchLoad(), BatchLoad(), [], [])
        draft.load0 = costs.load(draft.batch0(()))
        return draft

    def _place_host_decodes(self, on_host: Sequence[RequestView], draft: _Draft, costs: CostModel) -> None:
        """Add host decodes to the sub-batch with more slack while no condition breaks, or a broken one gets worse.

        Those that have waited longest go first: where not all are hidden, they take turns.
        """
        requests = _longest_idle_first(on_host)
        if requests and requests[0].idle_steps >= _MAX_IDLE_STEPS:
            draft.has_overdue_row = True
            overdue = requests.pop(0)
            draft.place(overdue, True, draft.loads_with(overdue, True))
        slack: tuple[float, ...] = costs.hides_host_attention(draft.load0, draft.load1)
        shortest_refused = None
        for index, request in enumerate(requests):
            if shortest_refused is not None and request.num_tokens >= shortest_refused:
                continue
            accepted = self._hidden(request, slack, draft, costs)
            if accepted is not None:
                into_batch1, loads, slack = accepted
                draft.place(request, into_batch1, loads)
                continue
            shortest_refused = request.num_tokens
            shortest = min(requests[index + 1 :], key=lambda request: request.num_tokens, default=None)
            if shortest is None or self._hidden(shortest, slack, draft, costs) is None:
                return

    def _hidden(
        self, request: RequestView, slack: tuple[float, ...], draft: _Draft, costs: CostModel
    ) -> tuple[bool, tuple[BatchLoad, BatchLoad], tuple[float, ...]] | None:
        """Whether to place the request into sub-batch 1, with the loads and slack that makes; None: it would show."""
        for into_batch1 in (slack[1] >= slack[0], slack[1] < slack[0]):
            if draft.has_room(into_batch1, self._limits):
                loads = draft.loads_with(request, into_batch1)
                new = costs.hides_host_attention(*loads)
                if _no_worse(new, slack):
                    return into_batch1, loads, new
        return None

    def _place_shown_decodes(self, on_host: Sequence[RequestView], draft: _Draft, costs: CostModel) -> None:
        """Add host decodes beyond those that are hidden while the rate rises, in which the time that shows counts."""
        if not (draft.host_rows0 or draft.host_rows1):
            return
        placed = {row.request_id for row in (*draft.host_rows0, *draft.host_rows1)}
        advanced = _advanced(draft.prefills, draft.num_decodes)
        best_ns = costs.predict(Mode.ASYMMETRIC, (draft.load0, draft.load1)).total_ns
        for request in _longest_idle_first(on_host):
            if request.request_id in placed:
                continue
            choices = [part for part in (True, False) if draft.has_room(part, self._limits)]
            if not choices:
                return
            loads, into_batch1 = max(
                ((draft.loads_with(request, part), part) for part in choices),
                key=lambda choice: min(costs.hides_host_attention(*choice[0])),
            )
            times = costs.predict(Mode.ASYMMETRIC, loads)
            if times.host_wait_ns > _MAX_SHOWN * times.host_decode_ns:
                return
            if (advanced + 1) * best_ns <= advanced * times.total_ns:
                return
            draft.place(request, into_batch1, loads)
            advanced, best_ns = advanced + 1, times.total_ns

    def _trim_host_bound(
        self, queues: QueuesView, home: Residency, draft: _Draft, kv: KvView, costs: CostModel
    ) -> None:
        """Drop host-bound prompts, last first, unless they hide host attention now or will keep the host busy later.

        A prompt is compute-bound, so it hides host attention for free: those needed for that stay. Beyond them it is
        an investment: it stays while the host could hide more decodes than it will have, and only if decode-only
        iterations would beat GPU-only ones once the host has as many as it can hide, those still waiting included: the
        first few never do by themselves. The first prompt stays in any case if the device could never hold it.
        """
        while draft.host_bound:
            last = draft.host_bound[-1]
            device_cannot_hold = kv.blocks_for(last.prompt_tokens + 1) > kv.device_total
            if len(draft.host_bound) == 1 and device_cannot_hold:
                return
            shorter = _without_prefill(draft.load0, last, costs)
            slack = costs.hides_host_attention(draft.load0, draft.load1)
            if not _no_worse(costs.hides_host_attention(shorter, draft.load1), slack):
                return
            if self._host_needs(last, queues.waiting, home.on_host, draft, costs):
                return
            draft.host_bound.pop()
            draft.load0 = shorter

    def _host_needs(
        self,
        last: Prefill,
        waiting: Sequence[RequestView],
        on_host: Sequence[RequestView],
        draft: _Draft,
        costs: CostModel,
    ) -> bool:
        """Whether the host would have less to do than can be hidden without `last`, and offloading pays once it has."""
        contexts = {
            Tier.DEVICE: [row.context_tokens for row in draft.device_part.device_decodes],
            Tier.HOST: [request.num_tokens for request in on_host],
        }
        for prefill in draft.prefills:
            contexts[prefill.tier].append(prefill.prompt_tokens)
        decodes, context = len(contexts[Tier.DEVICE]), sum(contexts[Tier.DEVICE])
        device_load = BatchLoad(rows=decodes, requests=decodes, device_rows=decodes, device_context=context)
        linear = costs.linear_per_layer(BatchLoad(rows=max(1, decodes)))
        hideable = 2 * linear + costs.device_attention_per_layer(device_load)

        def fills(rows: int) -> bool:
            host = BatchLoad(host_rows=rows, host_context=totals[rows])
            return costs.host_attention_per_layer(host) >= hideable

        present = len(contexts[Tier.HOST])
        admitted = {prefill.request_id for prefill in draft.prefills}
        to_come = [request.num_tokens for request in waiting if request.request_id not in admitted]
        totals = list(itertools.accumulate(contexts[Tier.HOST] + to_come, initial=0))
        totals[present - 1] = totals[present] - last.prompt_tokens
        if fills(present - 1):
            return False
        if not decodes:
            return True
        most = min(len(totals) - 1, 2 * self._limits.max_batch_rows)
        rows = max(present, bisect.bisect_left(range(most), True, lo=min(present, most), key=fills))
        return _offloading_pays(device_load, rows, totals[rows], costs)

    def _candidates(self, on_host: Sequence[RequestView], draft: _Draft) -> Iterator[tuple[Mode, tuple[SubBatch, ...]]]:
        """The plans to choose from by rate. GPU-only, with the same chunks, is one of them unless a row is overdue."""
        # The overdue row is the first of sub-batch 1.
        placed = (*draft.host_rows1, *draft.host_rows0)[: self._limits.max_batch_rows]
        gpu_only = non_empty(draft.batch0(()))
        if gpu_only and not draft.has_overdue_row:
            yield Mode.GPU_ONLY, gpu_only
        if draft.host_rows1:
            batch0 = draft.batch0(draft.host_rows0)
            if batch0.num_rows:
                yield Mode.ASYMMETRIC, (batch0, SubBatch(host_decodes=tuple(draft.host_rows1)))
        if draft.has_overdue_row:
            yield Mode.SERIAL, (draft.batch0(placed),)
        if not gpu_only and on_host:
            # Nothing on the device hides anything: the host's requests run by themselves, in one batch or in halves.
            rows = decode_rows(_longest_idle_first(on_host)[: self._limits.max_batch_rows])
            yield Mode.SERIAL, (SubBatch(host_decodes=rows),)
            if len(rows) > 1:
                halves = (SubBatch(host_decodes=rows[::2]), SubBatch(host_decodes=rows[1::2]))
                yield Mode.ASYMMETRIC, halves


def progress_rate(plan: StepPlan) -> float:
    """Requests advanced per predicted nanosecond; a chunk advances its request by its share of the prompt."""
    prefills = [prefill for batch in plan.sub_batches for prefill in batch.prefills]
    advanced = _advanced(prefills, plan.num_requests - sum(prefill.ends_prompt for prefill in prefills))
    return advanced / plan.predicted.total_ns if advanced else 0.0


def _longest_idle_first(requests: Sequence[RequestView]) -> list[RequestView]:
    return sorted(requests, key=lambda request: -request.idle_steps)


def _advanced(prefills: Sequence[Prefill], num_decodes: int) -> float:
    return num_decodes + sum(prefill.num_tokens / prefill.prompt_tokens for prefill in prefills)


def _offloading_pays(device_load: BatchLoad, rows: int, host_context: int, costs: CostModel) -> bool:
    """Whether decodes of the device and `rows` of the host, in halves, advance more requests than the device alone."""
    half = rows // 2
    halves = []
    for load, own_rows in ((device_load, half), (BatchLoad(), rows - half)):
        requests = load.requests + own_rows
        context = round(host_context * own_rows / rows)
        halves.append(replace(load, rows=requests, requests=requests, host_rows=own_rows, host_context=context))
    offloading = (device_load.requests + rows) / costs.predict(Mode.ASYMMETRIC, halves).total_ns
    return offloading > device_load.requests / costs.predict(Mode.GPU_ONLY, [device_load]).total_ns


def _blocks_read_back(batch: SubBatch, kv: KvView) -> int:
    """Blocks of earlier chunks in the host tier, which the device needs to compute the next one."""
    return sum(kv.blocks_for(prefill.start_tokens) for prefill in batch.prefills if prefill.tier is Tier.HOST)


def _no_worse(new: Sequence[float], old: Sequence[float]) -> bool:
    """No condition that held breaks, and none that is broken gets worse."""
    return all(after >= min(0.0, before) for after, before in zip(new, old, strict=True))


def _without_prefill(load: BatchLoad, prefill: Prefill, costs: CostModel) -> BatchLoad:
    return replace(
        load,
        rows=load.rows - prefill.num_tokens,
        requests=load.requests - prefill.ends_prompt,
        prefills=load.prefills - 1,
        prefill_attention_ns=max(0.0, load.prefill_attention_ns - costs.prefill_attention_per_layer(prefill)),
    )
