"""From options, named as on the command line, to an EngineConfig. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neobench.neo_engine.config import USABLE_MEMORY_FRACTION, ConfigError, EngineConfig
from neobench.neo_engine.emulation import emulated_settings
from neobench.neo_engine.scheduler.policy import check_policy_name

_FIELDS = {"host_memory": "host_memory_bytes", "profile": "profile_path"}


def config_of(options: Mapping[str, Any], *, policy: str) -> EngineConfig:
    """Options that are None keep EngineConfig's default. Raises ConfigError for settings that cannot work."""
    settings = {_FIELDS.get(name, name): value for name, value in options.items() if value is not None}
    if "profile_path" in settings:
        settings["profile_path"] = Path(settings["profile_path"])
    check_policy_name(policy)
    return EngineConfig(policy=policy, **_with_device_kv(emulated_settings(settings)))


def _with_device_kv(settings: dict[str, Any]) -> dict[str, Any]:
    """On a GPU the KV takes what fits, unless a number of blocks is given, or implied by a card."""
    if "device_blocks" not in settings:
        if settings.get("device") == "cuda":
            return {"device_memory_fraction": USABLE_MEMORY_FRACTION, **settings}
    elif "device_memory_fraction" in settings:
        raise ConfigError(
            "--device-memory-fraction finds the number of KV blocks, which --device-blocks or --emulate has fixed: "
            "leave one of them out"
        )
    return settings
