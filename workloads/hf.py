"""`hf:DATASET`: any dataset that the `datasets` library reads, with a map of its columns to prompts and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neobench.workloads.options import check_options
from neobench.workloads.token_counts import token_counter
from neobench.workloads.workload import TokenCounts, Workload, WorkloadError, draw_rows

OPTIONS = ("prompt_column", "output_column", "split", "config", "tokenizer")
DEFAULT_SPLIT = "train"
FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def create(argument: str | None, options: Mapping[str, Any]) -> Workload:
    """`prompt_column` and `output_column` hold texts, or whole numbers: counts of tokens.

    The dataset is a name on the hub, a folder or a file; `split` is train unless given, `config` its configuration.
    """
    if not argument:
        raise WorkloadError("hf needs a dataset: hf:NAME, the hub's name of it, a folder or a file")
    check_options("hf", options, OPTIONS)
    missing = [name for name in ("prompt_column", "output_column") if name not in options]
    if missing:
        raise WorkloadError(
            f"hf needs the option {' and '.join(missing)}: which columns hold prompt and output, as texts or as token "
            "counts (--workload-option prompt_column=NAME)"
        )
    return HubDataset(argument, {name: str(value) for name, value in options.items()})


class HubDataset:
    """Rows drawn without repetition until all were drawn once. Only the rows drawn are tokenized."""

    def __init__(self, dataset: str, options: Mapping[str, str]) -> None:
        self.name = f"hf:{dataset}"
        self._split = options.get("split", DEFAULT_SPLIT)
        self._rows = load_rows(dataset, self._split, options.get("config"))
        self._columns = options["prompt_column"], options["output_column"]
        self._tokenizer = options.get("tokenizer")
        self._kinds = [self._kind(column) for column in self._columns]
        if "text" in self._kinds and self._tokenizer is None:
            raise WorkloadError(
                f"{self.name} has texts, and their lengths depend on the tokenizer: give the model's "
                "(--workload-tokenizer, option tokenizer)"
            )
        self._count_tokens = token_counter(self._tokenizer) if self._tokenizer is not None else None

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": f"dataset {self.name.partition(':')[2]}, split {self._split}",
            "dataset_rows": len(self._rows),
            "columns": dict(zip(self._columns, self._kinds, strict=True)),
            "tokenizer": self._tokenizer,
        }

    def draw_lengths(self, num_requests: int, rng: np.random.Generator) -> tuple[TokenCounts, TokenCounts]:
        drawn = draw_rows(len(self._rows), num_requests, rng)
        rows = self._rows.select(drawn)
        prompt_tokens, output_tokens = (self._tokens(column, rows[column], drawn) for column in self._columns)
        return prompt_tokens, output_tokens

    def longest_request_tokens(self) -> None:
        return None

    def _kind(self, column: str) -> str:
        features = self._rows.features
        if column not in features:
            raise WorkloadError(f"{self.name} has no column {column!r}; it has {', '.join(features)}")
        dtype = str(getattr(features[column], "dtype", features[column]))
        if dtype.startswith(("int", "uint")):
            return "count"
        if dtype in ("string", "large_string"):
            return "text"
        raise WorkloadError(f"column {column!r} of {self.name} is {dtype}; texts or whole numbers are needed")

    def _tokens(self, column: str, values: Any, drawn: TokenCounts) -> TokenCounts:
        for row, value in zip(drawn, values, strict=True):
            if value is None or (isinstance(value, int) and value < 1):
                raise WorkloadError(f"{self.name}, row {row}: {column} must be a text or at least 1 token, not {value}")
        if self._kinds[self._columns.index(column)] == "count":
            return np.array(values, dtype=np.int64)
        assert self._count_tokens is not None
        return self._count_tokens(list(values))


def load_rows(dataset: str, split: str, config: str | None = None) -> Any:
    """A datasets.Dataset. Raises WorkloadError."""
    try:
        import datasets
    except ImportError as error:
        raise WorkloadError("a dataset needs the package 'datasets': pip install 'neobench[data]'") from error
    path = Path(dataset)
    try:
        if path.is_file():
            builder = FILE_BUILDERS.get(path.suffix.lower())
            if builder is None:
                raise WorkloadError(f"{path}: a dataset file is one of {', '.join(FILE_BUILDERS)}")
            return datasets.load_dataset(builder, data_files={split: str(path)}, split=split)
        return datasets.load_dataset(dataset, config, split=split)
    # What a missing network raises depends on the versions of datasets, huggingface_hub and httpx.
    except WorkloadError:
        raise
    except Exception as error:
        raise WorkloadError(f"cannot load split {split} of the dataset {dataset}: {error}") from error
