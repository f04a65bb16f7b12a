"""`neobench list`: what has a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from neobench.engines.entry import EngineEntry

LINE_WIDTH = 120


@click.command("list")
@click.argument("what", type=click.Choice(["engines", "workloads", "models", "hardware"]))
def list_(what: str) -> None:
    """List the engines, workloads, models or machines (hardware) that have a name.

    Engines of other packages name theirs; one that cannot be loaded is shown with the reason.
    """
    rows = _rows(what)
    indent = max(len(name) for name, _ in rows) + 2
    for name, description in rows:
        lines = click.wrap_text(description, width=LINE_WIDTH - indent).splitlines()
        click.echo("\n".join(f"{'' if index else name:<{indent}}{line}" for index, line in enumerate(lines)))


def _rows(what: str) -> list[tuple[str, str]]:
    if what == "engines":
        return _engine_rows()
    if what == "workloads":
        from neobench.workloads.registry import WORKLOADS

        return [(name, entry.description) for name, entry in WORKLOADS.items()]
    if what == "hardware":
        return _hardware_rows()
    from neobench.neo_engine.config import NAMED_SHAPES

    rows = []
    for name, shape in NAMED_SHAPES.items():
        size = (
            f"{shape.num_parameters / 1e9:.1f} B"
            if shape.num_parameters >= 1e9
            else f"{shape.num_parameters / 1e6:.1f} M"
        )
        attention = f"{shape.num_query_heads}/{shape.num_kv_heads} heads of {shape.head_dim}"
        rows.append((name, f"{size} parameters, {shape.num_layers} layers, {attention}, random weights"))
    return rows


def _hardware_rows() -> list[tuple[str, str]]:
    from neobench.neo_engine.hardware.catalogue import shipped
    from neobench.neo_engine.hardware.host_memory import read_range

    rows = []
    for machine in shipped().machines():
        gpu, host, read = machine.gpu, machine.host, read_range(machine.host)
        price = f", ${machine.price_usd_per_h:g}/h" if machine.price_usd_per_h else ""
        gpus = f"{machine.num_gpus} x " if machine.num_gpus > 1 else ""
        rows.append(
            (
                machine.name,
                f"{gpus}{gpu.name} ({gpu.fp16_tflops:g} TFLOP/s, {gpu.memory_mib / 1024:.0f} GiB, "
                f"{gpu.bandwidth_gb_per_s:g} GB/s); {host.cores} cores of {host.isa}, {host.memory_gib:g} GiB, "
                f"reads {read.low:.0f} to {read.high:.0f} GB/s; link {machine.link_gb_per_s:g} GB/s{price}",
            )
        )
    return rows


def _engine_rows() -> list[tuple[str, str]]:
    from neobench.engines.plugins import plugins
    from neobench.engines.registry import ENGINES

    rows = [(_with_argument(name, entry), entry.description) for name, entry in ENGINES.items()]
    for found in plugins():
        if found.name in ENGINES:
            rows.append((found.name, f"BROKEN: neobench has an engine of that name ({found.origin})"))
        elif found.entry is None:
            rows.append((found.name, f"BROKEN: {found.problem} ({found.origin})"))
        else:
            rows.append((_with_argument(found.name, found.entry), f"{found.entry.description} ({found.origin})"))
    return rows


def _with_argument(name: str, entry: EngineEntry) -> str:
    return f"{name}[:{entry.argument}]" if entry.argument else name
