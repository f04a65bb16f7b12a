"""The requests of a case: drawn once, written to a file, read by every system of the case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from neobench.neo_engine.config import resolve_shape
from neobench.workloads import registry
from neobench.workloads.prompts import unique_prompts
from neobench.workloads.workload import TokenCounts

WARMUP_OUTPUT_TOKENS = 16


def draw(path: Path, *, workload: str, num_requests: int, num_warmup: int, model: str, seed: int = 0) -> None:
    """Write {"warmup", "requests", "facts"} to `path`; a request is [token ids, output tokens], no two begin alike.

    `workload` is a name of `neobench list workloads`, or "exact:IN,OUT" for requests that are all alike. Warm-up
    requests have other prompts of the same lengths and produce WARMUP_OUTPUT_TOKENS at most.
    """
    rng = np.random.default_rng(seed)
    count = num_requests + num_warmup
    prompt_tokens, output_tokens = _lengths(workload, count, rng)
    prompts = unique_prompts(prompt_tokens, vocab_size=resolve_shape(model).vocab_size, rng=rng)
    requests = list(zip(prompts, output_tokens.tolist(), strict=True))
    warmup = [(prompt, min(output, WARMUP_OUTPUT_TOKENS)) for prompt, output in requests[num_requests:]]
    facts = {
        "workload": workload,
        "seed": seed,
        "requests": num_requests,
        "prompt_tokens": int(prompt_tokens[:num_requests].sum()),
        "output_tokens": int(output_tokens[:num_requests].sum()),
    }
    path.write_text(json.dumps({"warmup": warmup, "requests": requests[:num_requests], "facts": facts}))


def _lengths(workload: str, count: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
    name, _, argument = workload.partition(":")
    if name != "exact":
        return registry.create(workload, {}).draw_lengths(count, rng)
    prompt, output = map(int, argument.split(","))
    return np.full(count, prompt, dtype=np.int64), np.full(count, output, dtype=np.int64)
