"""vLLM's discipline, without its code: a token budget an iteration, decodes first, prompts cut to what is left of it.

GPU-only like `gpu_only`, but no prompt ever holds up the decodes for longer than one budget: the strongest GPU-only
baseline. Blocks are taken chunk by chunk; a prompt is taken up where all of it fits, as vLLM has done by default since
it was found to thrash otherwise (its scheduler_reserve_full_isl). No room is kept for the output.
"""

from __future__ import annotations

from neobench.neo_engine.batch import BatchLimits, KvView, Mode, QueuesView, StepPlan, SubBatch
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.request import Tier
from neobench.neo_engine.scheduler.admission import (
    TokenBudget,
    admit,
    blocks_to_come,
    by_arrival,
    decode_rows,
    ids,
    is_begun,
    next_chunks,
    non_empty,
    split_at_capacity,
)


class ChunkedPrefill:
    """All decodes, then chunks of the prompts begun, then new prompts, each in order of arrival.

    There are never more running requests than the budget has tokens, so the oldest prompt begun always goes on. The
    newest request yields its blocks when a running one finds none for its next token. It waits, by its arrival, for a
    prefill from its first token; a step that preempts admits nobody.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits

    def next_step(self, queues: QueuesView, kv: KvView, costs: CostModel) -> StepPlan:
        running = by_arrival(queues.on_device, queues.prefilling_on_device)
        kept, preempted, free_blocks = split_at_capacity(running, kv, kv.device_free)
        begun = [request for request in kept if is_begun(request)]
        decodes = [request for request in kept if not is_begun(request)]
        budget = TokenBudget(self._limits.max_batch_tokens - len(decodes), chunked=True)
        chunks, _ = next_chunks(begun, Tier.DEVICE, kv, free_blocks=free_blocks, budget=budget)
        if not preempted:
            free_blocks -= blocks_to_come(begun, kv)
            free_rows = min(self._limits.max_batch_rows, self._limits.max_batch_tokens) - len(kept)
            new, _ = admit(queues.waiting, Tier.DEVICE, kv, free_blocks=free_blocks, free_rows=free_rows, budget=budget)
            chunks += new
        batches = non_empty(SubBatch(prefills=tuple(chunks), device_decodes=decode_rows(decodes)))
        mode = Mode.GPU_ONLY if batches else Mode.IDLE
        predicted = costs.predict_plan(mode, batches)
        return StepPlan(mode=mode, sub_batches=batches, preempt=ids(preempted), predicted=predicted)
