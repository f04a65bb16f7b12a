"""The only door to pacpu: decode attention over one KV tier, on worker threads of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neobench import pacpu
from neobench.neo_engine.config import ModelShape
from neobench.neo_engine.kv_cache.layout import KvLayout
from neobench.pacpu.memory import available_bytes
from neobench.pacpu.topology import choose_cpus, numa_nodes


def available_targets() -> tuple[str, ...]:
    """Kernels that run on this CPU, best first."""
    return pacpu.targets()


def available_memory_bytes() -> int:
    """What this process may still take: of the machine, and of its control groups. KV memory is refused beyond it."""
    return available_bytes()


class _Slot:
    """Buffers and plan of one sub-batch: what it hands over stays in place while workers read it."""

    def __init__(
        self,
        workers: pacpu.WorkerPool,
        kv: torch.Tensor,
        layout: KvLayout,
        shape: ModelShape,
        *,
        dtype: torch.dtype,
        max_rows: int,
        max_context: int,
        target: str,
        pin_buffers: bool,
    ) -> None:
        head_counts = (shape.num_query_heads, shape.num_kv_heads, shape.num_kv_heads)
        self.heads = torch.zeros(max_rows, sum(head_counts), shape.head_dim, dtype=dtype, pin_memory=pin_buffers)
        self.parts = query, key, value = self.heads.split_with_sizes(head_counts, 1)
        self.output = torch.zeros(max_rows, *query.shape[1:], dtype=dtype, pin_memory=pin_buffers)
        self.tables = np.zeros((max_rows, -(-max_context // layout.block_size)), dtype=np.int32)
        self.contexts = np.zeros(max_rows, dtype=np.int32)
        self.num_rows = 0
        workspace_bytes = pacpu.workspace_bytes(
            max_rows=max_rows,
            num_q_heads=shape.num_query_heads,
            head_dim=shape.head_dim,
            max_context=max_context,
            num_threads=workers.num_threads,
        )
        self.plan = pacpu.DecodePlan(
            workers,
            kv=kv.transpose(0, 1),
            kv_dtype=layout.dtype,
            block_size=layout.block_size,
            query=query,
            new_key=key,
            new_value=value,
            output=self.output,
            block_tables=self.tables,
            context_lens=self.contexts,
            scale=shape.head_dim**-0.5,
            workspace=np.zeros(workspace_bytes, dtype=np.uint8),
            target=target,
        )


def _worker_cpus(num_threads: int) -> tuple[int, ...] | None:
    """Of one NUMA node, where there are several: pages lie on the node of the worker that touched them first.

    On a single node the system places threads better than we can know, beside whatever else runs.
    """
    return choose_cpus(num_threads) if len(numa_nodes()) > 1 else None


class PagedDecodeAttention:
    """One tier's KV memory, uint8 [blocks, layers, kv_heads, piece_bytes], and decode attention over it.

    For each iteration and slot (sub-batch) `begin` once, then for each layer `start` and `wait`. Between the two the
    workers store the new K and V at the end of each row's context and attend, and the calling thread is free for
    other work. MemoryError where the memory is not to be had.
    """

    def __init__(
        self,
        layout: KvLayout,
        shape: ModelShape,
        *,
        dtype: torch.dtype,
        num_blocks: int,
        num_threads: int,
        num_slots: int,
        max_rows: int,
        max_context: int,
        target: str,
        pin_buffers: bool = False,
    ) -> None:
        """`pin_buffers`: q, k, v and the output lie in page-locked memory, for a GPU to read and write."""
        self.layout = layout
        self._workers = pacpu.WorkerPool(num_threads, cpus=_worker_cpus(num_threads))
        kv_shape = (num_blocks, shape.num_layers, shape.num_kv_heads, layout.piece_bytes)
        # A tier may be empty, memory may not.
        self._memory = pacpu.KvMemory(max(1, math.prod(kv_shape)), pool=self._workers)
        self.kv = torch.from_numpy(self._memory.array)[: math.prod(kv_shape)].view(kv_shape)
        self._under_way: set[int] = set()
        self._slots = [
            _Slot(
                self._workers,
                self.kv,
                layout,
                shape,
                dtype=dtype,
                max_rows=max_rows,
                max_context=max_context,
                target=target,
                pin_buffers=pin_buffers,
            )
            for _ in range(num_slots)
        ]

    def describe(self) -> dict[str, Any]:
        """For a run's fingerprint: KV memory and the pages it got, the kernel in use."""
        return {
            "dtype": self.layout.dtype,
            "threads": self._workers.num_threads,
            "kernel": self._slots[0].plan.target,
            "memory": self._memory.describe(),
        }

    def begin(self, slot: int, tables: Sequence[Sequence[int]], contexts: Sequence[int]) -> None:
        """Rows of this iteration: block numbers in token order, and tokens attended to (the new one included)."""
        state = self._slots[slot]
        state.num_rows = len(contexts)
        state.contexts[: len(contexts)] = contexts
        for row, blocks in enumerate(tables):
            state.tables[row, : len(blocks)] = blocks
        state.plan.begin(len(contexts))

    def start(self, slot: int, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """query [rows, query_heads, head_dim]; key, value [rows, kv_heads, head_dim] of the new tokens."""
        state = self._slots[slot]
        for buffer, part in zip(state.parts, (query, key, value), strict=True):
            buffer[: state.num_rows].copy_(part)
        self.start_in_place(slot, layer)

    def start_in_place(self, slot: int, layer: int) -> None:
        """As `start`, where q, k, v are in the slot's buffers already."""
        self._slots[slot].plan.start(layer)
        self._under_way.add(slot)

    def wait(self, slot: int) -> torch.Tensor:
        """The attention output [rows, query_heads * head_dim]; overwritten by the slot's next `start`."""
        state = self._slots[slot]
        self._under_way.discard(slot)
        state.plan.wait()
        return state.output[: state.num_rows].flatten(1)

    def finished_ns(self, slot: int) -> int:
        """When the workers finished the slot's last call, on the clock of time.perf_counter_ns."""
        return self._slots[slot].plan.finished_ns

    def drain(self) -> None:
        """Waits for whatever is under way, after an error elsewhere."""
        for slot in tuple(self._under_way):
            self.wait(slot)

    def buffers(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where a slot takes q, k, v from, as [rows, query_heads + 2 * kv_heads, head_dim], and leaves its output
        [rows, query_heads, head_dim]."""
        return self._slots[slot].heads, self._slots[slot].output

    def flag_sequence(self, ready: torch.Tensor, done: torch.Tensor) -> pacpu.FlagSequence:
        """For layers started by flags, int32 [flags] each in CPU memory; see pacpu.FlagSequence."""
        return pacpu.FlagSequence(self._workers, ready=ready, done=done)

    def arm(self, sequence: pacpu.FlagSequence, steps: Sequence[tuple[int, int, int]], *, timeout_s: float) -> None:
        """`steps` of (slot, layer, flag), in the order in which their flags will be raised; each slot has begun."""
        plans = [state.plan for state in self._slots]
        sequence.arm([(plans[slot], layer, flag, slot) for slot, layer, flag in steps], timeout_s=timeout_s)

    def close(self) -> None:
        self._workers.close()
