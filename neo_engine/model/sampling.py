"""Chooses the next token of each row of logits.

The random number of a token is a function of (seed of its request, number of output tokens before it) alone, so that
a request gets the same tokens whatever it is batched with, and again after a preemption and recomputation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from neobench.neo_engine.request import SamplingParams

_ROWS_AT_ONCE = 64
"""Sorted and summed in float64 a row takes some 60 bytes a token of the vocabulary: 0.5 GB for so many rows of 128k."""


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that chooses output token `position` of a request: Philox, keyed by seed, at a counter."""
    return float(np.random.Generator(np.random.Philox(key=seed % 2**64, counter=position)).random())


class SampledRow(Protocol):
    """How the token of one row is drawn."""

    @property
    def params(self) -> SamplingParams: ...

    @property
    def seed(self) -> int:
        """The request's own, or the engine's for a request without one. Any integer."""

    @property
    def position(self) -> int:
        """Output tokens of the request so far."""


def sample(logits: Tensor, rows: Sequence[SampledRow], *, likeliest: Tensor | None = None) -> list[int]:
    """logits [m, vocab] float32 and how to draw each row -> m token ids.

    `likeliest` [m] are the tokens of the largest logits, where they are known already.
    Order of the filters: temperature, then top-k, then top-p over what top-k left.
    """
    assert logits.ndim == 2
    assert logits.shape[0] == len(rows)
    tokens: list[int] = (logits.argmax(-1) if likeliest is None else likeliest).tolist()
    drawn = [row for row in range(len(rows)) if not rows[row].params.is_greedy]
    filtered = [row for row in drawn if rows[row].params.top_k or rows[row].params.top_p < 1.0]
    # Each row's way depends on its own parameters alone: another batch must not change its token.
    for numbers, choose in ((sorted(set(drawn) - set(filtered)), _choose), (filtered, _choose_filtered)):
        for start in range(0, len(numbers), _ROWS_AT_ONCE):
            some = numbers[start : start + _ROWS_AT_ONCE]
            chosen = choose(logits[some], [rows[row] for row in some])
            for row, token in zip(some, chosen, strict=True):
                tokens[row] = token
    return tokens


def _scaled(logits: Tensor, rows: Sequence[SampledRow]) -> Tensor:
    return logits / _column([row.params.temperature for row in rows], logits)


def _draws(rows: Sequence[SampledRow], like: Tensor) -> Tensor:
    return _column([uniform(row.seed, row.position) for row in rows], like, dtype=torch.float64)


def _column(values: Sequence[float], like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return torch.tensor(values, dtype=dtype or like.dtype, device=like.device).unsqueeze(1)


def _choose(logits: Tensor, rows: Sequence[SampledRow]) -> list[int]:
    """logits [r, vocab] -> r token ids, from the cumulative distribution in order of token ids."""
    return _invert(_scaled(logits, rows).double().softmax(-1), _draws(rows, logits))


def _choose_filtered(logits: Tensor, rows: Sequence[SampledRow]) -> list[int]:
    """logits [r, vocab] -> r token ids, among those that top-k and top-p leave.

    Tokens are ranked by falling probability, equal ones by token id.
    """
    ordered, token_ids = _scaled(logits, rows).sort(dim=-1, descending=True, stable=True)
    vocab = logits.shape[1]
    ranks = torch.arange(vocab, device=logits.device)
    top_k = _column([row.params.top_k or vocab for row in rows], logits, dtype=torch.int64)
    probabilities = ordered.double().masked_fill_(ranks >= top_k, -torch.inf).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    top_p = _column([row.params.top_p for row in rows], logits, dtype=torch.float64)
    # A token stays while those before it have less than top_p: the smallest set that reaches it, never an empty one.
    dropped = (before >= top_p) & (ranks > 0)
    chosen_ranks = _invert(probabilities.masked_fill_(dropped, 0.0), _draws(rows, logits))
    chosen = token_ids.gather(1, torch.tensor(chosen_ranks, device=logits.device).unsqueeze(1))
    tokens: list[int] = chosen.squeeze(1).tolist()
    return tokens


def _invert(weights: Tensor, draws: Tensor) -> list[int]:
    """weights [r, n] float64, not normalised; draws [r, 1] in [0, 1) -> the index at which each sum passes its draw."""
    sums = weights.cumsum(-1)
    targets = draws * sums[:, -1:]
    indices = torch.searchsorted(sums, targets, right=True).squeeze(1)
    # A draw just below 1 may round up to the whole sum; the last index with any weight is then meant.
    last = weights.shape[1] - 1 - (weights.flip(-1) > 0).to(torch.uint8).argmax(-1)
    chosen: list[int] = torch.minimum(indices, last).tolist()
    return chosen
