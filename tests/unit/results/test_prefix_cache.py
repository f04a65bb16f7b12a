from __future__ import annotations

import pytest

from neobench.results.columns import RecordColumns
from neobench.results.prefix_cache import prefix_cache, unasked_hits
from neobench.results.record import Outcome, RequestRecord


def columns(*cached_tokens: int | None, warmup_cached_tokens: int = 0) -> RecordColumns:
    records = [
        RequestRecord(
            index=index,
            warmup=warmup,
            prompt_tokens=100,
            requested_output_tokens=1,
            scheduled_ns=0,
            cached_tokens=cached,
            outcome=Outcome.OK,
        )
        for index, (cached, warmup) in enumerate(
            [*((cached, False) for cached in cached_tokens), (warmup_cached_tokens, True)]
        )
    ]
    return RecordColumns(records)


@pytest.mark.parametrize(("shared_tokens", "expected_unasked"), [(None, 16 + 40), (32, 8), (64, 0)])
def test_only_hits_beyond_the_shared_prefix_are_unasked(shared_tokens: int | None, expected_unasked: int) -> None:
    shared = None if shared_tokens is None else {"groups": 2, "tokens": shared_tokens}
    facts = prefix_cache(columns(16, 0, 40, None, warmup_cached_tokens=90), {"shared_prefixes": shared})
    assert facts == {"reporting_requests": 3, "cached_tokens": 56, "unasked_cached_tokens": expected_unasked}


def test_the_warning_says_how_much_and_what_to_do() -> None:
    facts = prefix_cache(columns(16, 40), {})
    (warning,) = unasked_hits(facts, 200)
    assert "56 prompt tokens (28.0%)" in warning
    assert "--prompt-seed" in warning


@pytest.mark.parametrize("cached", [(None, None), (0, 0)])
def test_an_engine_without_hits_is_not_warned_of(cached: tuple[int | None, ...]) -> None:
    assert unasked_hits(prefix_cache(columns(*cached), {}), 200) == []
