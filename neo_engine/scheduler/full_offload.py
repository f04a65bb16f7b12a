"""All decode attention on the host: FastDecode (arXiv 2403.11421), with NEO's overlap of two sub-batches.

Every prompt's KV goes to the host and stays there; the device's KV memory is left unused.
"""

from __future__ import annotations

from collections.abc import Sequence

from neobench.neo_engine.batch import (
    BatchLimits,
    DecodeRow,
    KvView,
    Mode,
    Prefill,
    QueuesView,
    RequestView,
    StepPlan,
    SubBatch,
)
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.request import Tier
from neobench.neo_engine.scheduler.admission import TokenBudget, admit, decode_rows, ids, non_empty, split_at_capacity


class FullOffload:
    """All decodes each step, in two sub-batches of equal context wherever there are two; prompts join the first.

    Admission and preemption as in `gpu_only`, with the blocks of the host and the rows of two sub-batches.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits

    def next_step(self, queues: QueuesView, kv: KvView, costs: CostModel) -> StepPlan:
        kept, preempted, free = split_at_capacity(queues.on_host, kv, kv.host_free)
        prefills: list[Prefill] = []
        if not preempted:
            budget = TokenBudget(self._limits.max_batch_tokens - len(kept), chunked=False)
            free_rows = 2 * self._limits.max_batch_rows - len(kept)
            prefills, _ = admit(queues.waiting, Tier.HOST, kv, free_blocks=free, free_rows=free_rows, budget=budget)
        rows0, rows1 = equal_halves(kept)
        batches = non_empty(SubBatch(tuple(prefills), host_decodes=rows0), SubBatch(host_decodes=rows1))
        if rows1:
            mode = Mode.ASYMMETRIC
        elif rows0:
            mode = Mode.SERIAL
        else:
            mode = Mode.GPU_ONLY if prefills else Mode.IDLE
        predicted = costs.predict_plan(mode, batches)
        return StepPlan(mode=mode, sub_batches=batches, preempt=ids(preempted), predicted=predicted)


def equal_halves(requests: Sequence[RequestView]) -> tuple[tuple[DecodeRow, ...], tuple[DecodeRow, ...]]:
    """Two groups of about equal context, and of equal size but for one: the longest first, in pairs.

    Of each pair the longer goes to the group with less context so far, so the two never differ by more than the
    longest one's context.
    """
    longest_first = sorted(decode_rows(requests), key=lambda row: -row.context_tokens)
    groups: tuple[list[DecodeRow], list[DecodeRow]] = ([], [])
    surplus = 0
    for longer, shorter in zip(longest_first[::2], [*longest_first[1::2], None], strict=False):
        to = int(surplus > 0)
        groups[to].append(longer)
        surplus += -longer.context_tokens if to else longer.context_tokens
        if shorter is not None:
            groups[1 - to].append(shorter)
            surplus += shorter.context_tokens if to else -shorter.context_tokens
    first, second = sorted(groups, key=len, reverse=True)
    return tuple(first), tuple(second)
