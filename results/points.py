"""Run folders gathered into points: repeats of one engine under one load, with what makes them comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from neobench.results.directions import find_direction
from neobench.results.store import RUN_FILE, SUMMARY_FILE, RunInfo, StoreError, load_run, read_run_info, read_summary

_SEEDS = ("length_seed", "prompt_seed", "order_seed", "seed")
_SEED_OF_SESSIONS = "session_seed"
_SWEEP_POINTS, _SWEEP_STATUS = "points", "point.json"


class RunFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a comparison needs of one run."""

    name: str
    started_at: str
    commit: str | None
    draw: str
    """A hash of the seeds of lengths, prompts, order and arrivals: which sample of the workload it was."""
    valid: bool
    reasons: list[str]
    metrics: dict[str, float]
    """Those that have a direction and a value."""


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Repeated runs of one engine under one load on one machine."""

    engine: str
    settings: str
    """A hash of the engine's options."""
    identity: dict[str, str]
    """Field -> value, in words and where needed a hash; points that differ in one are not comparable."""
    runs: list[RunFigures]

    @property
    def title(self) -> str:
        workload = self.identity["workload"].rpartition(" ")[0]
        return f"{self.engine}, {workload}, {self.identity['load']}"


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a comparison."""

    name: str
    points: list[Point]
    problems: list[str] = []
    """What could not be read, a line each."""


def read_side(name: str, paths: Iterable[Path]) -> Side:
    """All runs in these folders and below them; what cannot be read becomes a problem, and the rest is kept."""
    points: dict[str, Point] = {}
    problems: list[str] = []
    for folder in dict.fromkeys(folder for path in paths for folder in run_folders(path)):
        try:
            point = read_point(folder)
        except StoreError as error:
            problems.append(str(error))
            continue
        key = _hash([point.engine, point.settings, point.identity])
        known = points.setdefault(key, point)
        if known is not point:
            known.runs.extend(point.runs)
    return Side(name=name, points=list(points.values()), problems=problems)


def expand(argument: str) -> list[Path]:
    """A folder, or what a pattern with * ? [] matches, in the order of names."""
    path = Path(argument)
    if path.exists() or not argument:
        return [path] if argument else []
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def run_folders(path: Path) -> list[Path]:
    """The folder itself, or all below it that hold a run; of a sweep only attempts that it counts as measured.

    A folder without any is given back as it is, for its reader to say what is wrong with it.
    """
    if (path / RUN_FILE).exists():
        return [path]
    below = sorted(found.parent for found in path.rglob(RUN_FILE))
    counted = [one for one in below if one.parent.name != _SWEEP_POINTS or (one / _SWEEP_STATUS).exists()]
    return counted or [path]


def read_point(folder: Path) -> Point:
    """A point of the one run in this folder. Rows are read only of a run that has no summary. Raises StoreError."""
    info = read_run_info(folder)
    summary = read_summary(folder) if (folder / SUMMARY_FILE).exists() else load_run(folder).summary
    try:
        return Point(
            engine=info.spec["engine"]["name"],
            settings=_hash(info.spec["engine"].get("options", {})),
            identity=identity_of(info),
            runs=[_figures(str(folder), info, summary)],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder} is not a run that can be compared: {type(error).__name__}: {error}") from None


def identity_of(info: RunInfo) -> dict[str, str]:
    spec = info.spec
    workload = _without_seeds(spec["workload"])
    facts = [workload, info.workload.get("workload"), [spec.get(key) for key in ("num_warmup", "exact_output")]]
    dtype = info.engine.get("dtype") or spec["engine"].get("options", {}).get("dtype")
    return {
        "workload": f"{workload['name']} x {info.num_requests} {_hash([facts, info.num_requests])}",
        "load": _load(_without_seeds(spec.get("arrival", {})), info.request_rate),
        "model": str(spec["model"]),
        "dtype": str(dtype or "not told"),
        "hardware": _hardware(info.fingerprint),
        "provenance": info.provenance.kind,
        "tool": info.provenance.tool,
    }


def _figures(name: str, info: RunInfo, summary: Mapping[str, Any]) -> RunFigures:
    spec = info.spec
    seeds = [
        spec.get("seed"),
        *({key: spec.get(part, {}).get(key) for key in _SEEDS} for part in ("workload", "arrival")),
    ]
    if spec["workload"].get("sessions"):
        seeds.append(spec["workload"].get(_SEED_OF_SESSIONS))
    return RunFigures(
        name=name,
        started_at=info.provenance.started_at,
        commit=info.provenance.commit,
        draw=_hash(seeds),
        valid=bool(summary["validity"]["valid"]),
        reasons=[str(reason) for reason in summary["validity"]["reasons"]],
        metrics={
            key: float(value)
            for key, value in summary.items()
            if isinstance(value, (int, float)) and find_direction(key) is not None
        },
    )


def _without_seeds(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in (*_SEEDS, _SEED_OF_SESSIONS) and value is not None}


def _load(arrival: Mapping[str, Any], request_rate: float | None) -> str:
    rest = {key: value for key, value in arrival.items() if key not in ("kind", "rate")}
    words = [str(arrival.get("kind", "")), *(f"{key} {value}" for key, value in rest.items())]
    rate = "all at once" if request_rate is None else f"{request_rate:g} req/s"
    return ", ".join([rate, *(word for word in words if word not in ("", "all_at_once"))])


def _hardware(fingerprint: Mapping[str, Any]) -> str:
    cpu = fingerprint.get("cpu") or {}
    gpus: Sequence[Mapping[str, Any]] = fingerprint.get("gpus") or []
    cores = cpu.get("quota_cores") or cpu.get("available_cores")
    names = [str(gpu.get("name")) for gpu in gpus]
    return ", ".join([*names, str(cpu.get("model") or "unknown CPU"), f"{cores or '?'} cores"])


def _hash(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted", enc_hook=str)).hexdigest()[:12]
