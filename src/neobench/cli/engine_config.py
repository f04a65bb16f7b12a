"""The settings of neobench's own engine, with errors as the command line has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from neobench.neo_engine.config import ConfigError, EngineConfig
from neobench.neo_engine.settings import config_of


def engine_config(options: Mapping[str, Any], *, policy: str) -> EngineConfig:
    """Options are named as in `engine_options`; those that are None keep EngineConfig's default.

    Raises click.UsageError with the engine's own sentence for settings that cannot work.
    """
    try:
        config = config_of(options, policy=policy)
        if config.sms is not None:
            check_emulation()
        return config
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def check_emulation() -> None:
    """Raises ConfigError where no GPU can be restricted. Without torch, the engine's own start says what is missing."""
    try:
        from neobench.neo_engine.green_context import cuda_problem
    except ModuleNotFoundError:
        return
    if problem := cuda_problem():
        raise ConfigError(problem)
