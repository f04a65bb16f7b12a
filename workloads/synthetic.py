"""`synthetic:IN,OUT`: lengths drawn uniformly around two numbers, for smoke runs and controlled experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neobench.workloads.workload import TokenCounts, Workload, WorkloadError

SPREAD = 0.1
"""Lengths lie in [0.9 l, 1.1 l], rounded inwards but never to an empty range."""


def create(argument: str | None, options: Mapping[str, Any]) -> Workload:
    if options:
        raise WorkloadError(f"synthetic takes no options, but got {', '.join(options)}")
    return Synthetic(*_parse(argument))


class Synthetic:
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


def _parse(argument: str | None) -> tuple[int, int]:
    numbers = (argument or "").split(",")
    if len(numbers) == 2 and all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        return int(numbers[0]), int(numbers[1])
    given = "synthetic" if argument is None else f"synthetic:{argument}"
    raise WorkloadError(f"{given!r} is not synthetic:IN,OUT with two positive token counts, such as synthetic:512,64")


def _range(tokens: int) -> tuple[int, int]:
    """Integer arithmetic in tenths: 0.9 * 10 is not exactly 9 in floating point."""
    return min(tokens, -(-tokens * 9 // 10)), tokens * 11 // 10
