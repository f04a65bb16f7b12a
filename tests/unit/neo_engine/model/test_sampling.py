"""Sampling against a plain float64 version: which tokens may come, and how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.neo_engine.model.sampling import sample, uniform
from neobench.neo_engine.request import SamplingParams


@dataclass(frozen=True)
class Row:
    params: SamplingParams
    seed: int
    position: int


def sample_rows(
    logits: torch.Tensor, params: Sequence[SamplingParams], *, seeds: Sequence[int], positions: Sequence[int]
) -> list[int]:
    return sample(logits, [Row(*fields) for fields in zip(params, seeds, positions, strict=True)])


def reference_distribution(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities [vocab] after temperature, top-k and top-p, one token at a time in float64."""
    scaled = logits.astype(np.float64) / params.temperature
    order = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    if params.top_k:
        order = order[: params.top_k]
    masses = {token: math.exp(scaled[token] - scaled[order[0]]) for token in order}
    total = sum(masses.values())
    kept: dict[int, float] = {}
    for token in order:
        if kept and sum(kept.values()) >= params.top_p:
            break
        kept[token] = masses[token] / total
    result = np.zeros(len(scaled))
    for token, mass in kept.items():
        result[token] = mass / sum(kept.values())
    return result


def draw(logits: torch.Tensor, params: SamplingParams, count: int) -> np.ndarray:
    """Counts [vocab] of `count` draws of one row, at the positions 0, 1, ... of one seed."""
    rows = logits.expand(count, -1)
    tokens = sample_rows(rows, [params] * count, seeds=[11] * count, positions=range(count))
    return np.bincount(tokens, minlength=logits.shape[-1])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.5),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(temperature=1.4, top_k=9, top_p=0.85),
    ],
    ids=str,
)
def test_frequencies_follow_the_distribution(params: SamplingParams) -> None:
    logits = torch.randn(24, generator=torch.Generator().manual_seed(2)) * 1.5
    count = 20_000
    counts = draw(logits, params, count)
    expected = reference_distribution(logits.numpy(), params) * count
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    statistic = float((((counts - expected) ** 2)[kept] / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    # Six standard deviations of a chi-square; the draws are fixed, so this either holds for good or never.
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1.0),
    temperature=st.floats(0.1, 5.0),
    levels=st.integers(1, 12),
)
def test_filters_keep_exactly_the_right_tokens(
    seed: int, top_k: int, top_p: float, temperature: float, levels: int
) -> None:
    """Few distinct levels make ties: of equal tokens the lower id is kept."""
    generator = np.random.default_rng(seed)
    # Logarithms of primes: no subset of probabilities then sums to top_p but for rounding.
    logits = np.log(np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]))[generator.integers(0, levels, 12)]
    logits = logits.astype(np.float32)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    allowed = set(np.flatnonzero(reference_distribution(logits, params)))
    assert set(np.flatnonzero(draw(torch.from_numpy(logits), params, 300))) <= allowed


def test_greedy_rows_ignore_the_draw_and_tiny_temperatures_are_greedy() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 1e3
    params = [SamplingParams(temperature=0), SamplingParams(temperature=1e-30), SamplingParams(temperature=0, top_k=3)]
    assert sample_rows(logits, params, seeds=[1, 2, 3], positions=[0, 0, 9]) == logits.argmax(-1).tolist()


def test_a_seeded_token_depends_on_nothing_but_seed_and_position() -> None:
    """In a batch of more rows than are sorted at once."""
    logits = torch.randn(400, 300, generator=torch.Generator().manual_seed(1))
    variants = [SamplingParams(), SamplingParams(top_k=20), SamplingParams(temperature=0), SamplingParams(top_p=0.5)]
    params = [variants[row % 4] for row in range(400)]
    seeds, positions = [row * 7 for row in range(400)], [row % 11 for row in range(400)]
    together = sample_rows(logits, params, seeds=seeds, positions=positions)
    alone = [
        sample_rows(logits[row : row + 1], [params[row]], seeds=[seeds[row]], positions=[positions[row]])[0]
        for row in range(400)
    ]
    order = list(range(399, -1, -1))
    reversed_batch = sample_rows(
        logits[order],
        [params[row] for row in order],
        seeds=[seeds[row] for row in order],
        positions=[positions[row] for row in order],
    )
    assert together == alone == reversed_batch[::-1]
    later = sample_rows(logits, params, seeds=seeds, positions=[position + 1 for position in positions])
    assert later != together


def test_uniform_is_pinned_across_versions() -> None:
    """Recorded runs name a seed; the numbers behind it must not move. Any integer is a seed."""
    assert [uniform(0, 0), uniform(0, 1), uniform(1, 0)] == [
        0.011546754286331562,
        0.5023796042735054,
        0.3035680343067586,
    ]
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)
    draws = np.array([uniform(3, position) for position in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.05


def test_a_draw_of_almost_one_takes_the_last_token_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neobench.neo_engine.model.sampling.uniform", lambda _seed, _position: 1 - 2**-53)
    logits = torch.tensor([[0.0, 0.1, -0.1, -200.0, -1000.0]])
    assert sample_rows(logits, [SamplingParams(top_k=2)], seeds=[0], positions=[0]) == [0]
    assert sample_rows(logits, [SamplingParams()], seeds=[0], positions=[0])[0] in (2, 3)
