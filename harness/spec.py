"""What a run is: frozen specs, strictly loaded, hashed. Everything a run does follows from its spec."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from neobench.results.record import GOODPUT_METRICS

ArrivalKind = Literal["poisson", "constant", "gamma", "all_at_once", "closed", "trace"]
RATED_KINDS = ("poisson", "constant", "gamma")
ThinkTimeKind = Literal["exponential", "fixed", "lognormal"]


class SpecError(ValueError):
    """A spec that cannot be run; the message names the field and, for an unknown one, the nearest known field."""


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all parts of a spec have in common. Plain numbers and strings only, so that a spec has one JSON form."""


class EngineSpec(_Spec, frozen=True, kw_only=True):
    name: str
    options: dict[str, Any] = {}
    """Handed to the adapter as they are; the adapter checks them."""


class SessionSpec(_Spec, frozen=True, kw_only=True):
    """Requests come as turns of conversations, each with the history of its session in front of what is new."""

    fewest_turns: int
    """A session has between so many turns and `most_turns`, drawn with equal chances."""
    most_turns: int
    think_time_s: float = 0.0
    """Mean time from the end of one turn to the next; 0 is none."""
    think_time_kind: ThinkTimeKind = "exponential"

    def __post_init__(self) -> None:
        if not 1 <= self.fewest_turns <= self.most_turns:
            raise SpecError(
                "workload.sessions needs 1 <= fewest_turns <= most_turns, "
                f"not {self.fewest_turns} and {self.most_turns}"
            )
        if not 0 <= self.think_time_s < math.inf:
            raise SpecError(
                f"workload.sessions.think_time_s must be a number of seconds, at least 0, not {self.think_time_s:g}"
            )


class WorkloadSpec(_Spec, frozen=True, kw_only=True):
    name: str
    options: dict[str, Any] = {}
    length_seed: int | None = None
    """None: derived from RunSpec.seed, as the other seeds are."""
    prompt_seed: int | None = None
    order_seed: int | None = None
    session_seed: int | None = None
    sessions: SessionSpec | None = None
    """None: every request is on its own."""
    prefix_groups: int | None = None
    """So many shared prefixes of `prefix_tokens`; each prompt begins with one, in front of its own length."""
    prefix_tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.prefix_groups is None) != (self.prefix_tokens is None):
            raise SpecError("workload.prefix_groups and workload.prefix_tokens go together")
        for name in ("prefix_groups", "prefix_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"workload.{name} must be at least 1, not {value}")


class ArrivalSpec(_Spec, frozen=True, kw_only=True):
    kind: ArrivalKind = "poisson"
    """Kind "closed": `concurrency` requests are in flight all the time; one is due when another has ended."""
    rate: float | None = None
    """Requests per second of the kinds poisson, constant and gamma; None for the others. Of sessions, first turns."""
    end_rate: float | None = None
    """With it the rate changes linearly in time, from `rate` at the first arrival to this one at the last."""
    burstiness: float | None = None
    """Of kind gamma: the shape of its gaps. 1 is Poisson, less is burstier; gaps vary by 1 / sqrt(burstiness)."""
    speed: float | None = None
    """Of kind trace: so many times faster than the requests of the workload came; None is 1."""
    concurrency: int | None = None
    """At most this many requests are in flight; what arrives beyond it waits in the client, which is recorded.

    Of sessions so many are in progress: each holds its place from its first turn to the end of its last.
    """
    seed: int | None = None
    """None: derived from RunSpec.seed."""

    def __post_init__(self) -> None:
        self._check_rates()
        if (self.kind == "gamma") != (self.burstiness is not None) or not _positive_or_none(self.burstiness):
            raise SpecError(
                f"arrival.burstiness must be a positive number for kind 'gamma' and left out for others, "
                f"not {self.burstiness} for kind {self.kind!r}"
            )
        if self.speed is not None and (self.kind != "trace" or not _positive_or_none(self.speed)):
            raise SpecError(
                f"arrival.speed must be a positive number for kind 'trace' and left out for others, "
                f"not {self.speed} for kind {self.kind!r}"
            )
        if self.concurrency is not None and self.concurrency < 1:
            raise SpecError(f"arrival.concurrency must be at least 1, not {self.concurrency}")
        if self.kind == "closed" and self.concurrency is None:
            raise SpecError("arrival.kind 'closed' needs arrival.concurrency: how many requests are in flight")

    def expected_span_s(self, num_requests: int) -> float:
        """From the start of the schedule to its last arrival, on average over seeds."""
        if self.rate is None:
            return 0.0
        return num_requests / (self.rate if self.end_rate is None else (self.rate + self.end_rate) / 2)

    def _check_rates(self) -> None:
        if self.kind not in RATED_KINDS:
            for name in ("rate", "end_rate"):
                if getattr(self, name) is not None:
                    raise SpecError(f"arrival.{name} must be left out when arrival.kind is {self.kind!r}")
        elif self.rate is None or not _positive_or_none(self.rate):
            raise SpecError(
                f"arrival.rate must be a positive, finite number of requests per second for kind {self.kind!r}, "
                f"not {self.rate}; for an infinite rate use kind 'all_at_once'"
            )
        elif not _positive_or_none(self.end_rate):
            raise SpecError(f"arrival.end_rate must be a positive, finite number of requests/s, not {self.end_rate}")


class Seeds(_Spec, frozen=True, kw_only=True):
    """One stream of randomness a purpose: to change one leaves the others as they were."""

    lengths: int
    prompts: int
    arrivals: int
    order: int
    sessions: int


class RunSpec(_Spec, frozen=True, kw_only=True):
    engine: EngineSpec
    workload: WorkloadSpec
    arrival: ArrivalSpec
    model: str
    num_requests: int
    """Measured; of sessions the turns count."""
    num_warmup: int = 0
    """Requests sent and finished before the schedule starts; recorded, but in no metric."""
    seed: int = 0
    timeout_s: float = 600.0
    """From the moment a request is issued; then it is aborted and recorded as a timeout."""
    exact_output: bool = True
    """False: outputs may be shorter than asked for, as services without ignore_eos make them."""
    percentiles: tuple[float, ...] = ()
    """To report beside the median and p99; the run is invalid where its requests are too few for one of these."""
    goodput_ms: dict[str, float] = {}
    """Limit in ms of "ttft", "tpot" or "e2el"; goodput counts the requests that keep to all of them."""
    client_processes: int = 1
    """That send the requests: request i by process i modulo this number, a turn of session s by process s modulo it.

    1: the process that measures.
    """

    def __post_init__(self) -> None:
        if self.num_requests < 1:
            raise SpecError(f"num_requests must be at least 1, not {self.num_requests}")
        if self.num_warmup < 0:
            raise SpecError(f"num_warmup must not be negative, is {self.num_warmup}")
        if not 0 < self.timeout_s < math.inf:
            raise SpecError(f"timeout_s must be a positive number of seconds, not {self.timeout_s}")
        self._check_client_processes()
        if self.workload.sessions is not None and self.arrival.kind == "trace":
            raise SpecError(
                "workload.sessions and arrival.kind 'trace' exclude each other: a trace says when each request came, "
                "in a session that follows from the answer before"
            )
        if self.seed < 0:
            raise SpecError(f"seed must not be negative, is {self.seed}")
        for percentile in self.percentiles:
            if not 0 < percentile < 100:
                raise SpecError(f"percentiles must lie between 0 and 100, not {percentile:g}")
        check_goodput(self.goodput_ms)

    def _check_client_processes(self) -> None:
        if self.client_processes < 1:
            raise SpecError(f"client_processes must be at least 1, not {self.client_processes}")
        if self.client_processes > self.num_requests:
            raise SpecError(f"{self.client_processes} client_processes have only {self.num_requests} requests to send")
        concurrency = self.arrival.concurrency
        if concurrency is not None and concurrency < self.client_processes:
            raise SpecError(
                f"{self.client_processes} client_processes cannot share a concurrency of {concurrency}: "
                "each needs at least 1"
            )

    def seeds(self) -> Seeds:
        """Those given, else children 0 to 4 of numpy's SeedSequence(seed), in the order of Seeds."""
        import numpy as np

        lengths, prompts, arrivals, order, sessions = (
            int(child.generate_state(1, np.uint64)[0]) for child in np.random.SeedSequence(self.seed).spawn(5)
        )
        return Seeds(
            lengths=lengths if self.workload.length_seed is None else self.workload.length_seed,
            prompts=prompts if self.workload.prompt_seed is None else self.workload.prompt_seed,
            arrivals=arrivals if self.arrival.seed is None else self.arrival.seed,
            order=order if self.workload.order_seed is None else self.workload.order_seed,
            sessions=sessions if self.workload.session_seed is None else self.workload.session_seed,
        )


def check_goodput(limits_ms: Mapping[str, float]) -> None:
    """Raises SpecError for an unknown metric, with the nearest known one, or a limit that is not positive."""
    for name, limit_ms in limits_ms.items():
        if name not in GOODPUT_METRICS:
            nearest = difflib.get_close_matches(name, GOODPUT_METRICS, n=1, cutoff=0.0)[0]
            raise SpecError(f"goodput takes limits on {', '.join(GOODPUT_METRICS)}, not {name!r}; meant {nearest!r}?")
        if not 0 < limit_ms < math.inf:
            raise SpecError(f"the goodput limit of {name} must be a positive number of ms, not {limit_ms:g}")


def _positive_or_none(number: float | None) -> bool:
    return number is None or 0 < number < math.inf


def load_spec(data: Mapping[str, Any]) -> RunSpec:
    """A spec from plain data (parsed YAML or JSON). Raises SpecError."""
    _refuse_unknown_keys(data, RunSpec, where="")
    try:
        return msgspec.convert(data, RunSpec)
    except msgspec.ValidationError as error:
        raise SpecError(str(error)) from error


def spec_hash(spec: RunSpec) -> str:
    """sha256 of the spec's canonical JSON: sorted keys, all defaults written out, numbers in their declared type."""
    canonical = load_spec(msgspec.to_builtins(spec))
    return hashlib.sha256(msgspec.json.encode(canonical, order="sorted")).hexdigest()


def _refuse_unknown_keys(data: Mapping[str, Any], struct: type[msgspec.Struct], where: str) -> None:
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in data.items():
        if key not in fields:
            nearest = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.0)[0]
            raise SpecError(f"unknown key {where + str(key)!r}; the nearest known one is {where + nearest!r}")
        kind = fields[key]
        if isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            _refuse_unknown_keys(value, kind, where=f"{where}{key}.")
