"""Measures neobench's engine beside real vLLM and its own GPU-only policies on one NVIDIA H200, and checks it.

    python benchmarks/h200/run.py --out DIR --vllm-site SITE
    python benchmarks/h200/run.py --out DIR --cases 3 --repeats 1 --time-limit-s 590
    python benchmarks/h200/run.py --out DIR --cases 6 --only out300
    python benchmarks/h200/run.py --out DIR --device cpu --scale tiny        # the same code on any laptop

Each measurement is a process of its own and leaves DIR/runs/NAME.json (settings, metrics, raw series, fingerprint) and
DIR/logs/NAME.log, also when it fails. DIR/table.json is made anew from all runs in DIR after each of them, so a second
call adds repeats or cases to it. Exit status 0: every requirement that was judged holds and nothing failed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

# `benchmarks` is no installed package: it is found from the root of the tree.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from benchmarks.h200 import cases
from benchmarks.h200.cases import Device, Scale
from benchmarks.h200.children import Outcome, VllmPlace, run_child
from benchmarks.h200.jobs import Job
from benchmarks.h200.prompts import draw
from benchmarks.h200.table import SCHEMA as TABLE_SCHEMA
from benchmarks.h200.table import build_rows, format_table, write_table
from neobench.harness.runner import RunContext
from neobench.neo_engine.config import resolve_shape
from neobench.neo_engine.hf_config import write_config
from neobench.results.store import encode_pretty

RUN_SCHEMA = "neobench/h200-run/v1"
LEAST_JOB_S = 20.0
"""A job that would have less time than this is not started."""


@dataclass(frozen=True)
class Options:
    out: Path
    cases: tuple[str, ...]
    repeats: int
    measurements: int
    """In each process."""
    deadline_s: float | None
    """On time.monotonic; None: no limit."""
    scale: Scale
    device: Device
    only: str
    thorough: bool
    vllm: VllmPlace | None
    context: RunContext


def parse(arguments: Sequence[str]) -> tuple[Options, bool]:
    """The options, and whether jobs are only to be listed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; may hold earlier ones")
    parser.add_argument("--cases", default=",".join(cases.CASES), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each measurement, default: %(default)s")
    parser.add_argument(
        "--measurements", type=int, default=1, help="in each run of one that serves requests, default: %(default)s"
    )
    parser.add_argument("--time-limit-s", type=float, help="of the whole call; what does not fit is left out")
    parser.add_argument("--only", default="", help="regular expression: of case/system, the ones to run")
    parser.add_argument("--scale", choices=get_args(Scale), default="full")
    parser.add_argument("--device", choices=get_args(Device), default="cuda")
    parser.add_argument("--thorough", action="store_true", help="measure thorough cost tables first (minutes each)")
    parser.add_argument("--vllm-site", type=Path, help="folder of packages with vLLM, for its child's PYTHONPATH")
    parser.add_argument("--vllm-python", help="an interpreter that has vLLM, instead of or beside --vllm-site")
    parser.add_argument("--commit", help="of a tree that came without its .git folder")
    parser.add_argument("--list", action="store_true", help="show the jobs and start nothing")
    given = parser.parse_args(arguments)
    chosen = tuple(given.cases.split(","))
    if unknown := [case for case in chosen if case not in cases.CASES]:
        parser.error(f"unknown case {unknown[0]!r}; cases are {', '.join(cases.CASES)}")
    if min(given.repeats, given.measurements) < 1:
        parser.error("--repeats and --measurements must be at least 1")
    context = RunContext.capture(["python", "benchmarks/h200/run.py", *arguments])
    if given.commit:
        context.fingerprint["source"] = {"commit": given.commit, "dirty": False}
    has_vllm = given.vllm_site is not None or given.vllm_python is not None
    options = Options(
        out=given.out,
        cases=chosen,
        repeats=given.repeats,
        measurements=given.measurements,
        deadline_s=time.monotonic() + given.time_limit_s if given.time_limit_s else None,
        scale=given.scale,
        device=given.device,
        only=given.only,
        thorough=given.thorough,
        vllm=VllmPlace(given.vllm_python or sys.executable, given.vllm_site) if has_vllm else None,
        context=context,
    )
    return options, given.list


def planned(options: Options) -> Iterator[Job]:
    """Case by case; within one, systems take turns, so that a machine that drifts drifts for all of them."""
    for case in options.cases:
        made = cases.jobs(case, scale=options.scale, device=options.device, thorough=options.thorough)
        for repeat in range(options.repeats):
            for job in made:
                if re.search(options.only, job.name) and not (job.once and repeat):
                    yield job


def measure(options: Options, job: Job) -> dict[str, Any]:
    """Run a job in its child; the run file's content."""
    started = time.monotonic()
    provenance = replace(options.context, kind="emulated" if _is_emulated(job) else "measured").provenance()
    limit_s = job.limit_s
    if options.deadline_s is not None:
        limit_s = min(limit_s, options.deadline_s - started)
    log_path = options.out / "logs" / f"{_file_name(options, job)}.log"
    outcome = _with_files(options, job, limit_s, log_path)
    answer = outcome.answer or {"metrics": {}, "facts": {}, "raw": {}}
    return {
        "schema": RUN_SCHEMA,
        "job": asdict(job),
        "outcome": "failed" if outcome.answer is None else "ok",
        "reason": outcome.reason,
        **answer,
        "wall_s": round(time.monotonic() - started, 1),
        "scale": options.scale,
        "device": options.device,
        "provenance": msgspec.to_builtins(provenance),
        "fingerprint": options.context.fingerprint,
    }


def _with_files(options: Options, job: Job, limit_s: float, log_path: Path) -> Outcome:
    """The child with the files that its settings name: prompts, and for vLLM a folder with config.json."""
    settings = {**job.settings, "measurements": options.measurements}
    with tempfile.TemporaryDirectory(prefix="neobench-h200-") as folder:
        if job.prompts is not None:
            parts = {job.case: job.prompts, **job.also}
            settings["parts"] = [{"case": case, "path": str(Path(folder, f"{case}.json"))} for case in parts]
            for case, prompts in parts.items():
                draw(Path(folder, f"{case}.json"), **prompts)
        if job.child == "vllm_child":
            settings["model_folder"] = str(Path(folder, "model"))
            write_config(Path(folder, "model"), resolve_shape(settings["model"]), settings["llm"]["dtype"])
        told = replace(job, settings=settings)
        return run_child(told, limit_s=limit_s, log_path=log_path, vllm=options.vllm or VllmPlace())


def _is_emulated(job: Job) -> bool:
    engine = job.settings.get("engine", {})
    return bool(engine.get("emulate") or engine.get("sms"))


def _file_name(options: Options, job: Job) -> str:
    """The next free one: a run never overwrites another."""
    stem = re.sub(r"[^\w.-]+", "-", job.name)
    number = 1
    while (options.out / "runs" / f"{stem}-{number}.json").exists():
        number += 1
    return f"{stem}-{number}"


def read_runs(options: Options) -> list[dict[str, Any]]:
    """All runs in the folder, a record for each measurement.

    Raises SystemExit if one was made at another scale or on another device.
    """
    runs = [json.loads(path.read_text()) for path in sorted((options.out / "runs").glob("*.json"))]
    for run in runs:
        if (run["scale"], run["device"]) != (options.scale, options.device):
            raise SystemExit(
                f"{options.out} has runs of scale {run['scale']} on {run['device']}: choose another --out "
                f"for scale {options.scale} on {options.device}"
            )
    return [record for run in runs for record in (run, *(_further(run, part) for part in run.get("again", ())))]


def _further(run: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The record of a further measurement of the run's process."""
    measured = {name: part[name] for name in ("metrics", "facts", "raw")}
    return {**run, **measured, "job": {**run["job"], "case": part["case"]}}


def write_rows(options: Options) -> list[dict[str, Any]]:
    """table.json from all runs in the folder; its rows."""
    runs = read_runs(options)
    measured = {run["job"]["case"] for run in runs}
    shown = [
        comparison
        for case in cases.CASES
        for comparison in cases.comparisons(case, scale=options.scale, device=options.device)
        if case in options.cases or comparison.case in measured
    ]
    rows = build_rows(runs, shown, judged=(options.scale, options.device) == ("full", "cuda"))
    document = {
        "schema": TABLE_SCHEMA,
        "scale": options.scale,
        "device": options.device,
        "rows": rows,
        "provenance": msgspec.to_builtins(options.context.provenance()),
    }
    write_table(options.out / "table.json", document)
    return rows


def left_out(options: Options, job: Job) -> str | None:
    """Why a job is not to be started now."""
    if job.child == "vllm_child" and options.vllm is None:
        return "neither --vllm-site nor --vllm-python is given"
    if job.once and any(run["outcome"] == "ok" and run["job"] == asdict(job) for run in read_runs(options)):
        return "done before"
    if options.deadline_s is not None and options.deadline_s - time.monotonic() < LEAST_JOB_S:
        return "no time left"
    return None


def main(arguments: Sequence[str]) -> int:
    options, only_list = parse(arguments)
    if only_list:
        for job in planned(options):
            print(f"{job.name} ({job.limit_s:.0f} s at most)")
        return 0
    for folder in ("runs", "logs"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    write_rows(options)
    failures = 0
    for job in planned(options):
        if reason := left_out(options, job):
            print(f"{job.name}: left out, {reason}", flush=True)
            continue
        run = measure(options, job)
        (options.out / "runs" / f"{_file_name(options, job)}.json").write_bytes(encode_pretty(run))
        write_rows(options)
        failures += run["outcome"] != "ok"
        print(f"{job.name}: {run['reason'] or _short(run['metrics'])} ({run['wall_s']:.0f} s)", flush=True)
    rows = write_rows(options)
    print(format_table(rows))
    return 1 if failures or any(row["passed"] is False for row in rows) else 0


def _short(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:3])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
