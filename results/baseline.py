"""Saved baselines: the figures of runs without their rows, named by content and small enough for version control.

baselines/<hash>.json is the content, baselines/NAME.ref holds the hash that NAME stands for. Saving under a name
again moves the name; what it stood for stays.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from neobench.results.points import Point, Side
from neobench.results.store import StoreError, encode_pretty

BASELINE_SCHEMA = "neobench/baseline/v1"
DEFAULT_FOLDER = Path("baselines")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASH = re.compile(r"[0-9a-f]{16}")


class _Baseline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: str = BASELINE_SCHEMA
    points: list[Point]


def save_baseline(name: str, side: Side, folder: Path) -> Path:
    """The file with the content. Raises StoreError, also for a side without runs or with an invalid one."""
    if not _NAME.fullmatch(name):
        raise StoreError(f"a baseline's name has letters, digits, '.', '_' and '-' only, not {name!r}")
    if not side.points:
        raise StoreError(f"{side.name} holds no runs to save as a baseline")
    invalid = [run for point in side.points for run in point.runs if not run.valid]
    if invalid:
        raise StoreError(f"{invalid[0].name} is invalid and cannot be a baseline: {' '.join(invalid[0].reasons)}")
    content = encode_pretty(_Baseline(points=side.points))
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = folder / f"{digest}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(path, content)
        _write_whole(folder / f"{name}.ref", f"{digest}\n".encode())
    except OSError as error:
        raise StoreError(f"cannot write the baseline {name} into {folder}: {error.strerror}") from error
    return path


def is_baseline(name: str, folder: Path) -> bool:
    return _NAME.fullmatch(name) is not None and (folder / f"{name}.ref").exists()


def load_baseline(name: str, folder: Path) -> Side:
    """Raises StoreError, also for content that was changed after it was saved."""
    reference = folder / f"{name}.ref"
    try:
        digest = reference.read_text().strip()
        if not _HASH.fullmatch(digest):
            raise StoreError(f"{reference} should hold the 16 digits of a baseline's hash")
        path = folder / f"{digest}.json"
        content = path.read_bytes()
    except UnicodeDecodeError:
        raise StoreError(f"{reference} should hold the 16 digits of a baseline's hash") from None
    except OSError as error:
        raise StoreError(f"cannot read {error.filename}: {error.strerror}; was it put under version control?") from None
    if hashlib.sha256(content).hexdigest()[:16] != digest:
        raise StoreError(f"{path} was changed after it was saved; restore it, or save the baseline {name} again")
    try:
        schema = msgspec.json.decode(content).get("schema")
        if schema != BASELINE_SCHEMA:
            raise StoreError(f"{path} has schema {schema!r}; this version reads {BASELINE_SCHEMA!r}")
        return Side(name=name, points=msgspec.json.decode(content, type=_Baseline).points)
    except (msgspec.MsgspecError, AttributeError) as error:
        raise StoreError(f"{path}: {error}") from None


def known_baselines(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.ref"))


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)
