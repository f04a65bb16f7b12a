"""Puts an engine together: weights, memory, cost tables, policy."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch

from neobench.neo_engine.config import DTYPE_BYTES, ConfigError, EngineConfig
from neobench.neo_engine.cost_model import CostModel
from neobench.neo_engine.cpu_attention import available_memory_bytes
from neobench.neo_engine.engine import NeoEngine
from neobench.neo_engine.executor.base import Executor
from neobench.neo_engine.executor.cpu import CpuExecutor
from neobench.neo_engine.executor.gpu import GpuExecutor
from neobench.neo_engine.green_context import RestrictedExecutor, Restriction
from neobench.neo_engine.kernels.decode_attention import check_device
from neobench.neo_engine.kv_cache.layout import HEAD_DIMS
from neobench.neo_engine.kv_sizing import explained_shortage, sized
from neobench.neo_engine.model.weights import build_model
from neobench.neo_engine.profiler import load_or_measure
from neobench.neo_engine.scheduler.policy import OFFLOADING

_logger = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Told what is going on, a line at a time; the longest steps of a start take minutes for a large model."""


def check_memory(config: EngineConfig, available_bytes: int) -> None:
    """Raises ConfigError if weights and KV would not fit: better now than by the kernel's hand in mid-run."""
    weights = config.shape.num_parameters * DTYPE_BYTES[config.dtype]
    kv = config.device_blocks * config.block_bytes(config.device_layout) + config.host_memory_bytes
    if weights + kv > available_bytes:
        raise ConfigError(
            f"{config.model} needs {weights / 2**30:.1f} GiB for weights in {config.dtype} and {kv / 2**30:.1f} GiB "
            f"for KV, but {available_bytes / 2**30:.1f} GiB of memory are available: choose a smaller --dtype, "
            "--host-memory or --device-blocks, or a smaller model"
        )


def check_gpu(config: EngineConfig) -> None:
    """Raises ConfigError where there is no GPU, or one that does not compute in this dtype or lacks the memory."""
    if not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch finds no NVIDIA GPU here; leave --device out to run on the CPU")
    check_device(torch.cuda.get_device_capability(), getattr(torch, config.dtype))
    weights = config.shape.num_parameters * DTYPE_BYTES[config.dtype]
    is_sized = config.device_memory_fraction is None
    kv = config.device_blocks * config.block_bytes(config.device_layout) if is_sized else 0
    free, _ = torch.cuda.mem_get_info()
    if weights + kv > free:
        raise ConfigError(
            f"{config.model} needs {weights / 2**30:.1f} GiB for weights in {config.dtype} and {kv / 2**30:.1f} GiB "
            f"for KV, but {free / 2**30:.1f} GiB of the GPU's memory are free: choose a "
            f"smaller {'--device-blocks' if is_sized else '--dtype'} or model"
        )


def build_executor(config: EngineConfig, say: Say = _logger.info) -> Executor:
    """`build_sized` for a config that says how many blocks the device has. Raises ConfigError for others too."""
    if config.device_memory_fraction is not None:
        raise ConfigError("device_memory_fraction is set, so that device_blocks are yet to be found: use build_sized")
    return build_sized(config, say)[1]


def build_sized(config: EngineConfig, say: Say = _logger.info) -> tuple[EngineConfig, Executor]:
    """An executor, and the config with the number of blocks that its device has.

    Restricted to a part of the GPU where the config says so. Raises ConfigError for a checkpoint that cannot be
    loaded, or that does not fit into memory with its KV, and for a device that is not there.
    """
    restriction = Restriction.of(config)
    if restriction is not None:
        facts = restriction.measure()
        say(f"{facts['sms']} SMs: copies at {facts['copy_gbps']} GB/s, fp16 at {facts['fp16_tflops']} TFLOP/s")
    with restriction or nullcontext(), explained_shortage(config):
        config, executor = _build_unrestricted(config, say)
    return config, executor if restriction is None else RestrictedExecutor(executor, restriction)


def _build_unrestricted(config: EngineConfig, say: Say) -> tuple[EngineConfig, Executor]:
    if config.shape.head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        raise ConfigError(f"{config.model} has a head_dim of {config.shape.head_dim}; host attention knows {known}")
    on_gpu = config.device == "cuda"
    if on_gpu:
        check_gpu(config)
    else:
        check_memory(config, available_memory_bytes())
        if torch.cuda.is_available():
            say("note: there is a CUDA device; --device cuda uses it, here its tier is emulated in RAM")
    say(f"loading {config.model}: {config.shape.num_parameters / 1e6:,.0f} M parameters in {config.dtype}")
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    model = build_model(config, device=device, progress=partial(_every_tenth(say, "loading"), "weights"))
    if config.device_memory_fraction is not None:
        config = sized(config, lambda trial: GpuExecutor(trial, model, _logger.debug), say)
    device_tokens, host_tokens = (blocks * config.block_size for blocks in (config.device_blocks, config.host_blocks))
    host_dtype = "" if config.host_kv_dtype == "same" else f" in {config.host_kv_dtype}"
    say(f"KV cache: {device_tokens:,} tokens in the device tier, {host_tokens:,} in the host tier{host_dtype}")
    return config, GpuExecutor(config, model, say) if on_gpu else CpuExecutor(config, model)


def build_engine(config: EngineConfig, say: Say = _logger.info) -> NeoEngine:
    """An engine that is ready to serve. Raises ConfigError or ProfileError with the fix."""
    config, executor = build_sized(config, say)
    with explained_shortage(config):
        profile = load_or_measure(config, executor, progress=_every_tenth(say, "profiling"))
        executor.warm_up(offloads=config.policy in OFFLOADING)
    # What is there now stays; to look through it again and again would stop a step for a tenth of a second.
    gc.collect()
    gc.freeze()
    return NeoEngine(config, executor, CostModel(profile.tables, config.shape.num_layers))


def _every_tenth(say: Say, activity: str) -> Callable[[str, int, int], None]:
    """A progress function for (what, done, total) that says a line each tenth of the way."""
    last = ("", -1)

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // max(total, 1)
        if (what, tenth) != last:
            last = (what, tenth)
            say(f"{activity} {what}: {10 * tenth} %")

    return progress
