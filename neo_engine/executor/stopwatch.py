"""Stage times of an iteration on a device: by events of its stream, which cost it next to nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns

import torch


class Stopwatch:
    """Sums nanoseconds by stage. On a GPU the numbers are there once the stream has come to its end.

    One that was used while a CUDA graph was captured times every replay of the graph.
    """

    def __init__(self, device: torch.device, stages: frozenset[str] | None, *, in_graph: bool = False) -> None:
        """`stages` are those to be timed; None: all."""
        self._is_cuda = device.type == "cuda"
        self._stages = stages
        self._in_graph = in_graph
        self._events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)
        self._elapsed_ns: dict[str, int] = defaultdict(int)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self._stages is not None and name not in self._stages:
            yield
        elif self._is_cuda:
            start, end = self._event(), self._event()
            start.record()
            yield
            end.record()
            self._events[name].append((start, end))
        else:
            start_ns = perf_counter_ns()
            yield
            self._elapsed_ns[name] += perf_counter_ns() - start_ns

    def elapsed_ns(self, name: str) -> int:
        on_device_ms = sum(float(start.elapsed_time(end)) for start, end in self._events[name])
        return self._elapsed_ns[name] + round(1e6 * on_device_ms)

    def _event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True, external=self._in_graph)  # type: ignore[no-untyped-call]
