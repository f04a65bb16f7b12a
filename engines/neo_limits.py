"""Which prompts neobench's own engine can take, from its options alone: nothing is started, no torch imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neobench.engines.launch import PromptLimits
from neobench.harness.engine import EngineError
from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.settings import config_of


def limits(model: str, options: Mapping[str, Any], *, policy: str, **fixed: Any) -> PromptLimits:
    """Raises EngineError for a model or settings that cannot work."""
    try:
        config = config_of({"model": model, **options, **fixed}, policy=policy)
    except ConfigError as error:
        raise EngineError(str(error)) from None
    return PromptLimits(vocab_size=config.shape.vocab_size, max_model_tokens=config.max_request_tokens)
