"""Lengths -> the requests of a run: random token ids of the exact length, no two prompts with a common beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from neobench.harness.request import PromptRequest
from neobench.harness.spec import Seeds, SessionSpec
from neobench.workloads.sessions import Plan, begins_of, draw_begins, draw_think_ns, with_history
from neobench.workloads.workload import Conversational, Replayable, TokenCounts, Workload, WorkloadError

MAX_RESERVED_TOKEN_IDS = 256
"""Ids below it are left out where the vocabulary is large enough: special tokens and raw bytes lie there."""


@dataclass(frozen=True)
class SharedPrefixes:
    """Each prompt begins with one of `groups` prefixes of `tokens` tokens, drawn with equal chances."""

    groups: int
    tokens: int

    def room_after(self, max_model_tokens: int) -> int:
        if max_model_tokens - self.tokens < 2:
            raise WorkloadError(
                f"a shared prefix of {self.tokens} tokens leaves no room in a model context of {max_model_tokens}"
            )
        return max_model_tokens - self.tokens

    def put_before(self, prompts: Sequence[list[int]], *, vocab_size: int, rng: np.random.Generator) -> list[list[int]]:
        """The prompts behind their prefixes; what follows a prefix still differs from its first token on."""
        lengths = np.full(self.groups, self.tokens, dtype=np.int64)
        prefixes = unique_prompts(lengths, vocab_size=vocab_size, rng=rng)
        groups = rng.integers(self.groups, size=len(prompts))
        return [prefixes[group] + prompt for group, prompt in zip(groups, prompts, strict=True)]


@dataclass(frozen=True)
class Streams:
    """One stream of randomness a purpose: to change one leaves the others as they were."""

    lengths: np.random.Generator
    prompts: np.random.Generator
    order: np.random.Generator
    sessions: np.random.Generator

    @classmethod
    def of(cls, seeds: Seeds, *prompts: int) -> Streams:
        """`prompts`: further numbers that tell the tokens of runs with the same seeds apart."""
        return cls(
            lengths=np.random.default_rng(seeds.lengths),
            prompts=np.random.default_rng([seeds.prompts, *prompts]),
            order=np.random.default_rng(seeds.order),
            sessions=np.random.default_rng(seeds.sessions),
        )


def build_requests(
    workload: Workload,
    num_requests: int,
    *,
    streams: Streams,
    vocab_size: int,
    max_model_tokens: int | None,
    num_warmup: int = 0,
    replay: bool = False,
    shared_prefixes: SharedPrefixes | None = None,
    sessions: SessionSpec | None = None,
) -> tuple[list[PromptRequest], dict[str, Any]]:
    """The requests of a run, those of the warm-up last, and the facts about them for run.json.

    The lengths that are drawn do not depend on their order, which is shuffled afterwards. With `replay` measured
    requests are those of the workload's trace, with their `arrival_ns`, and their order is the trace's. With `sessions`
    they are turns, one session after the other, and a length drawn is what its turn adds to the history.
    If the longest request does not fit `max_model_tokens`, all lengths are multiplied by the one factor that makes it
    fit; info["scaling"] then has the factor and a sentence for the user, else it is None.
    """
    room_tokens = max_model_tokens
    if max_model_tokens is not None and shared_prefixes is not None:
        room_tokens = shared_prefixes.room_after(max_model_tokens)
    drawn = _draw(workload, num_requests, num_warmup, streams=streams, replay=replay, sessions=sessions)
    drawn, scaling = _fitted(drawn, workload, room_tokens)
    plan = drawn.plan(sessions, num_requests, streams.sessions, room_tokens)
    prompts = _prompts(drawn, plan, shared_prefixes, vocab_size=vocab_size, rng=streams.prompts)
    places = [*([{}] * num_requests if plan is None else plan.places()), *[{}] * num_warmup]
    requests = [
        PromptRequest.of(prompt, index=index, output_tokens=int(output), arrival_ns=arrival_ns, **place)
        for index, (prompt, output, arrival_ns, place) in enumerate(
            zip(prompts, drawn.output_tokens, drawn.arrival_ns, places, strict=True)
        )
    ]
    info = {
        "workload": workload.describe(),
        "prompt_tokens": _describe_lengths(np.array([request.prompt_tokens for request in requests])),
        "output_tokens": _describe_lengths(drawn.output_tokens),
        "scaling": scaling,
        "shared_prefixes": None if shared_prefixes is None else asdict(shared_prefixes),
        "sessions": None if plan is None or sessions is None else plan.describe(sessions, max_model_tokens),
        "first_token_id": _first_token_id(vocab_size),
        "vocab_size": vocab_size,
    }
    return requests, info


@dataclass(frozen=True)
class _Drawn:
    """Of the measured requests and then those of the warm-up."""

    prompt_tokens: TokenCounts
    output_tokens: TokenCounts
    arrival_ns: list[int | None]
    turn_counts: list[int] | None = None
    """Of the workload's own conversations, where the requests are their turns."""

    def plan(
        self, spec: SessionSpec | None, num_requests: int, rng: np.random.Generator, max_model_tokens: int | None
    ) -> Plan | None:
        """Of the measured requests; None: each is on its own."""
        if spec is None:
            return None
        if self.turn_counts is None:
            begins = draw_begins(spec, num_requests, rng)
        else:
            begins = begins_of(self.turn_counts, num_requests)
        plan = Plan(begins, draw_think_ns(spec, begins, rng))
        if max_model_tokens is None:
            return plan
        return plan.within(max_model_tokens, self.prompt_tokens[:num_requests], self.output_tokens[:num_requests])


def _draw(
    workload: Workload,
    num_requests: int,
    num_warmup: int,
    *,
    streams: Streams,
    replay: bool,
    sessions: SessionSpec | None,
) -> _Drawn:
    """Lengths [num_requests + num_warmup]."""
    assert num_requests >= 1
    if replay:
        if not isinstance(workload, Replayable):
            raise WorkloadError(
                f"{workload.name} does not know when its requests arrived: give the trace itself "
                "(trace:FILE, or --workload-file), or choose another --arrival"
            )
        trace = workload.replay(num_requests)
        return _with_warmup(trace.prompt_tokens, trace.output_tokens, workload, num_warmup, streams, trace.arrival_ns)
    if sessions is not None and isinstance(workload, Conversational):
        talks = workload.draw_conversations(num_requests, sessions.fewest_turns, sessions.most_turns, streams.lengths)
        talks = [talks[position] for position in streams.order.permutation(len(talks))]
        prompt_tokens, output_tokens = np.concatenate(talks, axis=1)
        drawn = _with_warmup(prompt_tokens, output_tokens, workload, num_warmup, streams)
        return replace(drawn, turn_counts=[talk.shape[1] for talk in talks])
    lengths = workload.draw_lengths(num_requests + num_warmup, streams.lengths)
    order = np.concatenate(
        [streams.order.permutation(num_requests), np.arange(num_requests, num_requests + num_warmup)]
    )
    return _Drawn(lengths[0][order], lengths[1][order], [None] * len(order))


def _with_warmup(
    prompt_tokens: TokenCounts,
    output_tokens: TokenCounts,
    workload: Workload,
    num_warmup: int,
    streams: Streams,
    arrival_ns: TokenCounts | None = None,
) -> _Drawn:
    warmup = workload.draw_lengths(num_warmup, streams.lengths)
    arrivals = [None] * len(prompt_tokens) if arrival_ns is None else arrival_ns.tolist()
    return _Drawn(
        np.concatenate([prompt_tokens, warmup[0]]),
        np.concatenate([output_tokens, warmup[1]]),
        [*arrivals, *[None] * num_warmup],
    )


def _fitted(drawn: _Drawn, workload: Workload, max_model_tokens: int | None) -> tuple[_Drawn, dict[str, Any] | None]:
    """All lengths times the factor that makes the longest request fit, and what is told of it."""
    # The bound known in advance is preferred: the factor then depends on neither the seed nor the number of requests.
    longest_tokens = workload.longest_request_tokens() or int((drawn.prompt_tokens + drawn.output_tokens).max())
    if max_model_tokens is None or longest_tokens <= max_model_tokens:
        return drawn, None
    prompt_tokens, output_tokens = (
        scale_down(tokens, longest_tokens=longest_tokens, max_model_tokens=max_model_tokens)
        for tokens in (drawn.prompt_tokens, drawn.output_tokens)
    )
    scaled = replace(drawn, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    return scaled, _describe_scaling(longest_tokens, max_model_tokens)


def _prompts(
    drawn: _Drawn,
    plan: Plan | None,
    shared_prefixes: SharedPrefixes | None,
    *,
    vocab_size: int,
    rng: np.random.Generator,
) -> list[list[int]]:
    begins = np.ones(len(drawn.prompt_tokens), dtype=np.bool_)
    if plan is not None:
        begins[: len(plan.begins)] = plan.begins
    firsts = unique_prompts(drawn.prompt_tokens[begins], vocab_size=vocab_size, rng=rng)
    if shared_prefixes is not None:
        firsts = shared_prefixes.put_before(firsts, vocab_size=vocab_size, rng=rng)
    token_ids = range(_first_token_id(vocab_size), vocab_size)
    return with_history(firsts, begins, drawn.prompt_tokens, drawn.output_tokens, token_ids=token_ids, rng=rng)


def scale_down(tokens: TokenCounts, *, longest_tokens: int, max_model_tokens: int) -> TokenCounts:
    """tokens * max_model_tokens / longest_tokens, rounded down to at least 1.

    A prompt and an output of together at most `longest_tokens` then fit `max_model_tokens` together.
    """
    if max_model_tokens < 2:
        raise WorkloadError(f"a model context of {max_model_tokens} tokens has no room for a prompt and an output")
    return np.maximum(1, tokens * max_model_tokens // longest_tokens)


def unique_prompts(prompt_tokens: TokenCounts, *, vocab_size: int, rng: np.random.Generator) -> list[list[int]]:
    """One prompt of random token ids for each length, no two of which begin alike.

    The leading tokens of the prompts are different numbers written in base (usable vocabulary): one token wherever the
    vocabulary has as many ids as there are prompts. So no prefix cache, of whatever block size, gains anything.
    """
    num_prompts = len(prompt_tokens)
    first_id = _first_token_id(vocab_size)
    base = vocab_size - first_id
    lead_tokens = _lead_tokens(num_prompts, base)
    shortest = int(prompt_tokens.min())
    if shortest < lead_tokens:
        raise WorkloadError(
            f"{num_prompts} prompts cannot all begin differently: the shortest has {shortest} token, and {base} usable "
            f"ids need {lead_tokens}; use fewer requests, longer prompts or a larger vocabulary"
        )
    token_ids = rng.integers(first_id, vocab_size, size=int(prompt_tokens.sum()))
    ends = np.cumsum(prompt_tokens)
    codes = rng.choice(base**lead_tokens, size=num_prompts, replace=False)
    for place in range(lead_tokens):
        token_ids[ends - prompt_tokens + place] = first_id + codes // base**place % base
    return _split_checked(token_ids, ends, lead_tokens)


def _split_checked(token_ids: npt.NDArray[np.int64], ends: TokenCounts, lead_tokens: int) -> list[list[int]]:
    prompts = [prompt.tolist() for prompt in np.split(token_ids, ends[:-1])]
    assert len({tuple(prompt[:lead_tokens]) for prompt in prompts}) == len(prompts)
    return prompts


def _first_token_id(vocab_size: int) -> int:
    if vocab_size < 2:
        raise WorkloadError(f"a vocabulary of {vocab_size} tokens is too small to tell prompts apart")
    return min(MAX_RESERVED_TOKEN_IDS, vocab_size // 4)


def _lead_tokens(num_prompts: int, base: int) -> int:
    """The fewest leading tokens of which there are `num_prompts` different ones."""
    lead_tokens = 1
    while base**lead_tokens < num_prompts:
        lead_tokens += 1
    return lead_tokens


def _describe_lengths(tokens: TokenCounts) -> dict[str, float | int]:
    return {
        "mean": round(float(tokens.mean()), 2),
        "min": int(tokens.min()),
        "max": int(tokens.max()),
        "total": int(tokens.sum()),
    }


def _describe_scaling(longest_tokens: int, max_model_tokens: int) -> dict[str, Any]:
    factor = max_model_tokens / longest_tokens
    return {
        "factor": factor,
        "longest_request_tokens": longest_tokens,
        "max_model_tokens": max_model_tokens,
        "sentence": (
            f"All lengths were multiplied by {factor:.3f}: the longest request of the workload has {longest_tokens} "
            f"tokens, the model's context {max_model_tokens}."
        ),
    }
