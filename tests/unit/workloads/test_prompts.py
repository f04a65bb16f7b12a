from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.workloads.prompts import SharedPrefixes, Streams, build_requests, scale_down, unique_prompts
from neobench.workloads.registry import create
from neobench.workloads.workload import WorkloadError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def streams(length_seed: int, prompt_seed: int, order_seed: int = 0) -> Streams:
    return Streams(lengths=rng(length_seed), prompts=rng(prompt_seed), order=rng(order_seed), sessions=rng())


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
    requests, info = build_requests(workload, 50, streams=streams(1, 2), **sizes)
    _, more_info = build_requests(workload, 400, streams=streams(3, 4), **sizes)

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
            workload, 20, streams=streams(1, 2), vocab_size=500, max_model_tokens=max_model_tokens
        )
        assert info["scaling"] is None
        assert min(request.prompt_tokens for request in requests) >= 90


def test_lengths_order_and_prompts_have_streams_of_their_own() -> None:
    workload = create("carperai", {})

    def draw(*seeds: int) -> tuple[list[tuple[int, int]], list[list[int]]]:
        requests, _ = build_requests(
            workload, 30, num_warmup=4, streams=streams(*seeds), vocab_size=32_000, max_model_tokens=None
        )
        lengths = [(request.prompt_tokens, request.output_tokens) for request in requests]
        return lengths, [request.prompt_token_ids[:1] for request in requests]

    lengths, first_tokens = draw(1, 2, 3)
    assert draw(1, 2, 3) == (lengths, first_tokens)
    assert draw(1, 4, 3)[0] == lengths
    assert draw(1, 4, 3)[1] != first_tokens
    reordered, same_tokens = draw(1, 2, 4)
    assert same_tokens == first_tokens
    assert reordered[:30] != lengths[:30]
    assert sorted(reordered[:30]) == sorted(lengths[:30]), "the order moves measured requests among themselves"
    assert reordered[30:] == lengths[30:]


def test_a_trace_is_replayed_row_by_row_with_its_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("timestamp_ms,input_tokens,output_tokens\n3000,30,3\n1000,10,1\n1500,15,2\n9000,90,9\n")
    requests, info = build_requests(
        create(f"trace:{path}", {}),
        3,
        num_warmup=2,
        replay=True,
        streams=streams(1, 2),
        vocab_size=500,
        max_model_tokens=None,
    )
    assert [(request.prompt_tokens, request.output_tokens, request.arrival_ns) for request in requests[:3]] == [
        (10, 1, 0),
        (15, 2, 500_000_000),
        (30, 3, 2_000_000_000),
    ]
    assert [request.arrival_ns for request in requests[3:]] == [None, None]
    assert info["workload"]["file_requests"] == 4


def test_a_workload_without_times_cannot_be_replayed(tmp_path: Path) -> None:
    timeless = tmp_path / "lengths.csv"
    timeless.write_text("prompt,max_tokens\n5,6\n")
    for name, message in (("carperai", "does not know when"), (f"trace:{timeless}", "has no times to replay")):
        with pytest.raises(WorkloadError, match=message):
            build_requests(
                create(name, {}), 1, replay=True, streams=streams(1, 2), vocab_size=500, max_model_tokens=None
            )
    timed = tmp_path / "timed.csv"
    timed.write_text("timestamp_s,prompt,max_tokens\n0,5,6\n")
    with pytest.raises(WorkloadError, match="has 1 requests to replay, not 2"):
        build_requests(
            create(f"trace:{timed}", {}), 2, replay=True, streams=streams(1, 2), vocab_size=500, max_model_tokens=None
        )


def test_shared_prefixes_stand_in_front_and_nothing_behind_them_is_shared() -> None:
    workload = create("synthetic:fixed:20,5", {})
    requests, info = build_requests(
        workload,
        60,
        streams=streams(1, 2),
        vocab_size=2_000,
        max_model_tokens=None,
        shared_prefixes=SharedPrefixes(groups=3, tokens=8),
    )
    prompts = [request.prompt_token_ids for request in requests]
    assert {request.prompt_tokens for request in requests} == {len(prompt) for prompt in prompts} == {28}
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 3
    assert len({prompt[0] for prompt in prompts}) == 3, "prefixes differ from their first token on"
    assert len({prompt[8] for prompt in prompts}) == 60
    assert info["shared_prefixes"] == {"groups": 3, "tokens": 8}
    assert info["prompt_tokens"]["mean"] == 28


def test_shared_prefixes_take_their_room_from_the_context() -> None:
    workload = create("synthetic:fixed:80,20", {})

    def build(prefix_tokens: int) -> list[int]:
        requests, _ = build_requests(
            workload,
            4,
            streams=streams(1, 2),
            vocab_size=2_000,
            max_model_tokens=70,
            shared_prefixes=SharedPrefixes(groups=1, tokens=prefix_tokens),
        )
        return [request.prompt_tokens + request.output_tokens for request in requests]

    assert build(20) == [70] * 4
    with pytest.raises(WorkloadError, match="a shared prefix of 69 tokens leaves no room"):
        build(69)
