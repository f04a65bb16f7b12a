"""Decode attention over the device tier's paged KV: Triton on a GPU, the torch twin elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.kernels import reference
from neobench.neo_engine.kernels.kv_pieces import check_tiles
from neobench.neo_engine.kv_cache.layout import KvLayout

# Of K, and as much of V, that a program loads at a time; four programs of it fit a multiprocessor of the larger GPUs.
STEP_BYTES = 16 * 1024
# Before compute capability 8.0 a step lies in registers, where 16 KiB would not fit.
STEP_BYTES_IN_REGISTERS = 8 * 1024
# Twice what fits at a time: 6 % faster than once for few rows, equal for many.
_PROGRAMS_PER_MULTIPROCESSOR = 8
_MAX_SPANS = 128


@dataclass(frozen=True)
class Spans:
    """Into how many spans a launch cuts each row's tokens, the steps it walks them in, and room for results."""

    count: int
    step_tokens: int
    sums: Tensor  # float32, at least rows * count * Hq * D elements
    weights: Tensor  # float32, at least rows * count * Hq elements
    maxima: Tensor  # as weights


def check_device(capability: tuple[int, int], dtype: torch.dtype) -> None:
    """Raises ConfigError if the kernels do not run on a CUDA device of this compute capability in this dtype."""
    found = ".".join(map(str, capability))
    if capability < (7, 5):
        raise ConfigError(f"device: expected a GPU of compute capability 7.5 or later, got {found}")
    if dtype == torch.bfloat16 and capability < (8, 0):
        raise ConfigError(f"dtype: bfloat16 needs compute capability 8.0 or later, the device has {found}; use float16")


def step_tokens(layout: KvLayout, step_bytes: int = STEP_BYTES) -> int:
    """Tokens of K and V that a program loads at a time: whole tiles, `step_bytes` of each where that is 16 to 128."""
    padded_dim = 1 << (layout.head_dim - 1).bit_length()
    element_bytes = layout.piece_bytes // (2 * layout.stored_tokens * layout.head_dim)
    return max(16, min(128, step_bytes // (padded_dim * element_bytes)))


def num_spans(num_pieces: int, max_context: int, *, num_programs: int, step_tokens: int) -> int:
    """Spans of each row so that `num_pieces` (rows times KV heads) times spans make about `num_programs` programs.

    At least one step for each span. With more than one, pieces times spans stay below twice `num_programs`.
    """
    wanted = -(-num_programs // num_pieces)
    return max(1, min(wanted, -(-max_context // step_tokens), _MAX_SPANS))


class DecodeAttention:
    """One new token of each row attends to the row's tokens in one layer of the slab.

    The launch depends on the shapes of its arguments and on `max_context` alone, not on what tensors hold, so a
    CUDA graph may capture it with padded sizes. Partial results lie in the instance: launches that may run at the
    same time, of two streams, need an instance each.
    """

    def __init__(
        self,
        layout: KvLayout,
        *,
        num_query_heads: int,
        num_kv_heads: int,
        device: torch.device,
        scale: float | None = None,
    ) -> None:
        """`scale` of the scores is head_dim ** -0.5 by default.

        Raises ConfigError for a layout that is not made of whole tiles of floats, heads that cannot be grouped, and
        a device that cannot compute in the layout's dtype.
        """
        check_tiles(layout)
        if num_query_heads % num_kv_heads:
            raise ConfigError(f"query heads: expected a multiple of {num_kv_heads} KV heads, got {num_query_heads}")
        self._layout = layout
        self._dtype = getattr(torch, layout.dtype)
        self._heads = (num_query_heads, num_kv_heads)
        self._scale = layout.head_dim**-0.5 if scale is None else scale
        self._step_tokens = step_tokens(layout)
        self._num_programs = 1
        if device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            check_device(capability, self._dtype)
            if capability < (8, 0):
                self._step_tokens = step_tokens(layout, STEP_BYTES_IN_REGISTERS)
            multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
            self._num_programs = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
        places = 2 * self._num_programs * num_query_heads // num_kv_heads
        self._sums = torch.empty(places * layout.head_dim, dtype=torch.float32, device=device)
        self._weights, self._maxima = torch.empty(2, places, dtype=torch.float32, device=device)

    def __call__(
        self,
        query: Tensor,
        kv: Tensor,
        *,
        layer: int,
        block_tables: Tensor,
        context_lens: Tensor,
        max_context: int,
        out: Tensor,
    ) -> None:
        """query [rows, Hq, D] -> out [rows, Hq, D], both in the layout's dtype; their rows may lie apart.

        kv is uint8 [blocks, layers, Hkv, piece_bytes]; block_tables [rows, blocks] int32 in token order;
        context_lens [rows] int32, none above max_context, the new token included, which the slab already holds.
        A row with a context of 0 is padding: its result is zeros, its table is not read.
        Raises ValueError for other shapes and dtypes.
        """
        rows, blocks = block_tables.shape
        self._check("query", query, rows)
        self._check("out", out, rows)
        if kv.dtype != torch.uint8 or kv.shape[2:] != (self._heads[1], self._layout.piece_bytes):
            raise ValueError(f"kv: expected uint8 pieces of {self._layout}, got {kv.dtype} {list(kv.shape)}")
        if (block_tables.dtype, context_lens.dtype) != (torch.int32, torch.int32) or context_lens.shape != (rows,):
            raise ValueError(f"context_lens, block_tables: expected int32 [{rows}] and [{rows}, {blocks}]")
        if rows == 0:
            return
        if not query.is_cuda:
            reference.decode_attention(
                query,
                kv,
                layout=self._layout,
                layer=layer,
                block_tables=block_tables,
                context_lens=context_lens,
                scale=self._scale,
                out=out,
            )
            return
        from neobench.neo_engine.kernels import triton_attention

        triton_attention.decode_attention(
            query,
            kv,
            layout=self._layout,
            layer=layer,
            block_tables=block_tables,
            context_lens=context_lens,
            scale=self._scale,
            out=out,
            spans=self._spans(rows, max_context),
        )

    def _spans(self, rows: int, max_context: int) -> Spans:
        count = num_spans(
            rows * self._heads[1], max_context, num_programs=self._num_programs, step_tokens=self._step_tokens
        )
        return Spans(count, self._step_tokens, self._sums, self._weights, self._maxima)

    def _check(self, name: str, tensor: Tensor, rows: int) -> None:
        expected = (rows, self._heads[0], self._layout.head_dim)
        if tensor.shape != expected or tensor.dtype != self._dtype or tensor.stride()[1:] != (expected[2], 1):
            raise ValueError(
                f"{name}: expected {self._dtype} {list(expected)} with contiguous rows, "
                f"got {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()}"
            )
