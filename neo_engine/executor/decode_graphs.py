"""CUDA graphs of decodes by padded sizes: launched one by one, a layer's kernels take longer than they run."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from neobench.neo_engine.executor.stopwatch import Stopwatch

_logger = logging.getLogger(__name__)

_MAX_KEYS = 256

ROW_SIZES = (1, 2, 4, *range(8, 64, 4), *range(64, 128, 8), *range(128, 256, 16), *range(256, 1025, 32))
"""Rows are padded to the next of these; linear layers take about as long for the padded number."""

Step = Callable[[Stopwatch], None]
"""Queues some work on the current stream; the watch times its stages."""


@dataclass(frozen=True)
class Captured:
    """A graph for each step; `watch` has the stage times of their latest replays."""

    graphs: tuple[torch.cuda.CUDAGraph, ...]
    watch: Stopwatch


class DecodeGraphs:
    """Captures the steps of a key when it comes for the second time, by which everything in them is compiled.

    Steps of different keys share their temporary memory: what lives from one step to another has to lie elsewhere, and
    graphs may be replayed in any order but not at the same time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen: OrderedDict[Hashable, Captured | None] = OrderedDict()
        self._pool: Any = None
        self._can_capture = True

    def __len__(self) -> int:
        """Keys that have graphs."""
        return sum(captured is not None for captured in self._seen.values())

    def get(self, key: Hashable, stages: frozenset[str] | None, steps: Sequence[Step]) -> Captured | None:
        """The graphs to replay; None where the steps are to be run as they are, the first time or for good.

        `stages` are those that the graphs time, None: all.
        """
        if (key, stages) not in self._seen:
            self._seen[key, stages] = None
            if len(self._seen) > _MAX_KEYS:
                self._seen.popitem(last=False)
            return None
        self._seen.move_to_end((key, stages))
        captured = self._seen[key, stages]
        if captured is None and self._can_capture:
            captured = self._seen[key, stages] = self._captured(stages, steps)
        return captured

    def _captured(self, stages: frozenset[str] | None, steps: Sequence[Step]) -> Captured | None:
        watch = Stopwatch(self._device, stages, in_graph=True)
        try:
            return Captured(tuple(self._graph(step, watch) for step in steps), watch)
        except RuntimeError as error:
            self._can_capture = False
            _logger.warning("no more CUDA graphs are captured, which makes small batches slower: %s", error)
            return None

    def _graph(self, step: Step, watch: Stopwatch) -> torch.cuda.CUDAGraph:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Not `with torch.cuda.graph`, which synchronises and empties the cache each time. Of this thread alone:
        # whatever other threads do with the device is none of the graph's business.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            step(watch)
        finally:
            graph.capture_end()
        return graph
