"""The engine loop: requests in, one plan an iteration, tokens out. Everything in it runs on one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from time import perf_counter_ns
from typing import Any, overload

import numpy as np

from neobench.neo_engine.batch import BatchLimits, Mode, QueuesView, RequestView, StageTimes, StepPlan
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.correction import PredictionErrors
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.executor.base import Executor, SampleRow, ahead_executor
from neobench.neo_engine.executor.inputs import BatchInputs, fill_in, request_ids
from neobench.neo_engine.kv_cache.block_tables import BlockMove, BlockTables
from neobench.neo_engine.request import (
    PENDING_TOKEN,
    FinishReason,
    Request,
    SamplingParams,
    Tier,
    TokenOutput,
    check_request,
)
from neobench.neo_engine.scheduler.policy import Policy, make_policy
from neobench.neo_engine.stats import EngineStats


@dataclass
class Flight:
    """An iteration under way, and which requests will get its tokens."""

    plan: StepPlan
    ids: list[int]
    overlaps: bool
    """Whether another may be started before it ends."""
    computed_before: dict[int, int] = field(default_factory=dict)
    """By request, num_computed_tokens as it was."""


class WaitingViews(Sequence[RequestView]):
    """Views of waiting requests, made when they are looked at: a policy takes up few of what may be thousands."""

    def __init__(self, requests: list[Request], step: int) -> None:
        self._requests = requests
        self._step = step

    def __len__(self) -> int:
        return len(self._requests)

    @overload
    def __getitem__(self, index: int) -> RequestView: ...

    @overload
    def __getitem__(self, index: slice) -> WaitingViews: ...

    def __getitem__(self, index: int | slice) -> RequestView | WaitingViews:
        if isinstance(index, slice):
            return WaitingViews(self._requests[index], self._step)
        request = self._requests[index]
        idle_steps = self._step - request.last_progress_step
        return RequestView(request.request_id, request.num_tokens, 0, idle_steps, request.num_computed_tokens)


def _is_ending(request: Request) -> bool:
    """With the iteration under way."""
    return request.has_pending_token and request.is_complete


class NeoEngine:
    """Owns requests and block tables; a policy plans each step and an executor carries it out."""

    def __init__(self, config: EngineConfig, executor: Executor, costs: CostModel) -> None:
        self.config = config
        self._executor = executor
        self._ahead = ahead_executor(executor)
        self._flights: list[Flight] = []
        self._planned: StepPlan | None = None  # ahead, for requests as they are then
        self._costs = costs
        self._policy: Policy = make_policy(
            config.policy, BatchLimits(max_batch_tokens=config.max_batch_tokens, max_batch_rows=config.max_batch_rows)
        )
        self._tables = BlockTables(
            block_size=config.block_size, device_blocks=config.device_blocks, host_blocks=config.host_blocks
        )
        self._requests: dict[int, Request] = {}
        # Each request is in one of these, by whether it has KV; those that wait are in order of arrival.
        self._waiting: dict[int, Request] = {}
        self._running: dict[int, Request] = {}
        self._stats = EngineStats()
        self._errors = PredictionErrors()
        self._next_request_id = 0
        self._last_mode = Mode.IDLE
        self._request_seeds = np.random.default_rng(config.seed)

    def add_request(self, prompt_token_ids: list[int], params: SamplingParams) -> int:
        """Queue a request and return its id. Raises RequestRejectedError for one that could never finish."""
        check_request(self.config, prompt_token_ids, params)
        request_id = self._next_request_id
        self._next_request_id += 1
        seed = params.seed if params.seed is not None else int(self._request_seeds.integers(2**63))
        self._requests[request_id] = self._waiting[request_id] = Request(
            request_id=request_id,
            prompt_token_ids=list(prompt_token_ids),
            params=params,
            seed=seed,
            last_progress_step=self._stats.steps,
        )
        self._planned = None
        return request_id

    def abort(self, request_id: int) -> None:
        """Forget a request and free its blocks; ids that are unknown or finished are left alone."""
        if request_id in self._requests:
            self._forget(request_id)
            self._stats.aborted_requests += 1

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._flights)

    def step(self) -> list[TokenOutput]:
        """Plan and run one iteration; one output for each request that got a token.

        Where the executor can, the next iteration is planned before this one ends, and started if it can be without
        this one's tokens: its own come with the next call, and those of requests that have ended meanwhile are dropped.
        """
        try:
            if not self._flights:
                plan, self._planned = self._planned or self._plan(), None
                if plan is None:
                    return []
                if self._ahead is None:
                    return self._execute(plan)
                self._flights.append(self._start(plan, ids_before=()))
            self._plan_next(self._flights[0])
            return self._land(self._flights[0])
        except BaseException:
            self._recall()
            raise

    def _plan(self) -> StepPlan | None:
        """None where there is nothing to do, or nothing that can be done before an iteration under way has ended."""
        start = perf_counter_ns()
        queues = self._queues()
        if queues.is_empty:
            return None
        plan = self._policy.next_step(queues, self._tables.view(), self._costs)
        self._stats.scheduling_ns += perf_counter_ns() - start
        if plan.is_empty and self._flights:
            return None
        if plan.is_empty:
            raise RuntimeError(f"{self.config.policy} made an empty plan with {len(self._requests)} requests waiting")
        return plan

    def _execute(self, plan: StepPlan) -> list[TokenOutput]:
        moves, inputs, ids, sampling = self._carried_out(plan, ids_before=())
        tokens, measured = self._executor.execute(plan.mode, inputs, moves, sampling)
        self._count(plan, measured)
        self._progress(plan)
        return [self._advance(self._requests[i], token) for i, token in zip(ids, tokens, strict=True)]

    def _carried_out(
        self, plan: StepPlan, ids_before: Sequence[int]
    ) -> tuple[list[BlockMove], list[BatchInputs], list[int], list[SampleRow]]:
        """Moves, inputs, and the requests that will get a token and how, once the plan's blocks are theirs."""
        start = perf_counter_ns()
        self._stats.steps += 1
        self._last_mode = plan.mode
        moves = self._apply(plan)
        inputs = [fill_in(batch, self._requests, self._tables, ids_before) for batch in plan.sub_batches]
        ids = [request_id for batch in plan.sub_batches for request_id in request_ids(batch)]
        sampling = [self._sample_row(self._requests[request_id]) for request_id in ids]
        self._stats.scheduling_ns += perf_counter_ns() - start
        return moves, inputs, ids, sampling

    def _count(self, plan: StepPlan, measured: StageTimes) -> None:
        self._stats.count_plan(plan)
        self._stats.count_times(plan.predicted, measured)
        self._errors.add(plan.predicted.total_ns, measured.total_ns)
        if self.config.correct_costs:
            self._costs = self._costs.corrected_by(plan.predicted, measured)

    def _progress(self, plan: StepPlan) -> None:
        """What the plan's rows have computed, or will have, of requests that are still there."""
        for batch in plan.sub_batches:
            ends = [(prefill.request_id, prefill.end_tokens) for prefill in batch.prefills]
            ends += [(row.request_id, row.context_tokens) for row in (*batch.device_decodes, *batch.host_decodes)]
            for request_id, end_tokens in ends:
                if request_id in self._requests:
                    self._ran(self._requests[request_id], end_tokens)

    def _may_overlap(self, plan: StepPlan) -> bool:
        """Whether it is one sub-batch on the device alone, of requests that take the likeliest tokens."""
        if plan.mode is not Mode.GPU_ONLY or len(plan.sub_batches) != 1 or plan.swap_in or plan.swap_out:
            return False
        (batch,) = plan.sub_batches
        rows = [*(prefill.request_id for prefill in batch.prefills), *(row.request_id for row in batch.device_decodes)]
        return (
            not batch.host_decodes
            and all(prefill.tier is Tier.DEVICE for prefill in batch.prefills)
            and all(self._requests[request_id].params.is_greedy for request_id in rows)
        )

    def _start(self, plan: StepPlan, ids_before: Sequence[int]) -> Flight:
        assert self._ahead is not None
        overlaps = self._may_overlap(plan)
        moves, inputs, ids, sampling = self._carried_out(plan, ids_before)
        self._ahead.start(inputs, moves, sampling)
        return Flight(plan, ids, overlaps)

    def _plan_next(self, flight: Flight) -> None:
        """The iteration after one that is under way, and start it if that is possible without its tokens."""
        flight.computed_before = {i: request.num_computed_tokens for i, request in self._requests.items()}
        self._progress(flight.plan)
        for request_id in flight.ids:
            if request_id in self._requests:
                self._requests[request_id].output_token_ids.append(PENDING_TOKEN)
        plan = self._plan()
        if plan is None:
            return
        prompts = [prefill.request_id for batch in plan.sub_batches for prefill in batch.prefills]
        needs_tokens = any(self._requests[request_id].has_pending_token for request_id in prompts)
        if flight.overlaps and not needs_tokens and self._may_overlap(plan):
            self._flights.append(self._start(plan, flight.ids))
        else:
            self._planned = plan

    def _land(self, flight: Flight) -> list[TokenOutput]:
        assert self._ahead is not None
        tokens, measured = self._ahead.finish()
        self._flights.remove(flight)
        self._count(flight.plan, measured)
        outputs = []
        for request_id, token in zip(flight.ids, tokens, strict=True):
            request = self._requests.get(request_id)
            if request is not None:
                request.output_token_ids.pop()
                outputs.append(self._advance(request, token))
        return outputs

    def _recall(self) -> None:
        """After an error: requests are again where they were before whatever is under way."""
        if self._flights and self._ahead is not None:
            self._ahead.discard()
        for flight in reversed(self._flights):
            for request_id, num_computed_tokens in flight.computed_before.items():
                if request_id in self._requests:
                    # What has been preempted since has no KV left to go back to.
                    self._requests[request_id].num_computed_tokens = (
                        num_computed_tokens if request_id in self._tables else 0
                    )
            for request_id in flight.ids:
                if request_id in self._requests and self._requests[request_id].has_pending_token:
                    self._requests[request_id].output_token_ids.pop()
        self._flights.clear()
        self._planned = None

    def _queues(self) -> QueuesView:
        # By whether the prompt is complete, and by tier.
        running: dict[tuple[bool, Tier], list[RequestView]] = {(d, tier): [] for d in (False, True) for tier in Tier}
        step = self._stats.steps
        # Request ids rise with arrival, so each queue is in order of arrival.
        for request_id in sorted(self._running):
            request, table = self._running[request_id], self._tables[request_id]
            if _is_ending(request):
                continue
            num_tokens, num_computed_tokens = request.num_tokens, request.num_computed_tokens
            idle_steps = step - request.last_progress_step
            view = RequestView(request_id, num_tokens, len(table.blocks), idle_steps, num_computed_tokens)
            running[num_computed_tokens == num_tokens - 1, table.tier].append(view)
        return QueuesView(
            waiting=WaitingViews([request for request in self._waiting.values() if not _is_ending(request)], step)
            if self._flights
            else WaitingViews(list(self._waiting.values()), step),
            on_device=running[True, Tier.DEVICE],
            on_host=running[True, Tier.HOST],
            prefilling_on_device=running[False, Tier.DEVICE],
            prefilling_on_host=running[False, Tier.HOST],
            last_mode=self._last_mode,
        )

    def _apply(self, plan: StepPlan) -> list[BlockMove]:
        """Carry out the plan's changes of block ownership, in the order in which a plan is defined."""
        for request_id in plan.preempt:
            self._tables.release(request_id)
            self._running.pop(request_id).num_computed_tokens = 0
            self._waiting[request_id] = self._requests[request_id]
        if plan.preempt:
            self._waiting = dict(sorted(self._waiting.items()))
        moves = [self._tables.move(request_id, Tier.HOST) for request_id in plan.swap_out]
        moves += [self._tables.move(request_id, Tier.DEVICE) for request_id in plan.swap_in]
        self._stats.swapped_blocks += sum(len(move.source_blocks) for move in moves)
        for batch in plan.sub_batches:
            for prefill in batch.prefills:
                self._tables.ensure(prefill.request_id, prefill.tier, prefill.end_tokens)
                self._running[prefill.request_id] = self._requests[prefill.request_id]
                self._waiting.pop(prefill.request_id, None)
            for row in batch.device_decodes:
                self._tables.ensure(row.request_id, Tier.DEVICE, row.context_tokens)
            for row in batch.host_decodes:
                self._tables.ensure(row.request_id, Tier.HOST, row.context_tokens)
        return moves

    def _sample_row(self, request: Request) -> SampleRow:
        return SampleRow(params=request.params, seed=request.seed, position=len(request.output_token_ids))

    def _ran(self, request: Request, num_computed_tokens: int) -> None:
        request.num_computed_tokens = num_computed_tokens
        request.last_progress_step = self._stats.steps

    def _advance(self, request: Request, token: int) -> TokenOutput:
        request.output_token_ids.append(token)
        reason = self._finish_reason(request, token)
        if reason is not None:
            self._forget(request.request_id)
            self._stats.finished_requests += 1
        return TokenOutput(request_id=request.request_id, token_id=token, finish_reason=reason)

    def _finish_reason(self, request: Request, token: int) -> FinishReason | None:
        params = request.params
        if token in params.stop_token_ids:
            return FinishReason.STOP
        if not params.ignore_eos and token in self.config.shape.eos_token_ids:
            return FinishReason.STOP
        if request.is_complete:
            return FinishReason.LENGTH
        return None

    def _forget(self, request_id: int) -> None:
        if not self._requests[request_id].is_complete:
            self._planned = None  # which counted on it
        self._tables.release(request_id)
        del self._requests[request_id]
        self._waiting.pop(request_id, None)
        self._running.pop(request_id, None)

    def stats(self) -> dict[str, int | float]:
        """Counters (see EngineStats), the gauges num_waiting, num_running, device_blocks_used, host_blocks_used, and as
        floats, which rise and fall, the correction factors, the relative errors of the last iterations' predictions,
        the requests with and without KV, and the used share of each tier's blocks (0 for a tier without blocks).
        """
        kv = self._tables.view()
        running = sum(request_id in self._tables for request_id in list(self._requests))
        return {
            **self._stats.counters(),
            **{f"correction_{kind}": factor for kind, factor in asdict(self._costs.correction).items()},
            "prediction_error_median": self._errors.percentile(50),
            "prediction_error_p95": self._errors.percentile(95),
            "running_requests": float(running),
            "waiting_requests": float(len(self._requests) - running),
            "device_kv_used_fraction": 1 - kv.device_free / kv.device_total if kv.device_total else 0.0,
            "host_kv_used_fraction": 1 - kv.host_free / kv.host_total if kv.host_total else 0.0,
            "num_running": running,
            "num_waiting": len(self._requests) - running,
            "device_blocks_used": kv.device_total - kv.device_free,
            "host_blocks_used": kv.host_total - kv.host_free,
        }

    def info(self) -> dict[str, Any]:
        """Facts that a report needs to say what was measured."""
        config = self.config
        return {
            "model": config.model,
            "shape": {f.name: getattr(config.shape, f.name) for f in fields(config.shape) if f.name != "rope_scaling"},
            "policy": config.policy,
            "dtype": config.dtype,
            "block_size": config.block_size,
            "device_blocks": config.device_blocks,
            "device_kv_tokens": config.device_blocks * config.block_size,
            "host_blocks": config.host_blocks,
            "host_kv_tokens": config.host_blocks * config.block_size,
            "max_request_tokens": config.max_request_tokens,
            "max_batch_tokens": config.max_batch_tokens,
            "max_batch_rows": config.max_batch_rows,
            "num_parameters": config.shape.num_parameters,
            "vocab_size": config.shape.vocab_size,
            **self._executor.describe(),
        }

    def close(self) -> None:
        self._executor.close()
