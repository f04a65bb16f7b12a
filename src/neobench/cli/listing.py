"""`neobench list`: what has a name."""

from __future__ import annotations

import click


@click.command("list")
@click.argument("what", type=click.Choice(["engines", "workloads", "models"]))
def list_(what: str) -> None:
    """List the engines, workloads or models that have a name."""
    for name, description in _rows(what):
        click.echo(f"{name:<21}{description}")


def _rows(what: str) -> list[tuple[str, str]]:
    if what == "engines":
        from neobench.engines.registry import ENGINES

        return [(name, entry.description) for name, entry in ENGINES.items()]
    if what == "workloads":
        from neobench.workloads.registry import WORKLOADS

        return [(name, entry.description) for name, entry in WORKLOADS.items()]
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
