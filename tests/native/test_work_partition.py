"""How work is cut into items: by a program, for Python never sees them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from neobench import pacpu

SOURCES = Path(pacpu.__file__).resolve().parent / "src"


@pytest.mark.skipif(shutil.which("g++") is None or not SOURCES.exists(), reason="needs g++ and the sources")
def test_items_cover_every_tile_once_and_none_is_too_large(tmp_path):
    program = tmp_path / "check_partition"
    sources = [Path(__file__).parent / "check_partition.cpp", SOURCES / "work_partition.cpp"]
    subprocess.run(["g++", "-std=c++17", "-O1", f"-I{SOURCES}", *sources, "-o", program], check=True, timeout=120)
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout == "covered\n"
