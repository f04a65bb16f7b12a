"""What every workload offers: lengths to draw, and the facts about where they come from. No prompts, no schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class Replay:
    """The first requests of a trace in the order of their arrival, each array int64 [num_requests]."""

    prompt_tokens: TokenCounts
    output_tokens: TokenCounts
    arrival_ns: npt.NDArray[np.int64]
    """Since the first arrival of the trace; never decreasing."""


@runtime_checkable
class Replayable(Protocol):
    """A workload that may know when its requests arrived."""

    def replay(self, num_requests: int) -> Replay:
        """Raises WorkloadError when it does not, or has fewer requests."""


@runtime_checkable
class Conversational(Protocol):
    """A workload that knows which of its requests are turns of one conversation."""

    def draw_conversations(
        self, num_turns: int, fewest_turns: int, most_turns: int, rng: np.random.Generator
    ) -> list[TokenCounts]:
        """Each [2, its turns]: prompt and output tokens that a turn adds; they have `num_turns` together.

        Conversations of fewer than `fewest_turns` are left out, longer ones than `most_turns` end early, as the last
        one does. Raises WorkloadError when none is left.
        """


def draw_rows(num_rows: int, num_requests: int, rng: np.random.Generator) -> TokenCounts:
    """Row numbers [num_requests], none twice until all were drawn once, then all over again."""
    rounds = max(1, -(-num_requests // num_rows))
    return np.concatenate([rng.permutation(num_rows) for _ in range(rounds)])[:num_requests]
