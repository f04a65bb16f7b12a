"""A sub-batch on its way through a device's layers, and the fixed buffers that its inputs lie in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.executor.inputs import BatchInputs
from neobench.neo_engine.executor.prompts import Prompts


@dataclass
class Lane:
    """Rows in the order prefills, device decodes, host decodes, the last two padded where a graph wants it."""

    slot: int
    num_device: int
    num_host: int
    token_ids: Tensor  # int64 [n], as the next two
    positions: Tensor
    slots: Tensor  # block * block_size + offset of the token's place; -1 for none in the device's memory
    logit_rows: Tensor  # int64 [rows that predict a token]
    tables: Tensor  # int32 [num_device, max_blocks]
    contexts: Tensor  # int32 [num_device]
    prompts: Prompts | None
    x: Tensor = field(init=False)  # [n, hidden], as delta
    delta: Tensor | None = None
    heads: Tensor = field(init=False)  # [n, Hq + 2 Hkv, D]
    attention: Tensor = field(init=False)  # [n, Hq, D]

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)

    @property
    def device_rows(self) -> slice:
        return slice(self.num_rows - self.num_host - self.num_device, self.num_rows - self.num_host)

    @property
    def host_rows(self) -> slice:
        return slice(self.num_rows - self.num_host, self.num_rows)


class _RowBuffer:
    """The four numbers of each row, in page-locked memory and on the device."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        self.host = torch.zeros(4 * rows, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.device = self.host.to(device)


class LaneBuffers:
    """Inputs of one sub-batch in page-locked memory and on the device; padded ones are always in the same place.

    `fill` may be called again once the device has done what was queued with the lane before.
    """

    def __init__(self, config: EngineConfig, slot: int, device: torch.device) -> None:
        blocks = config.blocks_for(config.max_request_tokens)
        is_cuda = device.type == "cuda"
        self._slot = slot
        self._block_size = config.block_size
        self._padded_rows = _RowBuffer(2 * config.max_batch_rows, device)
        self._other_rows = _RowBuffer(config.max_batch_tokens, device)
        self._host_tables = torch.zeros(config.max_batch_rows, blocks, dtype=torch.int32, pin_memory=is_cuda)
        self._host_contexts = torch.zeros(config.max_batch_rows, dtype=torch.int32, pin_memory=is_cuda)
        self._tables = self._host_tables.to(device)
        self._contexts = self._host_contexts.to(device)

    def fill(
        self, inputs: BatchInputs, prompts: Prompts | None, *, num_device: int, num_host: int, is_padded: bool
    ) -> Lane:
        """`num_device` and `num_host` rows, at least those of the inputs; the rest is padding, which changes nothing.

        `is_padded`: every row predicts a token, those that have none to predict after the others.
        """
        prompt_rows = inputs.num_prefill_tokens
        n = prompt_rows + num_device + num_host
        buffer = self._padded_rows if is_padded else self._rows_for(n)
        rows = buffer.host.numpy()[: 4 * n].reshape(4, n)
        real = _real_rows(inputs, num_device)
        rows[:] = np.array([[0], [0], [-1], [0]])
        rows[0, real] = inputs.token_ids
        rows[1, real] = inputs.positions
        if prompts is not None:
            rows[2, :prompt_rows] = prompts.slots
        self._fill_tables(inputs, num_device)
        device = slice(prompt_rows, prompt_rows + len(inputs.device))
        rows[2, device] = self._slots(rows[1, device])
        logit_rows = real[inputs.logit_rows]
        rows[3, : len(logit_rows)] = logit_rows
        on_device = buffer.device[: 4 * n].copy_(buffer.host[: 4 * n], non_blocking=True).view(4, n)
        return Lane(
            slot=self._slot,
            num_device=num_device,
            num_host=num_host,
            token_ids=on_device[0],
            positions=on_device[1],
            slots=on_device[2],
            logit_rows=on_device[3] if is_padded else on_device[3, : len(logit_rows)],
            tables=self._tables[:num_device].copy_(self._host_tables[:num_device], non_blocking=True),
            contexts=self._contexts[:num_device].copy_(self._host_contexts[:num_device], non_blocking=True),
            prompts=prompts,
        )

    def _rows_for(self, n: int) -> _RowBuffer:
        """A prompt may be longer than the budget."""
        if n > self._other_rows.rows:
            self._other_rows = _RowBuffer(2 * n, self._tables.device)
        return self._other_rows

    def _fill_tables(self, inputs: BatchInputs, num_device: int) -> None:
        contexts = self._host_contexts.numpy()
        contexts[len(inputs.device) : num_device] = 0
        contexts[: len(inputs.device)] = inputs.device.contexts
        tables = self._host_tables.numpy()
        for row, blocks in enumerate(inputs.device.tables):
            tables[row, : len(blocks)] = blocks

    def _slots(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        tables = self._host_tables.numpy()[: len(positions)]
        blocks = np.take_along_axis(tables, (positions // self._block_size)[:, None], axis=1)[:, 0]
        return blocks.astype(np.int64) * self._block_size + positions % self._block_size


def _real_rows(inputs: BatchInputs, num_device: int) -> npt.NDArray[np.int64]:
    """Where each row of the inputs stands among the padded ones."""
    before_host = inputs.num_prefill_tokens + len(inputs.device)
    host_start = inputs.num_prefill_tokens + num_device
    return np.concatenate((np.arange(before_host), np.arange(host_start, host_start + len(inputs.host))))


def padded(counts: Sequence[int], sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Each count up to the next of `sizes`, which rise, and at most `most`; 0 stays."""
    return tuple(min([size for size in (*sizes, most) if size >= count]) if count else 0 for count in counts)
