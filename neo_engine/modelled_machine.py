"""What the modelled engine knows of the machine that it stands for. Knows no torch.

With several GPUs each has a share of the heads and of the MLP (tensor parallelism): a layer then ends each of its two
halves with an all-reduce, and all GPUs share the host's memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from neobench.neo_engine.config import DTYPE_BYTES, ConfigError, EngineConfig, ModelShape
from neobench.neo_engine.cost_model import CostTables, Curve, Profile, ProfileError
from neobench.neo_engine.hardware.catalogue import resolve_machine
from neobench.neo_engine.hardware.derive import assumptions, fitted_factors, kv_memory_bytes, kv_room, tables_for
from neobench.neo_engine.hardware.schema import BandwidthLevel

ALL_REDUCES_PER_LAYER = 2
"""After attention's output projection and after the MLP."""
ALL_REDUCE_LATENCY_NS = 20_000.0
"""Of a small all-reduce over NVLink with NCCL: an assumption, measured by nobody here."""


@dataclass(frozen=True)
class ModelledMachine:
    name: str
    tables: CostTables
    """Of the whole machine, all GPUs and their all-reduces included."""
    device_blocks: int | None = None
    """KV blocks that fit its GPUs beside the weights; None: not known, so they must be given."""
    host_memory_bytes: int | None = None
    """For KV."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For run.json: sheets, factors, assumptions."""


def machine_of(
    hardware: str,
    config: EngineConfig,
    *,
    host_bandwidth: BandwidthLevel = "typical",
    kv_is_given: bool = False,
) -> ModelledMachine:
    """By the file of a profile (.json), a name of the catalogue, GPU+HOST, or a user's catalogue (.yaml).

    A machine's own profile is used instead of derived tables where it has one. Host threads default to all cores but
    one. Raises ConfigError or ProfileError for hardware that cannot be used, and, unless `kv_is_given`, where the
    model's weights leave no room for KV.
    """
    if Path(hardware).suffix == ".json":
        return profiled_machine(Path(hardware), config)
    machine = resolve_machine(hardware)
    shard = shard_of(config.shape, machine.num_gpus)
    facts = assumptions(machine, host_bandwidth, config.host_threads)
    if machine.profile_path is not None:
        tables = profiled_machine(machine.profile_path, config).tables
    else:
        tables = tables_for(
            machine,
            config.shape,
            config.dtype,
            shard=shard,
            block_bytes=config.block_bytes(config.device_layout),
            host_kv_dtype=config.host_kv_dtype,
            host_threads=config.host_threads,
            host_bandwidth=host_bandwidth,
        )
        tables = with_all_reduce(
            tables,
            config.shape,
            config.dtype,
            num_gpus=machine.num_gpus,
            link_bytes_per_s=machine.peer_link_gb_per_s * 1e9 * fitted_factors().link,
            latency_ns=ALL_REDUCE_LATENCY_NS,
        )
        facts["factors"] = msgspec.to_builtins(fitted_factors())
    host_memory_bytes = kv_memory_bytes(machine.host)
    if kv_is_given:
        return ModelledMachine(machine.name, tables, None, host_memory_bytes, facts)
    room = kv_room(machine, shard, config)
    return ModelledMachine(
        machine.name, tables, room.device_blocks, host_memory_bytes, {**facts, "kv_room": asdict(room)}
    )


def shard_of(shape: ModelShape, num_gpus: int) -> ModelShape:
    """What one of several GPUs holds and computes. Raises ConfigError where the heads cannot be shared out evenly."""
    if num_gpus < 1 or shape.num_kv_heads % num_gpus or shape.intermediate_size % num_gpus:
        raise ConfigError(
            f"{num_gpus} GPUs cannot share the {shape.num_kv_heads} KV heads of {shape.name} evenly: "
            "choose a number of GPUs that divides them"
        )
    return replace(
        shape,
        num_query_heads=shape.num_query_heads // num_gpus,
        num_kv_heads=shape.num_kv_heads // num_gpus,
        intermediate_size=shape.intermediate_size // num_gpus,
    )


def with_all_reduce(
    tables: CostTables,
    shape: ModelShape,
    dtype: str,
    *,
    num_gpus: int,
    link_bytes_per_s: float,
    latency_ns: float,
) -> CostTables:
    """Tables of one shard, with what the GPUs tell each other added to its linear layers.

    A ring all-reduce of n bytes among p GPUs sends 2 (p - 1) / p n bytes over each one's link (Patarasuk and Yuan,
    "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009), after a fixed latency.
    """
    if num_gpus == 1:
        return tables
    bytes_per_row = 2 * (num_gpus - 1) / num_gpus * shape.hidden_size * DTYPE_BYTES[dtype]
    curve = tables.linear
    times_ns = tuple(
        time_ns + ALL_REDUCES_PER_LAYER * (latency_ns + rows * bytes_per_row / link_bytes_per_s * 1e9)
        for rows, time_ns in zip(curve.sizes, curve.times_ns, strict=True)
    )
    return replace(tables, linear=Curve(curve.sizes, times_ns))


def profiled_machine(path: Path, config: EngineConfig) -> ModelledMachine:
    """The machine that a profile was measured on, with this config's model. The profile says nothing of its memory.

    Raises ProfileError for a file that is no profile, or one of another model, dtype or block size.
    """
    profile = Profile.load(path)
    wanted = {**asdict(config.shape), "dtype": config.dtype, "block_size": config.block_size}
    known = {**profile.key.get("shape", {}), **profile.key}
    wanted = json.loads(json.dumps({name: value for name, value in wanted.items() if name in known}))
    different = [f"{name} {known[name]}, not {value}" for name, value in wanted.items() if known[name] != value]
    if different:
        raise ProfileError(
            f"{path} was measured with {'; '.join(different)}: measure one with `neobench profile` and these settings"
        )
    return ModelledMachine(path.stem, profile.tables, facts={"profile": str(path), "profile_key": profile.key})
