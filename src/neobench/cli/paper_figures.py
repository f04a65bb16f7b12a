"""The NEO paper's figures as data: what is run for each, and what is known of its curves (paper_figures.yaml)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

import click
import msgspec

FigureKind = Literal["load_latency", "latency_cdf", "relative_throughput"]


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Machine(_Data, frozen=True, kw_only=True):
    hardware: str
    """Of the catalogue."""
    label: str
    host_memory: str | None = None
    """For KV; None: what the catalogue's host has."""
    host_bandwidth: str = "typical"


class Known(_Data, frozen=True, kw_only=True):
    """A point of a curve of the paper."""

    engine: str
    machine: str | None = None
    """Its label; None: the figure's only one."""
    x: float
    value: float


class Gain(_Data, frozen=True, kw_only=True):
    """How much higher the sustained rate of one engine is than that of another."""

    engine: str
    over: str
    value: float


class Figure(_Data, frozen=True, kw_only=True):
    title: str
    kind: FigureKind
    model: str
    settings: dict[str, Any] = {}
    """More options of `neobench run`, without their hyphens in front."""
    machines: list[Machine]
    engines: list[str]
    requests: int
    paper_requests: int
    assumptions: list[str] = []

    workload: str | None = None
    rates: dict[str, list[float]] = {}
    """Requests per second, by engine."""
    rates_of_capacity: list[float] = []
    """Instead of rates: shares of the throughput with all requests at once."""
    latency_limit_s: float | None = None
    """Per output token. The rate at which the mean reaches it is the sustained rate."""
    known_latencies: list[Known] = []
    """s/token against requests/s."""
    known_sustained: dict[str, float] = {}
    known_gains: list[Gain] = []

    inputs: list[int] = []
    outputs: list[int] = []
    baseline: str | None = None
    """Does not use the host, so it is modelled beside the first machine alone."""
    known_ratios: list[Known] = []
    """Throughput over the baseline's against output tokens."""
    known_peak: float | None = None
    """Highest of these, over all lengths and machines."""
    known_machine_peaks: dict[str, float] = {}
    """The same of one machine."""


@cache
def paper_figures() -> Mapping[str, Figure]:
    import yaml

    text = resources.files("neobench.cli").joinpath("paper_figures.yaml").read_text(encoding="utf-8")
    return msgspec.convert(yaml.safe_load(text), dict[str, Figure])


def chosen_figures(names: tuple[str, ...]) -> dict[str, Figure]:
    """In the order of the file. `all` stands for all, `fig9` for fig9a to fig9c. Raises click.UsageError."""
    known = paper_figures()
    chosen: set[str] = set()
    for name in names:
        matching = set(known) if name == "all" else {one for one in known if one == name or one[:-1] == name}
        if not matching:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise click.UsageError(
                f"unknown figure {name!r}; did you mean {nearest!r}? There are {', '.join(known)}, and all"
            )
        chosen |= matching
    return {name: figure for name, figure in known.items() if name in chosen}
