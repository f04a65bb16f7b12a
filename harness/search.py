"""The highest rate that meets all objectives: bracket, bisect, repeat at the boundary. Knows no engine.

A rate is taken for met when all its repeats meet the objectives, for missed when none does; between the two lies what
the system does now and then. What was measured is never dropped because it does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import msgspec

Status = Literal["found", "above_max", "below_min", "client_limit", "engine_failed", "interrupted"]


class SearchEndedError(Exception):
    """Raised by `measure` when there is no point in going on; the search then tells what it knows."""

    def __init__(self, status: Literal["client_limit", "engine_failed", "interrupted"], reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


class Verdict(Protocol):
    @property
    def meets(self) -> bool: ...


Measure = Callable[[float, int], Awaitable[Verdict]]
"""(rate in requests/s, repeat from 0) -> whether the objectives are met. Repeats must be independent of each other."""


class SearchSettings(msgspec.Struct, frozen=True, kw_only=True):
    start_rate: float
    min_rate: float
    max_rate: float
    factor: float = 2.0
    """Between one rate and the next while neither a met nor a missed one is known."""
    tolerance: float = 0.05
    """Of the bracket: it is bisected until (high - low) / low is no more."""
    repeats: int = 3
    """Measurements at each end of the bracket, all of which have to agree."""

    def __post_init__(self) -> None:
        if not 0 < self.min_rate <= self.start_rate <= self.max_rate < math.inf:
            raise ValueError(
                f"rates must ascend from the lowest over the first to the highest, "
                f"not {self.min_rate:g}, {self.start_rate:g}, {self.max_rate:g}"
            )
        if self.factor <= 1 or self.tolerance <= 0 or self.repeats < 1:
            raise ValueError("factor must be above 1, tolerance above 0, repeats at least 1")


class RateVerdicts(msgspec.Struct, frozen=True, kw_only=True):
    rate: float
    met: int
    measured: int


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    status: Status
    reason: str
    """A sentence where the status alone does not say it all."""
    low: RateVerdicts | None
    """The highest rate at which all repeats meet the objectives."""
    high: RateVerdicts | None
    """The lowest rate above `low` at which no repeat does."""
    error_bound: float
    """Of the chance that one end is wrong, i.e. that `low` meets the objectives less than half of the time, or `high`
    more: the rates that were put to the test of repeats times 2^-(repeats - 1), no more than 1."""
    rates: list[RateVerdicts]
    """All that were measured, ascending."""
    contradictions: list[str]
    """Missed below `low` or met above `high`: a sentence each. With one of them the answer is not to be relied on."""


async def find_highest_rate(measure: Measure, settings: SearchSettings) -> SearchResult:
    return await _Search(measure, settings).run()


class _Search:
    def __init__(self, measure: Measure, settings: SearchSettings) -> None:
        self._measure = measure
        self._settings = settings
        self._verdicts: dict[float, list[bool]] = {}
        self._tested: set[tuple[float, bool]] = set()

    async def run(self) -> SearchResult:
        low = high = None
        status: Status = "found"
        reason = ""
        try:
            low, high = await self._bracket()
            if low is not None and high is not None:
                low, high = await self._bisect(low, high)
            # The ends are told apart only once both are known: each is moved outwards until its repeats agree.
            if low is not None:
                low = await self._agreed(low, meets=True)
            if high is not None:
                high = await self._agreed(high, meets=False)
            await self._look_beyond(low, high)
            status = "below_min" if low is None else "above_max" if high is None else "found"
        except SearchEndedError as ended:
            status, reason = ended.status, ended.reason
            low, high = self._known_ends()
        return self._result(status, reason, low, high)

    async def _meets(self, rate: float, repeat: int = 0) -> bool:
        verdicts = self._verdicts.setdefault(rate, [])
        if repeat >= len(verdicts):
            verdicts.append((await self._measure(rate, repeat)).meets)
        return verdicts[repeat]

    async def _bracket(self) -> tuple[float | None, float | None]:
        """Rates a factor apart of which the lower one is met; None for an end that lies outside the limits."""
        settings = self._settings
        rate = settings.start_rate
        if await self._meets(rate):
            while rate < settings.max_rate:
                low, rate = rate, _tidy(min(rate * settings.factor, settings.max_rate))
                if not await self._meets(rate):
                    return low, rate
            return rate, None
        while rate > settings.min_rate:
            high, rate = rate, _tidy(max(rate / settings.factor, settings.min_rate))
            if await self._meets(rate):
                return rate, high
        return None, rate

    async def _bisect(self, low: float, high: float) -> tuple[float, float]:
        while high > low * (1 + self._settings.tolerance):
            middle = _tidy(math.sqrt(low * high))
            if not low < middle < high:
                break
            if await self._meets(middle):
                low = middle
            else:
                high = middle
        return low, high

    async def _agreed(self, rate: float, *, meets: bool) -> float | None:
        """The nearest rate outwards at which all repeats agree; steps double, so that noise costs little time."""
        settings = self._settings
        limit = settings.min_rate if meets else settings.max_rate
        step = 1 + settings.tolerance
        while True:
            self._tested.add((rate, meets))
            if await self._all_agree(rate, meets=meets):
                return rate
            if rate == limit:
                return None
            beyond = _tidy(max(rate / step, limit) if meets else min(rate * step, limit))
            rate = self._nearest_agreeing(rate, beyond, meets=meets) or beyond
            step *= step

    def _nearest_agreeing(self, rate: float, beyond: float, *, meets: bool) -> float | None:
        """A rate on the way from `rate` to `beyond` that was measured, each time with the verdict looked for."""
        near, far = sorted((rate, beyond))
        fits = [
            known
            for known, verdicts in self._verdicts.items()
            if near <= known <= far and known != rate and verdicts and all(met == meets for met in verdicts)
        ]
        return min(fits, key=lambda known: abs(known - rate), default=None)

    async def _all_agree(self, rate: float, *, meets: bool) -> bool:
        for repeat in range(self._settings.repeats):
            if await self._meets(rate, repeat) != meets:
                return False
        return True

    async def _look_beyond(self, low: float | None, high: float | None) -> None:
        """Is it met below, and missed above too? To look above costs little: what is missed ends early."""
        settings = self._settings
        if low is not None and low > settings.min_rate and min(self._verdicts) == low:
            await self._meets(_tidy(max(low / settings.factor, settings.min_rate)))
        highest = max(self._verdicts)
        if high is not None and highest < settings.max_rate and highest in (high, settings.start_rate):
            await self._meets(_tidy(min(highest * settings.factor, settings.max_rate)))

    def _known_ends(self) -> tuple[float | None, float | None]:
        """Of a search that was cut short: by repeats that agree, however few."""
        low = max((rate for rate, verdicts in self._verdicts.items() if verdicts and all(verdicts)), default=None)
        missed = [rate for rate, verdicts in self._verdicts.items() if verdicts and not any(verdicts)]
        return low, min((rate for rate in missed if low is None or rate > low), default=None)

    def _result(self, status: Status, reason: str, low: float | None, high: float | None) -> SearchResult:
        rates = {
            rate: RateVerdicts(rate=rate, met=sum(verdicts), measured=len(verdicts))
            for rate, verdicts in sorted(self._verdicts.items())
            if verdicts
        }
        return SearchResult(
            status=status,
            reason=reason,
            low=None if low is None else rates[low],
            high=None if high is None else rates[high],
            error_bound=min(1.0, len(self._tested) * 0.5 ** (self._settings.repeats - 1)),
            rates=list(rates.values()),
            contradictions=_contradictions(list(rates.values()), low, high),
        )


def _contradictions(rates: list[RateVerdicts], low: float | None, high: float | None) -> list[str]:
    missed_below = [
        f"missed at {entry.rate:g} req/s in {entry.measured - entry.met} of {entry.measured}, met above it at {low:g}"
        for entry in rates
        if low is not None and entry.rate < low and entry.met < entry.measured
    ]
    met_above = [
        f"met at {entry.rate:g} req/s in {entry.met} of {entry.measured}, missed below it at {high:g}"
        for entry in rates
        if high is not None and entry.rate > high and entry.met
    ]
    return missed_below + met_above


def _tidy(rate: float) -> float:
    """Four digits: rates that a person can read, and the same ones when a search is run again."""
    return float(f"{rate:.4g}")
