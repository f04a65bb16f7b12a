"""Every Triton kernel compiles for the GPUs we name and fits them: the interpreter accepts what the compiler does not.

It needs no GPU. A process that interprets cannot compile, so each architecture gets a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_MEMORY_BYTES = {75: 64 * 1024, 80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", SHARED_MEMORY_BYTES)
def test_kernels_compile(architecture, tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    script = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, *(["-S"] if sys.flags.no_site else []), str(script), str(architecture)]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = json.loads(done.stdout)
    assert {name.split()[0] for name in kernels} == {
        "_attend_span",
        "_merge_spans",
        "_add_rms_norm",
        "_rotate_and_store",
        "_silu_mul",
        "_unpack_tile",
        "_copy_runs",
    }
    for name, use in kernels.items():
        assert use["shared_bytes"] <= SHARED_MEMORY_BYTES[architecture], name
        assert use["stack_bytes"] <= 64, f"{name} does not fit the registers"
        if name.startswith("_attend_span") and architecture >= 80:
            assert use["matrix_products"] > 0, f"{name} computes without tensor cores"
            assert use["wide_copies"] >= 16, f"{name} loads K or V in pieces of less than 16 bytes"
