"""Prompt tokens that an engine found in its prefix cache, held against what the prompts have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neobench.results.columns import RecordColumns


def prefix_cache(columns: RecordColumns, workload: Mapping[str, Any]) -> dict[str, int] | None:
    """{"reporting_requests", "cached_tokens", "unasked_cached_tokens"} over measured requests; None: none reported.

    Unasked are those beyond the shared prefix of a request: no other part of a prompt was ever sent before.
    """
    cached_tokens = columns.optional_integers("cached_tokens", absent=-1)[~columns.warmup]
    reported = cached_tokens[cached_tokens >= 0]
    if not len(reported):
        return None
    shared_tokens = (workload.get("shared_prefixes") or {}).get("tokens", 0)
    return {
        "reporting_requests": len(reported),
        "cached_tokens": int(reported.sum()),
        "unasked_cached_tokens": int((reported - shared_tokens).clip(min=0).sum()),
    }


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
