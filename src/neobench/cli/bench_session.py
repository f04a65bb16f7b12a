"""Carries out `neobench bench-cpu`: the list of points, progress, and what is left behind."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec

from neobench.harness.runner import RunContext
from neobench.pacpu import NativeModuleError, targets
from neobench.pacpu.bench import LEAST_POINT_S, PEER_DTYPES, Bench, Point, memory_bytes_for
from neobench.pacpu.bench_kernels import LIMITS, PEER
from neobench.pacpu.machine import l3_bytes
from neobench.pacpu.topology import usable_cpus
from neobench.results.store import encode_pretty

SCHEMA = "neobench/bench-cpu/v1"
PLAIN_INTERVAL_S = 10.0

Show = Callable[[float, str], None]


@dataclass
class BenchSession:
    """What is to be measured, and what came of it."""

    points: list[Point]
    kv_bytes: int
    folder: Path
    quiet: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    read: list[dict[str, Any]] = field(default_factory=list)
    """The machine's read bandwidth for each thread count; `busy` when it was never quiet meanwhile."""
    interrupted: bool = False

    @classmethod
    def plan(
        cls,
        *,
        folder: Path,
        quiet: bool,
        shapes: Sequence[str],
        dtypes: Sequence[str],
        threads: Sequence[int] | None,
        batches: Sequence[int],
        contexts: Sequence[int],
        kernels: Sequence[str],
        limits: bool,
        no_peer: bool,
        memory_bytes: int | None,
    ) -> BenchSession:
        """Points in the order of measurement. click.UsageError: a kernel, a thread count or a size that cannot be."""
        num_cpus = len(usable_cpus()) or os.cpu_count() or 1
        threads = threads or _default_threads(num_cpus)
        if max(threads) > num_cpus:
            raise click.UsageError(f"--threads {max(threads)}: this process may use {num_cpus} CPUs")
        _check_kernels(kernels)
        chosen = [*kernels, *(LIMITS if limits else ()), *(() if no_peer else (PEER,))]
        points = [
            Point(shape, dtype, count, batch, context, kernel)
            for dtype, count, shape, batch, context, kernel in itertools.product(
                dtypes, sorted(threads), shapes, batches, contexts, chosen
            )
            if kernel != PEER or dtype in PEER_DTYPES
        ]
        kv_bytes = memory_bytes or memory_bytes_for(points)
        fitting = [point for point in points if point.layer_bytes <= kv_bytes]
        if not fitting:
            needed = min(point.layer_bytes for point in points)
            raise click.UsageError(f"one layer needs {_in_words(needed)} of KV memory, there are {_in_words(kv_bytes)}")
        if len(fitting) < len(points):
            click.echo(
                f"Note: {len(points) - len(fitting)} of {len(points)} points are left out: a single layer of theirs "
                f"needs more than the {_in_words(kv_bytes)} of KV memory; see --memory.",
                err=True,
            )
        return cls(fitting, kv_bytes, folder, quiet)

    @property
    def planned(self) -> list[dict[str, Any]]:
        return [asdict(point) for point in self.points]

    def summary_line(self) -> str:
        least_s = len(self.points) * LEAST_POINT_S
        return f"{len(self.points)} points over {_in_words(self.kv_bytes)} of KV, {least_s:.0f} s at least"

    def measure(self) -> None:
        """Until all points are done or Ctrl-C, which keeps those that are."""
        click.echo(self.summary_line(), err=True)
        self._warn_of_caches()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with Bench(self.kv_bytes, max_threads=max(point.threads for point in self.points)) as bench:
                self._measure_all(bench)
        except KeyboardInterrupt:
            self.interrupted = True
            click.echo(f"Interrupted: {len(self.rows)} of {len(self.points)} points are done and kept.", err=True)
        except MemoryError as error:
            raise click.ClickException(f"--memory: {error}") from None
        except OSError as error:
            raise click.ClickException(f"cannot write {self.folder}: {error.strerror}") from None

    def _measure_all(self, bench: Bench) -> None:
        thread_counts = sorted({point.threads for point in self.points})
        for threads in thread_counts:
            click.echo(f"Read bandwidth, threads={threads}: {bench.measure_read(threads).median:.1f} GB/s", err=True)
        estimates_s = [bench.estimate_s(point) for point in self.points]
        total_s = sum(estimates_s)
        click.echo(f"About {total_s:.0f} s; up to three times as long on a busy machine", err=True)
        with _progress(len(self.points)) as show:
            for point, estimate_s in zip(self.points, estimates_s, strict=True):
                name = f"{point.shape} {point.dtype} {point.threads} threads {point.batch} x {point.context}"
                show(0, name)
                try:
                    self.rows.append(bench.measure(point).row())
                except ValueError as error:
                    click.echo(f"Note: {point.kernel} left out for {point.dtype}: {error}", err=True)
                self.read = [_read_row(bench, threads) for threads in thread_counts]
                show(estimate_s / total_s, name)

    def _warn_of_caches(self) -> None:
        caches = l3_bytes(usable_cpus())
        if self.kv_bytes < 4 * caches:
            click.echo(
                f"Note: {_in_words(self.kv_bytes)} of KV memory is not far larger than the {_in_words(caches)} of L3 "
                "cache: part of the reads may come from there; --memory takes more.",
                err=True,
            )

    def save(self) -> None:
        """rows.json, table.md and the figure in the folder; the table on stdout unless quiet; then what was wrong."""
        if not self.rows:
            return
        from neobench.reports.bandwidth_table import bandwidth_markdown, bandwidth_table
        from neobench.reports.roofline import save_roofline

        context = RunContext.capture(["neobench", *sys.argv[1:]])
        document = {
            "schema": SCHEMA,
            "provenance": msgspec.to_builtins(context.provenance()),
            "kv_bytes": self.kv_bytes,
            "read": self.read,
            "rows": self.rows,
            "fingerprint": context.fingerprint,
        }
        (self.folder / "rows.json").write_bytes(encode_pretty(document))
        (self.folder / "table.md").write_text(bandwidth_markdown(document))
        save_roofline(document, self.folder / "roofline")
        if not self.quiet:
            from rich.console import Console

            Console().print(bandwidth_table(document))
        busy = [row for row in self.rows if row["busy"]]
        if busy:
            click.echo(
                f"The machine was busy during {len(busy)} of {len(self.rows)} points, also when they were repeated "
                f"(once {busy[0]['busy']}): those numbers do not count.",
                err=True,
            )
        click.echo(f"Results: {self.folder}, figure: roofline.png", err=True)


def _read_row(bench: Bench, threads: int) -> dict[str, Any]:
    read, busy = bench.read_gbps(threads)
    return {"threads": threads, "gbps": read.median, "gbps_p25": read.p25, "gbps_p75": read.p75, "busy": busy}


def _default_threads(num_cpus: int) -> list[int]:
    powers = [2**power for power in range(num_cpus.bit_length()) if 2**power <= num_cpus]
    return sorted({*powers, num_cpus})


def _check_kernels(kernels: Sequence[str]) -> None:
    try:
        runnable = ["auto", *targets()]
    except NativeModuleError as error:
        raise click.ClickException(str(error)) from None
    for name in kernels:
        if name not in runnable:
            raise click.UsageError(f"--kernel {name}: this CPU runs {', '.join(runnable)}")


def _in_words(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.3g} MiB"


@contextmanager
def _progress(num_points: int) -> Iterator[Show]:
    """show(share of the work just done, what is under way): a live bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _plain_lines(num_points)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.fields[now]:<40}"), BarColumn(), TimeRemainingColumn(), TextColumn("left"))
    # rich's own thread would take CPU time from what is measured.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task("", total=1.0, now="")

        def show(share: float, now: str) -> None:
            bar.update(task, advance=share, refresh=True, now=now)

        yield show


def _plain_lines(num_points: int) -> Show:
    started_s = shown_s = time.monotonic()
    done = 0.0
    points = 0

    def show(share: float, _now: str) -> None:
        nonlocal shown_s, done, points
        done += share
        points += share > 0
        now_s = time.monotonic()
        if share and (now_s - shown_s >= PLAIN_INTERVAL_S or points == num_points):
            shown_s = now_s
            left_s = (now_s - started_s) * (1 - done) / done
            click.echo(f"{points}/{num_points} points, ~{left_s:.0f} s left", err=True)

    return show
