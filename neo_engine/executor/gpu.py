"""The engine on a GPU: KV of the device tier in its memory, the host tier page-locked, decodes replayed as graphs.

Nothing in it is CUDA's alone: on a CPU device, where tests run it, kernels are their torch twins, and streams, flags
and graphs are left out.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
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
from neobench.neo_engine.executor.lane_steps import LaneSteps
from neobench.neo_engine.executor.lanes import Lane, LaneBuffers, padded
from neobench.neo_engine.executor.prompts import Prompts
from neobench.neo_engine.executor.stopwatch import Stopwatch
from neobench.neo_engine.executor.tiers import Tiers
from neobench.neo_engine.kernels.kv_pieces import check_tiles
from neobench.neo_engine.kv_cache.block_tables import BlockMove
from neobench.neo_engine.model.fused_layers import FusedLayers
from neobench.neo_engine.model.llama import LlamaModel
from neobench.neo_engine.model.sampling import sample

_logger = logging.getLogger(__name__)

Say = Callable[[str], None]

_ALWAYS_TIMED = frozenset({"host_wait"})
_WARM_HOST_ROWS = 64
"""Of a sub-batch, up to which its graphs are captured before serving."""


@dataclass(frozen=True)
class _Started:
    """An iteration under way. Once the event has come, `likeliest` holds the token of each row of logits."""

    logits: Tensor | None
    likeliest: Tensor
    sampling: Sequence[SampleRow]
    watches: Sequence[Stopwatch]
    ended: torch.cuda.Event | None
    start_ns: int


def host_threads(config: EngineConfig) -> int:
    """As configured, or all cores but one, which queues the device's work."""
    return config.host_threads or max(1, len(os.sched_getaffinity(0)) - 1)


class GpuExecutor:
    """Implements `AheadExecutor` on the device that holds the model."""

    runs_ahead = True

    def __init__(self, config: EngineConfig, model: LlamaModel, say: Say = _logger.info) -> None:
        """Raises ConfigError for a KV layout that the device's kernels cannot read."""
        check_tiles(config.device_layout)
        self._config = config
        self._model = model
        self._num_layers = config.shape.num_layers
        self._device = model.device
        self._is_cuda = model.device.type == "cuda"
        self._layers = FusedLayers(model, config.device_layout)
        self._host = self._host_attention(say)
        kv_shape = (config.device_blocks, *self._host.kv.shape[1:3], config.device_layout.piece_bytes)
        device_kv = torch.empty(kv_shape, dtype=torch.uint8, device=self._device)
        self._tiers = Tiers(config.device_layout, device_kv, config.host_layout, self._host.kv)
        self._buffers = [LaneBuffers(config, slot, self._device) for slot in range(2)]
        self._link = make_link(self._host, self._num_layers, self._device)
        self._steps = LaneSteps(config, self._layers, self._tiers, self._link)
        self._graphs = DecodeGraphs(self._device)
        # Graphs leave them in one place: of each its own they would take gigabytes.
        num_logits = 2 * config.max_batch_rows if self._is_cuda else 0
        self._graph_logits = torch.empty(num_logits, config.shape.vocab_size, device=self._device)
        most_predicting = 3 * config.max_batch_rows + config.max_batch_tokens
        self._likeliest = torch.zeros(most_predicting, dtype=torch.int64, device=self._device)
        # Two, for those of an iteration are read while the next leaves its own.
        self._likeliest_on_host = [
            torch.zeros(most_predicting, dtype=torch.int64, pin_memory=self._is_cuda) for _ in range(2)
        ]
        self._started: deque[_Started] = deque()
        self._last_end_ns = 0
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

    def warm_up(self, *, offloads: bool) -> None:
        """Captures decodes of all sizes on the device alone, and of small sizes with rows on the host: in mid-run each
        would cost tens of milliseconds. The KV memory holds nothing yet."""
        if not self._is_cuda:
            return
        sizes = [size for size in ROW_SIZES if size <= self._config.max_batch_rows]
        for rows in sizes:
            self._execute_twice(Mode.GPU_ONLY, [_made_up_decodes(device_rows=rows)])
        if not offloads or not self._link.in_graphs:
            return
        for rows in (size for size in sizes if size <= min(_WARM_HOST_ROWS, self._config.host_blocks)):
            batches = [_made_up_decodes(device_rows=1, host_rows=rows - 1), _made_up_decodes(host_rows=rows)]
            self._execute_twice(Mode.ASYMMETRIC, batches)

    def _execute_twice(self, mode: Mode, batches: Sequence[BatchInputs]) -> None:
        for _ in range(2):
            self.execute(mode, batches, (), [])

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
        mode: Mode,  # noqa: ARG002 - seen in how many sub-batches there are
        batches: Sequence[BatchInputs],
        moves: Sequence[BlockMove],
        sampling: Sequence[SampleRow],
    ) -> tuple[list[int], StageTimes]:
        """Two sub-batches take turns layer by layer, one alone is at the host while nothing else goes on."""
        self.start(batches, moves, sampling)
        return self.finish()

    def start(self, batches: Sequence[BatchInputs], moves: Sequence[BlockMove], sampling: Sequence[SampleRow]) -> None:
        start_ns = perf_counter_ns()
        watch = Stopwatch(self._device, self._stages)
        with torch.inference_mode(), self._on_compute_stream(), self._ended_with_an_error():
            with watch.stage("moves"):
                self._move_blocks(moves)
            logits, watches = self._run(batches, watch)
            likeliest = self._queue_likeliest(logits)
            ended = self._recorded_event()
            self._started.append(_Started(logits, likeliest, sampling, watches, ended, start_ns))

    def finish(self) -> tuple[list[int], StageTimes]:
        started = self._started.popleft()
        with torch.inference_mode(), self._on_compute_stream(), self._ended_with_an_error():
            if started.ended is not None:
                started.ended.synchronize()
            # Whatever is started beside another has nothing on the host.
            busy_ns = 0 if self._started else self._link.finish()
            tokens = []
            if started.logits is not None and started.sampling:
                tokens = sample(started.logits, started.sampling, likeliest=started.likeliest)
        end_ns = perf_counter_ns()
        start_ns, self._last_end_ns = max(started.start_ns, self._last_end_ns), end_ns

        def elapsed_ns(stage: str) -> int:
            return sum(watch.elapsed_ns(stage) for watch in started.watches)

        return tokens, StageTimes(
            total_ns=end_ns - start_ns,
            linear_ns=elapsed_ns("linear"),
            prefill_attention_ns=elapsed_ns("prefill_attention"),
            device_decode_ns=elapsed_ns("device_decode"),
            host_decode_ns=busy_ns,
            host_wait_ns=elapsed_ns("host_wait"),
            head_ns=elapsed_ns("head"),
            moves_ns=elapsed_ns("moves"),
        )

    @contextmanager
    def _ended_with_an_error(self) -> Iterator[None]:
        """After an error the device is not left waiting for the host."""
        try:
            yield
        except BaseException:
            self._link.abort()
            raise

    def discard(self) -> None:
        self._started.clear()
        self._link.abort()
        if self._is_cuda:
            self._compute.synchronize()

    def _queue_likeliest(self, logits: Tensor | None) -> Tensor:
        """Of each row, on the device for the next iteration, and on the host: queued before this thread waits, for it
        would wait once more."""
        self._likeliest_on_host.reverse()
        count = 0 if logits is None else len(logits)
        on_device, on_host = self._likeliest[:count], self._likeliest_on_host[0][:count]
        if logits is not None:
            torch.argmax(logits, -1, out=on_device)
            on_host.copy_(on_device, non_blocking=True)
        return on_host

    def _fill_in_likeliest(self, lane: Lane, inputs: BatchInputs) -> None:
        """Tokens of the iteration before, which only the device knows, in the places of those below 0."""
        if min(inputs.token_ids, default=0) < 0:
            known = self._likeliest[(-1 - lane.token_ids).clamp_(min=0)]
            lane.token_ids.copy_(torch.where(lane.token_ids < 0, known, lane.token_ids))

    def _on_compute_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._compute) if self._is_cuda else nullcontext()

    def _recorded_event(self) -> torch.cuda.Event | None:
        """After all that is queued now. To wait for it is to sleep: a core that spins is one less for the host."""
        if not self._is_cuda:
            return None
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _move_blocks(self, moves: Sequence[BlockMove]) -> None:
        if not moves:
            return
        with torch.cuda.stream(self._copies) if self._is_cuda else nullcontext():
            for move in moves:
                self._tiers.move(move)
        if self._is_cuda:
            self._compute.wait_stream(self._copies)

    def _run(self, batches: Sequence[BatchInputs], watch: Stopwatch) -> tuple[Tensor | None, list[Stopwatch]]:
        """Queues the iteration; logits of the rows that predict, and the watches that have its times."""
        if not batches:
            return None, [watch]
        lanes = [self._lane(slot, inputs) for slot, inputs in enumerate(batches)]
        for lane, inputs in zip(lanes, batches, strict=True):
            self._fill_in_likeliest(lane, inputs)
        if len(lanes) == 1 and not lanes[0].num_host and lanes[0].prompts is None and self._is_cuda:
            return self._run_on_device_alone(lanes[0], watch)
        captured = [self._captured_steps(lane) for lane in lanes]
        self._hand_over(lanes, batches)
        for step in range(self._num_layers + 1):
            for lane, graphs in zip(lanes, captured, strict=True):
                self._run_step(step, lane, graphs, watch)
        for lane in lanes:
            if lane.prompts is not None:
                lane.prompts.finish()
        with watch.stage("head"):
            parts = [lane.x.index_select(0, lane.logit_rows[: lane.num_logits]) for lane in lanes if lane.num_logits]
            logits = self._layers.logits(torch.cat(parts)) if parts else None
        return logits, [watch, *(graphs.watch for graphs in captured if graphs is not None)]

    def _run_step(self, step: int, lane: Lane, captured: Captured | None, watch: Stopwatch) -> None:
        if step and lane.num_host:
            self._link.await_sent(lane)
        if captured is None:
            self._steps.run(step, lane, watch)
        else:
            captured.graphs[step].replay()
        if step < self._num_layers and lane.num_host:
            self._link.send(step, lane)

    def _run_on_device_alone(self, lane: Lane, watch: Stopwatch) -> tuple[Tensor, list[Stopwatch]]:
        """Decodes that need nothing of the host: a few graphs from tokens to logits, the first ones short, for to
        launch a long one takes time before the device has anything to do."""
        logits = self._graph_logits[: lane.num_rows]

        def run(steps: range, watch: Stopwatch) -> None:
            for step in steps:
                self._steps.run(step, lane, watch)
            if self._num_layers in steps:
                with watch.stage("head"):
                    logits.copy_(self._layers.logits(lane.x))

        parts = [partial(run, steps) for steps in _growing(self._num_layers + 1)]
        captured = self._graphs.get(("alone", lane.num_rows), self._stages, parts)
        if captured is None:
            for part in parts:
                part(watch)
            return logits[: lane.num_logits], [watch]
        for graph in captured.graphs:
            graph.replay()
        return logits[: lane.num_logits], [watch, captured.watch]

    def _lane(self, slot: int, inputs: BatchInputs) -> Lane:
        """Padded where it is of decodes alone, so that there can be graphs of it."""
        if not inputs.prefills:
            rows = padded(len(inputs.token_ids), ROW_SIZES, 2 * self._config.max_batch_rows)
            return self._buffers[slot].fill(inputs, None, padded_rows=rows)
        prompts = Prompts(
            inputs.prefills, self._tiers, self._config.shape.num_query_heads, self._out if self._is_cuda else None
        )
        return self._buffers[slot].fill(inputs, prompts)

    def _captured_steps(self, lane: Lane) -> Captured | None:
        """Graphs of the lane's steps, where it may have any."""
        if not self._is_cuda or lane.prompts is not None or (lane.num_host and not self._link.in_graphs):
            return None
        key = (lane.slot, lane.num_rows, lane.num_device > 0, lane.num_host > 0)
        steps = [partial(self._steps.run, step, lane) for step in range(self._num_layers + 1)]
        return self._graphs.get(key, self._stages, steps)

    def _hand_over(self, lanes: Sequence[Lane], batches: Sequence[BatchInputs]) -> None:
        """Tells host attention the rows of each lane, whose layers will come in turns."""
        with_host = [lane.slot for lane in lanes if lane.num_host]
        for slot in with_host:
            self._host.begin(slot, batches[slot].host.tables, batches[slot].host.contexts)
        if with_host:
            self._link.begin(with_host)


def _growing(count: int) -> Iterator[range]:
    """0 to count in ranges of 1, 4, 16 and so on."""
    start, length = 0, 1
    while start < count:
        yield range(start, min(count, start + length))
        start, length = start + length, 4 * length


def _made_up_decodes(*, device_rows: int = 0, host_rows: int = 0) -> BatchInputs:
    """Rows without context on the device, where they store nothing, and of one token each on the host."""
    rows = device_rows + host_rows
    return BatchInputs(
        token_ids=[0] * rows,
        positions=[0] * rows,
        prefills=(),
        device=DecodeInput(((),) * device_rows, (0,) * device_rows),
        host=DecodeInput(tuple((block,) for block in range(host_rows)), (1,) * host_rows),
    )
