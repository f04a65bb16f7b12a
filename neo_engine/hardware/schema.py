"""What the catalogue says of hardware. Units are in the names; GB are 10^9 bytes, GiB 2^30."""

from __future__ import annotations

from typing import Literal

import msgspec

Isa = Literal["avx2", "avx512", "avx512_bf16", "amx"]
BandwidthLevel = Literal["low", "typical", "high"]


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    fp16_tflops: float
    """Of dense matrix products, as the sheet says."""
    memory_mib: int
    bandwidth_gb_per_s: float
    sms: int
    link_gb_per_s: float
    """To the host, one direction."""
    peer_link_gb_per_s: float | None = None
    """To the other GPUs of a machine, one direction; None: over the link to the host."""
    tdp_w: float
    source: str
    date: str


class ReadRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all threads of a host together read from its memory."""

    low: float
    typical: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.typical <= self.high:
            raise ValueError("read_gb_per_s must be positive and rise from low over typical to high")


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    vcpus: int
    cores: int
    """Physical cores of the host or of the slice that is rented."""
    socket_cores: int
    sockets: int = 1
    memory_gib: float
    socket_bandwidth_gb_per_s: float
    core_gb_per_s: float
    """What one core can draw by itself."""
    isa: Isa
    link_gb_per_s: float
    """Of one PCIe x16 slot, one direction."""
    read_gb_per_s: ReadRange | None = None
    """None: not known, so it follows from the socket."""
    source: str
    date: str


class MachineEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    gpu: str
    host: str
    num_gpus: int = 1
    price_usd_per_h: float | None = None
    price_source: str | None = None
    price_date: str | None = None
    profile: str | None = None
    """File of `neobench profile`, relative to the file that names it: used instead of derived tables."""

    def __post_init__(self) -> None:
        if self.price_usd_per_h is not None and not (self.price_source and self.price_date):
            raise ValueError("a price needs its price_source and price_date")


class Sheets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file."""

    gpus: dict[str, Gpu] = {}
    hosts: dict[str, Host] = {}
    machines: dict[str, MachineEntry] = {}
