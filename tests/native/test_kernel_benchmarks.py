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


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_besides_its_work(benchmark, pools, threads):
    """One token of one head: what a layer's call costs where there is hardly anything to attend to."""
    layout = pacpu.KvLayout(dtype="bfloat16", head_dim=64, block_size=16)
    query = np.ones((1, 1, 64), dtype=np.float16)
    size = pacpu.workspace_bytes(max_rows=1, num_q_heads=1, head_dim=64, max_context=16, num_threads=threads)
    plan = pacpu.DecodePlan(
        pools[threads],
        kv=np.zeros((1, 1, 1, layout.piece_bytes), dtype=np.uint8),
        kv_dtype="bfloat16",
        block_size=16,
        query=query,
        new_key=None,
        new_value=None,
        output=np.empty_like(query),
        block_tables=np.zeros((1, 1), dtype=np.int32),
        context_lens=np.ones(1, dtype=np.int32),
        scale=1.0,
        workspace=np.empty(size, dtype=np.uint8),
    )
    plan.begin(1)
    benchmark.group = "a call besides its work"
    benchmark.pedantic(plan.run, args=(0,), rounds=2000, iterations=10, warmup_rounds=50)
