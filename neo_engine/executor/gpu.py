"""The engine on a GPU: KV of the device tier in its memory, the host tier page-locked, decodes replayed as graphs.

Nothing in it is CUDA's alone: on a CPU device, where tests run it, kernels are their torch twins, and streams, flags
and graphs are left out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor

from neobench.neo_engine.batch import Mode, StageTimes
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.cpu_attention import PagedDecodeAttention, available_targets
from neobench.neo_engine.executor import stream_flags
from neobench.neo_engine.executor.base import SampleRow
from neobench.neo_engine.executor.decode_graphs import ROW_SIZES, Captured, DecodeGraphs
from neobench.neo_engine.executor.host_link import make_link
from neobench.neo_engine.executor.inputs import BatchInputs, DecodeInput
from neobench.neo_engine.executor.lanes import Lane, LaneBuffers, padded
from neobench.neo_engine.executor.prompts import Prompts
from neobench.neo_engine.executor.stopwatch import Stopwatch
from neobench.neo_engine.executor.tiers import Tiers
from neobench.neo_engine.kernels.decode_attention import DecodeAttention
from neobench.neo_engine.kernels.kv_pieces import check_tiles
from neobench.neo_engine.kv_cache.block_tables import BlockMove
from neobench.neo_engine.model.fused_layers import FusedLayers, Store
from neobench.neo_engine.model.llama import LlamaModel
from neobench.neo_engine.model.sampling import sample

_logger = logging.getLogger(__name__)

Say = Callable[[str], None]

_ALWAYS_TIMED = frozenset({"host_wait"})


def host_threads(config: EngineConfig) -> int:
    """As configured, or all cores but one, which queues the device's work."""
    return config.host_threads or max(1, len(os.sched_getaffinity(0)) - 1)


class GpuExecutor:
    """Implements `Executor` on the device that holds the model."""

    def __init__(self, config: EngineConfig, model: LlamaModel, say: Say = _logger.info) -> None:
        """Raises ConfigError for a KV layout that the device's kernels cannot read."""
        check_tiles(config.device_layout)
        self._config = config
        self._model = model
        self._device = model.device
        self._is_cuda = model.device.type == "cuda"
        self._layers = FusedLayers(model, config.device_layout)
        self._host = self._host_attention(say)
        kv_shape = (config.device_blocks, *self._host.kv.shape[1:3], config.device_layout.piece_bytes)
        device_kv = torch.empty(kv_shape, dtype=torch.uint8, device=self._device)
        self._tiers = Tiers(config.device_layout, device_kv, config.host_layout, self._host.kv)
        self._attention = DecodeAttention(
            config.device_layout,
            num_query_heads=config.shape.num_query_heads,
            num_kv_heads=config.shape.num_kv_heads,
            device=self._device,
        )
        self._buffers = [LaneBuffers(config, slot, self._device) for slot in range(2)]
        self._link = make_link(self._host, config.shape.num_layers, self._device)
        self._graphs = DecodeGraphs()
        num_logits = 3 * config.max_batch_rows if self._is_cuda else 0
        self._graph_logits = torch.empty(num_logits, config.shape.vocab_size, device=self._device)
        self._stages: frozenset[str] | None = _ALWAYS_TIMED
        if self._is_cuda:
            self._compute, self._copies, self._out = (stream_flags.new_stream(self._device) for _ in range(3))

    def _host_attention(self, say: Say) -> PagedDecodeAttention:
        config = self._config
        attention = PagedDecodeAttention(
            config.host_layout,
            config.shape,
            dtype=self._model.dtype,
            num_blocks=config.host_blocks,
            num_threads=host_threads(config),
            num_slots=2,
            max_rows=config.max_batch_rows,
            max_context=config.max_request_tokens,
            target=config.pacpu_target,
            pin_buffers=self._is_cuda,
        )
        if self._is_cuda and attention.kv.nbytes:
            say(f"pinning {attention.kv.nbytes / 2**30:.1f} GiB of host memory")
            stream_flags.pin(attention.kv.data_ptr(), attention.kv.nbytes)
        return attention

    def describe(self) -> dict[str, Any]:
        return {
            "executor": self._device.type if self._is_cuda else "gpu code on a cpu",
            "device": torch.cuda.get_device_name(self._device) if self._is_cuda else "cpu",
            "device_threads": None,
            "host_threads": host_threads(self._config),
            "weight_bytes": self._model.num_bytes,
            "device_kv_bytes": self._tiers.device.nbytes,
            "host_kv_bytes": self._tiers.host.nbytes,
            "host_attention": self._host.describe(),
            "host_link": type(self._link).__name__,
            "decode_graphs": len(self._graphs),
            "pacpu_targets": list(available_targets()),
            "pacpu_target": self._config.pacpu_target,
            "torch": str(torch.__version__),
        }

    def warm_up(self) -> None:
        """Captures decodes of all sizes on the device alone: in mid-run each would cost tens of milliseconds."""
        if not self._is_cuda:
            return
        for rows in (size for size in ROW_SIZES if size <= self._config.max_batch_rows):
            none = DecodeInput((), ())
            padding = DecodeInput(((),) * rows, (0,) * rows)
            inputs = BatchInputs([0] * rows, [0] * rows, prefills=(), device=padding, host=none)
            for _ in range(2):
                self.execute(Mode.GPU_ONLY, [inputs], (), [])

    def measure_stages(self, every_stage: bool) -> None:
        self._stages = None if every_stage else _ALWAYS_TIMED

    def close(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize(self._device)
            if self._tiers.host.nbytes:
                stream_flags.unpin(self._tiers.host.data_ptr())
        self._host.close()

    def execute(
        self,
        mode: Mode,
        batches: Sequence[BatchInputs],
        moves: Sequence[BlockMove],
        sampling: Sequence[SampleRow],
    ) -> tuple[list[int], StageTimes]:
        start_ns = perf_counter_ns()
        watch = Stopwatch(self._device, self._stages)
        with torch.inference_mode(), self._on_compute_stream():
            try:
                with watch.stage("moves"):
                    self._move_blocks(moves)
                logits, watch = self._run(mode, batches, watch)
                self._synchronize()
                busy_ns = self._link.finish()
            except BaseException:
                self._link.abort()
                raise
            tokens = sample(logits, sampling) if logits is not None and sampling else []
        return tokens, StageTimes(
            total_ns=perf_counter_ns() - start_ns,
            linear_ns=watch.elapsed_ns("linear"),
            prefill_attention_ns=watch.elapsed_ns("prefill_attention"),
            device_decode_ns=watch.elapsed_ns("device_decode"),
            host_decode_ns=busy_ns,
            host_wait_ns=watch.elapsed_ns("host_wait"),
            head_ns=watch.elapsed_ns("head"),
            moves_ns=watch.elapsed_ns("moves"),
        )

    def _on_compute_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._compute) if self._is_cuda else nullcontext()

    def _synchronize(self) -> None:
        if not self._is_cuda:
            return
        # Asleep, for a core that spins is one less for host attention.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()

    def _move_blocks(self, moves: Sequence[BlockMove]) -> None:
        if not moves:
            return
        with torch.cuda.stream(self._copies) if self._is_cuda else nullcontext():
            for move in moves:
                self._tiers.move(move)
        if self._is_cuda:
            self._compute.wait_stream(self._copies)

    def _run(self, mode: Mode, batches: Sequence[BatchInputs], watch: Stopwatch) -> tuple[Tensor | None, Stopwatch]:
        """Queues the iteration; logits of the rows that predict, and the watch that has its times."""
        if not batches:
            return None, watch
        for slot, inputs in enumerate(batches):
            if inputs.host:
                self._host.begin(slot, inputs.host.tables, inputs.host.contexts)
        captures = self._is_cuda and not any(inputs.prefills for inputs in batches)
        captures = captures and (self._link.in_graphs or not any(inputs.host for inputs in batches))
        lanes = [self._lane(slot, inputs, captures) for slot, inputs in enumerate(batches)]
        if steps := self._host_steps(mode, lanes):
            self._link.begin(steps)
        if not captures:
            return self._forward(mode, lanes, watch), watch
        captured = self._captured(mode, lanes)
        if captured is None:
            logits = self._forward(mode, lanes, watch)
        else:
            captured.graph.replay()
            logits, watch = captured.logits, captured.watch
        assert logits is not None
        return _of_real_rows(logits, lanes, batches), watch

    def _lane(self, slot: int, inputs: BatchInputs, is_padded: bool) -> Lane:
        counts = (len(inputs.device), len(inputs.host))
        num_device, num_host = padded(counts, ROW_SIZES, self._config.max_batch_rows) if is_padded else counts
        prompts = None
        if inputs.prefills:
            out = self._out if self._is_cuda else None
            prompts = Prompts(inputs.prefills, self._tiers, self._config.shape.num_query_heads, out)
        return self._buffers[slot].fill(inputs, prompts, num_device=num_device, num_host=num_host, is_padded=is_padded)

    def _host_steps(self, mode: Mode, lanes: Sequence[Lane]) -> list[tuple[int, int]]:
        layers = range(self._config.shape.num_layers)
        with_host = [lane.slot for lane in lanes if lane.num_host]
        if mode is Mode.ASYMMETRIC:
            return [(slot, layer) for layer in layers for slot in with_host]
        return [(slot, layer) for slot in with_host for layer in layers]

    def _captured(self, mode: Mode, lanes: Sequence[Lane]) -> Captured | None:
        key = (mode, tuple((lane.num_device, lane.num_host) for lane in lanes), self._stages)

        def capture() -> tuple[Tensor, Stopwatch]:
            watch = Stopwatch(self._device, self._stages, in_graph=True)
            logits = self._forward(mode, lanes, watch)
            assert logits is not None
            # All graphs leave them in one place: of each its own they would take gigabytes.
            return self._graph_logits[: len(logits)].copy_(logits), watch

        return self._graphs.get(key, capture)

    def _forward(self, mode: Mode, lanes: Sequence[Lane], watch: Stopwatch) -> Tensor | None:
        shape = self._config.shape
        for lane in lanes:
            lane.x = self._layers.embed(lane.token_ids)
            lane.delta = None
            lane.attention = lane.x.new_empty(lane.num_rows, shape.num_query_heads, shape.head_dim)
        if mode is Mode.ASYMMETRIC:
            self._run_asymmetric(lanes[0], lanes[1], watch)
        else:
            for lane in lanes:
                self._run_one(lane, watch)
        for lane in lanes:
            if lane.prompts is not None:
                lane.prompts.finish()
        if not any(len(lane.logit_rows) for lane in lanes):
            return None
        with watch.stage("head"):
            x, delta = (
                torch.cat([part.index_select(0, lane.logit_rows) for lane, part in zip(lanes, parts, strict=True)])
                for parts in ([lane.x for lane in lanes], [lane.delta for lane in lanes if lane.delta is not None])
            )
            return self._layers.logits(x, delta)

    def _run_one(self, lane: Lane, watch: Stopwatch) -> None:
        for layer in range(self._config.shape.num_layers):
            self._before_attention(layer, lane, watch)
            self._send(layer, lane)
            self._attend_on_device(layer, lane, watch)
            self._receive(layer, lane, watch)
            self._after_attention(layer, lane, watch)

    def _run_asymmetric(self, lane0: Lane, lane1: Lane, watch: Stopwatch) -> None:
        """In the order of CpuExecutor's, which explains it."""
        num_layers = self._config.shape.num_layers
        self._before_attention(0, lane0, watch)
        for layer in range(num_layers):
            self._send(layer, lane0)
            if layer:
                self._after_attention(layer - 1, lane1, watch)
            self._before_attention(layer, lane1, watch)
            # Now, for its q, k, v need not wait until sub-batch 0 is back.
            self._send(layer, lane1)
            self._attend_on_device(layer, lane0, watch)
            self._receive(layer, lane0, watch)
            self._after_attention(layer, lane0, watch)
            if layer + 1 < num_layers:
                self._before_attention(layer + 1, lane0, watch)
            self._receive(layer, lane1, watch)
        self._after_attention(num_layers - 1, lane1, watch)

    def _before_attention(self, layer: int, lane: Lane, watch: Stopwatch) -> None:
        with watch.stage("linear"):
            stores: tuple[Store, ...] = (Store(slice(0, lane.num_rows), self._tiers.device, layer),)
            if lane.prompts is not None:
                stores = lane.prompts.stores(layer, lane.num_rows)
            lane.heads = self._layers.before_attention(
                layer, lane.x, lane.delta, positions=lane.positions, slots=lane.slots, stores=stores
            )

    def _after_attention(self, layer: int, lane: Lane, watch: Stopwatch) -> None:
        with watch.stage("linear"):
            lane.delta = self._layers.after_attention(layer, lane.x, lane.attention)

    def _attend_on_device(self, layer: int, lane: Lane, watch: Stopwatch) -> None:
        if lane.prompts is not None:
            with watch.stage("prefill_attention"):
                rows = slice(0, lane.prompts.num_tokens)
                lane.attention[rows] = lane.prompts.attend(layer, lane.heads[rows])
        if lane.num_device:
            with watch.stage("device_decode"):
                self._attention(
                    lane.heads[lane.device_rows, : self._config.shape.num_query_heads],
                    self._tiers.device,
                    layer=layer,
                    block_tables=lane.tables,
                    context_lens=lane.contexts,
                    max_context=self._config.max_request_tokens,
                    out=lane.attention[lane.device_rows],
                )

    def _send(self, layer: int, lane: Lane) -> None:
        if lane.num_host:
            self._link.send(layer, lane)

    def _receive(self, layer: int, lane: Lane, watch: Stopwatch) -> None:
        if lane.num_host:
            with watch.stage("host_wait"):
                self._link.receive(layer, lane)


def _of_real_rows(logits: Tensor, lanes: Sequence[Lane], batches: Sequence[BatchInputs]) -> Tensor:
    """The first rows of each lane's, for padding comes after them."""
    parts = logits.split_with_sizes([len(lane.logit_rows) for lane in lanes])
    return torch.cat([part[: len(inputs.logit_rows)] for part, inputs in zip(parts, batches, strict=True)])
