"""What fraction of the machine's read bandwidth decode attention reaches, beside torch on the same shapes.

The machine and the kernels take turns on the same threads: on virtual machines memory bandwidth swings by tens of
percent within seconds, so a kernel's fraction comes only from the reads just before and just after it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np

from neobench.pacpu.bench_kernels import (
    BLOCK_SIZE,
    PEER,
    SLOW_NS,
    Kernel,
    ReadSample,
    ReadStream,
    Rotation,
    attention_kernel,
    fill,
    layout_of,
    sdpa_kernel,
)
from neobench.pacpu.machine import CpuTimes, busy_reason, cpu_times, l3_bytes
from neobench.pacpu.memory import KvMemory, available_bytes
from neobench.pacpu.plan import WorkerPool
from neobench.pacpu.topology import choose_cpus, usable_cpus

HEADS: Mapping[str, tuple[int, int]] = {"mha": (32, 32), "gqa4": (32, 8), "gqa8": (64, 8)}
"""Query heads and KV heads of each shape."""
DTYPES = ("float16", "bfloat16", "int8")
PEER_DTYPES = ("float16", "bfloat16")

SAMPLES = 5
SAMPLE_NS = 40_000_000
MAX_POINT_S = 6.0
"""A slow kernel gets fewer than SAMPLES samples, and a busy point fewer than MAX_ATTEMPTS, to keep to this."""
MAX_ATTEMPTS = 3

LEAST_POINT_S = (2 * SAMPLES + 4) * SAMPLE_NS / 1e9

_TYPICAL_FRACTION = 0.5
_TYPICAL_PEER_FRACTION = 0.05
_MIN_MEMORY_BYTES = 2**30
_MEMORY_GRAIN_BYTES = 2 * 2**20


@dataclass(frozen=True)
class Point:
    """One cell of the matrix. `kernel`: a target of pacpu, "auto" for its best, PEER, or one of LIMITS."""

    shape: str
    dtype: str
    threads: int
    batch: int
    context: int
    kernel: str = "auto"

    @property
    def num_q_heads(self) -> int:
        return HEADS[self.shape][0]

    @property
    def num_kv_heads(self) -> int:
        return HEADS[self.shape][1]

    @property
    def blocks_per_row(self) -> int:
        return -(-self.context // BLOCK_SIZE)

    @property
    def attended_bytes(self) -> int:
        """K and V, with int8's scales, of the context tokens that one call attends to."""
        return self.batch * self.context * self.num_kv_heads * layout_of(self.dtype).piece_bytes // BLOCK_SIZE

    @property
    def layer_bytes(self) -> int:
        """The blocks of one layer: a last one is stored whole."""
        return self.batch * self.blocks_per_row * self.num_kv_heads * layout_of(self.dtype).piece_bytes


@dataclass(frozen=True)
class Spread:
    median: float
    p25: float
    p75: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        low, middle, high = np.percentile(samples, (25, 50, 75))
        return cls(float(middle), float(low), float(high))


@dataclass(frozen=True)
class Measurement:
    point: Point
    kernel: str
    gbps: Spread
    read_gbps: Spread
    percent_of_read: Spread
    samples: int
    busy: str | None
    """A sentence when the machine was busy, so that the numbers do not count."""

    @property
    def tokens_per_s(self) -> float:
        """Decode tokens (rows of the batch) of one layer's attention a second: rows / time of one call."""
        return self.point.batch * 1e9 * self.gbps.median / self.point.attended_bytes

    def row(self) -> dict[str, Any]:
        """JSON values. `percent_of_read` is of neighbouring samples, so not exactly gbps / read_gbps."""
        row: dict[str, Any] = {"kernel": self.kernel}
        row |= {name: getattr(self.point, name) for name in ("shape", "dtype", "threads", "batch", "context")}
        row |= {name: _rounded(getattr(self, name).median) for name in ("gbps", "read_gbps", "percent_of_read")}
        row["tokens_per_s"] = _rounded(self.tokens_per_s)
        for name in ("gbps", "read_gbps", "percent_of_read"):
            spread = getattr(self, name)
            row |= {f"{name}_p25": _rounded(spread.p25), f"{name}_p75": _rounded(spread.p75)}
        return row | {"samples": self.samples, "busy": self.busy}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def memory_bytes_for(points: Sequence[Point]) -> int:
    """KV memory for these points: 1 GiB, four times the L3 caches or the largest layer, in a third of free memory."""
    wanted = max(_MIN_MEMORY_BYTES, 4 * l3_bytes(usable_cpus()), *(point.layer_bytes for point in points))
    return _whole_grains(min(wanted, available_bytes() // 3))


def _whole_grains(num_bytes: int) -> int:
    return max(1, -(-num_bytes // _MEMORY_GRAIN_BYTES)) * _MEMORY_GRAIN_BYTES


def _pinned_pool(threads: int) -> WorkerPool:
    return WorkerPool(threads, cpus=choose_cpus(threads))


def _num_samples(sample_s: float) -> int:
    return max(1, min(SAMPLES, int(MAX_POINT_S / sample_s) - 1))


class Bench:
    """The memory, the threads and the turn-taking: one user at a time of the CPUs that an engine would choose.

    The same pages are read, attended to by pacpu and attended to by torch; the largest pool touches them first.
    MemoryError: fewer than `kv_bytes` are available.
    """

    def __init__(self, kv_bytes: int, *, max_threads: int) -> None:
        self._pool = _pinned_pool(max_threads)
        self._memory = KvMemory(_whole_grains(kv_bytes), pool=self._pool)
        self._filled_with = ""
        self._reads: dict[tuple[int, bool], list[float]] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.close()

    @property
    def kv_bytes(self) -> int:
        return self._memory.array.nbytes

    def read_gbps(self, threads: int) -> tuple[Spread, bool]:
        """The machine's read bandwidth over all samples so far; True when it was never quiet meanwhile.

        Samples from when it was busy count only then.
        """
        quiet, busy = (self._reads.get((threads, is_busy)) for is_busy in (False, True))
        return Spread.of(quiet or busy or ()), not quiet

    def measure_read(self, threads: int) -> Spread:
        """GB/s at which `threads` threads sum memory that is in no cache."""
        self._fill(self._filled_with or DTYPES[0])
        stream = ReadStream(self._memory.array, self._pool_of(threads))
        cpus = choose_cpus(threads) or usable_cpus()
        stream.sample(SAMPLE_NS)
        before = cpu_times(cpus)
        reads = [stream.sample(SAMPLE_NS) for _ in range(SAMPLES)]
        self._judge(reads, before, cpus, threads)
        return self.read_gbps(threads)[0]

    def _judge(
        self, reads: Sequence[ReadSample], before: CpuTimes, cpus: Sequence[int], threads: int
    ) -> tuple[float, str | None]:
        """What `busy_reason` says of the time since `before`; keeps the reads."""
        working = [(read.wall_ns, read.own_cpu_ns) for read in reads]
        share, busy = busy_reason(before, cpu_times(cpus), num_cpus=threads, working=working)
        self._reads.setdefault((threads, busy is not None), []).extend(read.gbps for read in reads)
        return share, busy

    def estimate_s(self, point: Point) -> float:
        """About how long `measure` takes; after a measure_read of its thread count."""
        fraction = _TYPICAL_FRACTION
        if point.kernel == PEER:
            # It reads K and V again for each query head of a group.
            fraction = _TYPICAL_PEER_FRACTION * point.num_kv_heads / point.num_q_heads
        call_s = point.attended_bytes / (1e9 * fraction * self.read_gbps(point.threads)[0].median)
        sample_s = max(SAMPLE_NS / 1e9, call_s)
        num_samples = _num_samples(sample_s)
        return (num_samples + 2) * (sample_s + SAMPLE_NS / 1e9)

    def measure(self, point: Point) -> Measurement:
        """Repeats a point during which the machine was busy; what stays so says it in `busy`.

        ValueError: the memory has no room for one layer of it, or the target is not one of `targets()`.
        """
        if point.layer_bytes > self.kv_bytes:
            raise ValueError(f"kv_bytes: expected {point.layer_bytes} or more for {point}, got {self.kv_bytes}")
        pool = self._pool_of(point.threads)
        self._fill(point.dtype)
        cpus = choose_cpus(point.threads) or usable_cpus()
        started_s = time.monotonic()
        with self._kernel(point, pool, cpus) as kernel:
            tries = [self._attempt(point, kernel, pool, cpus)]
            while tries[-1][1].busy and len(tries) < MAX_ATTEMPTS:
                spent_s = time.monotonic() - started_s
                if spent_s * (len(tries) + 1) / len(tries) > MAX_POINT_S:
                    break
                tries.append(self._attempt(point, kernel, pool, cpus))
        return min(tries, key=lambda attempt: attempt[0])[1]

    def _fill(self, dtype: str) -> None:
        if dtype != self._filled_with:
            fill(self._memory.array, dtype)
            self._filled_with = dtype

    def _pool_of(self, threads: int) -> WorkerPool:
        if self._pool.num_threads != threads:
            self._pool.close()
            self._pool = _pinned_pool(threads)
        return self._pool

    def _kernel(self, point: Point, pool: WorkerPool, cpus: Sequence[int]) -> AbstractContextManager[Kernel]:
        if point.kernel == PEER:
            return sdpa_kernel(point, self._memory.array, cpus)
        return nullcontext(attention_kernel(point, self._memory.array, pool))

    def _attempt(
        self, point: Point, kernel: Kernel, pool: WorkerPool, cpus: Sequence[int]
    ) -> tuple[float, Measurement]:
        """Read, attend, read, attend, ..., read; and the share of the CPUs that was not ours.

        The first calls find out how many make a sample and warm up; only a very slow one is a sample itself.
        """
        layers, stream = Rotation(kernel), ReadStream(self._memory.array, pool)
        stream.sample(SAMPLE_NS)
        before, first_read = cpu_times(cpus), stream.sample(SAMPLE_NS)
        calls, call_ns = layers.calibrate(SAMPLE_NS)
        gbps: list[float] = []
        reads = [stream.sample(SAMPLE_NS)]
        if call_ns > SLOW_NS:
            gbps, reads = [point.attended_bytes / call_ns], [first_read, *reads]
        for _ in range(_num_samples(calls * call_ns / 1e9) - len(gbps)):
            gbps.append(point.attended_bytes / layers.call_ns(calls))
            time.sleep(kernel.settle_s)
            reads.append(stream.sample(SAMPLE_NS))
        share, busy = self._judge(reads, before, cpus, point.threads)
        read_gbps = [read.gbps for read in reads]
        neighbours = [(first + then) / 2 for first, then in pairwise(read_gbps)]
        percent = [100 * rate / read for rate, read in zip(gbps, neighbours, strict=True)]
        measurement = Measurement(
            point, kernel.name, Spread.of(gbps), Spread.of(read_gbps), Spread.of(percent), len(gbps), busy
        )
        return share, measurement
