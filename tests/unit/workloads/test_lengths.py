"""Length tables: the shipped one against the lengths it was derived from, and the derivation on any lengths."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.workloads.azure import TABLES
from neobench.workloads.carperai import TABLE_PATH
from neobench.workloads.length_files import read_lengths
from neobench.workloads.lengths import (
    LONG_TAIL_OUTPUT_LEVELS,
    OUTPUT_LEVELS,
    PROMPT_LEVELS,
    PROMPT_RANK_BINS,
    LengthTable,
    derive_quantiles,
    load_table,
)
from neobench.workloads.workload import TokenCounts, WorkloadError

SAMPLE_SIZE = 400_000


def table_of(prompt_tokens: TokenCounts, output_tokens: TokenCounts) -> LengthTable:
    prompt_quantiles, output_quantiles = derive_quantiles(prompt_tokens, output_tokens)
    return LengthTable(
        name="test",
        source="test",
        licence="none",
        tokenizer="none",
        derived_on="2026-01-01",
        num_requests=len(prompt_tokens),
        mean_prompt_tokens=float(prompt_tokens.mean()),
        mean_output_tokens=float(output_tokens.mean()),
        prompt_levels=list(PROMPT_LEVELS),
        prompt_quantiles=prompt_quantiles,
        output_levels=list(OUTPUT_LEVELS),
        output_quantiles=output_quantiles,
    )


def kolmogorov_smirnov(one: TokenCounts, other: TokenCounts) -> float:
    grid = np.union1d(one, other)
    shares: list[npt.NDArray[np.float64]] = [
        np.searchsorted(np.sort(tokens), grid, side="right") / len(tokens) for tokens in (one, other)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def assert_like_the_original(drawn: tuple[TokenCounts, TokenCounts], original: tuple[TokenCounts, TokenCounts]) -> None:
    for drawn_tokens, original_tokens in zip(drawn, original, strict=True):
        assert drawn_tokens.mean() == pytest.approx(original_tokens.mean(), rel=0.02)
        assert kolmogorov_smirnov(drawn_tokens, original_tokens) <= 0.02
        levels = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
        assert np.quantile(drawn_tokens, levels) == pytest.approx(np.quantile(original_tokens, levels), rel=0.05, abs=1)
        assert drawn_tokens.min() >= original_tokens.min()
        assert drawn_tokens.max() <= original_tokens.max()
    correlations = [float(np.corrcoef(*lengths)[0, 1]) for lengths in (drawn, original)]
    assert correlations[0] == pytest.approx(correlations[1], abs=0.03)


@pytest.mark.parametrize(
    ("table", "original_file", "output_levels"),
    [
        ("carperai", "osc_llama2_7b_lengths.json", OUTPUT_LEVELS),
        ("azure-code", "azure_llm_2023_code.csv", LONG_TAIL_OUTPUT_LEVELS),
        ("azure-conv", "azure_llm_2023_conv.csv", LONG_TAIL_OUTPUT_LEVELS),
    ],
)
def test_a_shipped_table_agrees_with_the_original_lengths(
    table: str, original_file: str, output_levels: tuple[float, ...]
) -> None:
    folder = os.environ.get("NEOBENCH_DATA_DIR")
    path = Path(folder or "") / original_file
    if not folder or not path.exists():
        pytest.skip(f"NEOBENCH_DATA_DIR names no folder with {original_file}, the original lengths")
    original = read_lengths(path)
    shipped = load_table(TABLES / f"{table}.json")

    assert_like_the_original(shipped.draw(SAMPLE_SIZE, np.random.default_rng(1)), original)
    assert (shipped.prompt_quantiles, shipped.output_quantiles) == derive_quantiles(*original, output_levels)


@pytest.mark.parametrize(
    ("table", "prompt_mean", "output_mean"),
    [("carperai", 372.5, 45.3), ("azure-code", 2047.8, 27.9), ("azure-conv", 1154.7, 211.1)],
)
def test_a_shipped_table_has_the_published_means_and_fits_a_few_kilobytes(
    table: str, prompt_mean: float, output_mean: float
) -> None:
    path = TABLES / f"{table}.json"
    prompt_tokens, output_tokens = load_table(path).draw(SAMPLE_SIZE, np.random.default_rng(2))
    assert prompt_tokens.mean() == pytest.approx(prompt_mean, rel=0.01)
    assert output_tokens.mean() == pytest.approx(output_mean, rel=0.02)
    assert path.stat().st_size < 8_000


def test_most_of_a_strong_correlation_survives() -> None:
    rng = np.random.default_rng(3)
    prompt_tokens = np.rint(rng.lognormal(5, 0.7, 5_000)).astype(np.int64) + 1
    output_tokens = np.maximum(1, np.rint(prompt_tokens * rng.uniform(0.3, 0.5, 5_000))).astype(np.int64)
    drawn = table_of(prompt_tokens, output_tokens).draw(SAMPLE_SIZE, rng)
    assert np.corrcoef(*drawn)[0, 1] > 0.8 * np.corrcoef(prompt_tokens, output_tokens)[0, 1]


def test_few_different_lengths_keep_their_frequencies() -> None:
    tokens = np.array([1] * 30 + [2] * 60 + [3] * 10, dtype=np.int64)
    prompt_tokens, _ = table_of(tokens, tokens).draw(100_000, np.random.default_rng(4))
    assert np.bincount(prompt_tokens, minlength=4) / 100_000 == pytest.approx([0, 0.3, 0.6, 0.1], abs=0.02)


lengths = st.lists(
    st.tuples(st.integers(1, 5_000), st.integers(1, 5_000)), min_size=PROMPT_RANK_BINS, max_size=200
).map(lambda rows: np.array(rows, dtype=np.int64).T)


@given(lengths, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_draws_stay_within_the_original_and_repeat_with_the_seed(original: TokenCounts, seed: int) -> None:
    table = table_of(*original)
    drawn = table.draw(500, np.random.default_rng(seed))
    for drawn_tokens, original_tokens in zip(drawn, original, strict=True):
        assert original_tokens.min() <= drawn_tokens.min()
        assert drawn_tokens.max() <= original_tokens.max()
    assert (drawn[0] + drawn[1]).max() <= table.longest_request_tokens()
    assert np.array_equal(drawn, table.draw(500, np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "neobench/length-table/v9"}, "schema is"),
        ({"prompt_levels": [0, 1], "prompt_quantiles": [3.0, 2.0]}, "never fall"),
        ({"prompt_quantiles": [3.0, 4.0]}, "one number a level"),
        ({"output_levels": []}, "rise from 0 to 1"),
        ({"output_quantiles": []}, "no rows"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bad_table_is_refused_with_its_path(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(TABLE_PATH.read_bytes()) | change))
    with pytest.raises(WorkloadError, match=message) as caught:
        load_table(path)
    assert str(path) in str(caught.value)
