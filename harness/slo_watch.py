"""Follows a measurement and ends it early, by the exact binomial rule, once its objectives are decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from neobench.harness.binomial import fewest_that_refute, most_that_prove
from neobench.harness.slo import Slo
from neobench.results.record import Outcome, RequestRecord

ERROR_LEVEL = 0.01
"""Of each kind of wrong early end, for independent requests, over all looks of one measurement."""
_FIRST_LOOK = 16

Basis = Literal["certain", "binomial"]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    meets: bool
    basis: Basis
    """certain: the rest of the measurement could not change it. binomial: at ERROR_LEVEL."""
    sentence: str


@dataclass(frozen=True)
class _Look:
    """After the first `num_requests` arrivals: from `refuting` over the limit on it is missed, up to `proving` met."""

    num_requests: int
    refuting: int
    proving: int


class _Tally:
    """One objective over the requests of one measurement, in order of arrival."""

    def __init__(self, slo: Slo, num_requests: int, error: float, independent: bool) -> None:
        self.slo = slo
        self.values_ms = np.full(num_requests, np.nan)
        self.num_over = 0
        self._known = 0
        """The first so many arrivals have ended."""
        sizes = look_sizes(num_requests) if independent else []
        self._looks = [
            _Look(
                size,
                fewest_that_refute(size, slo.allowed_share, error / len(sizes)),
                most_that_prove(size, slo.allowed_share, error / len(sizes)),
            )
            for size in sizes
        ]
        self.proved_at: int | None = None

    def add(self, record: RequestRecord) -> None:
        value_ms = self.slo.value_ms(record)
        self.values_ms[record.index] = value_ms
        self.num_over += not self.slo.met_by(value_ms)
        while self._known < len(self.values_ms) and not math.isnan(self.values_ms[self._known]):
            self._known += 1

    def decide(self) -> Decision | None:
        """A miss as soon as it is known. That the objective is met is left in `proved_at`: the others have a say."""
        total = len(self.values_ms)
        allowed = self.slo.allowed(total)
        if self.num_over > allowed:
            sentence = f"{self.slo.text}: {self.num_over} requests are over, {allowed} of {total} may be"
            return Decision(meets=False, basis="certain", sentence=sentence)
        while self._looks and self._looks[0].num_requests <= self._known:
            look = self._looks.pop(0)
            first = self.values_ms[: look.num_requests]
            over = sum(not self.slo.met_by(value) for value in first.tolist())
            if over >= look.refuting:
                sentence = f"{self.slo.text}: {over} of the first {look.num_requests} requests are over"
                return Decision(meets=False, basis="binomial", sentence=sentence)
            if self.proved_at is None and over <= look.proving and self._stays_below(first, total):
                self.proved_at = look.num_requests
        return None

    def _stays_below(self, first_ms: np.ndarray[tuple[int], np.dtype[np.float64]], total: int) -> bool:
        """Whether latency that goes on growing as it did still meets the limit at the last arrival.

        The binomial rule takes requests for independent; a queue that slowly builds up makes later ones slower.
        """
        half = len(first_ms) // 2
        allowed = self.slo.allowed(len(first_ms) - half)
        high_ms = float(np.sort(first_ms[half:])[-1 - allowed])
        growth_ms = max(0.0, float(np.median(first_ms[half:]) - np.median(first_ms[:half])))
        return self.slo.met_by(high_ms + growth_ms * (total - len(first_ms)) / half)

    def percentile_ms(self) -> float:
        """Nearest rank over what has ended, failures infinitely late; NaN when nothing has."""
        seen = np.sort(self.values_ms[~np.isnan(self.values_ms)])
        return float(seen[len(seen) - 1 - self.slo.allowed(len(seen))]) if len(seen) else math.nan


class SloWatch:
    """`see` takes each record as its request ends; `on_decision` is called once, when no more need be measured."""

    def __init__(
        self,
        slos: Sequence[Slo],
        num_requests: int,
        on_decision: Callable[[], None],
        *,
        error_level: float = ERROR_LEVEL,
        independent: bool = True,
    ) -> None:
        """Without `independent`, as of turns of a session, a measurement ends early only when it is certain."""
        self.decision: Decision | None = None
        self._on_decision = on_decision
        self._num_requests = num_requests
        self._tallies = [
            _Tally(slo, num_requests, error_level, independent) for slo in slos if slo.percentile is not None
        ]
        self._all_watched = len(self._tallies) == len(slos)

    def see(self, record: RequestRecord) -> None:
        if record.warmup or record.outcome is Outcome.INTERRUPTED or not 0 <= record.index < self._num_requests:
            return
        for tally in self._tallies:
            tally.add(record)
            decision = tally.decide()
            if decision is not None:
                self._settle(decision)
        proved = [tally.proved_at for tally in self._tallies if tally.proved_at is not None]
        if self._all_watched and len(proved) == len(self._tallies):
            sentence = f"all objectives are met by the first {max(proved)} requests"
            self._settle(Decision(meets=True, basis="binomial", sentence=sentence))

    def unmet(self) -> list[str]:
        """Objectives about single requests that a measurement which ran to its end does not meet."""
        return [
            f"{tally.slo.text}: {tally.num_over} of {self._num_requests} requests are over"
            for tally in self._tallies
            if tally.num_over > tally.slo.allowed(self._num_requests)
        ]

    def percentiles_ms(self) -> dict[str, float]:
        """By key, e.g. p99_ttft_ms."""
        return {tally.slo.key: tally.percentile_ms() for tally in self._tallies}

    def _settle(self, decision: Decision) -> None:
        if self.decision is None:
            self.decision = decision
            self._on_decision()


def look_sizes(num_requests: int) -> list[int]:
    """After how many arrivals the rule is applied: halves of halves of the whole, 16 and more, ascending."""
    sizes = []
    size = num_requests // 2
    while size >= _FIRST_LOOK:
        sizes.append(size)
        size //= 2
    return sizes[::-1]
