from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobench.neo_engine.config import NAMED_SHAPES, ConfigError, EngineConfig
from neobench.neo_engine.cost_model import CostModel, CostTables, Profile, ProfileError
from neobench.neo_engine.hardware import derive
from neobench.neo_engine.hardware.catalogue import Machine, extended, resolve_machine, shipped
from neobench.neo_engine.hardware.derive import fitted_factors, kv_room, tables_for
from neobench.neo_engine.hardware.host_memory import read_gb_per_s, read_range
from neobench.neo_engine.modelled_machine import machine_of, shard_of

ROOT = Path(__file__).parents[3]
MEASURED = ROOT / "results/published/model/h200-llama-3.1-8b-bfloat16.json"
EIGHT_B = NAMED_SHAPES["llama-3.1-8b"]
SEVEN_B = NAMED_SHAPES["llama-2-7b"]
NAMES = sorted(shipped().sheets.machines)

OWN = """
hosts:
  my-host:
    name: under the desk
    vcpus: 16
    cores: 8
    socket_cores: 8
    memory_gib: 64
    socket_bandwidth_gb_per_s: 76.8
    core_gb_per_s: 20
    isa: avx2
    link_gb_per_s: 31.5
    read_gb_per_s: {low: 40, typical: 45, high: 50}
    source: measured by neobench bench-cpu
    date: 2026-01-05
machines:
  my-box: {gpu: rtx-4090, host: my-host}
"""


def own_file(folder: Path, text: str = OWN) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_machine_has_sources_dates_and_tables(name: str) -> None:
    machine = shipped().machine(name)
    for sheet in (machine.gpu, machine.host):
        assert len(sheet.source) > 20
        assert sheet.date[:2] == "20"
    entry = shipped().sheets.machines[name]
    assert (entry.price_usd_per_h is None) == (entry.price_source is None) == (entry.price_date is None)
    low, typical, high = msgspec.structs.astuple(read_range(machine.host))
    assert 0 < low <= typical <= high
    check_sane(tables_for(machine, EIGHT_B, "float16", shard=shard_of(EIGHT_B, machine.num_gpus)))


def check_sane(tables: CostTables) -> None:
    """Finite, positive, and never less for more work."""
    for curve in (tables.linear, tables.prefill_attention, tables.head, tables.move):
        times = list(curve.times_ns)
        assert times == sorted(times)
        assert times[0] > 0
        assert math.isfinite(times[-1])
    for surface in (tables.device_decode, tables.host_decode):
        for line in (*surface.times_ns, *zip(*surface.times_ns, strict=True)):
            assert list(line) == sorted(line)
            assert 0 < line[0] < line[-1] < math.inf
    assert CostTables.from_dict(asdict(tables)) == tables


@settings(deadline=None, max_examples=40)
@given(
    gpu=st.sampled_from(sorted(shipped().sheets.gpus)),
    host=st.sampled_from(sorted(shipped().sheets.hosts)),
    shape=st.sampled_from(sorted(NAMED_SHAPES)),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    host_kv_dtype=st.sampled_from(["same", "int8"]),
    threads=st.integers(1, 4),
)
def test_tables_of_any_pair_are_sane(
    gpu: str, host: str, shape: str, dtype: str, host_kv_dtype: str, threads: int
) -> None:
    machine = shipped().machine(f"{gpu}+{host}")
    slow, fast = (
        tables_for(
            machine,
            NAMED_SHAPES[shape],
            dtype,
            host_kv_dtype=host_kv_dtype,
            host_threads=threads,
            host_bandwidth=level,
        )
        for level in ("low", "high")
    )
    check_sane(slow)
    assert slow.host_decode(16, 16_000) >= fast.host_decode(16, 16_000)


def test_faster_sheets_make_faster_tables() -> None:
    def tables(name: str) -> CostTables:
        return tables_for(resolve_machine(name), SEVEN_B, "float16")

    order = [tables(f"{gpu}+g5.4xlarge") for gpu in ("t4", "a10g", "a100-40", "h100", "h200")]
    for rows in (1, 64, 512):
        assert [each.linear(rows) for each in order] == sorted([each.linear(rows) for each in order], reverse=True)
    hosts = [tables(f"g5.{size}xlarge").host_decode(32, 32_000) for size in (2, 4, 8, 16)]
    assert hosts == sorted(hosts, reverse=True)
    assert tables("t4+g4dn.4xlarge").move(64) > 1.9 * tables("a10g+g5.4xlarge").move(64)


def test_an_h200s_derived_tables_are_within_the_published_error_of_the_measured_ones() -> None:
    measured = Profile.load(MEASURED).tables
    derived = tables_for(resolve_machine("h200-vm-16"), EIGHT_B, "bfloat16", host_threads=15)
    published = json.loads((ROOT / "neo_engine/hardware/data/factors.json").read_text())["errors"]

    def surface_errors(name: str) -> list[float]:
        surface = getattr(measured, name)
        return [
            abs(getattr(derived, name)(rows, rows * context) / time_ns - 1)
            for rows, line in zip(surface.rows, surface.times_ns, strict=True)
            for context, time_ns in zip(surface.contexts, line, strict=True)
        ]

    for name, kind in (
        ("device_decode", "decode attention"),
        ("host_decode", "host attention, in the engine"),
    ):
        errors = surface_errors(name)
        # The derived table has a coarser grid than the law that was fitted.
        assert statistics.median(errors) <= published[kind]["median"] + 0.02
        assert max(errors) <= published[kind]["worst"] + 0.1
    curve = measured.linear
    errors = [abs(derived.linear(rows) / t - 1) for rows, t in zip(curve.sizes, curve.times_ns, strict=True)]
    assert statistics.median(errors) <= published["linear layer, whole H200"]["median"] + 0.02
    assert derived.head(64) == pytest.approx(measured.head(64), rel=0.1)
    assert derived.move(512) == pytest.approx(measured.move(512), rel=0.1)


def test_the_shipped_factors_are_what_the_fit_gives() -> None:
    code = "import json, msgspec; from benchmarks.model.fit import PROFILES, fit; "
    code += "print(json.dumps(msgspec.to_builtins(fit([PROFILES])[0])))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    again = json.loads(done.stdout)
    now = msgspec.to_builtins(fitted_factors())
    assert again.pop("host_core_gb_per_s") == now.pop("host_core_gb_per_s")
    assert again == pytest.approx(now, rel=1e-3)


def test_a_users_file_adds_to_the_catalogue(tmp_path: Path) -> None:
    path = own_file(tmp_path)
    machine = resolve_machine(str(path))
    assert (machine.name, machine.gpu.sms, machine.price_usd_per_h) == ("my-box", 128, None)
    assert read_gb_per_s(machine.host, 8, "typical") == 45
    assert read_gb_per_s(machine.host, 2, "typical") == 40
    assert resolve_machine(f"{path}:my-box") == machine
    catalogue, own = extended(path)
    assert own == ["my-box"]
    assert catalogue.machine("t4+my-host").host == machine.host


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.replace("cores: 8\n", "coers: 8\n", 1), "hosts.my-host: unknown key 'coers'; did you mean cores"),
        (OWN.replace("hosts:", "host:"), "unknown key 'host'; did you mean hosts"),
        (OWN.replace("typical: 45", "typcal: 45"), "hosts.my-host.read_gb_per_s: unknown key 'typcal'"),
        (OWN.replace("typical: 45", "typical: 55"), "rise from low over typical to high"),
        (OWN.replace("memory_gib: 64", "memory_gib: -1"), "memory_gib must be positive, not -1"),
        (OWN.replace("memory_gib: 64", "memory_gib: much"), "Expected `float`, got `str`"),
        (OWN.replace("    date: 2026-01-05\n", ""), "missing required field `date`"),
        (OWN.replace("gpu: rtx-4090", "gpu: rtx-409"), "unknown GPU 'rtx-409'; did you mean rtx-4090"),
        (OWN.replace("host: my-host", "host: my-hots"), "unknown host 'my-hots'; did you mean my-host"),
        (OWN.replace("host: my-host}", "host: my-host, price_usd_per_h: 1}"), "needs its price_source"),
        ("hosts: [", "is not valid YAML"),
        ("- 1", "must be a mapping with gpus, hosts, machines"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        resolve_machine(str(own_file(tmp_path, text)))


def test_a_file_with_no_or_several_machines_asks_which(tmp_path: Path) -> None:
    path = own_file(tmp_path, OWN + "  other: {gpu: t4, host: my-host}\n")
    with pytest.raises(ConfigError, match=r"has 2 machines; write --hardware .*:MACHINE \(my-box, other\)"):
        resolve_machine(str(path))
    with pytest.raises(ConfigError, match="cannot read hardware file"):
        resolve_machine(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"unknown machine 'g5\.5xlarge'; did you mean g5"):
        resolve_machine("g5.5xlarge")


def test_a_machines_own_profile_is_used_instead_of_derived_tables(costs: CostModel, tmp_path: Path) -> None:
    Profile({"dtype": "float16", "shape": {"num_layers": 32}}, costs.tables).save(tmp_path / "box.json")
    path = own_file(tmp_path, OWN.replace("host: my-host}", "host: my-host, profile: box.json}"))
    machine = machine_of(str(path), EngineConfig(model="llama-2-7b", dtype="float16"))
    assert machine.tables == costs.tables
    assert machine.device_blocks is not None
    with pytest.raises(ProfileError, match="num_layers 32, not 80"):
        machine_of(str(path), EngineConfig(model="llama-3.1-70b", dtype="float16"), kv_is_given=True)


def room_of(machine: Machine, model: str) -> int:
    config = EngineConfig(model=model, dtype="float16")
    return kv_room(machine, shard_of(config.shape, machine.num_gpus), config).device_blocks * config.block_size


def test_what_the_weights_leave_is_for_kv() -> None:
    a10g, two_h100 = resolve_machine("g5.4xlarge"), resolve_machine("2xh100-node")
    # 0.9 of 22.5 GiB less 15 GiB of weights, at 128 KiB a token: about 4 GiB.
    assert 25_000 < room_of(a10g, "llama-3.1-8b") < 42_000
    assert 10_000 < room_of(two_h100, "llama-3.1-70b") < 60_000
    with pytest.raises(ConfigError, match=r"does not fit g5\.4xlarge: its weights take 131"):
        room_of(a10g, "llama-3.1-70b")


def test_two_gpus_share_the_layers_and_not_the_host() -> None:
    one, two = (resolve_machine(name) for name in ("h100+xeon-8480-node", "2xh100-node"))
    shape = NAMED_SHAPES["llama-3.1-70b"]
    alone = tables_for(one, shape, "float16")
    shared = tables_for(two, shape, "float16", shard=shard_of(shape, 2))
    assert alone.linear(1) / 2 < shared.linear(1) < alone.linear(1) / 1.7
    assert shared.host_decode == alone.host_decode
    assert shared.move(4096) == pytest.approx(alone.move(4096) / 2, rel=0.01)
    assert derive.assumptions(two, "low")["num_gpus"] == 2


def test_more_host_threads_than_cores_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 8 cores, fewer than 9 host threads"):
        machine_of("g4dn.4xlarge", EngineConfig(model="llama-2-7b", dtype="float16", host_threads=9))
