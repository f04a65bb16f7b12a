"""`synthetic:[SHAPE:]IN,OUT`: lengths of a known distribution, for smoke runs and controlled experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neobench.workloads.options import check_options, positive_number
from neobench.workloads.workload import TokenCounts, Workload, WorkloadError

SPREAD = 0.1
"""Uniform lengths lie in [0.9 l, 1.1 l], rounded inwards but never to an empty range."""
DEFAULT_SIGMA = 0.7
DEFAULT_EXPONENT = 1.0
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "uniform": (),
    "fixed": (),
    "lognormal": ("sigma",),
    "zipf": ("exponent",),
}
"""Shapes, and the options of each."""


def create(argument: str | None, options: Mapping[str, Any]) -> Workload:
    """`IN,OUT` alone is uniform."""
    given = "synthetic" if argument is None else f"synthetic:{argument}"
    shape, _, numbers = (argument or "").rpartition(":")
    shape = shape or "uniform"
    if shape not in OPTIONS:
        raise WorkloadError(f"{given!r}: the shape is one of {', '.join(OPTIONS)}, such as synthetic:lognormal:512,64")
    prompt_tokens, output_tokens = _parse(given, numbers)
    check_options(f"synthetic:{shape}", options, OPTIONS[shape])
    if shape == "lognormal":
        return Lognormal(prompt_tokens, output_tokens, sigma=positive_number(options, "sigma", DEFAULT_SIGMA))
    if shape == "zipf":
        return Zipf(prompt_tokens, output_tokens, exponent=positive_number(options, "exponent", DEFAULT_EXPONENT))
    return Uniform(prompt_tokens, output_tokens) if shape == "uniform" else Fixed(prompt_tokens, output_tokens)


class Uniform:
    def __init__(self, prompt_tokens: int, output_tokens: int) -> None:
        self.name = f"synthetic:{prompt_tokens},{output_tokens}"
        self._prompt_range = _range(prompt_tokens)
        self._output_range = _range(output_tokens)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": f"uniform within {SPREAD:.0%} of the lengths asked for",
            "prompt_tokens_range": list(self._prompt_range),
            "output_tokens_range": list(self._output_range),
        }

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        return (
            rng.integers(*self._prompt_range, size=num_requests, endpoint=True),
            rng.integers(*self._output_range, size=num_requests, endpoint=True),
        )

    def longest_request_tokens(self) -> int:
        return self._prompt_range[1] + self._output_range[1]


class Fixed:
    def __init__(self, prompt_tokens: int, output_tokens: int) -> None:
        self.name = f"synthetic:fixed:{prompt_tokens},{output_tokens}"
        self._lengths = prompt_tokens, output_tokens

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "source": "the lengths asked for, in every request"}

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:  # noqa: ARG002
        prompt_tokens, output_tokens = (np.full(num_requests, tokens, dtype=np.int64) for tokens in self._lengths)
        return prompt_tokens, output_tokens

    def longest_request_tokens(self) -> int:
        return sum(self._lengths)


class Lognormal:
    """exp(N(ln mean - sigma^2 / 2, sigma^2)), which has that mean; prompt and output independent, rounded to >= 1."""

    def __init__(self, prompt_tokens: int, output_tokens: int, *, sigma: float) -> None:
        self.name = f"synthetic:lognormal:{prompt_tokens},{output_tokens}"
        self._means = prompt_tokens, output_tokens
        self._sigma = sigma

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "source": "lognormal with the means asked for", "sigma": self._sigma}

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        prompt_tokens, output_tokens = (
            np.maximum(1, np.rint(rng.lognormal(np.log(mean) - self._sigma**2 / 2, self._sigma, num_requests))).astype(
                np.int64
            )
            for mean in self._means
        )
        return prompt_tokens, output_tokens

    def longest_request_tokens(self) -> None:
        return None


class Zipf:
    """P(length = k) proportional to k^-exponent for k from 1 to the longest; prompt and output independent."""

    def __init__(self, prompt_tokens: int, output_tokens: int, *, exponent: float) -> None:
        self.name = f"synthetic:zipf:{prompt_tokens},{output_tokens}"
        self._longest = prompt_tokens, output_tokens
        self._exponent = exponent

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": "Zipf from 1 token to the lengths asked for",
            "exponent": self._exponent,
        }

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        prompt_tokens, output_tokens = (self._draw(longest, num_requests, rng) for longest in self._longest)
        return prompt_tokens, output_tokens

    def longest_request_tokens(self) -> int:
        return sum(self._longest)

    def _draw(self, longest: int, num_requests: int, rng: np.random.Generator) -> TokenCounts:
        cumulative = np.cumsum(np.arange(1, longest + 1, dtype=np.float64) ** -self._exponent)
        ranks: TokenCounts = np.searchsorted(cumulative, rng.random(num_requests) * cumulative[-1], side="right")
        # Rounding may lift the largest draw onto the total.
        return np.minimum(ranks + 1, longest)


def _parse(given: str, argument: str) -> tuple[int, int]:
    numbers = argument.split(",")
    if len(numbers) == 2 and all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        return int(numbers[0]), int(numbers[1])
    raise WorkloadError(f"{given!r} is not synthetic:IN,OUT with two positive token counts, such as synthetic:512,64")


def _range(tokens: int) -> tuple[int, int]:
    """Integer arithmetic in tenths: 0.9 * 10 is not exactly 9 in floating point."""
    return min(tokens, -(-tokens * 9 // 10)), tokens * 11 // 10
