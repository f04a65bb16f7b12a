"""The measurements of a sweep: planned from settings, measured engine by engine, each kept with how it went."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from neobench.cli.arrivals import expected_span_s, load_slug
from neobench.cli.modelled import is_modelled
from neobench.cli.points import finished_run, new_run, point_hash, write_whole
from neobench.cli.run import run, session_of, shared_options
from neobench.cli.session import Session, StoppedError, draw_prompts, measure_rate, say, slug, started

if TYPE_CHECKING:
    from neobench.harness.engine import Engine
    from neobench.harness.matrix import Settings
    from neobench.harness.runner import RunContext

POINT_FILE = "point.json"


class PointStatus(msgspec.Struct, frozen=True, kw_only=True):
    """point.json, written last: how one measurement went."""

    status: str
    """done or failed"""
    reason: str = ""
    settings: dict[str, Any]
    engine: str
    rate: float
    repeat: int


@dataclass
class Measurement:
    """One point, one repeat."""

    settings: Mapping[str, Any]
    session: Session
    stem: Path
    expected_s: float
    """Until the last arrival."""
    label: str = ""
    """Where in its sweep it is."""

    @property
    def engine(self) -> str:
        return self.session.engines[0]

    @property
    def rate(self) -> float:
        return self.session.rates[0]

    def shown_settings(self) -> dict[str, Any]:
        """Without the values of headers."""
        from neobench.cli.openai_options import stored_command

        def shown(name: str, value: Any) -> Any:
            if isinstance(value, list):
                return [shown(name, one) for one in value]
            return stored_command([f"--{name}", value])[1] if isinstance(value, str) else value

        return {name: shown(name, value) for name, value in self.settings.items()}

    def launch_key(self) -> str:
        """Measurements with the same one can share a running engine."""
        session = self.session
        return json.dumps([self.engine, session.model, session.engine_options, session.seed], sort_keys=True)

    def known(self) -> tuple[Path, PointStatus] | None:
        path = finished_run(self.stem, POINT_FILE)
        return None if path is None else (path, read_status(path))

    def write_status(self, path: Path, status: str, reason: str = "") -> None:
        from neobench.results.store import encode_pretty

        path.mkdir(parents=True, exist_ok=True)
        point = PointStatus(
            status=status,
            reason=reason,
            settings=self.shown_settings(),
            engine=self.engine,
            rate=self.rate,
            repeat=self.session.repeat,
        )
        write_whole(path / POINT_FILE, encode_pretty(point))


def read_status(path: Path) -> PointStatus:
    try:
        return msgspec.json.decode((path / POINT_FILE).read_bytes(), type=PointStatus)
    except msgspec.MsgspecError as error:
        raise click.ClickException(f"{path / POINT_FILE}: {error}; remove {path} to measure it again") from None


def setting_names() -> dict[str, str]:
    """The long options of `run`, without their hyphens in front -> the names of their values."""
    return {_long_name(option): str(option.name) for option in shared_options()}


def _long_name(option: click.Parameter) -> str:
    return max(option.opts, key=len).removeprefix("--")


def taken_settings(points: Sequence[Settings]) -> list[Settings]:
    """The points without settings that their engine does not take and another engine of the sweep does.

    Defaults can so be said once for all engines. Points that become the same are one.
    """
    from neobench.engines.registry import find
    from neobench.harness.engine import EngineError

    names = setting_names()
    entries = {}
    for point in points:
        with suppress(EngineError):
            # An unknown engine is told of when its point is checked.
            entries[_engine_of(point)] = find(_engine_of(point))[0]
    unique: dict[str, Settings] = {}
    for point in points:
        own = entries.get(_engine_of(point))
        values = {
            name: value
            for name, value in point.values.items()
            if own is None or own.takes(names[name]) or not any(other.takes(names[name]) for other in entries.values())
        }
        unique.setdefault(json.dumps(values, sort_keys=True), replace(point, values=values))
    return list(unique.values())


def _engine_of(point: Settings) -> str:
    return str(point.values.get("engine", "neo"))


def plan(settings: Settings, repeat: int, folder: Path, context: RunContext, *, quiet: bool) -> Measurement:
    """Checked by the options of `run` themselves. Raises SweepError with their sentence and the line."""
    from neobench.harness.matrix import SweepError

    try:
        with run_options(settings.values) as options:
            session = replace(session_of(options, folder, quiet=quiet), repeat=repeat)
            if len(session.engines) != 1 or len(session.rates) != 1:
                raise click.UsageError("a point has one engine and one rate; lists go under matrix")
            if is_modelled(session.engine_options):
                raise click.UsageError("a sweep measures in real time; use `neobench run --hardware`")
            (engine,), (rate,) = session.engines, session.rates
            arrival = session.arrivals[rate]
            if repeat == 0 or arrival.rate is None or session.workload_fields["sessions"] is not None:
                expected_s = expected_span_s(arrival, draw_prompts(session, rate).requests)
            else:
                expected_s = arrival.expected_span_s(session.num_requests)
    except click.UsageError as error:
        raise SweepError(settings.line, error.format_message()) from None
    name = f"{slug(engine)}-{load_slug(arrival)}-repeat-{repeat}-{point_hash(session, engine, rate, context)}"
    return Measurement(settings.values, session, folder / "points" / name, expected_s)


@contextmanager
def run_options(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What `run` would be called with, given these as options on its command line."""
    arguments: list[str] = []
    flags = {_long_name(option): option for option in shared_options() if getattr(option, "is_flag", False)}
    for name, value in values.items():
        if name in flags and isinstance(value, bool):
            arguments += [f"--{name}"] if value else flags[name].secondary_opts
        else:
            for one in value if isinstance(value, list) else [value]:
                arguments += [f"--{name}", str(one)]
    with run.make_context("sweep", arguments) as context:
        left_out = {"output", "as_json", "dry_run"}
        yield {name: value for name, value in context.params.items() if name not in left_out}


async def measure_points(measurements: Sequence[Measurement], context: RunContext, stop: asyncio.Event) -> None:
    """Neighbours that can share an engine do. What fails is recorded, and the rest goes on."""
    for number, measurement in enumerate(measurements):
        left_s = sum(later.expected_s for later in measurements[number:])
        measurement.label = f"{number + 1} of {len(measurements)}, {left_s:.0f} s of arrivals left"
    for _, group in itertools.groupby(measurements, Measurement.launch_key):
        left = list(group)
        while left and not stop.is_set():
            left = await _with_one_engine(left, context, stop)


async def _with_one_engine(left: list[Measurement], context: RunContext, stop: asyncio.Event) -> list[Measurement]:
    """Measures until the engine fails; what is left then. An engine that does not start fails all of them."""
    from neobench.harness.engine import EngineError
    from neobench.results.store import StoreError

    session, name = left[0].session, left[0].engine
    has_started = False
    try:
        async with started(session, name, stop) as engine:
            has_started = True
            while left and not stop.is_set():
                await _measure(left[0], engine, context, stop)
                left = left[1:]
    except StoppedError:
        return []
    except (EngineError, StoreError) as error:
        say(session, f"neobench: {name}: {error}")
        failed = left[:1] if has_started else left
        for measurement in failed:
            measurement.write_status(new_run(measurement.stem), "failed", str(error))
        return left[len(failed) :]
    return left


async def _measure(measurement: Measurement, engine: Engine, context: RunContext, stop: asyncio.Event) -> None:
    session, rate = measurement.session, measurement.rate
    say(session, f"{measurement.label}: {measurement.stem.name}")
    path = new_run(measurement.stem)
    prompts = draw_prompts(session, rate)
    await measure_rate(session, measurement.engine, rate, engine, path, prompts, context=context, stop=stop)
    if not stop.is_set():
        measurement.write_status(path, "done")
