"""What policies share: keeping decodes within the blocks of a tier, and admitting prompts first come, first served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neobench.neo_engine.batch import BatchLimits, DecodeRow, KvView, Prefill, RequestView, SubBatch
from neobench.neo_engine.request import Tier


def growth_blocks(request: RequestView, kv: KvView) -> int:
    """Blocks that a running request needs on top of those it holds to come one token further."""
    return kv.blocks_for(request.num_computed_tokens + 1) - request.num_blocks


def admission_blocks(request: RequestView, kv: KvView) -> int:
    """Blocks that must be free to admit a prompt: its own and room for the first decode."""
    return kv.blocks_for(request.num_tokens + 1)


def decode_rows(requests: Sequence[RequestView]) -> tuple[DecodeRow, ...]:
    return tuple(DecodeRow(request.request_id, request.num_tokens) for request in requests)


def by_arrival(*queues: Sequence[RequestView]) -> list[RequestView]:
    """Several queues as one; ids rise with arrival."""
    return sorted((request for queue in queues for request in queue), key=lambda request: request.request_id)


def chunk_of(request: RequestView, tier: Tier, num_tokens: int, kv: KvView, *, free_blocks: int) -> Prefill:
    """The request's next chunk: what is left of its prompt, `num_tokens` at most, in its own and the free blocks."""
    computed = request.num_computed_tokens
    room = (request.num_blocks + free_blocks) * kv.block_size - computed
    size = min(num_tokens, request.num_tokens - computed, room)
    return Prefill(request.request_id, size, tier, computed, request.num_tokens - computed - size)


def split_at_capacity(
    running: Sequence[RequestView], kv: KvView, free_blocks: int
) -> tuple[list[RequestView], list[RequestView], int]:
    """Keep the oldest requests whose next token fits; the newest leave until it does.

    Returns those kept, those leaving (newest first) and the blocks free after the kept ones have grown.
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
    """Rows that may still join an iteration. The first prompt always may, however long."""

    limits: BatchLimits
    used_tokens: int = 0
    prompts: int = 0

    def admits(self, num_tokens: int) -> bool:
        return self.prompts == 0 or self.used_tokens + num_tokens <= self.limits.max_batch_tokens

    def take(self, num_tokens: int) -> None:
        self.used_tokens += num_tokens
        self.prompts += 1


def admit_to_device(
    waiting: Sequence[RequestView], kv: KvView, *, free_blocks: int, free_rows: int, budget: TokenBudget
) -> tuple[list[Prefill], int]:
    """Admit prompts to the device in order of arrival up to the first that does not fit.

    Returns their prefills and the blocks left.
    """
    prefills: list[Prefill] = []
    for request in waiting:
        needed = admission_blocks(request, kv)
        if len(prefills) >= free_rows or needed > free_blocks or not budget.admits(request.num_tokens):
            break
        free_blocks -= needed
        budget.take(request.num_tokens)
        prefills.append(Prefill(request.request_id, request.num_tokens, Tier.DEVICE))
    return prefills, free_blocks


def non_empty(*batches: SubBatch) -> tuple[SubBatch, ...]:
    return tuple(batch for batch in batches if batch.num_rows)
