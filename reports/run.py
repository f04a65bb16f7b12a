"""One finished run as reports see it: plain values out of run.json and summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neobench.results.store import OWN_TOOL


@dataclass(frozen=True, kw_only=True)
class ReportRun:
    engine: str
    workload: str
    model: str
    request_rate: float | None
    """Requests per second, of a trace on average; of sessions their first turns. None: all at once."""
    machine: str
    """A few words; empty when the fingerprint does not tell."""
    summary: Mapping[str, Any]
    concurrency: int | None = None
    """The client's limit on requests in flight, if there was one."""
    of_sessions: bool = False
    """Requests are turns of sessions."""
    handicaps: tuple[str, ...] = ()
    """Flags that slow the engine on purpose; a report must say so."""

    @classmethod
    def from_documents(cls, run: Mapping[str, Any], summary: Mapping[str, Any]) -> ReportRun:
        """From the contents of run.json and of summary.json."""
        spec = run["spec"]
        return cls(
            engine=spec["engine"]["name"],
            workload=spec["workload"]["name"],
            model=spec["model"],
            request_rate=run["request_rate"],
            machine=describe_machine(run.get("fingerprint") or {}),
            summary=summary,
            concurrency=spec["arrival"].get("concurrency"),
            of_sessions=bool(spec["workload"].get("sessions")),
            handicaps=tuple((run.get("engine") or {}).get("handicaps") or ()),
        )

    @property
    def title(self) -> str:
        """neo at 4 req/s"""
        if self.request_rate is None:
            return f"{self.engine}, all at once"
        return f"{self.engine} at {self.request_rate:g} {self.rate_unit}"

    @property
    def rate_unit(self) -> str:
        return "sessions/s" if self.of_sessions else "req/s"

    @property
    def valid(self) -> bool:
        return bool(self.summary["validity"]["valid"])

    @property
    def reasons(self) -> list[str]:
        """Why the run is invalid, a sentence each."""
        return list(self.summary["validity"]["reasons"])

    @property
    def cap_note(self) -> str | None:
        """Says that requests (or sessions) queued in the client, which makes the load less open than its rate says."""
        if self.concurrency is None:
            return None
        queue_ms = self.summary.get("mean_client_queue_ms") or 0.0
        return f"{self.title}: capped at {self.concurrency}, client queue mean {queue_ms:.3g} ms."

    @property
    def warnings(self) -> list[str]:
        """What to read with care in a run that may be valid, a sentence each."""
        return list(self.summary["validity"].get("warnings", ()))

    @property
    def provenance_kind(self) -> str:
        """measured, emulated or modelled."""
        return str(self.summary["provenance"]["kind"])

    @property
    def foreign_tool(self) -> str | None:
        """Which other tool measured it; None: neobench did."""
        tool = self.summary["provenance"].get("tool", OWN_TOOL)
        return None if tool == OWN_TOOL else str(tool)

    @property
    def per_token_latency_s(self) -> float | None:
        """Mean over the requests of end-to-end latency / output tokens; None when no request completed."""
        latency_ms = self.summary["mean_normalized_latency_ms"]
        return None if latency_ms is None else latency_ms / 1e3

    @property
    def host_decode_share(self) -> float | None:
        """Share of decode tokens whose attention ran on the host; None for an engine that does not count them."""
        stats = self.summary.get("engine_stats") or {}
        on_host, on_device = stats.get("cpu_decode_tokens"), stats.get("gpu_decode_tokens")
        if on_host is None or on_device is None or on_host + on_device == 0:
            return None
        return float(on_host / (on_host + on_device))


def describe_machine(fingerprint: Mapping[str, Any]) -> str:
    """For a caption: "NVIDIA H200, Xeon Platinum 8480C, 16 cores"; what was not found out is left out."""
    parts = []
    gpus = [gpu["name"] for gpu in fingerprint.get("gpus") or []]
    for name in dict.fromkeys(gpus):
        parts.append(name if gpus.count(name) == 1 else f"{gpus.count(name)} x {name}")
    cpu = fingerprint.get("cpu") or {}
    if cpu.get("model"):
        parts.append(" ".join(cpu["model"].replace("(R)", "").replace("(TM)", "").split()))
    if cores := cpu.get("available_cores"):
        parts.append(f"{cores} core{'s' if cores > 1 else ''}")
    return ", ".join(parts)
