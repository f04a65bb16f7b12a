"""How many KV blocks the device has room for: found by running the largest step there can be with next to no KV."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch

from neobench.neo_engine.batch import Mode
from neobench.neo_engine.config import ConfigError, EngineConfig
from neobench.neo_engine.executor.base import Executor, SampleRow
from neobench.neo_engine.executor.inputs import BatchInputs, DecodeInput, PrefillInput
from neobench.neo_engine.kv_cache.block_tables import BlockMove
from neobench.neo_engine.request import SamplingParams, Tier
from neobench.neo_engine.scheduler.policy import CUTTING_PROMPTS, OFFLOADING

_TRIAL_BLOCKS = 16
"""Of each tier. Made-up requests share them: what a step takes beside KV does not depend on where the KV lies."""

_LESS = "shorter --max-model-tokens, fewer --max-batch-tokens, --dtype float16 or bfloat16, or a smaller model"

MemoryInfo = Callable[[], tuple[int, int]]
"""Bytes of the device that are free, by whomever the others are used, and bytes in all."""


@dataclass(frozen=True)
class _TrialConfig(EngineConfig):
    """Of an executor whose buffers are for requests that its few blocks could not hold."""

    longest_request_tokens: int = 0

    @property
    def max_request_tokens(self) -> int:
        return self.longest_request_tokens


def blocks_that_fit(total_bytes: int, used_bytes_at_peak: int, fraction: float, block_bytes: int) -> int:
    """KV blocks beside what is used at the peak of a step without them, in `fraction` of a device's memory.

    Raises ConfigError when not one fits.
    """
    blocks = (int(fraction * total_bytes) - used_bytes_at_peak) // block_bytes
    if blocks < 1:
        raise ConfigError(
            f"no room for KV: weights, the largest step and other programs take {_gib(used_bytes_at_peak)} of the "
            f"GPU's {_gib(total_bytes)}, of which device_memory_fraction allows {fraction:g}, and a block takes "
            f"{_gib(block_bytes)}. Choose {_LESS}, or a larger --device-memory-fraction"
        )
    return blocks


def sized(
    config: EngineConfig,
    build: Callable[[EngineConfig], Executor],
    say: Callable[[str], None],
    memory_info: MemoryInfo = torch.cuda.mem_get_info,
) -> EngineConfig:
    """The config with as many device_blocks as its device_memory_fraction has room for, and None in its place.

    `build` makes an executor on the device that already holds the weights; it is closed again and must leave nothing
    behind but garbage. Takes as long as the longest prompt does. Raises ConfigError when not one block fits.
    """
    fraction = config.device_memory_fraction
    assert fraction is not None
    block_bytes = config.block_bytes(config.device_layout)
    _release_unused()
    free_bytes, total_bytes = memory_info()
    most = blocks_that_fit(total_bytes, total_bytes - free_bytes, fraction, block_bytes)
    trial = _trial_config(replace(config, device_blocks=most, device_memory_fraction=None))
    executor = build(trial)
    try:
        executor.warm_up(offloads=config.policy in OFFLOADING)
        run_largest_steps(trial, executor)
        # Torch keeps what a step has taken, so that this is the peak; it includes what CUDA and its libraries hold.
        free_bytes, _ = memory_info()
    finally:
        executor.close()
    del executor
    _release_unused()
    used_bytes = total_bytes - free_bytes - trial.device_blocks * block_bytes
    blocks = blocks_that_fit(total_bytes, used_bytes, fraction, block_bytes)
    say(
        f"{blocks:,} KV blocks fit on the device: {blocks * config.block_size:,} tokens in "
        f"{_gib(blocks * block_bytes)}, beside {_gib(used_bytes)} for weights and the largest step, "
        f"of {fraction:g} x {_gib(total_bytes)}"
    )
    return replace(config, device_blocks=blocks, device_memory_fraction=None)


def _trial_config(config: EngineConfig) -> _TrialConfig:
    settings = {field.name: getattr(config, field.name) for field in fields(config) if field.init}
    settings["device_blocks"] = min(_TRIAL_BLOCKS, config.device_blocks)
    settings["host_memory_bytes"] = min(_TRIAL_BLOCKS, config.host_blocks) * config.block_bytes(config.host_layout)
    return _TrialConfig(**settings, longest_request_tokens=config.max_request_tokens)


def run_largest_steps(config: EngineConfig, executor: Executor) -> None:
    """Whatever takes most of the device's memory: the longest prompts, all rows that decode, all of them sampled.

    Overwrites KV, and is for an executor with room in its buffers for requests of config.max_request_tokens.
    """
    rows = config.max_batch_rows
    prompts = _batch(config, _prompts(config, Tier.DEVICE), device_rows=rows)
    _execute(executor, Mode.GPU_ONLY, [prompts])
    if config.policy not in OFFLOADING or not config.host_blocks:
        return
    decodes = _batch(config, (), device_rows=rows, host_rows=rows)
    host_decodes = _batch(config, (), host_rows=rows)
    for _ in range(2):
        # As graphs the second time, which take memory of their own.
        _execute(executor, Mode.ASYMMETRIC, [decodes, host_decodes])
    prompts = _batch(config, _prompts(config, Tier.HOST), device_rows=rows, host_rows=rows)
    _execute(executor, Mode.ASYMMETRIC, [prompts, host_decodes], _moves(config))


def _execute(executor: Executor, mode: Mode, batches: Sequence[BatchInputs], moves: Sequence[BlockMove] = ()) -> None:
    # Of all parameters these take most: probabilities of the whole vocabulary are sorted.
    row = SampleRow(SamplingParams(temperature=1.0, top_p=0.9), seed=0, position=0)
    executor.execute(mode, batches, moves, [row] * sum(len(batch.logit_rows) for batch in batches))


def _prompts(config: EngineConfig, tier: Tier) -> tuple[PrefillInput, ...]:
    """The end of the longest request, by a chunk where the policy cuts prompts, and others up to the token budget."""
    longest, budget = config.max_request_tokens, config.max_batch_tokens
    first = min(longest, budget) if config.policy in CUTTING_PROMPTS else longest
    others = max(0, budget - first)
    lengths = [longest] * (others // longest) + [others % longest] * (others % longest > 0)
    return (
        PrefillInput(first, tier, _blocks(config, tier, longest), start_tokens=longest - first),
        *(PrefillInput(length, tier, _blocks(config, tier, length)) for length in lengths),
    )


def _batch(
    config: EngineConfig, prefills: tuple[PrefillInput, ...], *, device_rows: int = 0, host_rows: int = 0
) -> BatchInputs:
    """Prompts, and decodes of which one on the device is of the longest request. Contexts of others take no memory."""
    device = [config.max_request_tokens, *[1] * (device_rows - 1)] if device_rows else []
    host = [1] * host_rows
    positions = [start for prefill in prefills for start in range(prefill.start_tokens, _end(prefill))]
    positions += [context - 1 for context in (*device, *host)]
    return BatchInputs(
        token_ids=[0] * len(positions),
        positions=positions,
        prefills=prefills,
        device=DecodeInput(tuple(_blocks(config, Tier.DEVICE, context) for context in device), tuple(device)),
        host=DecodeInput(tuple(_blocks(config, Tier.HOST, context) for context in host), tuple(host)),
    )


def _end(prefill: PrefillInput) -> int:
    return prefill.start_tokens + prefill.num_tokens


def _blocks(config: EngineConfig, tier: Tier, num_tokens: int) -> list[int]:
    total = config.device_blocks if tier is Tier.DEVICE else config.host_blocks
    return [index % total for index in range(config.blocks_for(num_tokens))]


def _moves(config: EngineConfig) -> list[BlockMove]:
    blocks = tuple(range(min(config.device_blocks, config.host_blocks)))
    return [BlockMove(tier, blocks, blocks) for tier in (Tier.DEVICE, Tier.HOST)]


@contextmanager
def explained_shortage(config: EngineConfig, memory_info: MemoryInfo = torch.cuda.mem_get_info) -> Iterator[None]:
    """Where the GPU's memory runs out, ConfigError with what was asked for, what there is, and what to change."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
        free_bytes, total_bytes = memory_info()
        kv = "" if config.device_memory_fraction is not None else f"fewer --device-blocks than {config.device_blocks}, "
        raise ConfigError(
            f"the GPU's memory ran out: {asked[1] if asked else 'more'} asked for, {_gib(free_bytes)} of "
            f"{_gib(total_bytes)} free. Choose {kv}{_LESS} (--host-memory is not the GPU's), or end other programs "
            "that use this GPU"
        ) from error


def _release_unused() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
