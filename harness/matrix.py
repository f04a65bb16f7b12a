"""Sweep files: strict YAML in, the settings of every point out. What a setting means is the command line's business."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

_SECTIONS = ("defaults", "matrix", "include", "exclude", "repeats")

Scalar = str | int | float | bool


class SweepError(ValueError):
    """A sweep file that cannot be used; the message begins with the line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


@dataclass(frozen=True)
class Settings:
    """Of one point, by name; `line` is where it comes from."""

    line: int
    values: Mapping[str, Scalar | list[Scalar]]

    def covers(self, other: Settings) -> bool:
        return all(str(other.values.get(name)) == str(value) for name, value in self.values.items())


@dataclass(frozen=True)
class Sweep:
    points: list[Settings]
    repeats: int


def load_sweep(text: str, known: Collection[str]) -> Sweep:
    """`known` are the names a setting can have, with hyphens; underscores in the file do too. Raises SweepError.

    The points are the product of the lists under `matrix`, the last one fastest, each on top of `defaults`, less those
    that an entry of `exclude` covers, and then each entry of `include` on top of `defaults`.
    """
    reader = _Reader(known)
    sections = reader.sections(text)
    defaults = reader.settings(sections["defaults"]).values if "defaults" in sections else {}
    points = []
    if "matrix" in sections:
        line, axes = reader.axes(sections["matrix"])
        for combination in itertools.product(*axes.values()):
            points.append(Settings(line, {**defaults, **dict(zip(axes, combination, strict=True))}))
    for entry in reader.entries(sections.get("exclude")):
        kept = [point for point in points if not entry.covers(point)]
        if len(kept) == len(points):
            raise SweepError(entry.line, "this entry of exclude covers no point of the matrix")
        points = kept
    points += [Settings(one.line, {**defaults, **one.values}) for one in reader.entries(sections.get("include"))]
    if not points:
        raise SweepError(
            1, "no points: give a matrix, e.g. matrix: {engine: [neo, gpu_only], rate: [2, 4]}, or include"
        )
    return Sweep(points, reader.repeats(sections.get("repeats")))


class _Reader:
    """Of yaml nodes rather than values, for nodes know their lines."""

    def __init__(self, known: Collection[str]) -> None:
        self._known = known

    def sections(self, text: str) -> dict[str, yaml.Node]:
        try:
            root = yaml.compose(text, yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise SweepError(mark.line + 1 if mark else 1, f"not YAML: {error.problem}") from None
        if root is None:
            raise SweepError(1, f"the file is empty; it has sections {', '.join(_SECTIONS)}")
        return self._mapping(root, _SECTIONS, "section")

    def settings(self, node: yaml.Node) -> Settings:
        names = self._mapping(node, self._known, "setting")
        return Settings(_line(node), {name: self._setting(value) for name, value in names.items()})

    def axes(self, node: yaml.Node) -> tuple[int, dict[str, list[Scalar]]]:
        axes = {}
        for name, value in self._mapping(node, self._known, "setting").items():
            values = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not values:
                raise SweepError(_line(value), f"{name} has no values")
            axes[name] = [_scalar(item) for item in values]
            texts = [str(item) for item in axes[name]]
            twice = next((text for text in texts if texts.count(text) > 1), None)
            if twice is not None:
                raise SweepError(_line(value), f"{name} has {twice} twice")
        return _line(node), axes

    def entries(self, node: yaml.Node | None) -> list[Settings]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise SweepError(_line(node), "a list of settings is wanted here: - {engine: neo, rate: 2}")
        return [self.settings(item) for item in node.value]

    def repeats(self, node: yaml.Node | None) -> int:
        value = 1 if node is None else _scalar(node)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SweepError(_line(node) if node else 1, f"repeats is a whole number, 1 or more, not {value!r}")
        return value

    def _setting(self, node: yaml.Node) -> Scalar | list[Scalar]:
        return [_scalar(item) for item in node.value] if isinstance(node, yaml.SequenceNode) else _scalar(node)

    def _mapping(self, node: yaml.Node, known: Collection[str], kind: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise SweepError(_line(node), f"names and values are wanted here, one {kind} a line")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value).replace("_", "-")
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise SweepError(_line(key), f"unknown {kind} {key.value!r}; the nearest known one is {nearest!r}")
            if name in found:
                raise SweepError(_line(key), f"{key.value!r} is there twice")
            found[name] = value
        return found


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _scalar(node: yaml.Node) -> Scalar:
    value: Any = yaml.safe_load(yaml.serialize(node)) if isinstance(node, yaml.ScalarNode) else None
    if not isinstance(value, Scalar):
        hint = '; the engine null goes in quotes: "null"' if isinstance(node, yaml.ScalarNode) and value is None else ""
        raise SweepError(_line(node), f"a single value is wanted here: a text, a number, true or false{hint}")
    return value
