"""A made-up machine: cost tables in the proportions of a small card, and an executor that only counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from neobench.neo_engine.batch import Mode, StageTimes
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.cost_model import CostModel, CostTables, Curve, Surface
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.executor.base import SampleRow
from neobench.neo_engine.executor.inputs import BatchInputs
from neobench.neo_engine.kv_cache.block_tables import BlockMove

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
        return NeoEngine(config, CountingExecutor(config), CostModel(card_tables(host_ns_per_token), NUM_LAYERS))

    return make
