"""What modelled runs say about a figure of the paper: rows of ours beside the paper's, and the panels to draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from neobench.cli.paper_figures import Figure, Known
from neobench.cli.reproduce_plans import Results, curves_of, lengths_point, rate_points
from neobench.cli.reproduce_points import PointResult
from neobench.reports.reproduction import Line, Panel

Curve = dict[float, float]
"""x -> y, by rising x."""

DEFINITIONS: Mapping[str, Callable[[PointResult], float | None]] = {
    "30-70 % window": lambda result: result.window_throughput,
    "whole run": lambda result: result.whole_throughput,
}
"""Of throughput: the authors', and the one that no filling of memory can flatter."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    figure: str
    quantity: str
    x: float | None
    """Output tokens, requests per second, seconds per token: as `quantity` says."""
    paper: float | None
    """None: not known."""
    ours: float | None
    """None: there is none, as of a rate that is never sustained among those modelled."""
    ratio: float | None
    """ours / paper"""


def _row(figure: str, quantity: str, x: float | None, paper: float | None, ours: float | None) -> Row:
    ratio = None if paper is None or ours is None else ours / paper
    return Row(figure=figure, quantity=quantity, x=x, paper=paper, ours=ours, ratio=ratio)


def rows_and_panels(name: str, figure: Figure, results: Results) -> tuple[list[Row], list[Panel]]:
    """All that `points_of` names is in `results`."""
    build = {"relative_throughput": _relative, "load_latency": _load_latency, "latency_cdf": _latency_cdf}
    return build[figure.kind](name, figure, results)


def _relative(name: str, figure: Figure, results: Results) -> tuple[list[Row], list[Panel]]:
    rows, panels = [], []
    for definition, throughput in DEFINITIONS.items():
        curves = _relative_curves(figure, results, throughput)
        lines = []
        for (engine, label, input_tokens), curve in curves.items():
            known = _known(figure.known_ratios, engine, label)
            several = f", {input_tokens} in" if len(figure.inputs) > 1 else ""
            quantity = f"{engine} / {figure.baseline}, {label}{several}, {definition}"
            rows += [_row(name, quantity, x, known.get(x), y) for x, y in curve.items()]
            rows += _extremes(name, quantity, curve, figure.known_machine_peaks.get(label))
            lines.append(Line(f"{engine}, {label}{several}", list(curve), list(curve.values()), known))
        if figure.known_peak is not None:
            x, best = max(((x, y) for curve in curves.values() for x, y in curve.items()), key=lambda at: at[1])
            rows.append(_row(name, f"peak of all, {definition}", x, figure.known_peak, best))
        panels.append(
            Panel(
                title=definition,
                x_label="Output length (tokens)",
                y_label=f"Throughput over {figure.baseline}",
                lines=lines,
                reference_y=1.0,
                bands=_bands(figure, curves),
            )
        )
    return rows, panels


def _relative_curves(
    figure: Figure, results: Results, throughput: Callable[[PointResult], float | None]
) -> dict[tuple[str, str, int], Curve]:
    """Engine, machine's label and input tokens -> ratio by output tokens."""
    assert figure.baseline is not None
    curves: dict[tuple[str, str, int], Curve] = {}
    for machine, engine in curves_of(figure):
        for input_tokens in figure.inputs:
            curve: Curve = {}
            for output_tokens in figure.outputs:
                ours, base = (
                    throughput(results[lengths_point(figure, machine, one, input_tokens, output_tokens)])
                    for one in (engine, figure.baseline)
                )
                if ours is not None and base:
                    curve[float(output_tokens)] = ours / base
            curves[engine, machine.label, input_tokens] = curve
    return curves


def _extremes(name: str, quantity: str, curve: Curve, known_peak: float | None) -> Iterator[Row]:
    if curve:
        peak_x = max(curve, key=lambda x: curve[x])
        yield _row(name, f"peak of {quantity}", peak_x, known_peak, curve[peak_x])
        low_x = min(curve, key=lambda x: curve[x])
        yield _row(name, f"lowest of {quantity}", low_x, None, curve[low_x])


def _bands(figure: Figure, curves: Mapping[tuple[str, str, int], Curve]) -> list[Line]:
    """Lowest and highest over the machines, where these stand for one whose host is not known."""
    if figure.known_machine_peaks:
        return []
    bands = []
    for engine, input_tokens in dict.fromkeys((engine, tokens) for engine, _, tokens in curves):
        over = [curve for (one, _, tokens), curve in curves.items() if (one, tokens) == (engine, input_tokens)]
        xs = [x for x in over[0] if all(x in curve for curve in over)]
        if len(over) > 1:
            lows, highs = ([pick(curve[x] for curve in over) for x in xs] for pick in (min, max))
            bands.append(Line(f"{engine}, {input_tokens} in", xs, lows, {}, highs))
    return bands


def _load_latency(name: str, figure: Figure, results: Results) -> tuple[list[Row], list[Panel]]:
    rows: list[Row] = []
    lines = []
    sustained: dict[tuple[str, str], float | None] = {}
    for machine, engine in curves_of(figure):
        of_rate = {rate: results[point] for rate, point in rate_points(figure, machine, engine, results).items()}
        curve = {
            rate: result.mean_per_token_latency_s
            for rate, result in of_rate.items()
            if result.mean_per_token_latency_s is not None
        }
        label = f"{engine}, {machine.label}"
        known = _known(figure.known_latencies, engine, machine.label)
        rows += [_row(name, f"mean per-token latency (s), {label}", x, known.get(x), y) for x, y in curve.items()]
        for definition, throughput in DEFINITIONS.items():
            quantity = f"throughput (req/s), {label}, {definition}"
            rows += [_row(name, quantity, rate, None, throughput(result)) for rate, result in of_rate.items()]
        lines.append(Line(label, list(curve), list(curve.values()), known))
        if figure.latency_limit_s is not None:
            rate = crossing(curve, figure.latency_limit_s)
            sustained[engine, machine.label] = rate
            quantity = f"sustained rate (req/s) at {figure.latency_limit_s:g} s/token, {label}"
            rows.append(_row(name, quantity, figure.latency_limit_s, figure.known_sustained.get(engine), rate))
    rows += _gains(name, figure, sustained)
    panel = Panel(
        title="",
        x_label="Request rate (req/s)",
        y_label="Average per-token latency (s)",
        lines=lines,
        reference_y=figure.latency_limit_s,
        log_y=True,
    )
    return rows, [panel]


def _gains(name: str, figure: Figure, sustained: Mapping[tuple[str, str], float | None]) -> Iterator[Row]:
    for gain in figure.known_gains:
        over = next((rate for (engine, _), rate in sustained.items() if engine == gain.over), None)
        for (engine, label), rate in sustained.items():
            if engine == gain.engine:
                ours = None if rate is None or not over else rate / over
                quantity = f"sustained rate of {engine}, {label}, over {gain.over}"
                yield _row(name, quantity, figure.latency_limit_s, gain.value, ours)


def crossing(curve: Mapping[float, float], limit: float) -> float | None:
    """The rate at which latency first reaches `limit`, its logarithm interpolated linearly between rates.

    None where it begins above the limit or never gets there.
    """
    points = sorted(curve.items())
    for (rate, latency), (next_rate, next_latency) in itertools.pairwise(points):
        if latency <= limit < next_latency:
            share = math.log(limit / latency) / math.log(next_latency / latency)
            return rate + share * (next_rate - rate)
    return None


def _latency_cdf(name: str, figure: Figure, results: Results) -> tuple[list[Row], list[Panel]]:
    rows, lines = [], []
    for machine, engine in curves_of(figure):
        for rate, point in rate_points(figure, machine, engine, results).items():
            quantiles_s = results[point].per_token_latency_quantiles_s
            label = f"{engine}, {machine.label}, {rate:g} req/s"
            for percent in (50, 90, 99):
                ours = quantiles_s[percent] if quantiles_s else None
                rows.append(
                    _row(name, f"p{percent} per-token latency (s), {engine}, {machine.label}", rate, None, ours)
                )
            lines.append(Line(label, quantiles_s, [percent / 100 for percent in range(len(quantiles_s))], {}))
    panel = Panel(
        title="", x_label="Per-token latency (s)", y_label="Share of requests", lines=lines, log_x=True, markers=False
    )
    return rows, [panel]


def _known(points: Sequence[Known], engine: str, machine: str) -> Curve:
    return {point.x: point.value for point in points if point.engine == engine and point.machine in (None, machine)}
