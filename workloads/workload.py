"""What every workload offers: lengths to draw, and the facts about where they come from. No prompts, no arrivals."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

TokenCounts = npt.NDArray[np.int64]


class WorkloadError(ValueError):
    """A workload cannot be made or read; the message says what to change."""


class Workload(Protocol):
    name: str

    def describe(self) -> dict[str, Any]:
        """Facts stored in run.json: source, licence, and the table, file or dataset the lengths come from."""

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        """Prompt and output tokens, each [num_requests], all at least 1."""

    def longest_request_tokens(self) -> int | None:
        """Prompt plus output of the longest request that can be drawn; None when only a draw can tell."""
