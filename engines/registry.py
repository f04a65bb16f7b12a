"""Names of engines -> their adapters. Importing this costs next to nothing; an adapter is imported when created."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from neobench.engines.launch import Launch, nearest_names

if TYPE_CHECKING:
    from neobench.harness.engine import Engine


class EngineEntry(NamedTuple):
    adapter: str
    """"module:callable"; the callable takes a Launch, with `settings` the engine's name before it and them after."""
    description: str
    settings: Mapping[str, Any] = MappingProxyType({})
    """Of neobench's own engine: its policy, and the options that the name fixes."""


_OWN = "neobench.engines.neo:NeoEngine"


def _chunked(**fixed: int) -> Mapping[str, Any]:
    return {"policy": "chunked_prefill", **fixed}


ENGINES: Mapping[str, EngineEntry] = {
    "neo": EngineEntry(
        _OWN,
        "NEO: KV cache and decode attention split between the device and the host CPU",
        {"policy": "asymmetric_pipeline"},
    ),
    "gpu_only": EngineEntry(
        _OWN,
        "the same engine with everything on the device, prompts whole: the paper's baseline",
        {"policy": "gpu_only"},
    ),
    "chunked_prefill": EngineEntry(
        _OWN, "everything on the device, prompts in chunks within --max-batch-tokens, decodes first", _chunked()
    ),
    "chunked_prefill_256": EngineEntry(_OWN, "the same with 256 tokens an iteration", _chunked(max_batch_tokens=256)),
    "chunked_prefill_512": EngineEntry(_OWN, "the same with 512 tokens an iteration", _chunked(max_batch_tokens=512)),
    "full_offload": EngineEntry(_OWN, "all decode attention on the host CPU (FastDecode)", {"policy": "full_offload"}),
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
    make = getattr(importlib.import_module(module_name), callable_name)
    engine: Engine = make(name, launch, **entry.settings) if entry.settings else make(launch)
    return engine
