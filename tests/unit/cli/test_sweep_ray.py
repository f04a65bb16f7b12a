"""A sweep on a Ray cluster of two nodes, real ones, one of which dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from neobench.cli import main
from neobench.results.store import load_run

# Ray itself leaves sockets and files open, and uses what its own next version warns of.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def cluster() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'neobench[ray]'")
    from ray.cluster_utils import Cluster

    # The head takes no points, so that a node that takes them can die.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def start(file: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "neobench", "sweep", str(file), "--output", str(file.parent / "out")]
    return subprocess.Popen([*command, "--ray", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def points(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (folder / "out" / "points").glob("*/point.json")]


def test_points_come_back_from_both_nodes_and_those_of_a_dead_node_from_the_other(cluster: Any, tmp_path: Path) -> None:
    doomed, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    file = tmp_path / "points.yaml"
    file.write_text(
        'defaults: {workload: "synthetic:8,4", num-warmup: 0, num-requests: 40}\n'
        "matrix: {engine: ['null'], rate: [15, 16, 17, 18, 19, 20]}\n"
    )
    process = start(file, cluster.address)
    deadline = time.monotonic() + 120
    while len(points(tmp_path)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Both nodes are in the middle of their second point now, which takes 2 s.
    time.sleep(0.5)
    cluster.remove_node(doomed, allow_graceful=False)
    stdout, stderr = process.communicate(timeout=150)
    assert process.returncode in (0, 4), stderr
    assert "is lost; measured again elsewhere" in stderr
    assert len({line.split("(node ")[1] for line in stderr.splitlines() if "(node " in line}) == 2
    assert sorted(point["rate"] for point in points(tmp_path)) == [15, 16, 17, 18, 19, 20]
    for path in (tmp_path / "out" / "points").iterdir():
        assert load_run(path).complete
    assert "Spread" in stdout
    done = CliRunner().invoke(main, ["sweep", str(file), "--output", str(tmp_path / "out"), "--dry-run"])
    assert "0 of 6 measurements to do" in done.output


def test_what_a_node_cannot_measure_has_failed_with_the_reason(cluster: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    cluster.add_node(num_cpus=1)
    (tmp_path / "tables.json").write_text("no tables")
    file = tmp_path / "points.yaml"
    file.write_text(
        'defaults: {workload: "synthetic:8,4", num-requests: 5}\n'
        f'include: [{{engine: neo, rate: 99, profile: "{tmp_path / "tables.json"}"}}, {{engine: "null", rate: 99}}]\n'
    )
    _, stderr = (process := start(file, cluster.address)).communicate(timeout=150)
    assert process.returncode == 1, stderr
    by_engine = {point["engine"]: point for point in points(tmp_path)}
    assert by_engine["null"]["status"] == "done"
    assert by_engine["neo"]["status"] == "failed"
    assert "tables.json" in by_engine["neo"]["reason"]


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'neobench[ray]'")
    file = tmp_path / "points.yaml"
    file.write_text('include: [{engine: "null", rate: 99, workload: "synthetic:8,4"}]')
    process = start(file, "127.0.0.1:1")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot reach the Ray cluster at '127.0.0.1:1'" in stderr
