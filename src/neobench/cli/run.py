"""`neobench run`: options, plan, table, figure, exit code. The measuring is in session.py."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from neobench.cli.arrivals import arrival_options, arrival_specs, expected_span_s, load_label
from neobench.cli.client_options import client_options
from neobench.cli.engine_choice import check_engines, extra_options, given_options
from neobench.cli.metrics_options import metrics_options
from neobench.cli.modelled import modelled_options, run_in_its_time
from neobench.cli.openai_options import openai_options
from neobench.cli.options import engine_options, names, rates
from neobench.cli.session import Session, draw_prompts, measure_all, run_spec
from neobench.cli.stand_in_options import stand_in_options
from neobench.cli.telemetry import telemetry_options
from neobench.cli.vllm_options import vllm_options
from neobench.cli.workload_options import pop_workload, workload_options

EXIT_ERROR = 1
EXIT_INVALID = 4


@click.command()
@click.option(
    "--engine",
    "engines",
    type=names,
    metavar="NAMES",
    default="neo",
    show_default=True,
    help="One or several, comma-separated; see `neobench list engines`.",
)
@workload_options
@click.option(
    "--rate",
    "rates",
    type=rates,
    metavar="RATES",
    default="4",
    show_default=True,
    help="Requests per second, with --turns sessions per second; several, comma-separated, make a curve.",
)
@arrival_options
@click.option(
    "--num-requests", type=click.IntRange(1), default=100, show_default=True, help="Measured requests at each rate."
)
@click.option(
    "--num-warmup",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Requests before each schedule starts; not in the figures.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of weights, and of lengths, order, prompts and arrivals unless they have a seed of their own.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds after which a request counts as failed.",
)
@metrics_options
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="A new folder for the runs; default: runs/<date>-<workload>.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print summary.json alone on stdout (a list of them for several runs)."
)
@click.option("--dry-run", is_flag=True, help="Show what would run, and how long it takes at least; start nothing.")
@telemetry_options
@client_options
@modelled_options
@engine_options
@vllm_options
@openai_options
@stand_in_options
@extra_options
def run(as_json: bool, dry_run: bool, output: Path | None, **options: Any) -> None:
    """Measure engines under a workload at one or several request rates.

    Requests arrive as a Poisson process (or see --arrival) drawn up front; the client never waits for the engine,
    unless --concurrency says so. Each engine and rate leaves a run folder (run.json, requests.jsonl, requests.parquet,
    summary.json); together they make one load-latency figure (PNG, PDF, SVG). Ctrl-C ends cleanly and keeps what was
    measured.

    \b
    neobench run --engine neo --workload carperai
    neobench run --engine neo,gpu_only --device-blocks 54 --host-memory 256MiB --rate 2,4,8
    neobench run --engine neo --arrival gamma --burstiness 0.5 --rate 2 --end-rate 8      # bursts, and a ramp
    neobench run --engine neo,vllm,vllm:256 --engine-python ~/vllm/bin/python --rate 2,4
    neobench run --engine neo --workload trace:burstgpt.csv --arrival trace --speed 2   # replayed, twice as fast
    neobench run --engine neo --arrival closed --concurrency 8        # always eight requests in flight
    neobench run --engine neo,gpu_only --hardware t4.json --rate 0.5,1,2 --num-requests 2000   # modelled, in seconds
    neobench run --engine null --rate 500 --num-requests 2000      # how good is the client itself?
    neobench run --engine gpu_only --model ./my-llama --rate 0.5 --json > summary.json
    """
    session = session_of(options, output, quiet=as_json)
    if dry_run:
        _show_plan(session, as_json=as_json)
        return
    if session.folder.exists() and any(session.folder.iterdir()):
        raise click.UsageError(f"{session.folder} is not empty; runs are never overwritten: choose another --output")
    run_in_its_time(measure_all(session), session.engine_options)
    _finish(session, as_json=as_json)


def session_of(options: dict[str, Any], folder: Path | None, *, quiet: bool) -> Session:
    """From the options of `run` but --output, --json and --dry-run. Raises click.UsageError."""
    options = dict(options)
    extra = options.pop("extra")
    arrivals = arrival_specs(options.pop("rates"), options)
    common = {
        name: options.pop(name)
        for name in (
            "engines",
            "num_requests",
            "num_warmup",
            "seed",
            "timeout_s",
            "telemetry_interval_s",
            "client_processes",
        )
    }
    common |= pop_workload(options)
    common |= {"goodput_ms": options.pop("goodput_ms"), "percentiles": options.pop("percentiles") or ()}
    session = Session(
        **common,
        rates=tuple(arrivals),
        arrivals=arrivals,
        model=options.pop("model"),
        engine_options=given_options(options, extra),
        folder=folder or default_folder(common["workload"]),
        quiet=quiet,
    )
    check_engines(session.engines, session.engine_options)
    return session


def shared_options(*left_out: str) -> list[click.Parameter]:
    """Those of `run`, for commands that measure as it does; the ones that only make sense for a single pass are out."""
    own = {"output", "as_json", "dry_run", *left_out}
    return [option for option in run.params if option.name not in own]


def default_folder(workload: str) -> Path:
    slug = "".join(character if character.isalnum() else "-" for character in workload)
    stem = Path("runs") / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{slug}"
    number, folder = 1, stem
    while folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    return folder


def _show_plan(session: Session, *, as_json: bool) -> None:
    import msgspec

    prompts = draw_prompts(session, session.rates[0])
    specs = [run_spec(session, engine, rate) for engine in session.engines for rate in session.rates]
    if as_json:
        plan = {"runs": msgspec.to_builtins(specs), "workload": prompts.facts, "output": str(session.folder)}
        click.echo(json.dumps(plan, indent=2))
        return
    arrivals_s = len(session.engines) * sum(
        expected_span_s(arrival, prompts.requests) for arrival in session.arrivals.values()
    )
    for spec in specs:
        click.echo(
            f"{spec.engine.name:<10} {spec.workload.name} on {spec.model}: "
            f"{spec.num_requests} requests at {load_label(spec.arrival, spec.workload.sessions)}"
        )
    click.echo(json.dumps(prompts.facts, indent=2))
    click.echo(f"Arrivals alone take {arrivals_s:.0f} s. Results would go to {session.folder}.")


def _finish(session: Session, *, as_json: bool) -> None:
    """Table, figure, exit code."""
    finished = [path for path in session.run_paths if (path / "summary.json").exists()]
    summaries = [json.loads((path / "summary.json").read_text()) for path in finished]
    if summaries:
        from neobench.cli.failures import show_failures
        from neobench.cli.present import present

        if as_json:
            wants_one = len(session.engines) * len(session.rates) == 1
            click.echo(json.dumps(summaries[0] if wants_one else summaries, indent=2))
        present(finished, session.folder, quiet=as_json)
        show_failures([path for path, summary in zip(finished, summaries, strict=True) if summary["failed"]])
    if session.errors:
        sys.exit(EXIT_ERROR)
    if session.interrupted or not all(summary["validity"]["valid"] for summary in summaries):
        sys.exit(EXIT_INVALID)
