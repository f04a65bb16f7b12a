"""vLLM's /metrics (Prometheus text) under this project's names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

import aiohttp

from neobench.engines.vllm_release import LEVELS, METRICS
from neobench.harness.engine import EngineError

TIMEOUT_S = 10.0
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def read_stats(text: str) -> dict[str, int | float]:
    """Counters as int, levels as float, those that the release does not have left out.

    Samples of one name (of several engines, of several ends of a request) are added up; the fraction of KV that is in
    use is their mean.
    """
    samples: dict[str, list[float]] = {}
    for match in _SAMPLE.finditer(text):
        samples.setdefault(match["name"], []).append(float(match["value"]))
    stats: dict[str, int | float] = {}
    for name, spellings in METRICS.items():
        values = next((samples[spelling] for spelling in spellings if spelling in samples), None)
        if values is None:
            continue
        if name not in LEVELS:
            stats[name] = int(sum(values))
        else:
            stats[name] = sum(values) / (len(values) if name.endswith("_fraction") else 1)
    return stats


def read_cache_config(text: str) -> dict[str, str]:
    """The labels of vllm:cache_config_info; empty where a release does not tell."""
    for match in _SAMPLE.finditer(text):
        if match["name"] == "vllm:cache_config_info":
            return dict(_LABEL.findall(match["labels"] or ""))
    return {}


class MetricsReader:
    """Keeps one connection; requests under measurement have others."""

    def __init__(self, base_url: str) -> None:
        self._url = base_url + "/metrics"
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))

    async def text(self) -> str:
        """Raises EngineError."""
        try:
            async with self._session.get(self._url) as response:
                body = await response.text()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise EngineError(f"cannot read {self._url}: {error or type(error).__name__}") from error
        if response.status != 200:
            raise EngineError(f"{self._url} answered {response.status}")
        return body

    async def stats(self) -> Mapping[str, int | float]:
        return read_stats(await self.text())

    async def close(self) -> None:
        await self._session.close()
