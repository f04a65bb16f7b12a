"""What a host's threads can read from its memory. Knows no torch.

Clouds do not publish what a slice of a host gets. Where a sheet does not state it, two assumptions bound it: the slice
has its cores' share of the socket (low: all neighbours read as well), or as much as its cores can draw and the socket
has (high: no neighbour reads). Typical is the geometric mean of both, which nothing was fitted to.
"""

from __future__ import annotations

import math

from neobench.neo_engine.hardware.schema import BandwidthLevel, Host, ReadRange

SOCKET_FRACTION = 0.75
"""Of a socket's channels x transfer rate that reads reach; common for two and more streams, an assumption."""


def read_range(host: Host) -> ReadRange:
    """Of all cores, in GB/s."""
    if host.read_gb_per_s is not None:
        return host.read_gb_per_s
    socket = SOCKET_FRACTION * host.socket_bandwidth_gb_per_s
    low = socket * min(host.sockets, host.cores / host.socket_cores)
    high = max(low, min(host.cores * host.core_gb_per_s, socket * host.sockets))
    return ReadRange(low=low, typical=math.sqrt(low * high), high=high)


def read_gb_per_s(host: Host, threads: int, level: BandwidthLevel) -> float:
    """Of so many threads, each on a core of its own: what the cores draw, but no more than the host has."""
    return min(float(getattr(read_range(host), level)), threads * host.core_gb_per_s)
