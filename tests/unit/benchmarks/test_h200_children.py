"""Real child processes: one that answers, one that crashes, one that hangs with a child of its own."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.h200 import children
from benchmarks.h200.children import VllmPlace, run_child
from benchmarks.h200.jobs import Job

CHILD = """
import subprocess, sys, time
from benchmarks.h200.jobs import Result, child_main

def measure(settings):
    print("working", flush=True)
    if settings["do"].startswith("rest"):
        result = Result({"half": 0.5})
        result.rest = lambda: rest(settings["do"], result)
        return result
    if settings["do"] == "crash":
        raise ValueError("the device\\nfell off")
    if settings["do"] == "die":
        import os, signal
        os.kill(os.getpid(), signal.SIGSEGV)
    if settings["do"] == "hang":
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(helper.pid, flush=True)
        time.sleep(600)
    return Result({"twice": 2.0 * settings["number"]}, {"path": sys.path}, {"raw": [1, 2]})

def rest(do, result):
    result.metrics["more"] = 1.0
    if do == "rest, crash":
        raise ValueError("no trace")
    if do == "rest, die":
        import os, signal
        os.kill(os.getpid(), signal.SIGSEGV)
    if do == "rest, hang":
        time.sleep(600)

child_main(measure)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of a child that lies in a folder of its own, where the tree's `benchmarks` is found as well."""
    package = tmp_path / "tree" / "benchmarks" / "h200"
    package.mkdir(parents=True)
    (package / "some_child.py").write_text(CHILD)
    (package / "jobs.py").write_text((children.ROOT / "benchmarks/h200/jobs.py").read_text())
    monkeypatch.setattr(children, "ROOT", tmp_path / "tree")
    return Job("9", "some", "some_child", {"do": "answer", "number": 21}, limit_s=30.0)


def told(job: Job, do: str) -> Job:
    return Job(job.case, job.system, job.child, {**job.settings, "do": do}, job.limit_s)


def test_a_child_answers_with_its_numbers(job: Job, tmp_path: Path) -> None:
    outcome = run_child(job, limit_s=30.0, log_path=tmp_path / "log", vllm=VllmPlace())
    assert outcome.reason is None
    assert outcome.answer is not None
    assert outcome.answer["metrics"] == {"twice": 42.0}
    assert outcome.answer["raw"] == {"raw": [1, 2]}
    assert (tmp_path / "log").read_text() == "working\n"


def test_a_crash_says_its_last_words(job: Job, tmp_path: Path) -> None:
    outcome = run_child(told(job, "crash"), limit_s=30.0, log_path=tmp_path / "log", vllm=VllmPlace())
    assert outcome.answer is None
    assert outcome.reason == "exit status 1: ValueError: the device fell off"
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_death_by_signal_is_told(job: Job, tmp_path: Path) -> None:
    outcome = run_child(told(job, "die"), limit_s=30.0, log_path=tmp_path / "log", vllm=VllmPlace())
    assert (outcome.answer, outcome.reason) == (None, "exit status -11: working")


def test_what_comes_after_the_measurement_adds_to_it(job: Job, tmp_path: Path) -> None:
    outcome = run_child(told(job, "rest"), limit_s=30.0, log_path=tmp_path / "log", vllm=VllmPlace())
    assert outcome.answer == {"metrics": {"half": 0.5, "more": 1.0}, "facts": {}, "raw": {}, "again": []}


@pytest.mark.parametrize(
    ("do", "limit_s", "reason"),
    [
        ("rest, crash", 30.0, "exit status 1: ValueError: no trace"),
        ("rest, die", 30.0, "exit status -11: working"),
        ("rest, hang", 4.0, "stopped after 4 s"),
    ],
)
def test_what_comes_after_the_measurement_does_not_lose_it(
    job: Job, tmp_path: Path, do: str, limit_s: float, reason: str
) -> None:
    outcome = run_child(told(job, do), limit_s=limit_s, log_path=tmp_path / "log", vllm=VllmPlace())
    assert outcome.reason is None
    assert outcome.answer == {"metrics": {"half": 0.5}, "facts": {"unfinished": reason}, "raw": {}, "again": []}


def test_a_child_that_hangs_is_stopped_with_its_own_children(job: Job, tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = run_child(told(job, "hang"), limit_s=4.0, log_path=tmp_path / "log", vllm=VllmPlace())
    assert (outcome.answer, outcome.reason) == (None, "stopped after 4 s")
    assert time.monotonic() - started < 20
    helper = int((tmp_path / "log").read_text().split()[-1])
    deadline = time.monotonic() + 5
    while is_running(helper) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(helper)


def is_running(pid: int) -> bool:
    """A zombie that nobody has waited for yet does not run."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_vllm_gets_its_own_packages_and_not_ours(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    (tree / "benchmarks/h200/vllm_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "ours"))
    vllm = Job("9", "vllm", "vllm_child", job.settings, limit_s=30.0)
    place = VllmPlace(sys.executable, tmp_path / "site")
    outcome = run_child(vllm, limit_s=30.0, log_path=tmp_path / "log", vllm=place)
    assert outcome.answer is not None
    path = outcome.answer["facts"]["path"]
    assert str(tmp_path / "site") in path
    assert str(tmp_path / "ours") not in path


def test_an_interpreter_that_is_not_there_is_a_failed_run(job: Job, tmp_path: Path) -> None:
    vllm = Job("9", "vllm", "vllm_child", job.settings, limit_s=30.0)
    outcome = run_child(vllm, limit_s=30.0, log_path=tmp_path / "log", vllm=VllmPlace("/no/python"))
    assert outcome.reason == "exit status 1: cannot run /no/python: No such file or directory"
