"""The engine without a GPU: the device tier is a fixed number of KV blocks in RAM, its compute torch on some threads.

The host tier, its attention and the overlap of the two sub-batches are the real thing: while torch runs one
sub-batch's linear layers on the device's threads, pacpu attends for the other on the host's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import torch

from neobench.neo_engine.batch import Mode, StageTimes
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.cpu_attention import PagedDecodeAttention, available_targets
from neobench.neo_engine.executor.base import SampleRow
from neobench.neo_engine.executor.inputs import BatchInputs
from neobench.neo_engine.kernels.kv_pieces import pack_tokens, unpack_tokens
from neobench.neo_engine.kernels.prefill import causal_attention, read_prompt_kv, store_prompt_kv
from neobench.neo_engine.kv_cache.block_tables import BlockMove
from neobench.neo_engine.kv_cache.layout import KvLayout
from neobench.neo_engine.model.llama import LlamaModel
from neobench.neo_engine.model.sampling import sample
from neobench.neo_engine.request import Tier


def split_threads(device_threads: int | None, host_threads: int | None) -> tuple[int, int]:
    """Threads of the emulated device and of host attention: by default half of the usable cores each."""
    cores = len(os.sched_getaffinity(0))
    host = host_threads or max(1, cores // 2)
    return device_threads or max(1, cores - host), host


@dataclass
class _Clock:
    """Stage times of the step under way, in nanoseconds."""

    linear_ns: int = 0
    prefill_attention_ns: int = 0
    device_decode_ns: int = 0
    host_decode_ns: int = 0
    host_wait_ns: int = 0


@dataclass
class _Lane:
    """One sub-batch on its way through the layers."""

    slot: int
    inputs: BatchInputs
    x: torch.Tensor
    positions: torch.Tensor
    attention: torch.Tensor
    blocks: list[torch.Tensor]
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = field(init=False)
    host_started_ns: int = 0

    @property
    def device_rows(self) -> slice:
        start = self.inputs.num_prefill_tokens
        return slice(start, start + len(self.inputs.device))

    @property
    def host_rows(self) -> slice:
        start = self.inputs.num_prefill_tokens + len(self.inputs.device)
        return slice(start, start + len(self.inputs.host))


class CpuExecutor:
    """Implements `Executor` on the CPU alone."""

    def __init__(self, config: EngineConfig, model: LlamaModel) -> None:
        self._config = config
        self._model = model
        self._device_threads, self._host_threads = split_threads(config.device_threads, config.host_threads)
        self._device_attention = self._paged_attention(config.device_layout, config.device_blocks, self._device_threads)
        self._host_attention = self._paged_attention(config.host_layout, config.host_blocks, self._host_threads)
        self._attention = {Tier.DEVICE: self._device_attention, Tier.HOST: self._host_attention}
        self._thread: int | None = None

    def _paged_attention(self, layout: KvLayout, num_blocks: int, num_threads: int) -> PagedDecodeAttention:
        config = self._config
        return PagedDecodeAttention(
            layout,
            config.shape,
            dtype=self._model.dtype,
            num_blocks=num_blocks,
            num_threads=num_threads,
            num_slots=2,
            max_rows=config.max_batch_rows,
            max_context=config.max_request_tokens,
            target=config.pacpu_target,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "executor": "cpu",
            "device": "emulated in RAM",
            "device_threads": self._device_threads,
            "host_threads": self._host_threads,
            "weight_bytes": self._model.num_bytes,
            "device_kv_bytes": self._device_attention.kv.nbytes,
            "host_kv_bytes": self._host_attention.kv.nbytes,
            "host_attention": self._host_attention.describe(),
            "pacpu_targets": list(available_targets()),
            "pacpu_target": self._config.pacpu_target,
            "torch": str(torch.__version__),
        }

    def warm_up(self, *, offloads: bool) -> None:
        """Profiling, or the first steps, do it."""

    def measure_stages(self, every_stage: bool) -> None:
        """All of them always are."""

    def close(self) -> None:
        self._device_attention.close()
        self._host_attention.close()

    def execute(
        self,
        mode: Mode,
        batches: Sequence[BatchInputs],
        moves: Sequence[BlockMove],
        sampling: Sequence[SampleRow],
    ) -> tuple[list[int], StageTimes]:
        self._use_device_threads()
        clock = _Clock()
        start = perf_counter_ns()
        with torch.inference_mode():
            for move in moves:
                self._copy_blocks(move)
            moved = perf_counter_ns()
            lanes = [self._lane(slot, inputs) for slot, inputs in enumerate(batches)]
            if mode is Mode.ASYMMETRIC:
                self._run_asymmetric(lanes[0], lanes[1], clock)
            else:
                for lane in lanes:
                    self._run_one(lane, clock)
            head_start = perf_counter_ns()
            tokens = self._sample(lanes, sampling)
        end = perf_counter_ns()
        return tokens, StageTimes(
            total_ns=end - start,
            linear_ns=clock.linear_ns,
            prefill_attention_ns=clock.prefill_attention_ns,
            device_decode_ns=clock.device_decode_ns,
            host_decode_ns=clock.host_decode_ns,
            host_wait_ns=clock.host_wait_ns,
            head_ns=end - head_start,
            moves_ns=moved - start,
        )

    def _use_device_threads(self) -> None:
        # torch keeps its intra-op thread count per calling thread; steps may come from another than the constructor's.
        if self._thread != threading.get_ident():
            torch.set_num_threads(self._device_threads)
            self._thread = threading.get_ident()

    def _copy_blocks(self, move: BlockMove) -> None:
        target_tier = Tier.HOST if move.source_tier is Tier.DEVICE else Tier.DEVICE
        source, target = self._attention[move.source_tier], self._attention[target_tier]
        blocks = source.kv.index_select(0, torch.tensor(move.source_blocks))
        if source.layout != target.layout:
            blocks = pack_tokens(target.layout, *unpack_tokens(source.layout, blocks))
        target.kv.index_copy_(0, torch.tensor(move.target_blocks), blocks)

    def _lane(self, slot: int, inputs: BatchInputs) -> _Lane:
        shape = self._config.shape
        x = self._model.embed(torch.tensor(inputs.token_ids))
        if inputs.device:
            self._device_attention.begin(slot, inputs.device.tables, inputs.device.contexts)
        if inputs.host:
            self._host_attention.begin(slot, inputs.host.tables, inputs.host.contexts)
        return _Lane(
            slot=slot,
            inputs=inputs,
            x=x,
            positions=torch.tensor(inputs.positions),
            attention=torch.empty(len(inputs.token_ids), shape.num_query_heads * shape.head_dim, dtype=x.dtype),
            blocks=[torch.tensor(prefill.blocks) for prefill in inputs.prefills],
        )

    def _run_one(self, lane: _Lane, clock: _Clock) -> None:
        for layer in range(self._config.shape.num_layers):
            self._before_attention(layer, lane, clock)
            self._start_host(layer, lane)
            self._attend_on_device(layer, lane, clock)
            self._wait_for_host(lane, clock)
            self._after_attention(layer, lane, clock)

    def _run_asymmetric(self, lane0: _Lane, lane1: _Lane, clock: _Clock) -> None:
        """Two stages a layer: host attention of 0 beside linear of 1 and device attention of 0, then the reverse.

        Linear work of a sub-batch between two attentions, i.e. the end of one layer and the beginning of the next,
        is one stage, so lane 1 runs half a layer behind lane 0.
        """
        num_layers = self._config.shape.num_layers
        self._before_attention(0, lane0, clock)
        for layer in range(num_layers):
            self._start_host(layer, lane0)
            if layer:
                self._after_attention(layer - 1, lane1, clock)
            self._before_attention(layer, lane1, clock)
            self._attend_on_device(layer, lane0, clock)
            self._wait_for_host(lane0, clock)

            self._start_host(layer, lane1)
            self._after_attention(layer, lane0, clock)
            if layer + 1 < num_layers:
                self._before_attention(layer + 1, lane0, clock)
            self._wait_for_host(lane1, clock)
        self._after_attention(num_layers - 1, lane1, clock)

    def _before_attention(self, layer: int, lane: _Lane, clock: _Clock) -> None:
        start = perf_counter_ns()
        lane.qkv = self._model.pre_attention(layer, lane.x, lane.positions)
        clock.linear_ns += perf_counter_ns() - start

    def _after_attention(self, layer: int, lane: _Lane, clock: _Clock) -> None:
        start = perf_counter_ns()
        lane.x = self._model.post_attention(layer, lane.x, lane.attention)
        clock.linear_ns += perf_counter_ns() - start

    def _attend_on_device(self, layer: int, lane: _Lane, clock: _Clock) -> None:
        query, key, value = lane.qkv
        start = perf_counter_ns()
        end = 0
        for prefill, blocks in zip(lane.inputs.prefills, lane.blocks, strict=True):
            rows = slice(end, end + prefill.num_tokens)
            end = rows.stop
            # A prompt bound for the host leaves layer by layer, as soon as its K and V exist.
            tier = self._attention[prefill.tier]
            start_tokens = prefill.start_tokens
            store_prompt_kv(tier.kv, tier.layout, layer, blocks, key[rows], value[rows], start_tokens=start_tokens)
            keys, values = key[rows], value[rows]
            if start_tokens:
                old_keys, old_values = read_prompt_kv(tier.kv, tier.layout, layer, blocks, start_tokens)
                keys = torch.cat((old_keys.to(keys.dtype), keys))
                values = torch.cat((old_values.to(values.dtype), values))
            lane.attention[rows] = causal_attention(query[rows], keys, values)
        decode_start = perf_counter_ns()
        clock.prefill_attention_ns += decode_start - start
        if lane.inputs.device:
            rows = lane.device_rows
            self._device_attention.start(lane.slot, layer, query[rows], key[rows], value[rows])
            lane.attention[rows] = self._device_attention.wait(lane.slot)
            clock.device_decode_ns += perf_counter_ns() - decode_start

    def _start_host(self, layer: int, lane: _Lane) -> None:
        if lane.inputs.host:
            query, key, value = (part[lane.host_rows] for part in lane.qkv)
            lane.host_started_ns = perf_counter_ns()
            self._host_attention.start(lane.slot, layer, query, key, value)

    def _wait_for_host(self, lane: _Lane, clock: _Clock) -> None:
        if not lane.inputs.host:
            return
        start = perf_counter_ns()
        lane.attention[lane.host_rows] = self._host_attention.wait(lane.slot)
        clock.host_wait_ns += perf_counter_ns() - start
        clock.host_decode_ns += self._host_attention.finished_ns(lane.slot) - lane.host_started_ns

    def _sample(self, lanes: Sequence[_Lane], sampling: Sequence[SampleRow]) -> list[int]:
        if not sampling:
            return []
        last = [lane.x[torch.tensor(lane.inputs.logit_rows, dtype=torch.int64)] for lane in lanes]
        logits = self._model.logits(torch.cat(last))
        return sample(logits, sampling)
