"""`sharegpt:FILE`: the first question and answer of each conversation in ShareGPT's JSON, counted with a tokenizer."""

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


class ShareGpt:
    """Only the conversations drawn are tokenized. None is left out for its length."""

    def __init__(self, path: Path, tokenizer: str, *, skip_malformed: bool) -> None:
        self.name = f"sharegpt:{path.name}"
        self._path = path
        self._tokenizer = tokenizer
        self._pairs, self._num_short, self._malformed = _read(path)
        if self._malformed and not (skip_malformed and self._pairs):
            raise WorkloadError(malformed_rows(path, self._malformed))
        if not self._pairs:
            raise WorkloadError(f"{path} holds no conversation with a question and an answer")
        self._count_tokens = token_counter(tokenizer)

    def describe(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "name": self.name,
            "source": f"local file {self._path}, first question and answer of each conversation",
            "file_requests": len(self._pairs),
            "conversations_without_an_answer_left_out": self._num_short,
            "tokenizer": self._tokenizer,
        }
        if self._malformed:
            facts["malformed_rows_left_out"] = len(self._malformed)
        return facts

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        drawn = [self._pairs[row] for row in draw_rows(len(self._pairs), num_requests, rng)]
        return self._count_tokens([prompt for prompt, _ in drawn]), self._count_tokens([answer for _, answer in drawn])

    def longest_request_tokens(self) -> None:
        return None


def _read(path: Path) -> tuple[list[tuple[str, str]], int, list[str]]:
    """Questions with their answers, the number of conversations that have none, and what is malformed."""
    try:
        conversations = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorkloadError(f"cannot read {path}: {error}") from error
    if not isinstance(conversations, list):
        raise WorkloadError(f"{path}: a list of conversations is needed")
    pairs = []
    num_short = 0
    malformed = []
    for number, conversation in enumerate(conversations, start=1):
        try:
            texts = _first_texts(conversation)
        except (TypeError, KeyError, AttributeError):
            malformed.append(f'entry {number}: not {{"conversations": [{{"from": ..., "value": text}}, ...]}}')
            continue
        if len(texts) == 2:
            pairs.append((texts[0], texts[1]))
        else:
            num_short += 1
    return pairs, num_short, malformed


def _first_texts(conversation: Any) -> list[str]:
    turns = conversation["conversations"]
    if not isinstance(turns, list):
        raise TypeError
    texts = [turn["value"] for turn in turns[:2]]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    return texts
