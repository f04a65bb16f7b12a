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


# Relative L2 error against float64 on the cache as it is stored.
EXACT_LIMIT = 1e-5
BF16_DOT_LIMIT = 5e-3  # query and weights rounded to bfloat16
INT8_LIMIT = 5e-3  # weights rounded to 8 bits of the largest in a tile


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    """Exact: float32 holds every float16 and bfloat16."""
    return tensor.float().numpy()


def relative_error(got: npt.NDArray[Any], truth: npt.NDArray[np.float64]) -> float:
    norm = float(np.linalg.norm(truth))
    return float(np.linalg.norm(got - truth)) / norm if norm else float(np.abs(got).max(initial=0))


def error_limit(target: str, cache_dtype: str, output_dtype: str = "float32") -> float:
    limit = {"float32": EXACT_LIMIT, "float16": 5e-4, "bfloat16": 4e-3}[output_dtype]
    if cache_dtype == "bfloat16" and "bf16" in target:
        limit += BF16_DOT_LIMIT
    return limit + (INT8_LIMIT if cache_dtype == "int8" else 0)


@dataclass
class AttentionCase:
    """A problem on the engine's host slab [blocks, layers, kv_heads, piece_bytes], NaN where unused."""

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
        self.layout = pacpu.KvLayout(self.cache_dtype, self.head_dim, self.block_size)
        rng = np.random.default_rng(self.seed)
        rows, dtype = len(self.context_lens), DTYPES[self.activation_dtype]
        blocks_per_row = [-(-length // self.block_size) for length in self.context_lens]
        num_blocks = sum(blocks_per_row) + 1
        order = rng.permutation(num_blocks).tolist()
        self.block_tables = np.full((rows, max([*blocks_per_row, 1])), -1, dtype=np.int32)
        self.contexts = np.array(self.context_lens, dtype=np.int32)
        slab_shape = (num_blocks, self.num_layers, self.num_kv_heads, self.layout.piece_bytes)
        self.slab = torch.full(slab_shape, 0xFF, dtype=torch.uint8)
        self.unrounded = np.full((2, *slab_shape[:3], self.block_size, self.head_dim), np.nan, dtype=np.float32)
        for row, length in enumerate(self.context_lens):
            for index in range(blocks_per_row[row]):
                block = order.pop()
                self.block_tables[row, index] = block
                stored = min(self.block_size, length - self.with_new_tokens - index * self.block_size)
                if stored > 0:
                    shape = (2, self.num_layers, self.num_kv_heads, stored, self.head_dim)
                    self.unrounded[:, block, ..., :stored, :] = rng.standard_normal(shape, dtype=np.float32)
                self._store_block(block)
        num_q_heads = self.num_kv_heads * self.heads_per_kv_head
        activations = [
            torch.from_numpy(rng.standard_normal((rows, heads, self.head_dim), dtype=np.float32)).to(dtype)
            for heads in (num_q_heads, self.num_kv_heads, self.num_kv_heads)
        ]
        self.query, self.new_key, self.new_value = activations
        self.output = torch.full(self.query.shape, float("nan"), dtype=DTYPES[self.output_dtype])
        self.scale = self.head_dim**-0.5

    def _store_block(self, block: int) -> None:
        # Tokens beyond block_size have a place in the last tile: NaN there, too.
        whole_tiles = pacpu.KvLayout(self.cache_dtype, self.head_dim, self.layout.stored_tokens)
        padding = ((0, whole_tiles.block_size - self.block_size), (0, 0))
        for layer in range(self.num_layers):
            for head in range(self.num_kv_heads):
                keys, values = (
                    np.pad(part[block, layer, head], padding, constant_values=np.nan) for part in self.unrounded
                )
                self.slab[block, layer, head] = torch.from_numpy(whole_tiles.pack_tokens(keys, values))

    def set_token(self, row: int, token: int, *, key: float | None = None, value: float | None = None) -> None:
        """Fills K or V of a row's token, in all layers and heads, with one number."""
        block = int(self.block_tables[row, token // self.block_size])
        for part, number in zip(self.unrounded, (key, value), strict=True):
            if number is not None:
                part[block, :, :, token % self.block_size] = number
        self._store_block(block)

    def arguments(self, num_threads: int) -> dict[str, Any]:
        """Keyword arguments of DecodePlan."""
        workspace_bytes = pacpu.workspace_bytes(
            max_rows=len(self.context_lens),
            num_q_heads=self.query.shape[1],
            head_dim=self.head_dim,
            max_context=max([*self.context_lens, 1]),
            num_threads=num_threads,
        )
        return {
            "kv": self.slab.transpose(0, 1),
            "kv_dtype": self.cache_dtype,
            "block_size": self.block_size,
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

    def stored(self, layer: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """K and V of the cache as it is now [blocks, kv_heads, block_size, head_dim]."""
        return self.layout.unpack_tokens(self.slab[:, layer].numpy())

    def stored_token(self, layer: int, row: int, token: int) -> torch.Tensor:
        """K and V [2, kv_heads, head_dim] of a row's token as the cache has it now."""
        block = self.block_tables[row, token // self.block_size]
        return torch.from_numpy(np.stack([part[block, :, token % self.block_size] for part in self.stored(layer)]))

    def reference(self, layer: int) -> npt.NDArray[np.float64]:
        """Of the cache as it is now: after a run, with the new tokens that the run stored."""
        return pacpu.paged_decode_reference(
            to_numpy(self.query),
            *self.stored(layer),
            block_tables=self.block_tables,
            context_lens=self.contexts,
            scale=self.scale,
        )

    def check_stored_tokens(self, layer: int) -> None:
        """The new tokens are stored as torch would round them, or to the nearest of 255 steps."""
        for row, length in enumerate(self.context_lens):
            if not length:
                continue
            stored = self.stored_token(layer, row, length - 1)
            given = torch.stack((self.new_key[row], self.new_value[row])).float()
            if self.cache_dtype == "int8":
                steps = given.abs().amax(-1, keepdim=True) / 127
                assert ((stored - given).abs() <= 0.5001 * steps).all()
            else:
                assert torch.equal(stored, given.to(DTYPES[self.cache_dtype]).float())

    def check_layer(self, layer: int, target: str | None = None) -> None:
        """After a run: the new tokens are stored and the output is right."""
        if self.with_new_tokens:
            self.check_stored_tokens(layer)
        limit = error_limit(target or pacpu.targets()[0], self.cache_dtype, self.output_dtype)
        assert relative_error(to_numpy(self.output), self.reference(layer)) <= limit

    def check(self, pool: pacpu.WorkerPool, *, target: str = "auto") -> None:
        plan = self.plan(pool, target=target)
        plan.begin(len(self.context_lens))
        for layer in range(self.num_layers):
            plan.run(layer)
            self.check_layer(layer, plan.target)


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
