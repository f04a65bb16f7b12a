"""Carries out nothing and says how long it would have taken: no KV, no tensors, one fixed token.

The time is the cost model's, with what a plan's author need not reckon with: KV of prompts bound for the host leaves
layer by layer over a link that may be slower than the layer, into memory that host attention reads at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from neobench.neo_engine.batch import Mode, Prefill, StageTimes
from neobench.neo_engine.cost_model import BatchLoad, CostModel, CostTables
from neobench.neo_engine.executor.base import SampleRow
from neobench.neo_engine.executor.inputs import BatchInputs
from neobench.neo_engine.kv_cache.block_tables import BlockMove
from neobench.neo_engine.request import Tier

TOKEN = 0
"""Every output token; it ends no model's output."""


@dataclass(frozen=True)
class Noise:
    """Each step's time times a factor drawn from a log-normal distribution of median 1."""

    sigma: float = 0.0
    """Standard deviation of the factor's logarithm; 0: none."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma must be 0 or more and finite, not {self.sigma}")


NO_NOISE = Noise()


@dataclass(frozen=True)
class CopyCosts:
    """Of KV on its way to the host while a layer computes, in nanoseconds for a block of one layer."""

    link_ns: float
    """The link is busy."""
    host_memory_ns: float
    """Host memory is busy, which attention then cannot read."""

    @classmethod
    def of(cls, tables: CostTables, num_layers: int, block_size: int) -> CopyCosts:
        """By the slopes of what was measured: moves of many blocks, and host attention over long contexts, which is
        bound by memory. To write a token's KV takes memory as long as to read it."""
        sizes, times_ns = tables.move.sizes, tables.move.times_ns
        link = (times_ns[-1] - times_ns[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else times_ns[0] / sizes[0]
        surface = tables.host_decode
        line = surface.times_ns[-1]
        token_ns = (
            (line[-1] - line[0]) / (surface.contexts[-1] - surface.contexts[0]) / surface.rows[-1]
            if len(line) > 1
            else line[0] / surface.contexts[0] / surface.rows[-1]
        )
        return cls(link_ns=max(0.0, link) / num_layers, host_memory_ns=max(0.0, token_ns) * block_size)


@dataclass
class ModelledExecutor:
    """An Executor for virtual time: `elapsed_ns` is what the last step takes, for the caller to wait.

    `costs` is the machine's truth, whatever the engine's own cost model believes.
    """

    costs: CostModel
    block_size: int
    noise: Noise = NO_NOISE
    facts: Mapping[str, Any] = field(default_factory=dict)
    elapsed_ns: int = 0

    def __post_init__(self) -> None:
        self._copies = CopyCosts.of(self.costs.tables, self.costs.num_layers, self.block_size)
        self._random = np.random.default_rng(self.noise.seed)

    def execute(
        self,
        mode: Mode,
        batches: Sequence[BatchInputs],
        moves: Sequence[BlockMove],
        sampling: Sequence[SampleRow],
    ) -> tuple[list[int], StageTimes]:
        times = self.times_of(mode, batches, sum(len(move.source_blocks) for move in moves))
        if self.noise.sigma:
            factor = math.exp(self.noise.sigma * self._random.standard_normal())
            times = replace(times, total_ns=round(times.total_ns * factor))
        self.elapsed_ns = times.total_ns
        return [TOKEN] * len(sampling), times

    def times_of(self, mode: Mode, batches: Sequence[BatchInputs], swapped_blocks: int) -> StageTimes:
        loads = [self._load(batch) for batch in batches]
        leaving, read_back = self._copied_blocks(batches)
        times = self.costs.predict(mode, loads, swapped_blocks + read_back)
        if not leaving:
            return times
        layer_ns = (times.linear_ns + times.prefill_attention_ns + times.device_decode_ns) / self.costs.num_layers
        wait_ns = times.host_wait_ns / self.costs.num_layers
        shown_ns = max(
            self._host_wait(mode, loads, layer_ns, wait_ns, leaving), leaving * self._copies.link_ns - layer_ns
        )
        longer_ns = round(self.costs.num_layers * (shown_ns - wait_ns))
        return replace(times, total_ns=times.total_ns + longer_ns, host_wait_ns=times.host_wait_ns + longer_ns)

    def _host_wait(
        self, mode: Mode, loads: Sequence[BatchLoad], layer_ns: float, wait_ns: float, leaving: int
    ) -> float:
        """Of the device in a layer, with host memory shared between attention and the KV that arrives."""
        host_ns = sum(map(self.costs.host_attention_per_layer, loads))
        if not host_ns:
            return wait_ns
        busy_ns = host_ns + leaving * self._copies.host_memory_ns
        if mode is Mode.ASYMMETRIC:
            return max(wait_ns, busy_ns - layer_ns)
        # Serial: attention itself takes longer by the memory's time for what arrives while it runs.
        share = host_ns / (layer_ns + wait_ns)
        return wait_ns + min(1.0, share) * leaving * self._copies.host_memory_ns

    def _load(self, batch: BatchInputs) -> BatchLoad:
        per_prefill = self.costs.prefill_attention_per_layer
        return BatchLoad(
            rows=len(batch.token_ids),
            requests=len(batch.device) + len(batch.host) + sum(prefill.ends_prompt for prefill in batch.prefills),
            prefills=len(batch.prefills),
            prefill_attention_ns=sum(
                per_prefill(Prefill(0, prefill.num_tokens, prefill.tier, prefill.start_tokens))
                for prefill in batch.prefills
            ),
            device_rows=len(batch.device),
            device_context=sum(batch.device.contexts),
            device_longest=max(batch.device.contexts, default=0),
            host_rows=len(batch.host),
            host_context=sum(batch.host.contexts),
            host_longest=max(batch.host.contexts, default=0),
        )

    def _copied_blocks(self, batches: Sequence[BatchInputs]) -> tuple[int, int]:
        """Blocks of prompts that leave for the host during the step, and of their earlier chunks that come back."""
        leaving = read_back = 0
        for batch in batches:
            for prefill in batch.prefills:
                if prefill.tier is Tier.HOST:
                    leaving += -(-prefill.num_tokens // self.block_size)
                    read_back += -(-prefill.start_tokens // self.block_size)
        return leaving, read_back

    def measure_stages(self, every_stage: bool) -> None:
        """All are always known."""

    def warm_up(self, *, offloads: bool) -> None:
        """Nothing is ever cold."""

    def describe(self) -> dict[str, Any]:
        return {"executor": "modelled", "noise_sigma": self.noise.sigma, **self.facts}

    def close(self) -> None:
        pass
