"""Restricts CUDA work to some of a GPU's SMs through a green context, so that it stands for a smaller card."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, cast

import torch

from neobench.neo_engine.batch import Mode, StageTimes
from neobench.neo_engine.config import ConfigError, EngineConfig
from neobench.neo_engine.device_limits import copy_bytes_per_s, gemm_flops_per_s
from neobench.neo_engine.executor.base import AheadExecutor, Executor, SampleRow, ahead_executor
from neobench.neo_engine.executor.inputs import BatchInputs
from neobench.neo_engine.kv_cache.block_tables import BlockMove


class Context(Protocol):
    """torch.cuda.green_contexts.GreenContext, or whatever else can be current on a thread."""

    def set_context(self) -> None: ...

    def pop_context(self) -> None: ...


def cuda_problem() -> str | None:
    """Why no SMs can be set aside here, as a sentence; None if they can."""
    from torch.cuda import green_contexts

    if not torch.cuda.is_available():
        return "emulating a smaller card restricts an NVIDIA GPU, and torch finds none here"
    if not green_contexts.SUPPORTED:
        return (
            f"torch {torch.__version__} was built without green contexts: CUDA 12.8 and torch 2.10 or newer have them"
        )
    return None


def create_context(sms: int, device: torch.device) -> Context:
    """A green context of `sms` SMs. Raises ConfigError where there is no such GPU."""
    from torch.cuda.green_contexts import GreenContext

    if problem := cuda_problem():
        raise ConfigError(problem)
    available = torch.cuda.get_device_properties(device).multi_processor_count
    if sms > available:
        raise ConfigError(f"sms is {sms}, but {torch.cuda.get_device_name(device)} has {available}")
    return cast(Context, GreenContext.create(num_sms=sms, device_id=device.index or 0))


class Restriction(AbstractContextManager["Restriction"]):
    """While it is entered, this thread's CUDA work runs on the restricted device.

    Streams belong to the context in which they are created: create those that compute while it is entered, with
    cuStreamCreate, since torch's own pool may have made its streams before. A context can be current on one thread
    at a time, so it is entered around pieces of work, about 20 us each, and not once for all.
    """

    def __init__(self, context: Context, *, card: str | None, sms: int, device: torch.device) -> None:
        self._context = context
        self._facts: dict[str, Any] = {"card": card, "sms": sms}
        self._device = device

    @classmethod
    def of(cls, config: EngineConfig) -> Restriction | None:
        """As an engine's config asks for; None if it asks for none. Raises ConfigError where it cannot be had."""
        if config.sms is None:
            return None
        device = torch.device(config.device)
        return cls(create_context(config.sms, device), card=config.emulate, sms=config.sms, device=device)

    def __enter__(self) -> Restriction:
        self._context.set_context()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context.pop_context()

    def measure(self) -> dict[str, Any]:
        """{"card", "sms", "copy_gbps", "fp16_tflops"}: what the restricted device reaches, kept for `describe`.

        Copies count bytes read plus written. Needs 2 GiB of the device for a moment.
        """
        with self:
            self._facts["copy_gbps"] = round(copy_bytes_per_s(self._device) / 1e9, 1)
            self._facts["fp16_tflops"] = round(gemm_flops_per_s(self._device) / 1e12, 1)
        return self.describe()

    def describe(self) -> dict[str, Any]:
        return dict(self._facts)


class RestrictedExecutor:
    """Implements `Executor`: another one, every step of which runs under a restriction."""

    def __init__(self, executor: Executor, restriction: Restriction) -> None:
        self._executor = executor
        self._restriction = restriction

    def execute(
        self,
        mode: Mode,
        batches: Sequence[BatchInputs],
        moves: Sequence[BlockMove],
        sampling: Sequence[SampleRow],
    ) -> tuple[list[int], StageTimes]:
        with self._restriction:
            return self._executor.execute(mode, batches, moves, sampling)

    @property
    def runs_ahead(self) -> bool:
        return ahead_executor(self._executor) is not None

    def start(self, batches: Sequence[BatchInputs], moves: Sequence[BlockMove], sampling: Sequence[SampleRow]) -> None:
        with self._restriction:
            self._ahead.start(batches, moves, sampling)

    def finish(self) -> tuple[list[int], StageTimes]:
        with self._restriction:
            return self._ahead.finish()

    def discard(self) -> None:
        with self._restriction:
            self._ahead.discard()

    @property
    def _ahead(self) -> AheadExecutor:
        ahead = ahead_executor(self._executor)
        assert ahead is not None
        return ahead

    def warm_up(self, *, offloads: bool) -> None:
        with self._restriction:
            self._executor.warm_up(offloads=offloads)

    def measure_stages(self, every_stage: bool) -> None:
        self._executor.measure_stages(every_stage)

    def describe(self) -> dict[str, Any]:
        return {**self._executor.describe(), "emulation": self._restriction.describe()}

    def close(self) -> None:
        self._executor.close()
