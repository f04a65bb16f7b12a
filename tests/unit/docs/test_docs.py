"""Documents may name only files, modules and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neobench.cli import _COMMANDS

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def is_there(name: str) -> bool:
    places = (ROOT, ROOT / "src/neobench", ROOT / "neo_engine", ROOT / "docs")
    return any((place / name).exists() for place in places)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_in_backquotes_exists(page: Path) -> None:
    quoted = re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:py|md|sh|toml))`", page.read_text())
    paths = [name for name in quoted if not name.startswith(("runs", "/", "neobench/v1"))]
    assert [name for name in paths if not is_there(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_image_is_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page: Path) -> None:
    commands = re.findall(r"`(?:\.venv/bin/)?neobench ([a-z][a-z-]*)", page.read_text())
    assert set(commands) <= set(_COMMANDS)
