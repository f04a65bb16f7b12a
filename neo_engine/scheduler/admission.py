"""What policies share: keeping requests within the blocks of a tier, and taking up prompts first come, first served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neobench.neo_engine.batch import DecodeRow, KvView, Prefill, RequestView, SubBatch
from neobench.neo_engine.request import Tier


def growth_blocks(request: RequestView, kv: KvView) -> int:
    """Blocks that a running request needs on top of those it holds to come one token further."""
    return kv.blocks_for(request.num_computed_tokens + 1) - request.num_blocks


def admission_blocks(request: RequestView, kv: KvView) -> int:
    """Blocks that must be free to admit a prompt: its own and room for the first decode."""
    return kv.blocks_for(request.num_tokens + 1)


def blocks_to_come(begun: Iterable[RequestView], kv: KvView) -> int:
    """Blocks that prompts begun need for all of their tokens and the first decode, past those for their next token."""
    return sum(admission_blocks(request, kv) - kv.blocks_for(request.num_computed_tokens + 1) for request in begun)


def decode_rows(requests: Iterable[RequestView]) -> tuple[DecodeRow, ...]:
    return tuple(DecodeRow(request.request_id, request.num_tokens) for request in requests)


def ids(requests: Iterable[RequestView]) -> tuple[int, ...]:
    return tuple(request.request_id for request in requests)


def by_arrival(*queues: Sequence[RequestView]) -> list[RequestView]:
    """Several queues as one; ids rise with arrival."""
    return sorted((request for queue in queues for request in queue), key=lambda request: request.request_id)


def is_begun(request: RequestView) -> bool:
    """Whether a running request's prompt needs another chunk."""
    return request.num_computed_tokens < request.num_tokens - 1


def split_at_capacity(
    running: Sequence[RequestView], kv: KvView, free_blocks: int
) -> tuple[list[RequestView], list[RequestView], int]:
    """Keep the oldest requests whose next token fits; the newest leave until it does.

    Returns those kept, those leaving (newest first) and the blocks free after the kept ones have grown by a token.
    """
    kept, leaving = list(running), []
    free = free_blocks - sum(growth_blocks(request, kv) for request in kept)
    while free < 0 and kept:
        victim = kept.pop()
        leaving.append(victim)
        free += growth_blocks(victim, kv) + victim.num_blocks
    return kept, leaving, free


@dataclass
class TokenBudget:
    """Prompt tokens that may still join an iteration. Without chunks the first prompt always may, however long."""

    tokens_left: int
    chunked: bool
    prompts: int = 0

    def take(self, num_tokens: int) -> int:
        """Tokens granted of those asked for: 0 to all in chunks, else none or all."""
        granted = max(0, min(num_tokens, self.tokens_left))
        if not self.chunked and granted < num_tokens:
            granted = 0 if self.prompts else num_tokens
        self.tokens_left -= granted
        self.prompts += granted > 0
        return granted


def next_chunks(
    begun: Iterable[RequestView], tier: Tier, kv: KvView, *, free_blocks: int, budget: TokenBudget
) -> tuple[list[Prefill], int]:
    """Chunks of the prompts begun, the oldest as far as blocks and budget go, then the next.

    `free_blocks` is what `split_at_capacity` left: each finds a block for one token more set aside for it. Returns the
    chunks and the blocks left.
    """
    chunks = []
    for request in begun:
        computed = request.num_computed_tokens
        blocks = request.num_blocks + growth_blocks(request, kv)
        room_tokens = (blocks + free_blocks) * kv.block_size - computed
        size = budget.take(min(request.num_tokens - computed, room_tokens))
        if not size:
            break
        free_blocks -= kv.blocks_for(computed + size) - blocks
        chunks.append(Prefill(request.request_id, size, tier, computed, request.num_tokens - computed - size))
    return chunks, free_blocks


def admit(
    waiting: Iterable[RequestView], tier: Tier, kv: KvView, *, free_blocks: int, free_rows: int, budget: TokenBudget
) -> tuple[list[Prefill], int]:
    """Take up prompts in order of arrival up to the first that does not fit, all of its blocks counted.

    Returns their prefills and the blocks that none of them will need.
    """
    prefills: list[Prefill] = []
    for request in waiting:
        needed = admission_blocks(request, kv)
        if len(prefills) >= free_rows or needed > free_blocks:
            break
        size = budget.take(request.num_tokens)
        if not size:
            break
        free_blocks -= needed
        prefills.append(Prefill(request.request_id, size, tier, remaining_tokens=request.num_tokens - size))
    return prefills, free_blocks


def non_empty(*batches: SubBatch) -> tuple[SubBatch, ...]:
    return tuple(batch for batch in batches if batch.num_rows)
