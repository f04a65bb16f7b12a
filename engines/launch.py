"""What an adapter is given to make its engine with."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def nearest_names(name: str, known: Mapping[str, Any]) -> str:
    return " or ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known))
