"""Block tables over both tiers: what each request holds, through any sequence of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from neobench.neo_engine.kv_cache.block_allocator import OutOfBlocksError
from neobench.neo_engine.kv_cache.block_tables import BlockTables
from neobench.neo_engine.request import Tier

BLOCK_SIZE, DEVICE_BLOCKS, HOST_BLOCKS = 4, 9, 13
requests = st.integers(0, 4)


class TablesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tables = BlockTables(block_size=BLOCK_SIZE, device_blocks=DEVICE_BLOCKS, host_blocks=HOST_BLOCKS)
        self.tokens: dict[int, int] = {}

    @rule(request=requests, tier=st.sampled_from(Tier), more=st.integers(0, 15))
    def ensure(self, request: int, tier: Tier, more: int) -> None:
        wanted = self.tokens.get(request, 0) + more
        before = self.tables.view()
        if request in self.tables and self.tables[request].tier is not tier:
            with pytest.raises(ValueError, match="lives in"):
                self.tables.ensure(request, tier, wanted)
            return
        try:
            self.tables.ensure(request, tier, wanted)
        except OutOfBlocksError:
            assert self.tables.view() == before
        else:
            self.tokens[request] = wanted

    @rule(request=requests, tier=st.sampled_from(Tier))
    def move(self, request: int, tier: Tier) -> None:
        if request not in self.tables:
            return
        old = self.tables[request]
        if old.tier is tier:
            with pytest.raises(ValueError, match="already"):
                self.tables.move(request, tier)
            return
        before = self.tables.view()
        try:
            move = self.tables.move(request, tier)
        except OutOfBlocksError:
            assert self.tables.view() == before
            return
        assert move.source_tier is old.tier
        assert list(move.source_blocks) == old.blocks
        assert list(move.target_blocks) == self.tables[request].blocks

    @rule(request=requests)
    def release(self, request: int) -> None:
        self.tables.release(request)
        self.tokens.pop(request, None)

    @invariant()
    def blocks_are_neither_lost_nor_shared(self) -> None:
        view = self.tables.view()
        for tier, total, free in (
            (Tier.DEVICE, DEVICE_BLOCKS, view.device_free),
            (Tier.HOST, HOST_BLOCKS, view.host_free),
        ):
            held = [
                block
                for request in self.tokens
                if request in self.tables and self.tables[request].tier is tier
                for block in self.tables[request].blocks
            ]
            assert len(held) == len(set(held)) == total - free

    @invariant()
    def every_token_has_a_place(self) -> None:
        for request, tokens in self.tokens.items():
            assert len(self.tables[request].blocks) == -(-tokens // BLOCK_SIZE)


TablesMachine.TestCase.settings = settings(max_examples=60, deadline=None)
TestTables = TablesMachine.TestCase
