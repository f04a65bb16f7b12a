"""Whether something else on the machine disturbed a run, judged by what telemetry saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_STEAL_PERCENT = 5.0
WARN_STEAL_PERCENT = 1.0
MAX_OTHER_CPU_PERCENT = 25.0
"""Of all cores; with more than a quarter of them taken, neither client nor engine ran on the machine described."""
WARN_OTHER_CPU_PERCENT = 10.0
POWER_LIMIT_REASONS = frozenset({"sw_power_cap", "idle", "gpu_idle", "applications_clocks_setting", "sync_boost"})
"""Clocks below the highest that come of the card's own settings and load: how that card is meant to run."""


def machine_disturbances(machine: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(reasons, warnings), a sentence each. A key that is absent or None judges nothing."""
    reasons: list[str] = []
    warnings: list[str] = []
    shares = (
        ("cpu_steal_percent", "the hypervisor gave to others", MAX_STEAL_PERCENT, WARN_STEAL_PERCENT),
        ("other_cpu_percent", "other processes used", MAX_OTHER_CPU_PERCENT, WARN_OTHER_CPU_PERCENT),
    )
    for key, what, limit, notable in shares:
        percent = machine.get(key)
        if percent is None or percent <= notable:
            continue
        sentence = f"The machine was busy: {what} {percent:.1f}% of the CPU time"
        if percent > limit:
            reasons.append(f"{sentence}; the limit is {limit:g}%.")
        else:
            warnings.append(f"{sentence}.")
    if throttled_ms := machine.get("cpu_throttled_ms"):
        warnings.append(f"A CPU quota held processes of this run back for {throttled_ms:.0f} ms in all.")
    throttled = set(machine.get("gpu_throttle_reasons") or ())
    if slowed := sorted(throttled - POWER_LIMIT_REASONS):
        reasons.append(f"The GPU slowed down: {', '.join(slowed)}; let it cool, or check its power supply.")
    if "sw_power_cap" in throttled:
        warnings.append("The GPU ran at its power limit (sw_power_cap): its clocks were below their highest.")
    return reasons, warnings
