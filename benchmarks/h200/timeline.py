"""Where a GPU worked and where it idled within iterations: pure functions over the intervals of a trace.

An iteration's span is from the start of its first kernel to the end of its last. Within it the device is busy while a
kernel of any stream runs; copies and fills are no kernels and are counted by themselves. Idle is the rest of the span:

device_idle_fraction    all of it
device_gap_fraction     without waiting for host attention: as much as the iteration's stage times call waiting is taken
                        off, at most the idle time in front of kernels that fetch its output
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.h200.jobs import MeasurementError

KERNEL = "kernel"
COPIES = ("gpu_memcpy", "gpu_memset")
FETCH_KERNEL = "_copy_runs"
"""Of kernels/triton_copies.py. The first kernel that a stream runs after the wait for host attention."""
TOP = 15
_NAME_LENGTH = 120
_MAX_OUTSIDE_FRACTION = 0.05


@dataclass(frozen=True)
class Activity:
    """A kernel, copy or fill on the device; nanoseconds of the system's clock (time.time_ns)."""

    category: str
    """KERNEL or one of COPIES."""
    name: str
    stream: int
    start_ns: int
    end_ns: int

    @property
    def ns(self) -> int:
        return self.end_ns - self.start_ns


@dataclass(frozen=True)
class Iteration:
    """A call that queued the device's work and waited for all of it; the clock is that of Activity."""

    start_ns: int
    end_ns: int
    host_wait_ns: int
    """Of its stage times."""
    is_counted: bool = True
    """Whether the summary is about it, or it only ran among the others."""

    @property
    def wall_ns(self) -> int:
        return self.end_ns - self.start_ns


@dataclass(frozen=True)
class Gap:
    """No kernel runs. `after` and `before` name the kernels around it."""

    start_ns: int
    end_ns: int
    after: str
    before: str

    @property
    def ns(self) -> int:
        return self.end_ns - self.start_ns


def read_trace(document: Mapping[str, Any]) -> list[Activity]:
    """The device's activities by their start, of a chrome trace that torch.profiler exported."""
    base_ns = int(document.get("baseTimeNanoseconds", 0))
    activities = []
    for event in document["traceEvents"]:
        if event.get("ph") != "X" or event.get("cat") not in (KERNEL, *COPIES):
            continue
        start_ns = base_ns + round(1e3 * event["ts"])
        stream = int(event.get("args", {}).get("stream", event.get("tid", 0)))
        name = event["name"][:_NAME_LENGTH]
        activities.append(Activity(event["cat"], name, stream, start_ns, start_ns + round(1e3 * event["dur"])))
    return sorted(activities, key=lambda activity: activity.start_ns)


def gaps_between(activities: Iterable[Activity]) -> list[Gap]:
    """Times in which none of them runs, from the first start to the last end; `activities` by their start."""
    gaps = []
    last: Activity | None = None
    for activity in activities:
        if last is not None and activity.start_ns > last.end_ns:
            gaps.append(Gap(last.end_ns, activity.start_ns, last.name, activity.name))
        if last is None or activity.end_ns > last.end_ns:
            last = activity
    return gaps


def span_ns(activities: Sequence[Activity]) -> int:
    """From the first start to the last end; 0 of none. `activities` by their start."""
    return max(activity.end_ns for activity in activities) - activities[0].start_ns if activities else 0


def busy_ns(activities: Sequence[Activity]) -> int:
    """Time in which at least one of them runs; `activities` by their start."""
    return span_ns(activities) - sum(gap.ns for gap in gaps_between(activities))


@dataclass(frozen=True)
class _Part:
    """What ran in one iteration."""

    iteration: Iteration
    kernels: Sequence[Activity]
    copies: Sequence[Activity]
    gaps: Sequence[Gap]

    @property
    def idle_ns(self) -> int:
        return sum(gap.ns for gap in self.gaps)

    @property
    def waited_ns(self) -> int:
        """Waiting as stage times have it includes the fetch itself, which is no idle time: hence the smaller one."""
        before_fetch_ns = sum(gap.ns for gap in self.gaps if gap.before.startswith(FETCH_KERNEL))
        return min(self.iteration.host_wait_ns, before_fetch_ns)


def summarize(activities: Sequence[Activity], iterations: Sequence[Iteration]) -> dict[str, Any]:
    """The fractions, sums over the counted iterations, their longest gaps and what their time went to.

    `activities` by their start; `iterations` are all that ran meanwhile. Raises MeasurementError where no counted
    iteration has a kernel, or kernels lie outside of all iterations: then the two clocks do not agree.
    """
    kernels = [activity for activity in activities if activity.category == KERNEL]
    copies = [activity for activity in activities if activity.category in COPIES]
    _check_clocks(kernels, iterations)
    parts = [_part(iteration, kernels, copies) for iteration in iterations if iteration.is_counted]
    total_ns = sum(span_ns(part.kernels) for part in parts)
    if not total_ns:
        raise MeasurementError(f"no kernel in the {len(parts)} iterations that count, of {len(iterations)} traced")
    idle_ns = sum(part.idle_ns for part in parts)
    waited_ns = sum(part.waited_ns for part in parts)
    gaps = [(gap, number, part) for number, part in enumerate(parts) for gap in part.gaps]
    longest = sorted(gaps, key=lambda entry: -entry[0].ns)[:TOP]
    return {
        "device_idle_fraction": idle_ns / total_ns,
        "device_gap_fraction": (idle_ns - waited_ns) / total_ns,
        "iterations": len(parts),
        "span_ns": total_ns,
        "idle_ns": idle_ns,
        "waited_ns": waited_ns,
        "copy_ns": sum(busy_ns(part.copies) for part in parts),
        "kernel_time": _by_name((kernel.name, kernel.ns) for part in parts for kernel in part.kernels),
        "copy_time": _by_name((copy.name, copy.ns) for part in parts for copy in part.copies),
        "idle_before": _by_name((gap.before, gap.ns) for part in parts for gap in part.gaps),
        "longest_gaps": [_describe(gap, number, part) for gap, number, part in longest],
        "by_iteration": {
            "wall_ns": [part.iteration.wall_ns for part in parts],
            "span_ns": [span_ns(part.kernels) for part in parts],
            "idle_ns": [part.idle_ns for part in parts],
            "host_wait_ns": [part.iteration.host_wait_ns for part in parts],
        },
    }


def _check_clocks(kernels: Sequence[Activity], iterations: Sequence[Iteration]) -> None:
    inside_ns = sum(kernel.ns for iteration in iterations for kernel in _started_in(iteration, kernels))
    all_ns = sum(kernel.ns for kernel in kernels)
    if all_ns - inside_ns > _MAX_OUTSIDE_FRACTION * all_ns:
        outside = 1 - inside_ns / all_ns
        raise MeasurementError(f"{outside:.0%} of the kernels' time lies outside of the iterations: the clocks differ")


def _part(iteration: Iteration, kernels: Sequence[Activity], copies: Sequence[Activity]) -> _Part:
    inside = _started_in(iteration, kernels)
    return _Part(iteration, inside, _started_in(iteration, copies), gaps_between(inside))


def _started_in(iteration: Iteration, activities: Sequence[Activity]) -> Sequence[Activity]:
    first, end = (
        bisect_left(activities, time_ns, key=lambda activity: activity.start_ns)
        for time_ns in (iteration.start_ns, iteration.end_ns)
    )
    return activities[first:end]


def _by_name(times: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """The names with the most nanoseconds."""
    total_ns: defaultdict[str, int] = defaultdict(int)
    count: defaultdict[str, int] = defaultdict(int)
    for name, ns in times:
        total_ns[name] += ns
        count[name] += 1
    names = sorted(total_ns, key=lambda name: -total_ns[name])[:TOP]
    return [{"name": name, "count": count[name], "ns": total_ns[name]} for name in names]


def _describe(gap: Gap, number: int, part: _Part) -> dict[str, Any]:
    at_ns = gap.start_ns - part.kernels[0].start_ns
    return {"ns": gap.ns, "iteration": number, "at_ns": at_ns, "after": gap.after, "before": gap.before}
