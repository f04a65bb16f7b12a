"""What a torch device reaches at its best: the limits that an engine's speed is read against."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter

import torch

COPY_BYTES = 2**30
GEMM_SIZE = 8192
REPEATS = 7


def copy_bytes_per_s(device: torch.device, num_bytes: int = COPY_BYTES) -> float:
    """Memory traffic of a device copy: bytes read plus bytes written, a second; median of REPEATS."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _median_s(device, lambda: target.copy_(source))


def gemm_flops_per_s(device: torch.device, dtype: torch.dtype = torch.float16, size: int = GEMM_SIZE) -> float:
    """Of a square matrix product, 2 * size^3 operations; median of REPEATS."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _median_s(device, lambda: torch.mm(left, right))


def _median_s(device: torch.device, call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        _finish(device)
        start = perf_counter()
        call()
        _finish(device)
        times.append(perf_counter() - start)
    return statistics.median(times)


def _finish(device: torch.device) -> None:
    # The stream, not the device: under a green context a device synchronise was seen to return early.
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
