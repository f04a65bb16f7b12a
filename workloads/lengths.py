"""Joint quantile tables: request lengths in a few kilobytes, with both marginals and their correlation kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from neobench.workloads.workload import TokenCounts, WorkloadError

SCHEMA = "neobench/length-table/v1"
PROMPT_RANK_BINS = 16
# Closer together at both ends, where lengths are few and far apart.
PROMPT_LEVELS = (0.0, 0.001, 0.003, 0.006, 0.01, *(step / 64 for step in range(1, 64)), 0.99, 0.994, 0.997, 0.999, 1.0)
OUTPUT_LEVELS = (0.0, 0.01, *(step / 32 for step in range(1, 32)), 0.99, 1.0)
LONG_TAIL_OUTPUT_LEVELS = (*OUTPUT_LEVELS[:-2], 0.98, 0.985, 0.99, 0.9925, 0.995, 0.997, 0.998, 0.999, 1.0)
"""For outputs whose longest percent is many times longer than the rest, and thousands of rows to see it in."""


class LengthTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quantiles in tokens, at the given levels from 0 to 1.

    Within a bin of prompt rank the output does not depend on the prompt, so that a table of a few bins weakens a strong
    correlation, above all one that rests on few very long requests.
    A length k stands for the interval [k - 0.5, k + 0.5), so that interpolating between quantiles and rounding gives
    the integers back with their own frequencies.
    """

    schema: str = SCHEMA
    name: str
    source: str
    licence: str
    tokenizer: str
    derived_on: str
    num_requests: int
    mean_prompt_tokens: float
    mean_output_tokens: float
    prompt_levels: list[float]
    prompt_quantiles: list[float]
    output_levels: list[float]
    output_quantiles: list[list[float]]
    """One row for each of the equally full bins of prompt rank, shortest prompts first."""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema!r}; this version reads {SCHEMA!r}")
        if not self.output_quantiles:
            raise ValueError("output_quantiles has no rows")
        _check(self.prompt_levels, [self.prompt_quantiles])
        _check(self.output_levels, self.output_quantiles)

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        """Prompt and output tokens, each [num_requests]."""
        prompt_rank = rng.random(num_requests)
        output_rank = rng.random(num_requests)
        prompt_tokens = _tokens_at(prompt_rank, self.prompt_levels, self.prompt_quantiles)
        output_tokens = np.empty(num_requests, dtype=np.int64)
        bins = (prompt_rank * len(self.output_quantiles)).astype(np.int64)
        for index, quantiles in enumerate(self.output_quantiles):
            in_bin = bins == index
            output_tokens[in_bin] = _tokens_at(output_rank[in_bin], self.output_levels, quantiles)
        return prompt_tokens, output_tokens

    def longest_request_tokens(self) -> int:
        """An upper bound: the longest prompt and the longest output need not meet in one request."""
        return _last_token(self.prompt_quantiles) + max(_last_token(row) for row in self.output_quantiles)


def load_table(path: Path) -> LengthTable:
    try:
        return msgspec.json.decode(path.read_bytes(), type=LengthTable)
    except (OSError, msgspec.MsgspecError) as error:
        raise WorkloadError(f"cannot read the length table {path}: {error}") from error


def derive_quantiles(
    prompt_tokens: TokenCounts, output_tokens: TokenCounts, output_levels: Sequence[float] = OUTPUT_LEVELS
) -> tuple[list[float], list[list[float]]]:
    """The prompt_quantiles and output_quantiles of a LengthTable, rounded to 0.01 token.

    Needs at least one request a bin; ties in prompt length are ranked by their order in the data.
    """
    assert len(prompt_tokens) == len(output_tokens) >= PROMPT_RANK_BINS
    by_prompt = np.argsort(prompt_tokens, kind="stable")
    rows = [_quantiles(row, output_levels) for row in np.array_split(output_tokens[by_prompt], PROMPT_RANK_BINS)]
    return _quantiles(prompt_tokens, PROMPT_LEVELS), rows


def _quantiles(tokens: TokenCounts, levels: Sequence[float]) -> list[float]:
    values, counts = np.unique(tokens, return_counts=True)
    # The k-th of c equal lengths moves to the middle of the k-th c-th of its interval.
    spread = np.concatenate(
        [value - 0.5 + (np.arange(count) + 0.5) / count for value, count in zip(values, counts, strict=True)]
    )
    return [round(float(quantile), 2) for quantile in np.quantile(spread, levels, method="hazen")]


def _check(levels: Sequence[float], rows: Sequence[Sequence[float]]) -> None:
    if levels[:1] != [0] or levels[-1:] != [1] or not _never_falls(levels):
        raise ValueError("levels must rise from 0 to 1")
    for row in rows:
        if len(row) != len(levels) or row[0] < 0.5 or not _never_falls(row):
            raise ValueError("quantiles must be one number a level, start at 0.5 or more and never fall")


def _never_falls(numbers: Sequence[float]) -> bool:
    return all(low <= high for low, high in pairwise(numbers))


def _tokens_at(ranks: npt.NDArray[np.float64], levels: Sequence[float], quantiles: Sequence[float]) -> TokenCounts:
    tokens = np.interp(ranks, levels, quantiles)
    return np.minimum(np.floor(tokens + 0.5).astype(np.int64), _last_token(quantiles))


def _last_token(quantiles: Sequence[float]) -> int:
    """The highest length: an upper edge of exactly k + 0.5 still belongs to k."""
    return int(np.ceil(quantiles[-1] - 0.5))
