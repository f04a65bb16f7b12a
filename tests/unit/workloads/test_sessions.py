from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.harness.request import PromptRequest
from neobench.harness.spec import Seeds, SessionSpec
from neobench.workloads.prompts import SharedPrefixes, Streams, build_requests
from neobench.workloads.registry import create
from neobench.workloads.sessions import THINK_TIME_SIGMA, begins_of, draw_begins, draw_think_ns
from neobench.workloads.text import as_text


def streams(session_seed: int = 5, order_seed: int = 4) -> Streams:
    return Streams.of(Seeds(lengths=1, prompts=2, arrivals=3, order=order_seed, sessions=session_seed))


def drawn(
    sessions: SessionSpec | None, num_requests: int = 60, *, max_model_tokens: int | None = None, **options: object
) -> tuple[list[PromptRequest], dict[str, object]]:
    given_streams = options.pop("streams", streams())
    return build_requests(
        create("synthetic:fixed:20,10" if options.pop("fixed", False) else "synthetic:30,10", {}),
        num_requests,
        streams=given_streams,  # type: ignore[arg-type]
        vocab_size=5_000,
        sessions=sessions,
        max_model_tokens=max_model_tokens,
        **options,  # type: ignore[arg-type]
    )


def spec(fewest: int, most: int, think_time_s: float = 1.0, **fields: str) -> SessionSpec:
    return SessionSpec(fewest_turns=fewest, most_turns=most, think_time_s=think_time_s, **fields)  # type: ignore[arg-type]


def by_session(requests: list[PromptRequest]) -> list[list[PromptRequest]]:
    sessions: dict[int, list[PromptRequest]] = {}
    for request in requests:
        if request.session is not None:
            sessions.setdefault(request.session, []).append(request)
    return list(sessions.values())


def test_a_later_prompt_is_the_one_before_and_room_for_its_answer_and_what_is_new() -> None:
    requests, facts = drawn(spec(2, 5))
    sessions = by_session(requests)
    assert sum(map(len, sessions)) == 60
    assert {len(turns) for turns in sessions[:-1]} == {2, 3, 4, 5}
    for turns in sessions:
        assert [request.turn for request in turns] == list(range(len(turns)))
        assert turns[0].think_ns == 0
        for before, after in pairwise(turns):
            assert after.think_ns > 0
            added = after.prompt_tokens - before.prompt_tokens - before.output_tokens
            assert 27 <= added <= 33
            assert after.prompt_token_ids[: before.prompt_tokens] == before.prompt_token_ids
    openings = [turns[0].prompt_token_ids[0] for turns in sessions]
    assert len(set(openings)) == len(openings)
    told = facts["sessions"]
    assert isinstance(told, dict)
    assert (told["sessions"], told["most_turns"], told["outgrown"]) == (len(sessions), 5, 0)
    assert f"60 requests are the turns of {len(sessions)} sessions" in told["sentence"]


def test_requests_without_sessions_are_what_they_always_were() -> None:
    requests, facts = drawn(None)
    assert facts["sessions"] is None
    assert all((request.session, request.turn, request.think_ns) == (None, 0, 0) for request in requests)
    one_turn, _ = drawn(spec(1, 1))
    assert [request.prompt_json for request in one_turn] == [request.prompt_json for request in requests]


def test_the_lengths_drawn_do_not_depend_on_who_sends_them() -> None:
    alone, _ = drawn(None, fixed=False)
    turns, _ = drawn(spec(3, 3), streams=streams(order_seed=9))
    new_tokens = [
        after.prompt_tokens - (before.prompt_tokens + before.output_tokens if after.turn else 0)
        for before, after in pairwise([turns[0], *turns])
    ]
    assert sorted(new_tokens) == sorted(request.prompt_tokens for request in alone)


def test_what_does_not_fit_the_context_begins_a_session_of_its_own() -> None:
    # Turns add 30 tokens each: three fit 100, the fourth would make 120.
    requests, facts = drawn(spec(5, 5), 11, max_model_tokens=100, fixed=True)
    assert [len(turns) for turns in by_session(requests)] == [3, 2, 3, 2, 1]
    assert [request.think_ns == 0 for request in requests] == [request.turn == 0 for request in requests]
    assert max(request.prompt_tokens + request.output_tokens for request in requests) <= 100
    told = facts["sessions"]
    assert isinstance(told, dict)
    assert told["outgrown"] == 2
    assert "2 times the next turn did not fit the model's context of 100 tokens" in told["sentence"]
    assert facts["scaling"] is None


def test_a_shared_prefix_stands_before_the_whole_session() -> None:
    requests, _ = drawn(spec(3, 3), 30, shared_prefixes=SharedPrefixes(2, 16), max_model_tokens=200)
    prefixes = {tuple(request.prompt_token_ids[:16]) for request in requests}
    assert len(prefixes) == 2
    for turns in by_session(requests):
        assert turns[2].prompt_token_ids[: turns[1].prompt_tokens] == turns[1].prompt_token_ids


def test_a_warm_up_is_on_its_own() -> None:
    requests, _ = drawn(spec(4, 4), 8, num_warmup=3)
    assert [request.session for request in requests] == [0] * 4 + [1] * 4 + [None] * 3


def test_text_keeps_the_history_too() -> None:
    requests, _ = drawn(spec(3, 3), 6)
    first, second, *_ = as_text(requests, vocab_size=5_000)
    assert second.prompt_json.startswith(first.prompt_json.rstrip(b'"'))
    assert (second.session, second.turn) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "deviation_s"),
    [("fixed", 0.0), ("exponential", 2.0), ("lognormal", 2.0 * np.sqrt(np.exp(THINK_TIME_SIGMA**2) - 1))],
)
def test_users_think_for_the_mean_time_asked_for(kind: str, deviation_s: float) -> None:
    begins = begins_of([2] * 20_000, 40_000)
    think_ns = draw_think_ns(spec(2, 2, 2.0, think_time_kind=kind), begins, np.random.default_rng(0))
    assert (think_ns[begins] == 0).all()
    think_s = think_ns[~begins] / 1e9
    assert think_s.mean() == pytest.approx(2.0, rel=0.03)
    assert think_s.std() == pytest.approx(deviation_s, rel=0.05, abs=1e-9)


def test_without_a_time_to_think_the_next_turn_follows_at_once() -> None:
    requests, _ = drawn(spec(3, 3, 0.0))
    assert not any(request.think_ns for request in requests)


@given(
    fewest=st.integers(1, 6),
    more=st.integers(0, 6),
    num_requests=st.integers(1, 80),
    max_model_tokens=st.none() | st.integers(46, 400),
)
@settings(max_examples=60, deadline=None)
def test_every_turn_has_its_place(fewest: int, more: int, num_requests: int, max_model_tokens: int | None) -> None:
    requests, _ = drawn(spec(fewest, fewest + more), num_requests, max_model_tokens=max_model_tokens)
    assert [request.index for request in requests] == list(range(num_requests))
    for turns in by_session(requests):
        assert len(turns) <= fewest + more
        assert [request.turn for request in turns] == list(range(len(turns)))
    if max_model_tokens is not None:
        assert all(request.prompt_tokens + request.output_tokens <= max_model_tokens for request in requests)


def test_numbers_of_turns_have_equal_chances() -> None:
    begins = draw_begins(spec(1, 4), 100_000, np.random.default_rng(0))
    counts = np.bincount(np.diff(np.flatnonzero(begins)))[1:]
    assert len(counts) == 4
    assert counts / counts.sum() == pytest.approx([0.25] * 4, abs=0.01)
