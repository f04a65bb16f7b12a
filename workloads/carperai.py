"""Summarization requests of "OpenAI summarization comparisons", published by CarperAI: the NEO paper's OSC workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neobench.workloads.length_files import read_lengths
from neobench.workloads.lengths import load_table
from neobench.workloads.workload import TokenCounts, Workload, WorkloadError

DATASET = "CarperAI/openai_summarize_comparisons"
TABLE_PATH = Path(__file__).parent / "tables" / "carperai.json"
SPLIT = "test"
SUMMARY_CUE = "TL;DR:"
"""Every summary of the dataset begins with it; a model is given it with the prompt and writes what follows."""
OPTIONS = ("file", "tokenizer")


def create(argument: str | None, options: Mapping[str, Any]) -> Workload:
    """Lengths from the shipped table; with `file`, from a local file; with `tokenizer`, counted in the real dataset.

    `tokenizer` is a tokenizer.json, a folder with one, or a model name of the Hugging Face hub.
    """
    if argument is not None:
        raise WorkloadError(f"carperai takes no argument, but got {argument!r}; its options are {', '.join(OPTIONS)}")
    if unknown := [key for key in options if key not in OPTIONS]:
        raise WorkloadError(f"unknown option {unknown[0]!r} of carperai; it has {', '.join(OPTIONS)}")
    if len(options) > 1:
        raise WorkloadError("carperai takes its lengths from either a file or the dataset, not from both")
    if "file" in options:
        return FileLengths(Path(options["file"]))
    if "tokenizer" in options:
        return DatasetLengths(str(options["tokenizer"]))
    return TableLengths(TABLE_PATH)


class TableLengths:
    name = "carperai"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table = load_table(path)

    def describe(self) -> dict[str, Any]:
        table = self._table
        return {
            "name": self.name,
            "source": table.source,
            "licence": table.licence,
            "tokenizer": table.tokenizer,
            "table": self._path.name,
            "table_derived_on": table.derived_on,
            "table_derived_from_requests": table.num_requests,
        }

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        return self._table.draw(num_requests, rng)

    def longest_request_tokens(self) -> int:
        return self._table.longest_request_tokens()


class FileLengths:
    """Rows drawn without repetition until all were drawn once, then all over again."""

    name = "carperai"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._prompt_tokens, self._output_tokens = read_lengths(path)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "source": f"local file {self._path}", "file_requests": len(self._prompt_tokens)}

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        rows = _draw_rows(len(self._prompt_tokens), num_requests, rng)
        return self._prompt_tokens[rows], self._output_tokens[rows]

    def longest_request_tokens(self) -> int:
        return int((self._prompt_tokens + self._output_tokens).max())


class DatasetLengths:
    """The dataset itself, posts in and the chosen summaries out. Only the rows drawn are tokenized."""

    name = "carperai"

    def __init__(self, tokenizer: str) -> None:
        self._tokenizer = tokenizer
        self._count_tokens = _token_counter(tokenizer)
        self._dataset = _load_dataset()

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": f"https://huggingface.co/datasets/{DATASET}, split {SPLIT}",
            "dataset_rows": len(self._dataset),
            "tokenizer": self._tokenizer,
        }

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        rows = self._dataset.select(_draw_rows(len(self._dataset), num_requests, rng))
        prompts = [f"{post}\n{SUMMARY_CUE}" for post in rows["prompt"]]
        summaries = [summary.removeprefix(SUMMARY_CUE) for summary in rows["chosen"]]
        return self._count_tokens(prompts), self._count_tokens(summaries)

    def longest_request_tokens(self) -> None:
        return None


def _draw_rows(num_rows: int, num_requests: int, rng: np.random.Generator) -> TokenCounts:
    rounds = -(-num_requests // num_rows)
    return np.concatenate([rng.permutation(num_rows) for _ in range(rounds)])[:num_requests]


def _load_dataset() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise WorkloadError("the real dataset needs the package 'datasets': pip install 'neobench[data]'") from error
    try:
        return datasets.load_dataset(DATASET, split=SPLIT)
    # What a missing network raises depends on the versions of datasets, huggingface_hub and httpx.
    except Exception as error:
        raise WorkloadError(
            f"cannot load {DATASET}: {error}. Without a network, leave the option 'tokenizer' out "
            "(the lengths that ship with the package are used) or give a local 'file'"
        ) from error


def _token_counter(name: str) -> Callable[[list[str]], TokenCounts]:
    """A function from texts to their token counts, each at least 1, special tokens left out."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise WorkloadError("counting tokens needs the package 'tokenizers': pip install 'neobench[engine]'") from error
    path = Path(name)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)
    # The library raises plain Exception for whatever went wrong.
    except Exception as error:
        raise WorkloadError(f"cannot load the tokenizer {name!r}: {error}") from error

    def count(texts: list[str]) -> TokenCounts:
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        return np.array([max(1, len(encoding.ids)) for encoding in encodings], dtype=np.int64)

    return count
