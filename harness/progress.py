"""What a user sees during a run, on stderr: a live line on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from neobench.harness.flight import Counts

PLAIN_INTERVAL_S = 5.0

Show = Callable[[Counts], None]


@contextmanager
def progress_display(
    label: str, *, expected_s: float | None = None, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Show]:
    """Gives a function for DriveOptions.on_progress.

    `expected_s` is when the last request arrives; until then the time left follows from the schedule, which an open
    loop keeps whatever the engine does, and not from how many have completed.
    """
    stream = stream or sys.stderr
    if quiet:
        yield lambda _counts: None
    elif stream.isatty():
        with _live_line(label, expected_s, stream) as show:
            yield show
    else:
        yield _plain_lines(label, expected_s, stream)


@contextmanager
def _live_line(label: str, expected_s: float | None, stream: TextIO) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # Refreshed only from the driver's own ticks: rich's refresh thread would take the interpreter lock at any moment.
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
    with Progress(*columns, console=Console(file=stream), auto_refresh=False) as progress:
        task = progress.add_task(label, total=None, status="warming up")
        started_s = time.perf_counter()

        def show(counts: Counts) -> None:
            status = _status(counts, time.perf_counter() - started_s, expected_s)
            done = counts.completed + counts.failed
            progress.update(task, total=counts.total, completed=done, status=status, refresh=True)

        yield show


def _plain_lines(label: str, expected_s: float | None, stream: TextIO) -> Show:
    started_s = time.perf_counter()
    shown_s = started_s

    def show(counts: Counts) -> None:
        nonlocal shown_s
        now_s = time.perf_counter()
        ended = counts.completed + counts.failed == counts.total
        if not ended and now_s - shown_s < PLAIN_INTERVAL_S:
            return
        shown_s = now_s
        stream.write(f"{label}: {_status(counts, now_s - started_s, expected_s)}\n")
        stream.flush()

    return show


def _status(counts: Counts, elapsed_s: float, expected_s: float | None) -> str:
    done = counts.completed + counts.failed
    parts = [f"issued {counts.issued}/{counts.total}", f"done {counts.completed}", f"failed {counts.failed}"]
    parts += [f"{counts.tokens / elapsed_s:.0f} tok/s" if elapsed_s > 0 else "0 tok/s", f"{elapsed_s:.0f} s"]
    left_s = _left_s(done, counts.total, elapsed_s, expected_s)
    if left_s is not None and done < counts.total:
        parts.append(f"~{left_s:.0f} s left")
    return " · ".join(parts)


def _left_s(done: int, total: int, elapsed_s: float, expected_s: float | None) -> float | None:
    """By the schedule while requests still arrive, then by the pace of completions; None while there is neither."""
    if expected_s is not None and elapsed_s < expected_s:
        return expected_s - elapsed_s
    return elapsed_s * (total - done) / done if done else None
