"""What an adapter is given to make its engine with."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_VOCAB_SIZE = 32_000
"""Of engines that do not say: small enough for nearly every model that is served today."""


def keep_silent(_message: str) -> None:
    pass


@dataclass(frozen=True)
class Launch:
    model: str
    options: Mapping[str, Any]
    """Checked by the adapter: an unknown one is an EngineError that names the nearest known one."""
    log_path: Path
    """Where a server's output goes; its folder is made if need be."""
    progress: Callable[[str], None] = keep_silent
    """Called about once a second with a line on what a starting engine is waiting for."""
    argument: str | None = None
    """What stands behind the colon of the engine's name, as 256 in "vllm:256"."""


@dataclass(frozen=True)
class PromptLimits:
    """Which prompts an engine can take, known before it is started."""

    vocab_size: int = DEFAULT_VOCAB_SIZE
    max_model_tokens: int | None = None
    """Longest prompt plus output; None: no limit is known."""
    text: bool = False
    """Prompts are to be text of about the wanted length, because the engine takes no token ids."""


def nearest_names(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return " or ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names)
