"""Names of engines -> their adapters. Importing this costs next to nothing; an adapter is imported when created."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from neobench.engines.entry import EngineEntry
from neobench.engines.launch import Launch, PromptLimits, nearest_names

if TYPE_CHECKING:
    from neobench.harness.engine import Engine


NEO_OPTIONS = (
    "model",
    "device",
    "device_blocks",
    "device_memory_fraction",
    "host_memory",
    "host_kv_dtype",
    "dtype",
    "block_size",
    "device_threads",
    "host_threads",
    "profile",
    "seed",
    "max_model_tokens",
    "max_batch_tokens",
    "emulate",
    "sms",
)

VLLM_OPTIONS = (
    "model",
    "device",
    "device_blocks",
    "device_memory_fraction",
    "dtype",
    "block_size",
    "device_threads",
    "seed",
    "max_model_tokens",
    "max_batch_tokens",
    "engine_python",
    "prefix_caching",
    "vllm_args",
)


def _own(description: str, policy: str, **fixed: int) -> EngineEntry:
    """neobench's own engine with one of its policies, and the options that the name fixes."""
    return EngineEntry(
        "neobench.engines.neo:NeoEngine",
        description,
        settings={"policy": policy, **fixed},
        options=NEO_OPTIONS,
        limits="neobench.engines.neo_limits:limits",
    )


def _vllm(description: str, *, paper: bool) -> EngineEntry:
    return EngineEntry(
        "neobench.engines.vllm:VllmEngine",
        description,
        settings={"paper": paper},
        options=VLLM_OPTIONS,
        limits="neobench.engines.vllm_settings:limits",
        argument="TOKENS",
    )


ENGINES: Mapping[str, EngineEntry] = {
    "neo": _own("NEO: KV cache and decode attention split between the device and the host CPU", "asymmetric_pipeline"),
    "gpu_only": _own("the same engine with everything on the device, prompts whole: the paper's baseline", "gpu_only"),
    "chunked_prefill": _own(
        "everything on the device, prompts in chunks within --max-batch-tokens, decodes first", "chunked_prefill"
    ),
    "chunked_prefill_256": _own("the same with 256 tokens an iteration", "chunked_prefill", max_batch_tokens=256),
    "chunked_prefill_512": _own("the same with 512 tokens an iteration", "chunked_prefill", max_batch_tokens=512),
    "full_offload": _own("all decode attention on the host CPU (FastDecode)", "full_offload"),
    "vllm": _vllm("a real `vllm serve` with chunked prefill; vllm:256 gives it 256 tokens an iteration", paper=False),
    "vllm-neo-paper": _vllm("the same, slowed by the flags of the NEO paper's artifact", paper=True),
    "openai": EngineEntry(
        "neobench.engines.openai:OpenAIEngine",
        "any OpenAI-compatible server or service that is running, at --base-url",
        options=(
            "base_url",
            "api",
            "header",
            "api_key_env",
            "extra_body",
            "served_model",
            "exact_output",
            "prompt",
            "vocab_size",
            "max_model_tokens",
        ),
        limits="neobench.engines.openai_limits:limits",
    ),
    "null_server": EngineEntry(
        "neobench.engines.null_server:engine",
        "answers at once or after known delays, over HTTP from a process of its own: measures the client "
        "(see `neobench selftest`)",
        options=("max_model_tokens", "first_token_ms", "inter_token_ms", "log_instants"),
        limits="neobench.engines.null_server:limits",
    ),
    "modelled": EngineEntry(
        "neobench.engines.modelled_queue:engine",
        "a server whose latencies queueing theory knows (M/M/1, M/D/1): serves one request at a time, each for a drawn "
        "time, in real time over HTTP; models no machine (see --hardware)",
        options=("service_ms", "service_law", "seed", "max_model_tokens", "log_instants"),
        limits="neobench.engines.modelled_queue:limits",
        is_model=True,
    ),
    "null": EngineEntry(
        "neobench.engines.null:NullEngine",
        "answers at once, in process: measures the harness itself",
        options=("max_model_tokens",),
        limits="neobench.engines.null:limits",
    ),
}
"""Those that come with neobench."""


def find(name: str, options: Collection[str] = ()) -> tuple[EngineEntry, str | None]:
    """The entry of "name" or "name:argument", and the argument. Raises EngineError for an unknown or a wrong one.

    With "hardware" among the options it is the entry that models the engine.
    """
    from neobench.harness.engine import EngineError

    base, colon, argument = name.partition(":")
    entry = _modelled_entry(base) if "hardware" in options else ENGINES.get(base) or _plugin_entry(base)
    if not colon:
        return entry, None
    if not entry.argument:
        raise EngineError(f"{base} takes nothing behind a colon; write {base} instead of {name}")
    if not argument:
        raise EngineError(f"{name} ends with its colon; write {base}:{entry.argument}, or {base} alone")
    return entry, argument


def _plugin_entry(name: str) -> EngineEntry:
    from neobench.engines.plugins import plugin, plugin_names
    from neobench.harness.engine import EngineError

    found = plugin(name)
    if found is None:
        raise EngineError(f"unknown engine {name!r}; did you mean {nearest_names(name, [*ENGINES, *plugin_names()])}?")
    if found.entry is None:
        raise EngineError(f"engine {name} of {found.origin} is broken: {found.problem}")
    return found.entry


def _modelled_entry(name: str) -> EngineEntry:
    from neobench.engines.modelled_entries import MODELLED
    from neobench.harness.engine import EngineError

    if name not in MODELLED:
        raise EngineError(f"--hardware goes with {', '.join(MODELLED)}; not with {name}")
    return MODELLED[name]


def create(name: str, launch: Launch) -> Engine:
    """`launch.argument` is taken from the name. Raises EngineError for an unknown name or option."""
    from dataclasses import replace

    entry, argument = find(name, launch.options)
    make = _imported(entry.adapter)
    launch = replace(launch, argument=argument)
    engine: Engine = make(name, launch, **entry.settings) if entry.settings else make(launch)
    return engine


def prompt_limits(name: str, model: str, options: Mapping[str, Any]) -> PromptLimits:
    """Of an engine that is to be started with these options. Raises EngineError if they cannot work."""
    entry, argument = find(name, options)
    if not entry.limits:
        return PromptLimits()
    of_name = {**entry.settings, "argument": argument} if entry.argument else entry.settings
    limits: PromptLimits = _imported(entry.limits)(model, options, **of_name)
    return limits


def _imported(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module_name), attribute)
