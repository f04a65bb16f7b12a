"""Summarization requests of "OpenAI summarization comparisons", published by CarperAI: the NEO paper's OSC workload."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neobench.workloads.hf import load_rows
from neobench.workloads.options import check_options, flag
from neobench.workloads.sources import FileLengths, TableLengths
from neobench.workloads.token_counts import token_counter
from neobench.workloads.workload import TokenCounts, Workload, WorkloadError, draw_rows

DATASET = "CarperAI/openai_summarize_comparisons"
TABLE_PATH = Path(__file__).parent / "tables" / "carperai.json"
SPLIT = "test"
SUMMARY_CUE = "TL;DR:"
"""Every summary of the dataset begins with it; a model is given it with the prompt and writes what follows."""
OPTIONS = ("file", "skip_malformed", "tokenizer")


def create(argument: str | None, options: Mapping[str, Any]) -> Workload:
    """Lengths from the shipped table; with `file`, from a local file; with `tokenizer`, counted in the real dataset.

    `tokenizer` is a tokenizer.json, a folder with one, or a model name of the Hugging Face hub.
    """
    if argument is not None:
        raise WorkloadError(f"carperai takes no argument, but got {argument!r}; its options are {', '.join(OPTIONS)}")
    check_options("carperai", options, OPTIONS)
    if "file" in options and "tokenizer" in options:
        raise WorkloadError("carperai takes its lengths from either a file or the dataset, not from both")
    if "file" in options:
        return FileLengths("carperai", Path(options["file"]), skip_malformed=flag(options, "skip_malformed"))
    if "skip_malformed" in options:
        raise WorkloadError("carperai: skip_malformed is about a file; give one, or leave it out")
    if "tokenizer" in options:
        return DatasetLengths(str(options["tokenizer"]))
    return TableLengths("carperai", TABLE_PATH)


class DatasetLengths:
    """The dataset itself, posts in and the chosen summaries out. Only the rows drawn are tokenized."""

    name = "carperai"

    def __init__(self, tokenizer: str) -> None:
        self._tokenizer = tokenizer
        self._count_tokens = token_counter(tokenizer)
        self._dataset = _load_dataset()

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": f"https://huggingface.co/datasets/{DATASET}, split {SPLIT}",
            "dataset_rows": len(self._dataset),
            "tokenizer": self._tokenizer,
        }

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        rows = self._dataset.select(draw_rows(len(self._dataset), num_requests, rng))
        prompts = [f"{post}\n{SUMMARY_CUE}" for post in rows["prompt"]]
        summaries = [summary.removeprefix(SUMMARY_CUE) for summary in rows["chosen"]]
        return self._count_tokens(prompts), self._count_tokens(summaries)

    def longest_request_tokens(self) -> None:
        return None


def _load_dataset() -> Any:
    try:
        return load_rows(DATASET, SPLIT)
    except WorkloadError as error:
        raise WorkloadError(
            f"{error}. Without it, leave the option 'tokenizer' out (the lengths that ship with the package are used) "
            "or give a local 'file'"
        ) from error
