"""Lengths -> the requests of a run: random token ids of the exact length, no two prompts with a common beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neobench.harness.request import PromptRequest
from neobench.harness.spec import Seeds
from neobench.workloads.workload import Replayable, TokenCounts, Workload, WorkloadError

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

    @classmethod
    def of(cls, seeds: Seeds, *prompts: int) -> Streams:
        """`prompts`: further numbers that tell the tokens of runs with the same seeds apart."""
        return cls(
            lengths=np.random.default_rng(seeds.lengths),
            prompts=np.random.default_rng([seeds.prompts, *prompts]),
            order=np.random.default_rng(seeds.order),
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
) -> tuple[list[PromptRequest], dict[str, Any]]:
    """The requests of a run, those of the warm-up last, and the facts about them for run.json.

    The lengths that are drawn do not depend on their order, which is shuffled afterwards. With `replay` measured
    requests are those of the workload's trace, with their `arrival_ns`, and their order is the trace's.
    If the longest request does not fit `max_model_tokens`, all lengths are multiplied by the one factor that makes it
    fit; info["scaling"] then has the factor and a sentence for the user, else it is None.
    """
    drawn = _draw(workload, num_requests, num_warmup, streams=streams, replay=replay)
    prompt_tokens, output_tokens = drawn.prompt_tokens, drawn.output_tokens
    # The bound known in advance is preferred: the factor then depends on neither the seed nor the number of requests.
    longest_tokens = workload.longest_request_tokens() or int((prompt_tokens + output_tokens).max())
    scaling = None
    if max_model_tokens is not None and shared_prefixes is not None:
        max_model_tokens = shared_prefixes.room_after(max_model_tokens)
    if max_model_tokens is not None and longest_tokens > max_model_tokens:
        prompt_tokens, output_tokens = (
            scale_down(tokens, longest_tokens=longest_tokens, max_model_tokens=max_model_tokens)
            for tokens in (prompt_tokens, output_tokens)
        )
        scaling = _describe_scaling(longest_tokens, max_model_tokens)
    prompts = unique_prompts(prompt_tokens, vocab_size=vocab_size, rng=streams.prompts)
    if shared_prefixes is not None:
        prompts = shared_prefixes.put_before(prompts, vocab_size=vocab_size, rng=streams.prompts)
        prompt_tokens = prompt_tokens + shared_prefixes.tokens
    requests = [
        PromptRequest.of(prompt, index=index, output_tokens=int(output), arrival_ns=arrival_ns)
        for index, (prompt, output, arrival_ns) in enumerate(zip(prompts, output_tokens, drawn.arrival_ns, strict=True))
    ]
    info = {
        "workload": workload.describe(),
        "prompt_tokens": _describe_lengths(prompt_tokens),
        "output_tokens": _describe_lengths(output_tokens),
        "scaling": scaling,
        "shared_prefixes": None if shared_prefixes is None else asdict(shared_prefixes),
        "first_token_id": _first_token_id(vocab_size),
        "vocab_size": vocab_size,
    }
    return requests, info


@dataclass(frozen=True)
class _Drawn:
    prompt_tokens: TokenCounts
    output_tokens: TokenCounts
    arrival_ns: list[int | None]


def _draw(workload: Workload, num_requests: int, num_warmup: int, *, streams: Streams, replay: bool) -> _Drawn:
    """Lengths [num_requests + num_warmup]."""
    assert num_requests >= 1
    if replay:
        if not isinstance(workload, Replayable):
            raise WorkloadError(
                f"{workload.name} does not know when its requests arrived: give the trace itself "
                "(trace:FILE, or --workload-file), or choose another --arrival"
            )
        trace = workload.replay(num_requests)
        warmup = workload.draw_lengths(num_warmup, streams.lengths)
        return _Drawn(
            np.concatenate([trace.prompt_tokens, warmup[0]]),
            np.concatenate([trace.output_tokens, warmup[1]]),
            [*trace.arrival_ns.tolist(), *[None] * num_warmup],
        )
    lengths = workload.draw_lengths(num_requests + num_warmup, streams.lengths)
    order = np.concatenate(
        [streams.order.permutation(num_requests), np.arange(num_requests, num_requests + num_warmup)]
    )
    return _Drawn(lengths[0][order], lengths[1][order], [None] * len(order))


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
