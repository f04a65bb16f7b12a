"""Names of engines -> their adapters. Importing this costs next to nothing; an adapter is imported when created."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from neobench.engines.launch import Launch, nearest_names

if TYPE_CHECKING:
    from neobench.harness.engine import Engine


class EngineEntry(NamedTuple):
    adapter: str
    """"module:callable"; the callable takes a Launch."""
    description: str


ENGINES: Mapping[str, EngineEntry] = {
    "neo": EngineEntry(
        "neobench.engines.neo:create_neo",
        "NEO: KV cache and decode attention split between the device and the host CPU",
    ),
    "gpu_only": EngineEntry(
        "neobench.engines.neo:create_gpu_only",
        "the same engine with everything on the device: the baseline",
    ),
    "null": EngineEntry(
        "neobench.engines.null:NullEngine",
        "answers at once, in process: measures the harness itself",
    ),
}


def create(name: str, launch: Launch) -> Engine:
    """Raises EngineError for an unknown name or option."""
    entry = ENGINES.get(name)
    if entry is None:
        from neobench.harness.engine import EngineError

        raise EngineError(f"unknown engine {name!r}; did you mean {nearest_names(name, ENGINES)}?")
    module_name, _, callable_name = entry.adapter.partition(":")
    engine: Engine = getattr(importlib.import_module(module_name), callable_name)(launch)
    return engine
