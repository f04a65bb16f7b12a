"""Texts -> token counts, with the tokenizer of whichever model is asked about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from neobench.workloads.workload import TokenCounts, WorkloadError


def token_counter(name: str) -> Callable[[list[str]], TokenCounts]:
    """A function from texts to their token counts, each at least 1, special tokens left out.

    `name` is a tokenizer.json, a folder with one, or a model name of the Hugging Face hub. Raises WorkloadError.
    """
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
