"""Sessions of several turns: where each begins, how long users think, and prompts with the history in front.

All of it is drawn before the run. The engine's answers are not known then, so random token ids of the length asked for
stand in for them in the history: a prefix cache finds the prompt that it has seen before, not the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from neobench.harness.spec import SessionSpec
from neobench.workloads.workload import TokenCounts

Begins = npt.NDArray[np.bool_]
THINK_TIME_SIGMA = 0.7
"""Of the logarithm of lognormal times to think."""


@dataclass(frozen=True)
class Plan:
    """Which turns form a session, and when a later one is due. Each array [num_requests]."""

    begins: Begins
    think_ns: npt.NDArray[np.int64]
    """From the end of the turn before; 0 where a session begins."""
    outgrown: int = 0
    """Sessions that ended because another turn would not fit the model's context."""

    def within(self, max_model_tokens: int, prompt_tokens: TokenCounts, output_tokens: TokenCounts) -> Plan:
        """The turn that would not fit with its history begins a session of its own, so that no turn is left out.

        `prompt_tokens` are those that a turn adds; every turn fits without a history.
        """
        begins = self.begins.copy()
        session_tokens = 0
        for turn, tokens in enumerate((prompt_tokens + output_tokens).tolist()):
            if not begins[turn] and session_tokens + tokens > max_model_tokens:
                begins[turn] = True
            session_tokens = tokens if begins[turn] else session_tokens + tokens
        outgrown = int((begins & ~self.begins).sum())
        return replace(self, begins=begins, think_ns=np.where(begins, 0, self.think_ns), outgrown=outgrown)

    def places(self) -> list[dict[str, int]]:
        """Fields of each PromptRequest."""
        sessions = np.cumsum(self.begins) - 1
        first_turns = np.flatnonzero(self.begins)[sessions]
        turns = np.arange(len(self.begins)) - first_turns
        return [
            {"session": session, "turn": turn, "think_ns": think_ns}
            for session, turn, think_ns in zip(sessions.tolist(), turns.tolist(), self.think_ns.tolist(), strict=True)
        ]

    def describe(self, spec: SessionSpec, max_model_tokens: int | None) -> dict[str, Any]:
        """Facts for run.json, with a sentence for the user."""
        num_turns, num_sessions = len(self.begins), int(self.begins.sum())
        think_s = self.think_ns[~self.begins] / 1e9
        sentence = (
            f"{num_turns} requests are the turns of {num_sessions} sessions, {num_turns / num_sessions:.3g} each on "
            "average. Sessions arrive by the schedule; a later turn follows from the answer before it."
        )
        if self.outgrown:
            sentence += (
                f" {self.outgrown} times the next turn did not fit the model's context of {max_model_tokens} tokens: "
                "the session ended, and the turn began another without a history."
            )
        return {
            "sessions": num_sessions,
            "mean_turns": num_turns / num_sessions,
            "most_turns": int(np.diff(np.flatnonzero([*self.begins, True])).max()),
            "mean_think_time_s": float(think_s.mean()) if len(think_s) else None,
            "think_time_kind": spec.think_time_kind,
            "outgrown": self.outgrown,
            "sentence": sentence,
        }


def draw_begins(spec: SessionSpec, num_turns: int, rng: np.random.Generator) -> Begins:
    """Sessions of independent numbers of turns; the last one is cut to make `num_turns`."""
    return begins_of(rng.integers(spec.fewest_turns, spec.most_turns, size=num_turns, endpoint=True), num_turns)


def begins_of(turn_counts: Sequence[int] | TokenCounts, num_turns: int) -> Begins:
    """True where a session of these numbers of turns, one after the other, begins; they are `num_turns` at least."""
    starts = np.concatenate(([0], np.cumsum(turn_counts)))
    begins = np.zeros(num_turns, dtype=np.bool_)
    begins[starts[starts < num_turns]] = True
    return begins


def draw_think_ns(spec: SessionSpec, begins: Begins, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Independent, with the mean that was asked for; drawn for every turn, so that none depends on where one begins."""
    num_turns, mean_s = len(begins), spec.think_time_s
    if spec.think_time_kind == "fixed" or not mean_s:
        think_s = np.full(num_turns, mean_s)
    elif spec.think_time_kind == "lognormal":
        think_s = rng.lognormal(np.log(mean_s) - THINK_TIME_SIGMA**2 / 2, THINK_TIME_SIGMA, num_turns)
    else:
        think_s = rng.exponential(mean_s, num_turns)
    return np.where(begins, 0, np.rint(think_s * 1e9).astype(np.int64))


def with_history(
    firsts: Sequence[list[int]],
    begins: Begins,
    prompt_tokens: TokenCounts,
    output_tokens: TokenCounts,
    *,
    token_ids: range,
    rng: np.random.Generator,
) -> list[list[int]]:
    """The whole prompt of every turn: that of the turn before, ids in place of its answer, and what is new.

    `firsts` are the prompts of first turns in their order. Where every request begins a session, they are all there is.
    """
    opening = iter(firsts)
    prompts: list[list[int]] = []
    for turn, begin in enumerate(begins.tolist()):
        if begin:
            prompts.append(next(opening))
        else:
            added = int(output_tokens[turn - 1] + prompt_tokens[turn])
            prompts.append(prompts[-1] + rng.integers(token_ids.start, token_ids.stop, size=added).tolist())
    return prompts
