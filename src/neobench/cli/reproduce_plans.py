"""Which runs a figure of the paper needs. Rates that hang on a capacity come in a second round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from neobench.cli.paper_figures import Figure, Machine
from neobench.cli.reproduce_points import Point, PointResult

Results = Mapping[Point, PointResult]

_HOST_ENGINES = ("neo", "full_offload")
"""For the others one host is as good as another, and the first stands for all."""


def points_of(figure: Figure, results: Results) -> list[Point]:
    """All that can be named from these results; once they have them all, all there are."""
    if figure.kind == "relative_throughput":
        return [
            point
            for machine in figure.machines
            for input_tokens in figure.inputs
            for output_tokens in figure.outputs
            for engine in (figure.baseline, *figure.engines)
            if engine is not None
            and (point := lengths_point(figure, machine, engine, input_tokens, output_tokens)) is not None
        ]
    points: list[Point] = []
    for machine, engine in curves_of(figure):
        if figure.rates_of_capacity:
            points.append(_capacity_point(figure, machine, _capacity_engine(figure, engine)))
        points += rate_points(figure, machine, engine, results).values()
    return points


def curves_of(figure: Figure) -> Iterator[tuple[Machine, str]]:
    """Machine and engine of each: those that use no host have one curve."""
    for engine in figure.engines:
        for machine in figure.machines:
            if engine in _HOST_ENGINES or machine is figure.machines[0]:
                yield machine, engine


def lengths_point(figure: Figure, machine: Machine, engine: str, input_tokens: int, output_tokens: int) -> Point:
    """All requests at once."""
    workload = f"synthetic:{input_tokens},{output_tokens}"
    return _point(figure, machine, engine, {"workload": workload, "arrival": "all-at-once"})


def rate_points(figure: Figure, machine: Machine, engine: str, results: Results) -> dict[float, Point]:
    """By request rate, rising; none while the capacity that the rates are shares of is not known."""
    rates = figure.rates.get(engine, [])
    if figure.rates_of_capacity:
        capacity = results.get(_capacity_point(figure, machine, _capacity_engine(figure, engine)))
        rates = [] if capacity is None else [share * capacity.whole_throughput for share in figure.rates_of_capacity]
    rounded = sorted(float(f"{rate:.3g}") for rate in rates)
    return {
        rate: _point(figure, machine, engine, {"workload": figure.workload, "rate": f"{rate:g}"}) for rate in rounded
    }


def _capacity_engine(figure: Figure, engine: str) -> str:
    """A distribution compares engines at one rate."""
    return figure.engines[0] if figure.kind == "latency_cdf" else engine


def _capacity_point(figure: Figure, machine: Machine, engine: str) -> Point:
    return _point(figure, machine, engine, {"workload": figure.workload, "arrival": "all-at-once"})


def _point(figure: Figure, machine: Machine, engine: str, load: Mapping[str, Any]) -> Point:
    chosen = machine if engine in _HOST_ENGINES else figure.machines[0]
    options: dict[str, Any] = {
        "engine": engine,
        "hardware": chosen.hardware,
        "host-bandwidth": chosen.host_bandwidth,
        "model": figure.model,
        "dtype": "float16",
        "num-requests": figure.requests,
        **figure.settings,
        **load,
    }
    if chosen.host_memory is not None:
        options["host-memory"] = chosen.host_memory
    return Point.of(options)
