"""Run folders named after what they measure, so that a command that was killed goes on where it was."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neobench.cli.session import Session
    from neobench.harness.runner import RunContext


def point_hash(session: Session, engine: str, rate: float, context: RunContext, **more: Any) -> str:
    """16 hex digits of all that a measurement follows from: spec, the engine's seed, neobench's commit, and `more`."""
    import msgspec

    from neobench.cli.session import run_spec

    spec = msgspec.to_builtins(run_spec(session, engine, rate))
    facts = {"spec": spec, "seed": session.seed, "commit": context.provenance().commit, **more}
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()[:16]


def finished_run(stem: Path, file_name: str) -> Path | None:
    """The attempt at a point (stem, stem.2, ...) that has `file_name`, which is written last."""
    attempts = [stem, *sorted(stem.parent.glob(f"{stem.name}.*"))]
    return next((path for path in attempts if (path / file_name).exists()), None)


def new_run(stem: Path) -> Path:
    """A path for the next attempt: what a killed one left stays where it is."""
    number, path = 1, stem
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}.{number}")
    return path


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing, whatever kills the process."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)
