"""pytest-benchmark cases of the kernels: for following them over time, not for passing or failing."""

from __future__ import annotations

import numpy as np
import pytest

from neobench import pacpu
from neobench.pacpu.bench import DTYPES, HEADS, Point
from neobench.pacpu.bench_kernels import Rotation, attention_kernel, fill

MEMORY_BYTES = 64 * 2**20


@pytest.fixture(scope="module")
def memory() -> np.ndarray:
    return pacpu.KvMemory(MEMORY_BYTES).array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", HEADS)
def test_decode_attention(benchmark, pools, memory, shape, dtype):
    point = Point(shape, dtype, threads=1, batch=4, context=256)
    fill(memory, dtype)
    kernel = attention_kernel(point, memory, pools[1])
    layers = Rotation(kernel)
    benchmark.group = "decode attention, one layer, batch 4, context 256, 1 thread"
    benchmark.extra_info = {"kernel": kernel.name, "attended_bytes": point.attended_bytes}
    benchmark.pedantic(layers.call_ns, args=(1,), rounds=30, warmup_rounds=3)
