"""The engine's counters in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

GAUGES = frozenset({"num_running", "num_waiting", "device_blocks_used", "host_blocks_used"})
"""The engine's whole numbers that may fall, as every float may; every other one counts up from the start."""


class _StatsCollector(Collector):
    def __init__(self, stats: Mapping[str, int | float], model: str) -> None:
        self._stats = stats
        self._model = model

    def collect(self) -> Iterator[Metric]:
        for name, value in self._stats.items():
            family: type[GaugeMetricFamily | CounterMetricFamily]
            family = GaugeMetricFamily if name in GAUGES or isinstance(value, float) else CounterMetricFamily
            metric = family(f"neo_{name}", f"{name.replace('_', ' ')} of the engine", labels=["model_name"])
            metric.add_metric([self._model], value)
            yield metric


def exposition(stats: Mapping[str, int | float], model: str) -> bytes:
    """One scrape: neo_<name>_total for counters, neo_<name> for gauges, labelled with the served model's name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StatsCollector(stats, model))
    return generate_latest(registry)
