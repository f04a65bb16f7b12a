"""What an executor gets for one sub-batch: the plan's rows with their tokens and blocks filled in. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neobench.neo_engine.batch import DecodeRow, SubBatch
from neobench.neo_engine.kv_cache.block_tables import BlockTables
from neobench.neo_engine.request import PENDING_TOKEN, Request, Tier


@dataclass(frozen=True)
class PrefillInput:
    """`num_tokens` tokens of one request after its first `start_tokens`, whose KV is in `tier` already.

    `blocks` hold the KV of them all, from the request's first token on. The chunk attends to start_tokens + num_tokens
    tokens, causally; only one that `ends_prompt` predicts a token. KV read back from an int8 tier is rounded.
    """

    num_tokens: int
    tier: Tier
    blocks: Sequence[int]
    start_tokens: int = 0
    ends_prompt: bool = True


@dataclass(frozen=True)
class DecodeInput:
    """Decode rows of one tier: block numbers in token order and tokens attended to, the new one included."""

    tables: tuple[Sequence[int], ...]
    contexts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.contexts)


@dataclass(frozen=True)
class BatchInputs:
    """Rows in the order prefills, device decodes, host decodes; token_ids and positions have an entry for each.

    A token id of -1 - i is token i of the iteration before (see AheadExecutor).
    """

    token_ids: list[int]
    positions: list[int]
    prefills: tuple[PrefillInput, ...]
    device: DecodeInput
    host: DecodeInput

    @property
    def num_prefill_tokens(self) -> int:
        return sum(prefill.num_tokens for prefill in self.prefills)

    @property
    def logit_rows(self) -> list[int]:
        """The row that predicts the next token, for each request in order that gets one."""
        rows, end = [], 0
        for prefill in self.prefills:
            end += prefill.num_tokens
            if prefill.ends_prompt:
                rows.append(end - 1)
        return rows + list(range(end, end + len(self.device) + len(self.host)))


def request_ids(batch: SubBatch) -> list[int]:
    """Requests of a sub-batch that get a token, in the order of its logits."""
    prefills = [prefill.request_id for prefill in batch.prefills if prefill.ends_prompt]
    return prefills + [row.request_id for row in (*batch.device_decodes, *batch.host_decodes)]


def fill_in(
    batch: SubBatch, requests: Mapping[int, Request], tables: BlockTables, ids_before: Sequence[int] = ()
) -> BatchInputs:
    """`ids_before` are the requests that get a token from the iteration before, where that is not finished."""
    pending = {request_id: -1 - index for index, request_id in enumerate(ids_before)}
    token_ids: list[int] = []
    positions: list[int] = []
    prefills = []
    for prefill in batch.prefills:
        start, end = prefill.start_tokens, prefill.end_tokens
        token_ids += requests[prefill.request_id].all_token_ids()[start:end]
        positions += range(start, end)
        blocks = tables[prefill.request_id].blocks
        prefills.append(PrefillInput(prefill.num_tokens, prefill.tier, blocks, start, prefill.ends_prompt))
    for row in (*batch.device_decodes, *batch.host_decodes):
        token_id = requests[row.request_id].last_token_id
        token_ids.append(pending[row.request_id] if token_id == PENDING_TOKEN else token_id)
        positions.append(row.context_tokens - 1)
    return BatchInputs(
        token_ids=token_ids,
        positions=positions,
        prefills=tuple(prefills),
        device=_decode_input(batch.device_decodes, tables),
        host=_decode_input(batch.host_decodes, tables),
    )


def _decode_input(rows: Sequence[DecodeRow], tables: BlockTables) -> DecodeInput:
    return DecodeInput(
        tables=tuple(tables[row.request_id].blocks for row in rows),
        contexts=tuple(row.context_tokens for row in rows),
    )
