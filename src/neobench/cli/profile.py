"""`neobench profile`: the cost tables that the engine's scheduler plans with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from neobench.cli.engine_config import engine_config
from neobench.cli.options import engine_options


@click.command()
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the tables; default: where the engine finds them by itself.",
)
@click.option("--quick", is_flag=True, help="The few points that an engine without tables measures at its start.")
@engine_options
def profile(output: Path | None, quick: bool, **options: Any) -> None:
    """Measure this machine's cost tables for a model.

    Linear layers by rows, prompt attention by length, decode attention of both tiers by rows and context, ragged
    batches, LM head and copies. Thread counts, dtype and block size are part of what is measured: give the ones you
    will serve with.

    \b
    neobench profile --model tiny
    neobench profile --model llama-3.1-8b --dtype bfloat16 --host-threads 8 -o 8b.json
    """
    options.pop("profile")
    config = engine_config(options, policy="asymmetric_pipeline")
    from rich.console import Console
    from rich.progress import Progress

    from neobench.neo_engine.build import build_sized
    from neobench.neo_engine.config import ConfigError
    from neobench.neo_engine.cost_model import Profile
    from neobench.neo_engine.profiler import QUICK, THOROUGH, cache_path, measure, profile_key

    try:
        config, executor = build_sized(config, say=lambda line: click.echo(line, err=True))
    except (ConfigError, ImportError, MemoryError) as error:
        raise click.ClickException(str(error)) from None
    key = profile_key(config, executor)
    with Progress(console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done + 1)

        tables = measure(config, executor, QUICK if quick else THOROUGH, show)
    executor.close()
    path = output or cache_path(key)
    try:
        Profile(key, tables).save(path)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None
    ragged = ", ".join(f"{name} x {factor:.2f}" for name, factor in asdict(tables.raggedness).items())
    click.echo(f"ragged batches: {ragged}", err=True)
    click.echo(f"wrote {path}")
