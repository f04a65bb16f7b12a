"""A sub-batch on its way through a device's layers, and the fixed buffers that it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.executor.inputs import BatchInputs
from neobench.neo_engine.executor.prompts import Prompts

_CONTEXTS_FROM = 4  # the words before them hold the number of host rows, and keep them aligned


@dataclass
class Lane:
    """Rows in the order prompts, host decodes, device decodes, padding. m = n less the prompts' rows.

    Where a lane is padded all its tensors are always in the same place, for graphs to find them.
    """

    slot: int
    num_prompt_tokens: int
    num_host: int
    num_device: int
    num_logits: int
    token_ids: Tensor  # int64 [n], as the next two
    positions: Tensor
    slots: Tensor  # block * block_size + offset of the token's place; -1 for none in the device's memory
    logit_rows: Tensor  # int64; the first num_logits predict a token, padded lanes have one for every row
    host_count: Tensor  # int32 [1], num_host for kernels that a graph launches
    tables: Tensor  # int32 [m, max_blocks]
    contexts: Tensor  # int32 [m], 0 where the device's memory holds no KV of the row
    prompts: Prompts | None
    x: Tensor  # [n, hidden], as delta
    heads: Tensor  # [n, Hq + 2 Hkv, D]
    attention: Tensor  # [n, Hq, D]
    delta: Tensor | None = field(default=None, init=False)

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)

    @property
    def decode_rows(self) -> slice:
        return slice(self.num_prompt_tokens, self.num_rows)

    @property
    def host_rows(self) -> slice:
        return slice(self.num_prompt_tokens, self.num_prompt_tokens + self.num_host)


class _Inputs:
    """What a step is told of its rows, in page-locked memory and on the device.

    Twice in page-locked memory: a step may be filled in while the one before it is still being copied.
    """

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._host = [torch.zeros(length, dtype=dtype, pin_memory=is_cuda) for _ in range(2)]
        self._device = torch.zeros(length, dtype=dtype, device=device)

    def __len__(self) -> int:
        return len(self._device)

    def next_host(self) -> npt.NDArray[Any]:
        """What `to_device` copies next, of any content."""
        self._host.reverse()
        return self._host[0].numpy()

    def to_device(self, count: int) -> Tensor:
        return self._device[:count].copy_(self._host[0][:count], non_blocking=True)


class _RowStates:
    """What the layers make of each row."""

    def __init__(self, rows: int, config: EngineConfig, device: torch.device) -> None:
        shape = config.shape
        dtype = getattr(torch, config.dtype)
        num_heads = shape.num_query_heads + 2 * shape.num_kv_heads
        self.x = torch.empty(rows, shape.hidden_size, dtype=dtype, device=device)
        self.heads = torch.empty(rows, num_heads, shape.head_dim, dtype=dtype, device=device)
        self.attention = torch.empty(rows, shape.num_query_heads, shape.head_dim, dtype=dtype, device=device)


class LaneBuffers:
    """One sub-batch's inputs in page-locked memory and on the device, and its rows' states.

    `fill` may be called again while the device does what was queued with the lane before, and no earlier lane.
    """

    def __init__(self, config: EngineConfig, slot: int, device: torch.device) -> None:
        most = 2 * config.max_batch_rows
        self._config = config
        self._slot = slot
        self._device = device
        self._max_blocks = config.blocks_for(config.max_request_tokens)
        self._padded_numbers = _Inputs(4 * most, torch.int64, device)
        self._padded_states = _RowStates(most, config, device)
        self._other_numbers = _Inputs(4 * config.max_batch_tokens, torch.int64, device)
        self._tables = _Inputs(most * self._max_blocks, torch.int32, device)
        self._words = _Inputs(_CONTEXTS_FROM + most, torch.int32, device)

    def fill(self, inputs: BatchInputs, prompts: Prompts | None, *, padded_rows: int | None = None) -> Lane:
        """`padded_rows`, at least those of the inputs, which then hold no prompts: padding changes nothing."""
        num_prompt_tokens = inputs.num_prefill_tokens
        n = padded_rows or len(inputs.token_ids)
        m = n - num_prompt_tokens
        real = _real_rows(inputs)
        numbers = self._padded_numbers if padded_rows else self._numbers_for(n)
        states = self._padded_states if padded_rows else _RowStates(n, self._config, self._device)
        tables = self._filled_tables(inputs, m)
        rows = numbers.next_host()[: 4 * n].reshape(4, n)
        rows[:] = np.array([[0], [0], [-1], [0]])
        rows[0, real] = inputs.token_ids
        rows[1, real] = inputs.positions
        if prompts is not None:
            rows[2, :num_prompt_tokens] = prompts.slots
        end = num_prompt_tokens + len(inputs.host) + len(inputs.device)
        device_rows = slice(end - len(inputs.device), end)
        rows[2, device_rows] = self._slots(rows[1, device_rows], tables[len(inputs.host) :])
        logit_rows = real[inputs.logit_rows]
        rows[3, : len(logit_rows)] = logit_rows
        on_device = numbers.to_device(4 * n).view(4, n)
        words = self._words.to_device(_CONTEXTS_FROM + m)
        return Lane(
            slot=self._slot,
            num_prompt_tokens=num_prompt_tokens,
            num_host=len(inputs.host),
            num_device=len(inputs.device),
            num_logits=len(logit_rows),
            token_ids=on_device[0],
            positions=on_device[1],
            slots=on_device[2],
            logit_rows=on_device[3],
            host_count=words[:1],
            tables=self._tables.to_device(m * self._max_blocks).view(m, self._max_blocks),
            contexts=words[_CONTEXTS_FROM:],
            prompts=prompts,
            x=states.x[:n],
            heads=states.heads[:n],
            attention=states.attention[:n],
        )

    def _numbers_for(self, n: int) -> _Inputs:
        """A prompt may be longer than the budget."""
        if 4 * n > len(self._other_numbers):
            self._other_numbers = _Inputs(8 * n, torch.int64, self._device)
        return self._other_numbers

    def _filled_tables(self, inputs: BatchInputs, num_decode_rows: int) -> npt.NDArray[np.int32]:
        """Block tables and contexts of the device's decodes in page-locked memory; the tables of all decodes."""
        words = self._words.next_host()
        words[0] = num_host = len(inputs.host)
        contexts = words[_CONTEXTS_FROM : _CONTEXTS_FROM + num_decode_rows]
        contexts[:] = 0
        contexts[num_host : num_host + len(inputs.device)] = inputs.device.contexts
        tables = self._tables.next_host()[: num_decode_rows * self._max_blocks].reshape(-1, self._max_blocks)
        for row, blocks in enumerate(inputs.device.tables, num_host):
            tables[row, : len(blocks)] = blocks
        return tables

    def _slots(self, positions: npt.NDArray[np.int64], tables: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Of device rows, by the tables that begin with theirs."""
        size = self._config.block_size
        blocks = np.take_along_axis(tables[: len(positions)], (positions // size)[:, None], axis=1)[:, 0]
        return blocks.astype(np.int64) * size + positions % size


def _real_rows(inputs: BatchInputs) -> npt.NDArray[np.int64]:
    """Where each row of the inputs, whose device decodes come before the host's, stands in the lane."""
    prompts, device, host = inputs.num_prefill_tokens, len(inputs.device), len(inputs.host)
    starts_and_counts = ((0, prompts), (prompts + host, device), (prompts, host))
    return np.concatenate([np.arange(start, start + count) for start, count in starts_and_counts])


def padded(count: int, sizes: Sequence[int], most: int) -> int:
    """`count` up to the next of `sizes`, which rise, and at most `most`."""
    return min(size for size in (*sizes, most) if size >= count)
