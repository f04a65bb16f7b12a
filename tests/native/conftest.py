"""A decode-attention problem, run through a plan and compared with the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from neobench import pacpu

if find_spec("torch") and find_spec("neobench.pacpu._pacpu"):
    import torch

    DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
else:
    collect_ignore_glob = ["test_*.py"]  # a pure-Python install


RELATIVE_ERROR_LIMIT = 1e-5


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    """Exact: float32 holds every float16 and bfloat16."""
    return tensor.float().numpy()


def relative_error(got: npt.NDArray[Any], truth: npt.NDArray[np.float64]) -> float:
    norm = float(np.linalg.norm(truth))
    return float(np.linalg.norm(got - truth)) / norm if norm else float(np.abs(got).max(initial=0))


@dataclass
class AttentionCase:
    """A problem on the engine's host slab [blocks, layers, 2, kv_heads, block_size, head_dim], NaN where unused."""

    context_lens: Sequence[int]
    num_kv_heads: int = 2
    heads_per_kv_head: int = 2
    head_dim: int = 64
    block_size: int = 16
    num_layers: int = 2
    cache_dtype: str = "float16"
    activation_dtype: str = "float32"
    output_dtype: str = "float32"
    with_new_tokens: bool = True
    seed: int = 0
    block_tables: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        rows, dtype = len(self.context_lens), DTYPES[self.activation_dtype]
        blocks_per_row = [-(-length // self.block_size) for length in self.context_lens]
        num_blocks = sum(blocks_per_row) + 1
        order = torch.randperm(num_blocks, generator=generator).tolist()
        self.block_tables = np.full((rows, max([*blocks_per_row, 1])), -1, dtype=np.int32)
        self.contexts = np.array(self.context_lens, dtype=np.int32)
        slab_shape = (num_blocks, self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)
        self.slab = torch.full(slab_shape, float("nan"), dtype=DTYPES[self.cache_dtype])
        for row, length in enumerate(self.context_lens):
            for index in range(blocks_per_row[row]):
                block = order.pop()
                self.block_tables[row, index] = block
                stored = min(self.block_size, length - self.with_new_tokens - index * self.block_size)
                if stored > 0:
                    part = self.slab[block, :, :, :, :stored]
                    part.copy_(torch.randn(part.shape, generator=generator))
        num_q_heads = self.num_kv_heads * self.heads_per_kv_head
        self.query = torch.randn(rows, num_q_heads, self.head_dim, generator=generator).to(dtype)
        self.new_key = torch.randn(rows, self.num_kv_heads, self.head_dim, generator=generator).to(dtype)
        self.new_value = torch.randn(rows, self.num_kv_heads, self.head_dim, generator=generator).to(dtype)
        self.output = torch.full(self.query.shape, float("nan"), dtype=DTYPES[self.output_dtype])
        self.scale = self.head_dim**-0.5

    def arguments(self, num_threads: int) -> dict[str, Any]:
        """Keyword arguments of DecodePlan."""
        workspace_bytes = pacpu.workspace_bytes(
            max_rows=len(self.context_lens),
            num_q_heads=self.query.shape[1],
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_context=max([*self.context_lens, 1]),
            num_threads=num_threads,
        )
        return {
            "k_cache": self.slab[:, :, 0].transpose(0, 1),
            "v_cache": self.slab[:, :, 1].transpose(0, 1),
            "query": self.query,
            "new_key": self.new_key if self.with_new_tokens else None,
            "new_value": self.new_value if self.with_new_tokens else None,
            "output": self.output,
            "block_tables": self.block_tables,
            "context_lens": self.contexts,
            "scale": self.scale,
            "workspace": np.zeros(workspace_bytes, dtype=np.uint8),
        }

    def plan(self, pool: pacpu.WorkerPool, **changes: Any) -> pacpu.DecodePlan:
        return pacpu.DecodePlan(pool, **{**self.arguments(pool.num_threads), **changes})

    def reference(self, layer: int) -> npt.NDArray[np.float64]:
        """Of the cache as it is now: after a run, with the new tokens that the run stored."""
        return pacpu.paged_decode_reference(
            to_numpy(self.query),
            to_numpy(self.slab[:, layer, 0]),
            to_numpy(self.slab[:, layer, 1]),
            block_tables=self.block_tables,
            context_lens=self.contexts,
            scale=self.scale,
        )

    def check_layer(self, layer: int) -> None:
        """After a run: the new tokens are stored as torch would round them, and the output is right."""
        if self.with_new_tokens:
            for row, length in enumerate(self.context_lens):
                if length:
                    block = self.block_tables[row, (length - 1) // self.block_size]
                    stored = self.slab[block, layer, :, :, (length - 1) % self.block_size]
                    given = torch.stack((self.new_key[row], self.new_value[row])).to(stored.dtype)
                    assert torch.equal(stored, given)
        limit = {"float32": RELATIVE_ERROR_LIMIT, "float16": 5e-4, "bfloat16": 4e-3}[self.output_dtype]
        assert relative_error(to_numpy(self.output), self.reference(layer)) <= limit

    def check(self, pool: pacpu.WorkerPool, *, target: str = "auto") -> None:
        plan = self.plan(pool, target=target)
        plan.begin(len(self.context_lens))
        for layer in range(self.num_layers):
            plan.run(layer)
            self.check_layer(layer)


@pytest.fixture(scope="session")
def attention_case() -> type[AttentionCase]:
    return AttentionCase


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[int, pacpu.WorkerPool]]:
    """A pool for each of the thread counts under test."""
    pools = {num_threads: pacpu.WorkerPool(num_threads) for num_threads in (1, 2, 3)}
    yield pools
    for pool in pools.values():
        pool.close()
