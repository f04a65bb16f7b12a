"""Service level objectives: their syntax, and whether a run meets them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neobench.results.record import Outcome, RequestRecord

_SYNTAX = re.compile(r"\s*([A-Za-z0-9_.]+)\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(ms|s|%)?\s*")
_PERCENTILE = re.compile(r"p(\d+(?:\.\d+)?)_(\w+)")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
}
_RATES = ("request_throughput", "request_goodput")
LOWER_BOUNDED = (*_RATES, "output_throughput", "total_token_throughput")
_EXAMPLES = "p99_ttft<2s, mean_tpot<100ms, request_throughput>=95%"


class SloError(ValueError):
    """An objective that cannot be understood; the message says what would be."""


def _ttft_ms(record: RequestRecord) -> float:
    return math.inf if record.first_token_ns is None else (record.first_token_ns - record.scheduled_ns) / 1e6


def _e2el_ms(record: RequestRecord) -> float:
    return math.inf if record.ended_ns is None else (record.ended_ns - record.scheduled_ns) / 1e6


def _tpot_ms(record: RequestRecord) -> float:
    if record.output_tokens < 2:
        return 0.0
    if record.ended_ns is None or record.first_token_ns is None:
        return math.inf
    return (record.ended_ns - record.first_token_ns) / 1e6 / (record.output_tokens - 1)


def _normalized_ms(record: RequestRecord) -> float:
    return _e2el_ms(record) / record.output_tokens if record.output_tokens else math.inf


_OF_A_REQUEST: Mapping[str, Callable[[RequestRecord], float]] = {
    "ttft_ms": _ttft_ms,
    "tpot_ms": _tpot_ms,
    "e2el_ms": _e2el_ms,
    "normalized_latency_ms": _normalized_ms,
}


@dataclass(frozen=True)
class Slo:
    """One objective, e.g. p99_ttft<2s. Limits of latencies are in ms."""

    text: str
    key: str
    """As in summary.json, e.g. p99_ttft_ms."""
    operator: str
    limit: float
    percentile: float | None = None
    """Set where the objective is about single requests: this percentile of `value_of` has to meet the limit."""
    metric: str | None = None
    of_offered: bool = False
    """The limit is a share of the offered rate."""

    @property
    def allowed_share(self) -> float:
        """Of all requests: how many may be over the limit."""
        assert self.percentile is not None
        return 1 - self.percentile / 100

    def allowed(self, num_requests: int) -> int:
        """The most of `num_requests` that may be over the limit."""
        return math.floor(self.allowed_share * num_requests + 1e-9)

    def value_ms(self, record: RequestRecord) -> float:
        """Of one request; a failed one is infinitely late, and TPOT of a single token is 0."""
        assert self.metric is not None
        return _OF_A_REQUEST[self.metric](record) if record.outcome is Outcome.OK else math.inf

    def met_by(self, value: float | None, offered_rate: float | None = None) -> bool:
        limit = self.limit
        if self.of_offered:
            if offered_rate is None:
                return False
            limit *= offered_rate
        return value is not None and _COMPARE[self.operator](value, limit)


def parse_slos(texts: Iterable[str]) -> tuple[Slo, ...]:
    """Raises SloError, also where there is none and where a figure is bounded twice."""
    slos = tuple(parse_slo(text) for text in texts)
    if not slos:
        raise SloError(f"say what has to be met: --slo, e.g. {_EXAMPLES}")
    keys = [slo.key for slo in slos]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise SloError(f"{twice} has two limits; leave one of them out")
    return slos


def parse_slo(text: str) -> Slo:
    """NAME OPERATOR NUMBER [ms|s|%], with names as in summary.json; _ms at the end of a name may be left out."""
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise SloError(f"{text!r} is not an objective; write e.g. {_EXAMPLES}")
    name, operator, number, unit = match.groups()
    key = _key(name)
    limit = float(number)
    plain = re.sub(r"\s", "", text)
    if key in LOWER_BOUNDED:
        _check_lower_bound(plain, key, operator, unit)
        return Slo(plain, key, operator, limit / 100 if unit == "%" else limit, of_offered=unit == "%")
    if operator.startswith(">"):
        raise SloError(f"{plain!r}: a latency is bounded from above; write {plain.replace('>', '<')}")
    if unit is None and name == key:
        unit = "ms"
    if unit not in ("ms", "s"):
        raise SloError(f"{plain!r}: say the unit of the limit, ms or s")
    limit_ms = limit * 1000 if unit == "s" else limit
    if limit_ms <= 0:
        raise SloError(f"{plain!r}: nothing takes less than no time")
    percentile, metric = _of_single_requests(key)
    return Slo(plain, key, operator, limit_ms, percentile, metric)


def _check_lower_bound(text: str, key: str, operator: str, unit: str | None) -> None:
    if operator.startswith("<"):
        raise SloError(f"{text!r}: a throughput is bounded from below; write {text.replace('<', '>')}")
    if unit in ("s", "ms"):
        raise SloError(f"{text!r}: {key} is a number per second, without a unit, or a share (%) of the offered rate")
    if unit == "%" and key not in _RATES:
        raise SloError(f"{text!r}: only {' and '.join(_RATES)} can be a share (%) of the offered rate")


def _key(name: str) -> str:
    known = known_keys()
    for key in (name, f"{name}_ms"):
        if key in known or _of_single_requests(key) != (None, None):
            return key
    short = [key.removesuffix("_ms") for key in known]
    nearest = difflib.get_close_matches(name.removesuffix("_ms"), short, n=3, cutoff=0.4) or ["p99_ttft"]
    raise SloError(f"unknown figure {name!r}; did you mean {' or '.join(nearest)}?")


def _of_single_requests(key: str) -> tuple[float | None, str | None]:
    median_of = re.fullmatch(r"median_(\w+)", key)
    match = _PERCENTILE.fullmatch(key)
    percentile, metric = (50.0, median_of[1]) if median_of else (float(match[1]), match[2]) if match else (0.0, "")
    return (percentile, metric) if 0 < percentile < 100 and metric in _OF_A_REQUEST else (None, None)


def known_keys() -> list[str]:
    """The figures of summary.json that can be bounded."""
    metrics = (*_OF_A_REQUEST, "itl_ms", "ttft_from_issue_ms", "e2el_from_issue_ms")
    latencies = [f"{statistic}_{metric}" for metric in metrics for statistic in ("mean", "median", "p99")]
    return [*latencies, *LOWER_BOUNDED]


def unmet_in_summary(slos: Sequence[Slo], summary: Mapping[str, Any]) -> list[str]:
    """Objectives about figures of a whole run that are not met: a sentence each, with the value."""
    offered = summary["offered_request_rate"]
    sentences = []
    for slo in slos:
        if slo.percentile is None:
            value = summary.get(slo.key)
            if not slo.met_by(value, offered):
                sentences.append(f"{slo.text}: {slo.key} is {'absent' if value is None else format(value, '.4g')}")
    return sentences
