"""The GPU-only baseline: whole prompts, KV on the device, first come first served, preemption by recompute."""

from __future__ import annotations

from neobench.neo_engine.batch import BatchLimits, KvView, Mode, Prefill, QueuesView, StepPlan, SubBatch
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.request import Tier
from neobench.neo_engine.scheduler.admission import TokenBudget, admit, decode_rows, ids, non_empty, split_at_capacity


class GpuOnly:
    """All decodes each step; prompts join them while they fit; the newest request yields its blocks when none are left.

    A request whose blocks are taken waits, by its arrival, for a new prefill of prompt and output so far. A step that
    preempts admits nobody: a newcomer would take the blocks that the older ones are short of.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits

    def next_step(self, queues: QueuesView, kv: KvView, costs: CostModel) -> StepPlan:
        kept, preempted, free = split_at_capacity(queues.on_device, kv, kv.device_free)
        prefills: list[Prefill] = []
        if not preempted:
            budget = TokenBudget(self._limits.max_batch_tokens - len(kept), chunked=False)
            free_rows = self._limits.max_batch_rows - len(kept)
            prefills, _ = admit(queues.waiting, Tier.DEVICE, kv, free_blocks=free, free_rows=free_rows, budget=budget)
        batches = non_empty(SubBatch(prefills=tuple(prefills), device_decodes=decode_rows(kept)))
        mode = Mode.GPU_ONLY if batches else Mode.IDLE
        predicted = costs.predict_plan(mode, batches)
        return StepPlan(mode=mode, sub_batches=batches, preempt=ids(preempted), predicted=predicted)
