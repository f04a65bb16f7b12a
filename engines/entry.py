"""What the registry knows of an engine without importing it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class EngineEntry(NamedTuple):
    adapter: str
    """"module:callable"; the callable takes a Launch, with `settings` the engine's name before it and them after."""
    description: str
    settings: Mapping[str, Any] = MappingProxyType({})
    """What the name fixes, e.g. the policy of neobench's own engine; an option of the same name cannot be given."""
    options: tuple[str, ...] = ()
    """Those of `Launch.options` that the engine takes; "model" is one too: that it serves the model it is told to.

    On the command line `device_blocks` is --device-blocks.
    """
    limits: str = ""
    """"module:callable" (model, options, **settings) -> PromptLimits, without starting anything; EngineError if it
    cannot work. Empty: the limits of PromptLimits(). Where an `argument` may stand behind the name it is one more
    keyword, None without."""
    argument: str = ""
    """What may stand behind a colon after the name, for help: "TOKENS" for "vllm:256". Empty: nothing may."""
    is_model: bool = False
    """Its latencies are those of a model, though they take real time: its runs are of kind "modelled"."""

    def takes(self, option: str) -> bool:
        return option in self.options and option not in self.settings
