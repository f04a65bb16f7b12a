"""`neobench serve`: neobench's own engine behind the OpenAI API."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from neobench.cli.engine_config import engine_config
from neobench.cli.options import engine_options
from neobench.neo_engine.config import EngineConfig
from neobench.neo_engine.scheduler.policy import POLICIES


@click.command()
@click.option("--policy", default=EngineConfig.policy, show_default=True, help=f"{', '.join(POLICIES)}.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--served-model-name", help="Name in the API; default: the model's.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of random weights and of sampling without a seed."
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="For running requests, after SIGTERM.",
)
@engine_options
def serve(
    policy: str, host: str, port: int, served_model_name: str | None, drain_seconds: float, **options: Any
) -> None:
    """Start neobench's own engine as an OpenAI-compatible server.

    /v1/completions and /v1/chat/completions (streaming and not), /v1/models, /health, /metrics (Prometheus),
    /stats, /info.

    \b
    neobench serve --model tiny --port 8000
    curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
         -d '{"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0}'
    """
    config = engine_config(options, policy=policy)
    try:
        from neobench.harness.runner import run_async
        from neobench.neo_engine.async_engine import AsyncEngine
        from neobench.neo_engine.build import build_engine
        from neobench.neo_engine.config import ConfigError
        from neobench.neo_engine.cost_model import ProfileError
        from neobench.neo_engine.server.serve import serve as serve_engine
        from neobench.neo_engine.tokenizer import load_tokenizer
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing; install the engine with: pip install 'neobench[engine]'"
        ) from None

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    checkpoint = Path(config.model) if Path(config.model).is_dir() else None
    try:
        engine = build_engine(config, say=click.echo)
        run_async(
            serve_engine(
                AsyncEngine(engine),
                host=host,
                port=port,
                served_model_name=served_model_name or config.shape.name,
                tokenizer=load_tokenizer(checkpoint),
                drain_seconds=drain_seconds,
                on_ready=lambda url: click.echo(f"serving {config.shape.name} ({policy}) on {url}"),
            )
        )
    except (ConfigError, ProfileError, ImportError, MemoryError) as error:
        raise click.ClickException(str(error)) from None
