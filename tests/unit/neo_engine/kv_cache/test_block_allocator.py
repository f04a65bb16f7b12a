"""No leak and no double free, whatever happens in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from neobench.neo_engine.kv_cache.block_allocator import BlockAllocator, OutOfBlocksError


class AllocatorMachine(RuleBasedStateMachine):
    NUM_BLOCKS = 17

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(self.NUM_BLOCKS)
        self.held: list[list[int]] = []

    @rule(count=st.integers(0, 20))
    def allocate(self, count: int) -> None:
        free = self.allocator.num_free
        if count > free:
            with pytest.raises(OutOfBlocksError):
                self.allocator.allocate(count)
            assert self.allocator.num_free == free
        else:
            self.held.append(self.allocator.allocate(count))

    @rule(data=st.data())
    def free_some(self, data: st.DataObject) -> None:
        if self.held:
            self.allocator.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(block=st.integers(-3, 20))
    def free_what_nobody_holds(self, block: int) -> None:
        if not any(block in owned for owned in self.held):
            with pytest.raises(ValueError, match="not allocated"):
                self.allocator.free([block])

    @rule()
    def free_twice_in_one_call(self) -> None:
        owned = next((blocks for blocks in self.held if blocks), None)
        if owned:
            with pytest.raises(ValueError, match="twice"):
                self.allocator.free([owned[0], owned[0]])

    @invariant()
    def every_block_has_one_owner(self) -> None:
        blocks = [block for owned in self.held for block in owned]
        assert len(set(blocks)) == len(blocks)
        assert all(0 <= block < self.NUM_BLOCKS for block in blocks)
        assert self.allocator.num_free + len(blocks) == self.NUM_BLOCKS


AllocatorMachine.TestCase.settings = settings(max_examples=60, deadline=None)
TestAllocator = AllocatorMachine.TestCase
