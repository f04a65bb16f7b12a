"""A sweep on the nodes of a Ray cluster: one task a measurement, one measurement at a time on each node."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import shutil
import socket
import tempfile
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from neobench.cli.points import new_run
from neobench.cli.session import say
from neobench.cli.sweep_points import POINT_FILE, Measurement, measure_points, plan

MAX_ATTEMPTS = 3
"""At a measurement whose node or worker dies; after that it has failed."""
_ANSWER_S = 10.0
_POLL_S = 1.0
"""How often nodes that joined are looked for."""


def measure_on_cluster(todo: Sequence[Measurement], address: str, command: list[str]) -> bool:
    """Whether the user ended it. Results arrive in the folders that `todo` names, as if they had been measured here.

    `address` is what ray.init takes, e.g. auto, host:6379 or ray://host:10001, or local for a cluster of this machine.
    Raises click.ClickException when Ray is not installed or the cluster cannot be reached.
    """
    # Ray reads both when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise click.ClickException("--ray needs Ray: pip install 'neobench[ray]'") from None
    try:
        _check_answers(address)
        ray.init(
            address=None if address == "local" else address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise click.ClickException(f"cannot reach the Ray cluster at {address!r}: {error}") from None
    try:
        _Cluster(todo, command).run()
    except KeyboardInterrupt:
        return True
    finally:
        ray.shutdown()
    return False


def _check_answers(address: str) -> None:
    """Raises OSError unless something listens at host:port; Ray itself asks for a minute and says less."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()


class _Cluster:
    """Keeps every node busy with one measurement, and gives those of a dead node to another."""

    def __init__(self, todo: Sequence[Measurement], command: list[str]) -> None:
        import ray

        self._queue = deque((measurement, 1) for measurement in todo)
        self._command = command
        self._total = len(todo)
        self._done = 0
        self._running: dict[Any, tuple[Measurement, int, str]] = {}
        """By the reference to its result: what is measured, for which time, on which node."""
        # A measurement may take all of its node, so the cluster's own count of CPUs has no say. Retries are ours.
        self._task = ray.remote(num_cpus=0, max_retries=0)(measure_there)

    def run(self) -> None:
        import ray

        while self._queue or self._running:
            self._occupy_idle_nodes()
            if not self._running:
                raise click.ClickException("no node of the Ray cluster is alive; what was measured is kept")
            ended, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_S)
            for reference in ended:
                self._collect(reference)

    def _occupy_idle_nodes(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        busy = {node for _, _, node in self._running.values()}
        for node in ray.nodes():
            if not self._queue:
                return
            node_id = node["NodeID"]
            if not node["Alive"] or not node["Resources"].get("CPU") or node_id in busy:
                continue
            measurement, attempt = self._queue.popleft()
            placed = self._task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
            session = measurement.session
            reference = placed.remote(dict(measurement.settings), session.repeat, self._command)
            self._running[reference] = (measurement, attempt, node_id)

    def _collect(self, reference: Any) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        measurement, attempt, node = self._running.pop(reference)
        try:
            unpack_run(ray.get(reference), measurement.stem)
        except RayTaskError as error:
            self._fail(measurement, str(error.cause))
        except RayError as error:
            if attempt < MAX_ATTEMPTS:
                say(measurement.session, f"{measurement.stem.name}: node {node[:8]} is lost; measured again elsewhere")
                self._queue.appendleft((measurement, attempt + 1))
                return
            self._fail(measurement, f"its node or worker died {MAX_ATTEMPTS} times: {type(error).__name__}")
        self._done += 1
        say(measurement.session, f"{self._done} of {self._total}: {measurement.stem.name} (node {node[:8]})")

    def _fail(self, measurement: Measurement, reason: str) -> None:
        measurement.write_status(new_run(measurement.stem), "failed", reason)


def measure_there(values: Mapping[str, Any], repeat: int, command: list[str]) -> bytes:
    """Runs on a node: measures one point in a folder of its own, and returns the run folder as a zip archive."""
    from neobench.harness.matrix import Settings
    from neobench.harness.runner import RunContext, run_async

    with tempfile.TemporaryDirectory(prefix="neobench-") as name:
        folder = Path(name)
        context = RunContext.capture(command)
        measurement = plan(Settings(0, values), repeat, folder, context, quiet=True)

        async def measure() -> None:
            await measure_points([measurement], context, asyncio.Event())

        run_async(measure())
        return pack_run(measurement.stem, sorted(folder.glob("*.log")))


def pack_run(path: Path, logs: Sequence[Path]) -> bytes:
    """A zip archive of a run folder, with the logs of its engine beside the rest."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path.rglob("*")):
            archive.write(file, file.relative_to(path))
        for log in logs:
            archive.write(log, log.name)
    return content.getvalue()


def unpack_run(content: bytes, stem: Path) -> Path:
    """The run folder that `pack_run` packed, as the next attempt at `stem`: all of it or nothing."""
    path = new_run(stem)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if POINT_FILE not in archive.namelist():
            raise click.ClickException(f"a node returned {stem.name} without {POINT_FILE}")
        archive.extractall(unfinished)
    unfinished.rename(path)
    return path
