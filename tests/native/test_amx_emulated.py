"""The AMX kernel where there is no AMX: its instructions emulated, its output that of the dot products."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from neobench import pacpu

SOURCES = Path(pacpu.__file__).resolve().parent / "src"
FLAGS = ["-std=c++17", "-O2", "-w", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma"]


@pytest.mark.skipif("avx512_bf16" not in pacpu.targets(), reason="compares with a kernel that needs AVX512_BF16")
@pytest.mark.skipif(shutil.which("g++") is None or not SOURCES.exists(), reason="needs g++ and the sources")
def test_the_amx_kernel_equals_the_dot_products(tmp_path):
    program = tmp_path / "amx_emulated"
    source = Path(__file__).parent / "amx_emulated.cpp"
    subprocess.run(["g++", *FLAGS, f"-I{SOURCES}", source, "-o", program], check=True, timeout=120)
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout == "equal\n"
