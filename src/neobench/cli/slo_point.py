"""One measurement of `neobench search`: a run against objectives, ended early once decided, kept by content."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from neobench.cli.points import finished_run, new_run, point_hash, write_whole
from neobench.cli.session import Session, draw_prompts, measure_rate, say, slug

if TYPE_CHECKING:
    from neobench.harness.engine import Engine
    from neobench.harness.runner import RunContext
    from neobench.harness.slo import Slo
    from neobench.harness.slo_watch import SloWatch
    from neobench.harness.spec import ArrivalSpec

VERDICT_FILE = "verdict.json"
NOT_VALID = "not valid"


class PointVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """verdict.json: whether one run met the objectives, and why."""

    rate: float
    repeat: int
    meets: bool
    basis: str
    """all requests; or, ended early: certain (the rest could not change it) or binomial (at the error level).

    not valid: no objective was missed, but the run cannot be relied on.
    """
    reasons: list[str]
    values: dict[str, float | None]
    """By key, e.g. p99_ttft_ms; None where it is not finite: more requests failed than may be over."""
    num_requests: int
    """That had ended when it was decided."""
    run: str
    """The run's folder, within the folder of the search."""


@dataclass
class PointMeasurer:
    """Measures one engine at (rate, repeat) with an engine that is started."""

    session: Session
    engine_name: str
    engine: Engine
    slos: tuple[Slo, ...]
    context: RunContext
    stop: asyncio.Event
    arrival: ArrivalSpec
    """But for its rate."""
    points: list[PointVerdict] = dataclasses.field(default_factory=list)

    async def measure(self, rate: float, repeat: int) -> PointVerdict:
        """Raises SearchEndedError when the client was the limit, the engine failed or the user asked for the end."""
        from neobench.harness.engine import EngineError
        from neobench.harness.search import SearchEndedError

        session = self._point_session(rate, repeat)
        key = point_hash(session, self.engine_name, rate, self.context, slos=[slo.text for slo in self.slos])
        name = f"{slug(self.engine_name)}-rate-{rate:g}-repeat-{repeat}-{key}"
        stem = session.folder / "points" / name
        known = finished_run(stem, VERDICT_FILE)
        try:
            verdict = _read_verdict(known) if known else await self._measure_twice_at_most(session, rate, stem)
        except EngineError as error:
            raise SearchEndedError("engine_failed", f"at {rate:g} req/s: {error}") from error
        self.points.append(verdict)
        source = " (kept from before)" if known else ""
        reason = "" if verdict.meets and verdict.basis == "all requests" else f": {'; '.join(verdict.reasons)}"
        word = "meets" if verdict.meets else "misses"
        say(session, f"{self.engine_name} at {rate:g} req/s, repeat {repeat}: {word}{reason}{source}")
        return verdict

    def _point_session(self, rate: float, repeat: int) -> Session:
        arrivals = {rate: msgspec.structs.replace(self.arrival, rate=rate)}
        return dataclasses.replace(self.session, rates=(rate,), arrivals=arrivals, repeat=repeat)

    async def _measure_twice_at_most(self, session: Session, rate: float, stem: Path) -> PointVerdict:
        """A second time when client or machine were the limit: once may be a hiccup, twice is how they are."""
        from neobench.harness.search import SearchEndedError

        for _ in range(2):
            outcome = await self._run(session, rate, new_run(stem))
            if isinstance(outcome, PointVerdict):
                return outcome
            reason = f"at {rate:g} req/s: {' '.join(outcome)}"
            say(session, f"{self.engine_name} {reason}")
        raise SearchEndedError("client_limit", reason)

    async def _run(self, session: Session, rate: float, path: Path) -> PointVerdict | list[str]:
        """The verdict, or why the load was not what the schedule says."""
        from neobench.harness.search import SearchEndedError
        from neobench.harness.slo_watch import SloWatch
        from neobench.results.machine_validity import machine_disturbances
        from neobench.results.store import encode_pretty
        from neobench.results.validity import client_limits

        decided = asyncio.Event()
        sessions = session.workload_fields.get("sessions")
        watch = SloWatch(self.slos, session.num_requests, decided.set, independent=sessions is None)
        relay = asyncio.create_task(_set_after(self.stop, decided))
        try:
            prompts = draw_prompts(session, rate)
            summary = await measure_rate(
                session, self.engine_name, rate, self.engine, path, prompts,
                context=self.context, stop=decided, watch=watch.see,
            )  # fmt: skip
        finally:
            relay.cancel()
            with suppress(asyncio.CancelledError):
                await relay
        disturbances, _ = machine_disturbances(summary["machine"])
        limits = [*client_limits(summary), *disturbances]
        if watch.decision is None and self.stop.is_set():
            raise SearchEndedError("interrupted", "stopped by the user")
        if limits:
            return limits
        verdict = _verdict(session, rate, path, watch, summary, self.slos)
        write_whole(path / VERDICT_FILE, encode_pretty(verdict))
        return verdict


async def _set_after(first: asyncio.Event, then: asyncio.Event) -> None:
    await first.wait()
    then.set()


def _verdict(
    session: Session, rate: float, path: Path, watch: SloWatch, summary: dict[str, Any], slos: tuple[Slo, ...]
) -> PointVerdict:
    from neobench.harness.slo import unmet_in_summary

    values = {slo.key: summary.get(slo.key) for slo in slos} | watch.percentiles_ms()
    decision = watch.decision
    if decision is not None:
        meets, basis, reasons = decision.meets, str(decision.basis), [decision.sentence]
    else:
        unmet = [*watch.unmet(), *unmet_in_summary(slos, summary)]
        reasons = [*unmet, *summary["validity"]["reasons"]]
        meets, basis = not reasons, NOT_VALID if reasons and not unmet else "all requests"
    return PointVerdict(
        rate=rate,
        repeat=session.repeat,
        meets=meets,
        basis=basis,
        reasons=reasons,
        values={key: value if value is not None and math.isfinite(value) else None for key, value in values.items()},
        num_requests=summary["num_prompts"] - summary["outcomes"]["interrupted"],
        run=str(path.relative_to(session.folder)),
    )


def _read_verdict(path: Path) -> PointVerdict:
    try:
        return msgspec.json.decode((path / VERDICT_FILE).read_bytes(), type=PointVerdict)
    except msgspec.MsgspecError as error:
        raise click.ClickException(f"{path / VERDICT_FILE}: {error}; remove it to measure again") from None
