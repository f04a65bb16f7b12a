"""Engines that other packages bring, through entry points of the group "neobench.engines"."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from neobench.engines.entry import EngineEntry

GROUP = "neobench.engines"


class Plugin(NamedTuple):
    """What one entry point brings: an entry, or the reason why there is none."""

    name: str
    origin: str
    """The package that brings it, with its version."""
    entry: EngineEntry | None
    problem: str | None


def plugin(name: str) -> Plugin | None:
    """The one of that name, None if there is none; the others are not imported."""
    return next((_load(point) for point in _points() if point.name == name), None)


def plugins() -> list[Plugin]:
    """All of them, by name. A package that cannot be imported costs its own engines only."""
    return [_load(point) for point in _points()]


def plugin_names() -> list[str]:
    return [point.name for point in _points()]


def _points() -> list[EntryPoint]:
    """Of two packages with the same name for an engine, the one that is found first on the path has it."""
    first: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        first.setdefault(point.name, point)
    return sorted(first.values(), key=lambda point: point.name)


def _load(point: EntryPoint) -> Plugin:
    origin = "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    try:
        found = point.load()
        return Plugin(point.name, origin, _entry_of(found, point.value), None)
    except Exception as error:
        problem = f"{point.value} cannot be loaded: {type(error).__name__}: {error}"
        return Plugin(point.name, origin, None, problem)


def _entry_of(found: Any, path: str) -> EngineEntry:
    if isinstance(found, EngineEntry):
        return found
    if not callable(found):
        raise TypeError(f"it is neither an EngineEntry nor a callable that makes an Engine, but {found!r:.80}")
    description = (found.__doc__ or "").strip().partition("\n")[0]
    return EngineEntry(path, description or "no description")
