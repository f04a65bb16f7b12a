"""Prompt tokens that an engine found in its prefix cache, held against what the prompts have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neobench.results.columns import Int64Array, RecordColumns


def prefix_cache(columns: RecordColumns, workload: Mapping[str, Any]) -> dict[str, int] | None:
    """{"reporting_requests", "cached_tokens", "unasked_cached_tokens"} over measured requests; None: none reported.

    Unasked are those beyond the shared prefix of a request, and of a later turn beyond the prompt before it: no other
    part of a prompt was ever sent before.
    """
    cached_tokens = columns.optional_integers("cached_tokens", absent=-1)
    reported = ~columns.warmup & (cached_tokens >= 0)
    if not reported.any():
        return None
    shared_tokens = (workload.get("shared_prefixes") or {}).get("tokens", 0)
    known_tokens = np.maximum(shared_tokens, _tokens_of_turn_before(columns))
    return {
        "reporting_requests": int(reported.sum()),
        "cached_tokens": int(cached_tokens[reported].sum()),
        "unasked_cached_tokens": int((cached_tokens - known_tokens)[reported].clip(min=0).sum()),
    }


def _tokens_of_turn_before(columns: RecordColumns) -> Int64Array:
    """[num_requests] Of the whole prompt that the session sent before; 0 for a first turn.

    By the engine's count where it reports one: a chat template adds to a prompt, and is cached with it.
    """
    sessions, turns = columns.optional_integers("session", absent=-1), columns.optional_integers("turn", absent=0)
    own = columns.integers("prompt_tokens")
    tokens = np.maximum(own, columns.optional_integers("reported_prompt_tokens", absent=0))
    sent = dict(zip(zip(sessions.tolist(), turns.tolist(), strict=True), tokens.tolist(), strict=True))
    before = [
        0 if turn == 0 else sent.get((session, turn - 1), 0)
        for session, turn in zip(sessions.tolist(), turns.tolist(), strict=True)
    ]
    return np.array(before, dtype=np.int64)


def unasked_hits(facts: Mapping[str, int] | None, prompt_tokens: int) -> list[str]:
    """A warning when the engine saved work that the workload asked for; `prompt_tokens` of all measured requests."""
    if not facts or not facts["unasked_cached_tokens"]:
        return []
    unasked = facts["unasked_cached_tokens"]
    return [
        f"The engine took {unasked} prompt tokens ({unasked / prompt_tokens:.1%}) from a prefix cache, which the "
        "workload did not ask for: no prompts share them. It has perhaps seen these prompts in an earlier run; "
        "restart it, turn its prefix cache off or use another --prompt-seed."
    ]
