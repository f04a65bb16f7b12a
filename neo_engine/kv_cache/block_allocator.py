"""Free blocks of one KV tier. Pure integers."""

from __future__ import annotations

from collections.abc import Iterable


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free. A policy that plans within its KvView never sees it."""


class BlockAllocator:
    """Hands out block numbers 0 to num_blocks - 1, each to one owner at a time."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` free blocks, or OutOfBlocksError and no change."""
        if count > len(self._free):
            raise OutOfBlocksError(f"{count} blocks wanted, {len(self._free)} of {self.num_blocks} are free")
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._is_free[block] = False
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Take blocks back. A block that is already free, or was never there, is a ValueError and nothing changes."""
        returned = list(blocks)
        if len(set(returned)) != len(returned):
            raise ValueError(f"a block is freed twice in one call: {returned}")
        for block in returned:
            if not 0 <= block < self.num_blocks or self._is_free[block]:
                raise ValueError(f"block {block} is not allocated")
        for block in returned:
            self._is_free[block] = True
        self._free.extend(reversed(returned))
