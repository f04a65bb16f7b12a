"""Paged decode attention on the CPU: native kernels on persistent workers, over arrays that the caller owns."""

from neobench.pacpu._native import NativeModuleError
from neobench.pacpu.flags import FlagSequence
from neobench.pacpu.layout import KvLayout
from neobench.pacpu.memory import KvMemory
from neobench.pacpu.plan import DecodePlan, WorkerPool, build_info, targets, workspace_bytes
from neobench.pacpu.reference import paged_decode_reference
from neobench.pacpu.topology import choose_cpus

__all__ = [
    "DecodePlan",
    "FlagSequence",
    "KvLayout",
    "KvMemory",
    "NativeModuleError",
    "WorkerPool",
    "build_info",
    "choose_cpus",
    "paged_decode_reference",
    "targets",
    "workspace_bytes",
]
