"""A made-up machine: cost tables in the proportions of a small card, and an executor that only counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from neobench.neo_engine.batch import BatchLimits, KvView, Mode, QueuesView, RequestView, StageTimes, StepPlan
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.cost_model import CostModel, CostTables, Curve, Surface
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.executor.base import SampleRow
from neobench.neo_engine.executor.inputs import BatchInputs
from neobench.neo_engine.kv_cache.block_tables import BlockMove
from neobench.neo_engine.request import Tier
from neobench.neo_engine.scheduler.admission import by_arrival
from neobench.neo_engine.scheduler.policy import Policy

NUM_LAYERS = 32


def card_tables(host_ns_per_token: float = 40.0) -> CostTables:
    """Linear layers flat up to 128 rows, device attention ten times as fast as the host's."""

    def surface(fixed_ns: float, per_token_ns: float) -> Surface:
        rows, contexts = (1, 16, 256), (16, 256, 4096)
        return Surface(
            rows,
            contexts,
            tuple(tuple(fixed_ns + per_token_ns * row * context for context in contexts) for row in rows),
        )

    return CostTables(
        linear=Curve((1, 128, 256, 2048), (450_000.0, 470_000.0, 900_000.0, 7_200_000.0)),
        prefill_attention=Curve((1, 512, 4096), (5_000.0, 60_000.0, 3_000_000.0)),
        device_decode=surface(10_000.0, host_ns_per_token / 10),
        host_decode=surface(30_000.0, host_ns_per_token),
        head=Curve((1, 256), (300_000.0, 500_000.0)),
        move=Curve((1, 64), (20_000.0, 1_000_000.0)),
        step_fixed_ns=200_000.0,
        sub_batch_fixed_ns=100_000.0,
    )


class CountingExecutor:
    """Checks every step's inputs and returns token 1 for each request, in no time."""

    def __init__(self, config: EngineConfig) -> None:
        self._max_batch_rows = config.max_batch_rows
        self._block_size = config.block_size

    def execute(
        self,
        mode: Mode,
        batches: Sequence[BatchInputs],
        moves: Sequence[BlockMove],
        sampling: Sequence[SampleRow],
    ) -> tuple[list[int], StageTimes]:
        assert len(batches) == (2 if mode is Mode.ASYMMETRIC else len(batches))
        used: list[tuple[str, int]] = []
        for batch in batches:
            assert len(batch.token_ids) == len(batch.positions)
            for name, decodes in (("device", batch.device), ("host", batch.host)):
                assert len(decodes) <= self._max_batch_rows, "an executor's buffers have no more rows"
                for table in decodes.tables:
                    used += [(name, block) for block in table]
            for prefill in batch.prefills:
                block_size = self._block_size
                assert len(prefill.blocks) == -(-(prefill.start_tokens + prefill.num_tokens) // block_size)
                used += [(prefill.tier.value, block) for block in prefill.blocks]
        assert len(set(used)) == len(used), "two requests share a block"
        for move in moves:
            assert len(move.source_blocks) == len(move.target_blocks)
        assert sum(len(batch.logit_rows) for batch in batches) == len(sampling)
        return [1] * len(sampling), StageTimes(total_ns=1)

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def check_plan(plan: StepPlan, queues: QueuesView, kv: KvView, limits: BatchLimits, *, cuts_prompts: bool) -> None:
    """What every plan must keep: blocks, budgets, each request at most once, chunks one after the other."""
    views = {r.request_id: r for r in by_arrival(queues.waiting, *running_queues(queues))}
    held: dict[Tier, dict[int, int]] = {
        Tier.DEVICE: {r.request_id: r.num_blocks for r in (*queues.on_device, *queues.prefilling_on_device)},
        Tier.HOST: {r.request_id: r.num_blocks for r in (*queues.on_host, *queues.prefilling_on_host)},
    }
    for request_id in plan.preempt:
        assert any(blocks.pop(request_id, None) for blocks in held.values())
    for request_id in plan.swap_out:
        held[Tier.HOST][request_id] = held[Tier.DEVICE].pop(request_id)
    for request_id in plan.swap_in:
        held[Tier.DEVICE][request_id] = held[Tier.HOST].pop(request_id)
    seen = list(plan.preempt)
    prompt_tokens = 0
    for batch in plan.sub_batches:
        for prefill in batch.prefills:
            view = views[prefill.request_id]
            assert prefill.num_tokens > 0
            assert prefill.start_tokens == view.num_computed_tokens
            assert prefill.prompt_tokens == view.num_tokens
            assert (prefill.request_id in held[prefill.tier]) == (prefill.start_tokens > 0), (
                "a prompt stays in its tier"
            )
            held[prefill.tier][prefill.request_id] = kv.blocks_for(prefill.end_tokens)
            seen.append(prefill.request_id)
            prompt_tokens += prefill.num_tokens
        for tier, rows in ((Tier.DEVICE, batch.device_decodes), (Tier.HOST, batch.host_decodes)):
            assert len(rows) <= limits.max_batch_rows
            for row in rows:
                assert row.request_id in held[tier], "a decode runs where its KV lives"
                assert row.context_tokens == views[row.request_id].num_tokens
                assert views[row.request_id].num_computed_tokens == row.context_tokens - 1
                held[tier][row.request_id] = kv.blocks_for(row.context_tokens)
                seen.append(row.request_id)
    assert len(seen) == len(set(seen)), "a request runs at most once"
    assert sum(held[Tier.DEVICE].values()) <= kv.device_total
    assert sum(held[Tier.HOST].values()) <= kv.host_total
    decodes = sum(len(batch.device_decodes) for batch in plan.sub_batches)
    if cuts_prompts and prompt_tokens:
        assert prompt_tokens + decodes <= limits.max_batch_tokens


def running_queues(queues: QueuesView) -> tuple[Sequence[RequestView], ...]:
    return queues.on_device, queues.on_host, queues.prefilling_on_device, queues.prefilling_on_host


class CheckedPolicy:
    """A policy under `check_plan`."""

    def __init__(self, policy: Policy, limits: BatchLimits, *, cuts_prompts: bool) -> None:
        self.last_plan = StepPlan(Mode.IDLE)
        self._policy = policy
        self._limits = limits
        self._cuts_prompts = cuts_prompts

    def next_step(self, queues: QueuesView, kv: KvView, costs: CostModel) -> StepPlan:
        plan = self.last_plan = self._policy.next_step(queues, kv, costs)
        assert plan == self._policy.next_step(queues, kv, costs), "pure and deterministic"
        check_plan(plan, queues, kv, self._limits, cuts_prompts=self._cuts_prompts)
        return plan


@pytest.fixture(scope="session", name="check_plan")
def check_plan_fixture() -> Callable[..., None]:
    return check_plan


@pytest.fixture(scope="session")
def costs() -> CostModel:
    return CostModel(card_tables(), NUM_LAYERS)


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., NeoEngine]:
    """An engine over the counting executor: make_engine(policy, device_blocks=..., host_blocks=...)."""

    def make(policy: str, *, host_blocks: int = 0, host_ns_per_token: float = 40.0, **settings: Any) -> NeoEngine:
        config = EngineConfig(policy=policy, **settings)
        block_bytes = config.block_bytes(config.host_layout)
        config = EngineConfig(policy=policy, host_memory_bytes=host_blocks * block_bytes, **settings)
        engine = NeoEngine(config, CountingExecutor(config), CostModel(card_tables(host_ns_per_token), NUM_LAYERS))
        limits = BatchLimits(config.max_batch_tokens, config.max_batch_rows)
        cuts_prompts = policy in ("chunked_prefill", "asymmetric_pipeline")
        engine._policy = CheckedPolicy(engine._policy, limits, cuts_prompts=cuts_prompts)
        return engine

    return make
