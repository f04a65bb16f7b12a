from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.workloads.prompts import build_requests, scale_down, unique_prompts
from neobench.workloads.registry import create
from neobench.workloads.workload import WorkloadError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=120), st.integers(14, 200_000), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_prompts_have_exact_lengths_and_no_common_beginning(lengths: list[int], vocab_size: int, seed: int) -> None:
    prompts = unique_prompts(np.array(lengths, dtype=np.int64), vocab_size=vocab_size, rng=rng(seed))
    assert [len(prompt) for prompt in prompts] == lengths
    assert len({tuple(prompt[:2]) for prompt in prompts}) == len(prompts)
    lowest = min(256, vocab_size // 4)
    assert all(lowest <= token < vocab_size and isinstance(token, int) for prompt in prompts for token in prompt)


def test_one_token_tells_prompts_apart_where_the_vocabulary_allows() -> None:
    prompts = unique_prompts(np.ones(3_000, dtype=np.int64), vocab_size=32_000, rng=rng())
    assert len({prompt[0] for prompt in prompts}) == 3_000


def test_too_short_prompts_are_refused_with_what_to_do() -> None:
    with pytest.raises(WorkloadError, match="use fewer requests, longer prompts or a larger vocabulary"):
        unique_prompts(np.ones(13, dtype=np.int64), vocab_size=16, rng=rng())
    with pytest.raises(WorkloadError, match="vocabulary of 1"):
        unique_prompts(np.ones(1, dtype=np.int64), vocab_size=1, rng=rng())


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)), min_size=1, max_size=50), st.integers(2, 10_000)
)
@settings(max_examples=150, deadline=None)
def test_scaled_requests_fit_and_keep_at_least_a_token(rows: list[tuple[int, int]], max_model_tokens: int) -> None:
    prompt_tokens, output_tokens = np.array(rows, dtype=np.int64).T
    longest = max(int((prompt_tokens + output_tokens).max()), max_model_tokens)
    prompts, outputs = (
        scale_down(tokens, longest_tokens=longest, max_model_tokens=max_model_tokens)
        for tokens in (prompt_tokens, output_tokens)
    )
    assert (prompts + outputs).max() <= max_model_tokens
    assert min(prompts.min(), outputs.min()) >= 1
    assert (prompts <= prompt_tokens).all()


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(WorkloadError, match="no room"):
        scale_down(np.array([5], dtype=np.int64), longest_tokens=10, max_model_tokens=1)


def test_build_requests_says_that_it_scaled_and_by_how_much() -> None:
    workload = create("carperai", {})
    sizes: dict[str, int] = {"vocab_size": 1_000, "max_model_tokens": 359}
    requests, info = build_requests(workload, 50, length_rng=rng(1), prompt_rng=rng(2), **sizes)
    _, more_info = build_requests(workload, 400, length_rng=rng(3), prompt_rng=rng(4), **sizes)

    assert [request.index for request in requests] == list(range(50))
    assert all(request.prompt_tokens + request.output_tokens <= 359 for request in requests)
    assert info["scaling"]["factor"] == pytest.approx(359 / 718)
    assert "multiplied by 0.500" in info["scaling"]["sentence"]
    assert more_info["scaling"] == info["scaling"], "the factor depends on neither seed nor number of requests"
    assert info["prompt_tokens"]["total"] == sum(request.prompt_tokens for request in requests)
    assert json.loads(json.dumps(info)) == info


def test_lengths_that_fit_are_left_alone() -> None:
    workload = create("synthetic:100,10", {})
    for max_model_tokens in (121, None):
        requests, info = build_requests(
            workload, 20, length_rng=rng(1), prompt_rng=rng(2), vocab_size=500, max_model_tokens=max_model_tokens
        )
        assert info["scaling"] is None
        assert min(request.prompt_tokens for request in requests) >= 90


def test_lengths_and_prompts_have_streams_of_their_own() -> None:
    workload = create("carperai", {})

    def draw(length_seed: int, prompt_seed: int) -> tuple[list[int], list[list[int]]]:
        requests, _ = build_requests(
            workload,
            30,
            length_rng=rng(length_seed),
            prompt_rng=rng(prompt_seed),
            vocab_size=32_000,
            max_model_tokens=None,
        )
        return [request.output_tokens for request in requests], [request.prompt_token_ids for request in requests]

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2)[0] == draw(1, 3)[0]
    assert draw(1, 2)[1] != draw(1, 3)[1]
