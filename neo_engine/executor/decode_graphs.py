"""CUDA graphs of whole decode iterations by padded sizes: a small model's layers are shorter than their launch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neobench.neo_engine.executor.stopwatch import Stopwatch

_MAX_GRAPHS = 128

ROW_SIZES = (1, 2, 4, *range(8, 64, 4), *range(64, 128, 8), *range(128, 256, 16), *range(256, 1025, 32))
"""Rows are padded to the next of these; linear layers take about as long for the padded number."""


@dataclass
class Captured:
    """What a replay leaves behind: logits of all rows, and its stage times."""

    logits: Tensor
    watch: Stopwatch
    graph: torch.cuda.CUDAGraph


class DecodeGraphs:
    """Captures an iteration when its sizes come for the second time, by which everything in it is compiled."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Hashable, Captured | None] = OrderedDict()
        self._pool: Any = None

    def __len__(self) -> int:
        return sum(captured is not None for captured in self._seen.values())

    def get(self, key: Hashable, capture: Callable[[], tuple[Tensor, Stopwatch]]) -> Captured | None:
        """The graph to replay; None where this is the first time, which is to be run as it is.

        `capture` queues the iteration on the current stream, into a graph.
        """
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _MAX_GRAPHS:
                self._seen.popitem(last=False)
            return None
        self._seen.move_to_end(key)
        captured = self._seen[key]
        if captured is None:
            captured = self._seen[key] = self._capture(capture)
        return captured

    def _capture(self, capture: Callable[[], tuple[Tensor, Stopwatch]]) -> Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: whatever other threads do with the device is none of the graph's business.
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            logits, watch = capture()
        return Captured(logits, watch, graph)
