"""`sharegpt:FILE`: questions and answers of conversations in ShareGPT's JSON, counted with a tokenizer.

The first of each conversation, or all of them where requests are turns of sessions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neobench.workloads.length_files import malformed_rows
from neobench.workloads.options import check_options, flag
from neobench.workloads.token_counts import token_counter
from neobench.workloads.workload import TokenCounts, Workload, WorkloadError, draw_rows

OPTIONS = ("tokenizer", "skip_malformed")


def create(argument: str | None, options: Mapping[str, Any]) -> Workload:
    if not argument:
        raise WorkloadError("sharegpt needs a file: sharegpt:FILE, a JSON list of conversations")
    check_options("sharegpt", options, OPTIONS)
    if "tokenizer" not in options:
        raise WorkloadError(
            "sharegpt has texts, and their lengths depend on the tokenizer: give the model's "
            "(--workload-tokenizer, option tokenizer)"
        )
    return ShareGpt(Path(argument), str(options["tokenizer"]), skip_malformed=flag(options, "skip_malformed"))


_Talk = list[tuple[str, str]]
"""Questions with their answers, at least one."""


class ShareGpt:
    """Only the conversations drawn are tokenized. None is left out for its length."""

    def __init__(self, path: Path, tokenizer: str, *, skip_malformed: bool) -> None:
        self.name = f"sharegpt:{path.name}"
        self._path = path
        self._tokenizer = tokenizer
        self._talks, self._num_short, self._malformed = _read(path)
        self._takes_all_turns = False
        if self._malformed and not (skip_malformed and self._talks):
            raise WorkloadError(malformed_rows(path, self._malformed))
        if not self._talks:
            raise WorkloadError(f"{path} holds no conversation with a question and an answer")
        self._count_tokens = token_counter(tokenizer)

    def describe(self) -> dict[str, Any]:
        taken = "questions and answers" if self._takes_all_turns else "first question and answer"
        facts: dict[str, Any] = {
            "name": self.name,
            "source": f"local file {self._path}, {taken} of each conversation",
            "file_requests": len(self._talks),
            "conversations_without_an_answer_left_out": self._num_short,
            "tokenizer": self._tokenizer,
        }
        if self._malformed:
            facts["malformed_rows_left_out"] = len(self._malformed)
        return facts

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        return self._lengths([self._talks[row][0] for row in draw_rows(len(self._talks), num_requests, rng)])

    def draw_conversations(
        self, num_turns: int, fewest_turns: int, most_turns: int, rng: np.random.Generator
    ) -> list[TokenCounts]:
        self._takes_all_turns = True
        long_enough = [talk for talk in self._talks if len(talk) >= fewest_turns]
        if not long_enough:
            raise WorkloadError(
                f"{self._path} has no conversation of {fewest_turns} questions and answers; the longest has "
                f"{max(map(len, self._talks))}: ask for fewer --turns, or a range such as 1-{most_turns}"
            )
        talks: list[_Talk] = []
        missing = num_turns
        for row in draw_rows(len(long_enough), num_turns, rng):
            talks.append(long_enough[row][: min(most_turns, missing)])
            missing -= len(talks[-1])
            if not missing:
                break
        lengths = np.array(self._lengths([pair for talk in talks for pair in talk]))
        return np.split(lengths, np.cumsum([len(talk) for talk in talks])[:-1], axis=1)

    def _lengths(self, pairs: _Talk) -> tuple[TokenCounts, TokenCounts]:
        return self._count_tokens([prompt for prompt, _ in pairs]), self._count_tokens([answer for _, answer in pairs])

    def longest_request_tokens(self) -> None:
        return None


def _read(path: Path) -> tuple[list[_Talk], int, list[str]]:
    """Conversations, the number of those without an answer, and what is malformed."""
    try:
        conversations = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorkloadError(f"cannot read {path}: {error}") from error
    if not isinstance(conversations, list):
        raise WorkloadError(f"{path}: a list of conversations is needed")
    talks = []
    num_short = 0
    malformed = []
    for number, conversation in enumerate(conversations, start=1):
        try:
            texts = _texts(conversation)
        except (TypeError, KeyError, AttributeError):
            malformed.append(f'entry {number}: not {{"conversations": [{{"from": ..., "value": text}}, ...]}}')
            continue
        # A question at the end that nobody answered is none.
        talk = list(zip(texts[::2], texts[1::2], strict=False))
        if talk:
            talks.append(talk)
        else:
            num_short += 1
    return talks, num_short, malformed


def _texts(conversation: Any) -> list[str]:
    turns = conversation["conversations"]
    if not isinstance(turns, list):
        raise TypeError
    texts = [turn["value"] for turn in turns]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    return texts
