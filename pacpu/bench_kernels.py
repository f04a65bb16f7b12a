"""What `bench` times: pacpu's decode attention, and torch's, over the same memory and on the same CPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from neobench.pacpu import _native
from neobench.pacpu.layout import KvLayout
from neobench.pacpu.machine import on_cpus
from neobench.pacpu.plan import DecodePlan, WorkerPool, workspace_bytes

if TYPE_CHECKING:
    from neobench.pacpu.bench import Point

HEAD_DIM = 128
BLOCK_SIZE = 16
PEER = "torch_sdpa"
READ_RUNS = "read_runs"
"""Reads what attention reads, in its order and on its threads, and does no arithmetic."""
IN_CACHE = "in_cache"
"""Attention over the same two blocks all the time, which every core keeps in its own cache."""
LIMITS = (READ_RUNS, IN_CACHE)

_NUM_DIFFERENT_PIECES = 64
_SCALE = HEAD_DIM**-0.5
_FIRST_READ_CHUNKS = 128
SLOW_NS = 1_000_000_000

Bytes = npt.NDArray[np.uint8]


def layout_of(dtype: str) -> KvLayout:
    return KvLayout(dtype=dtype, head_dim=HEAD_DIM, block_size=BLOCK_SIZE)


def fill(memory: Bytes, dtype: str) -> None:
    """Packed pieces of random tokens, end to end: whole layers of any shape are made of such pieces."""
    layout, generator = layout_of(dtype), np.random.default_rng(0)
    tokens = generator.standard_normal((_NUM_DIFFERENT_PIECES, 2, BLOCK_SIZE, HEAD_DIM), dtype=np.float32)
    pieces = np.stack([layout.pack_tokens(keys, values) for keys, values in tokens])
    whole = memory[: memory.nbytes // pieces.nbytes * pieces.nbytes]
    whole.reshape(-1, *pieces.shape)[:] = pieces
    rest = memory[whole.nbytes :]
    rest[:] = pieces.reshape(-1)[: rest.nbytes]


@dataclass(frozen=True)
class ReadSample:
    gbps: float
    wall_ns: int
    own_cpu_ns: int
    """Of this process, in the same time."""


class ReadStream:
    """Sums the memory in 1 MiB chunks, each sample going on where the one before ended."""

    def __init__(self, memory: Bytes, pool: WorkerPool) -> None:
        self._memory = memory
        self._num_chunks = memory.nbytes // _native.READ_CHUNK_BYTES
        self._pool = pool
        self._next_chunk = 0
        self._chunks_a_ns = 0.0

    def sample(self, sample_ns: int) -> ReadSample:
        """A read that takes about `sample_ns`."""
        if not self._chunks_a_ns:
            self.read(min(self._num_chunks, _FIRST_READ_CHUNKS))
        return self.read(max(1, round(sample_ns * self._chunks_a_ns)))

    def read(self, num_chunks: int) -> ReadSample:
        own_ns = time.process_time_ns()
        elapsed_ns, _ = _native.read_stream(
            self._pool._pool,  # noqa: SLF001
            data=self._memory.ctypes.data,
            num_chunks=self._num_chunks,
            first_chunk=self._next_chunk,
            chunks_to_read=num_chunks,
        )
        own_ns = time.process_time_ns() - own_ns
        self._next_chunk = (self._next_chunk + num_chunks) % self._num_chunks
        self._chunks_a_ns = num_chunks / elapsed_ns
        return ReadSample(num_chunks * _native.READ_CHUNK_BYTES / elapsed_ns, elapsed_ns, own_ns)


@dataclass(frozen=True)
class Kernel:
    """`call(layer)` attends over one of `num_layers` layers."""

    name: str
    call: Callable[[int], object]
    num_layers: int
    settle_s: float = 0.0
    """How long its threads may go on spinning after a call."""


class Rotation:
    """Calls a kernel for one layer after the other, so that a layer has left the caches when it comes again."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._layer = 0

    def calibrate(self, sample_ns: int) -> tuple[int, float]:
        """(calls that take about `sample_ns`, ns of one), after as much of warm-up, unless one call is very slow."""
        calls, elapsed_ns = self._run_for(sample_ns)
        if elapsed_ns < SLOW_NS:
            calls, elapsed_ns = self._run_for(sample_ns)
        return calls, elapsed_ns / calls

    def call_ns(self, num_calls: int) -> float:
        """Mean of that many calls."""
        started_ns = time.perf_counter_ns()
        for _ in range(num_calls):
            self._call()
        return (time.perf_counter_ns() - started_ns) / num_calls

    def _run_for(self, sample_ns: int) -> tuple[int, int]:
        started_ns, calls, elapsed_ns = time.perf_counter_ns(), 0, 0
        while elapsed_ns < sample_ns:
            self._call()
            calls += 1
            elapsed_ns = time.perf_counter_ns() - started_ns
        return calls, elapsed_ns

    def _call(self) -> None:
        self._kernel.call(self._layer)
        self._layer = (self._layer + 1) % self._kernel.num_layers


def attention_kernel(point: Point, memory: Bytes, pool: WorkerPool) -> Kernel:
    """pacpu over an engine's slab [blocks, layers, kv_heads, piece_bytes], its blocks in random order.

    Queries, new K and V and outputs are float16.
    """
    generator = np.random.default_rng(0)
    in_cache = point.kernel == IN_CACHE
    layout, num_blocks = layout_of(point.dtype), point.batch * point.blocks_per_row
    num_layers = 1 if in_cache else memory.nbytes // point.layer_bytes
    tables = generator.permutation(num_blocks).astype(np.int32)
    if in_cache:
        tables %= 2
    slab = memory[: num_layers * point.layer_bytes]
    slab = slab.reshape(num_blocks, num_layers, point.num_kv_heads, layout.piece_bytes)
    queries, tokens = ((point.batch, heads, HEAD_DIM) for heads in (point.num_q_heads, point.num_kv_heads))
    workspace = workspace_bytes(
        max_rows=point.batch,
        num_q_heads=point.num_q_heads,
        head_dim=HEAD_DIM,
        max_context=point.context,
        num_threads=pool.num_threads,
    )
    plan = DecodePlan(
        pool,
        kv=slab.transpose(1, 0, 2, 3),
        kv_dtype=point.dtype,
        block_size=BLOCK_SIZE,
        query=generator.standard_normal(queries).astype(np.float16),
        new_key=generator.standard_normal(tokens).astype(np.float16),
        new_value=generator.standard_normal(tokens).astype(np.float16),
        output=np.empty(queries, dtype=np.float16),
        block_tables=tables.reshape(point.batch, -1),
        context_lens=np.full(point.batch, point.context, dtype=np.int32),
        scale=_SCALE,
        workspace=np.empty(workspace, dtype=np.uint8),
        target="auto" if in_cache else point.kernel,
    )
    plan.begin(point.batch)
    return Kernel(f"{plan.target} {IN_CACHE}" if in_cache else plan.target, plan.run, num_layers)


@contextmanager
def sdpa_kernel(point: Point, memory: Bytes, cpus: Sequence[int]) -> Iterator[Kernel]:
    """torch's scaled_dot_product_attention over contiguous K and V [batch, kv_heads, context, head_dim].

    Everything is of the KV's dtype, as torch wants it; the context is read as if it had been gathered before.
    """
    import torch

    dtype = getattr(torch, point.dtype)
    kv_shape = (-1, 2, point.batch, point.num_kv_heads, point.context, HEAD_DIM)
    num_layers = memory.nbytes // point.attended_bytes
    kv = torch.from_numpy(memory[: num_layers * point.attended_bytes]).view(dtype).view(kv_shape)
    layers = [(layer[0], layer[1]) for layer in kv]
    query = torch.randn(point.batch, point.num_q_heads, 1, HEAD_DIM).to(dtype)
    grouped = point.num_q_heads != point.num_kv_heads
    attend = torch.nn.functional.scaled_dot_product_attention

    def call(layer: int) -> None:
        key, value = layers[layer]
        attend(query, key, value, scale=_SCALE, enable_gqa=grouped)

    threads_before = torch.get_num_threads()
    with on_cpus(cpus), torch.inference_mode():
        torch.set_num_threads(point.threads)
        try:
            yield Kernel(PEER, call, num_layers, settle_s=0.005)
        finally:
            torch.set_num_threads(threads_before)
