"""vLLM's discipline, without its code: a token budget an iteration, decodes first, prompts cut to what is left of it.

GPU-only like `gpu_only`, but no prompt ever holds up the decodes for longer than one budget: the strongest GPU-only
baseline. Blocks are taken chunk by chunk, and no room is kept for later ones.
"""

from __future__ import annotations

from neobench.neo_engine.batch import BatchLimits, KvView, Mode, QueuesView, StepPlan, SubBatch
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.request import Tier
from neobench.neo_engine.scheduler.admission import (
    by_arrival,
    chunk_of,
    decode_rows,
    growth_blocks,
    non_empty,
    split_at_capacity,
)


class ChunkedPrefill:
    """All decodes, then chunks of the prompts begun, then new prompts, each in order of arrival.

    Every running request comes at least a token further each step: there are never more of them than the budget has
    tokens, and the newest yields its blocks where not all find room. It waits, by its arrival, for a prefill from its
    first token; a step that preempts admits nobody.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits

    def next_step(self, queues: QueuesView, kv: KvView, costs: CostModel) -> StepPlan:
        running = by_arrival(queues.on_device, queues.prefilling_on_device)
        kept, preempted, free_blocks = split_at_capacity(running, kv, kv.device_free)
        remaining = {request.request_id for request in queues.prefilling_on_device}
        decodes = [request for request in kept if request.request_id not in remaining]
        begun = [request for request in kept if request.request_id in remaining]
        budget = self._limits.max_batch_tokens - len(decodes)
        chunks = []
        for position, request in enumerate(begun):
            # The later ones keep a token each, and the blocks that `split_at_capacity` set aside for it.
            own_free = free_blocks + growth_blocks(request, kv)
            chunk = chunk_of(request, Tier.DEVICE, budget - (len(begun) - position - 1), kv, free_blocks=own_free)
            free_blocks = own_free - (kv.blocks_for(chunk.end_tokens) - request.num_blocks)
            budget -= chunk.num_tokens
            chunks.append(chunk)
        free_rows = min(self._limits.max_batch_rows, self._limits.max_batch_tokens) - len(kept)
        for request in [] if preempted else queues.waiting[: max(0, free_rows)]:
            num_tokens = min(budget, request.num_tokens)
            if num_tokens < 1 or kv.blocks_for(num_tokens) > free_blocks:
                break
            chunks.append(chunk_of(request, Tier.DEVICE, num_tokens, kv, free_blocks=free_blocks))
            free_blocks -= kv.blocks_for(num_tokens)
            budget -= num_tokens
        batches = non_empty(SubBatch(prefills=tuple(chunks), device_decodes=decode_rows(decodes)))
        mode = Mode.GPU_ONLY if batches else Mode.IDLE
        return StepPlan(
            mode=mode,
            sub_batches=batches,
            preempt=tuple(request.request_id for request in preempted),
            predicted=costs.predict_plan(mode, batches),
        )
