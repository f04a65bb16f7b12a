"""Which blocks of which tier hold the KV of each request. Pure integers."""

from __future__ import annotations

from dataclasses import dataclass

from neobench.neo_engine.batch import KvView
from neobench.neo_engine.kv_cache.block_allocator import BlockAllocator
from neobench.neo_engine.request import Tier


@dataclass
class BlockTable:
    """The blocks of one request, in token order, all in one tier."""

    tier: Tier
    blocks: list[int]


@dataclass(frozen=True)
class BlockMove:
    """Copies of whole blocks from one tier to the other: source[i] -> target[i]."""

    source_tier: Tier
    source_blocks: tuple[int, ...]
    target_blocks: tuple[int, ...]


class BlockTables:
    """Block tables of all requests over the allocators of the two tiers."""

    def __init__(self, *, block_size: int, device_blocks: int, host_blocks: int) -> None:
        self.block_size = block_size
        self._allocators = {Tier.DEVICE: BlockAllocator(device_blocks), Tier.HOST: BlockAllocator(host_blocks)}
        self._tables: dict[int, BlockTable] = {}

    def __getitem__(self, request_id: int) -> BlockTable:
        return self._tables[request_id]

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._tables

    def get(self, request_id: int) -> BlockTable | None:
        return self._tables.get(request_id)

    def view(self) -> KvView:
        device, host = self._allocators[Tier.DEVICE], self._allocators[Tier.HOST]
        return KvView(
            block_size=self.block_size,
            device_total=device.num_blocks,
            device_free=device.num_free,
            host_total=host.num_blocks,
            host_free=host.num_free,
        )

    def ensure(self, request_id: int, tier: Tier, num_tokens: int) -> None:
        """Give the request, in `tier`, every block that `num_tokens` need. Raises OutOfBlocksError and changes nothing.

        Raises ValueError if its KV already lives in the other tier: it must be moved, not split.
        """
        table = self._tables.get(request_id)
        if table is not None and table.tier is not tier:
            raise ValueError(f"request {request_id} lives in the {table.tier.value} tier, not in {tier.value}")
        missing = -(-num_tokens // self.block_size) - (len(table.blocks) if table else 0)
        if table is not None and missing <= 0:
            return
        blocks = self._allocators[tier].allocate(max(0, missing))
        if table is None:
            self._tables[request_id] = BlockTable(tier, blocks)
        else:
            table.blocks.extend(blocks)

    def move(self, request_id: int, target: Tier) -> BlockMove:
        """Move the request to the other tier; the caller copies the contents before either side is written again."""
        table = self._tables[request_id]
        if table.tier is target:
            raise ValueError(f"request {request_id} already lives in the {target.value} tier")
        blocks = self._allocators[target].allocate(len(table.blocks))
        self._allocators[table.tier].free(table.blocks)
        move = BlockMove(table.tier, tuple(table.blocks), tuple(blocks))
        self._tables[request_id] = BlockTable(target, blocks)
        return move

    def release(self, request_id: int) -> None:
        """Free all blocks of the request; unknown requests hold none."""
        table = self._tables.pop(request_id, None)
        if table is not None:
            self._allocators[table.tier].free(table.blocks)
