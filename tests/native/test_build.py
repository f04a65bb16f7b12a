"""The build: gathers fail it, and without the native module the package still imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neobench import pacpu

COMPILE_SCRIPT = Path(pacpu.__file__).resolve().parent / "compile_ispc.cmake"
LOOP = (
    "export void f(uniform float a[], uniform int at[], uniform float b[], uniform int n) "
    "{{ foreach (i = 0 ... n) {{ {} }} }}"
)


def ispc() -> str | None:
    private = COMPILE_SCRIPT.parent.parent / ".cache/ispc/bin"
    return os.environ.get("NEOBENCH_ISPC") or shutil.which("ispc") or shutil.which("ispc", path=private)


@pytest.mark.parametrize(
    ("body", "fails"), [("b[i] = a[at[i]];", True), ("b[at[i]] = a[i];", True), ("b[i] = a[i] + at[i];", False)]
)
@pytest.mark.parametrize("target", ["avx2-i32x8", "avx512skx-x16"])
def test_gathers_and_scatters_fail_the_build(target, body, fails, tmp_path):
    compiler, cmake = ispc(), shutil.which("cmake") or shutil.which("cmake", path=Path(sys.executable).parent)
    if compiler in (None, "off") or cmake is None or not COMPILE_SCRIPT.exists():
        pytest.skip("needs ISPC, CMake and the sources")
    source, built = tmp_path / "kernel.ispc", tmp_path / "kernel.o"
    source.write_text(LOOP.format(body))
    definitions = {"ISPC": compiler, "SOURCE": source, "OBJECT": built, "TARGET": target, "DEFINITIONS": "UNUSED"}
    command = [cmake, *(f"-D{name}={value}" for name, value in definitions.items()), "-P", COMPILE_SCRIPT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode != 0, built.exists()) == (fails, not fails), result.stderr
    assert ("gather or scatter in" in result.stderr) == fails


def test_build_info_and_targets_agree():
    info = pacpu.build_info()
    assert info["compiler"]
    assert set(pacpu.targets()) <= set(info["compiled_targets"])
    assert (info["ispc"] is not None) == any(name.startswith("ispc_") for name in info["compiled_targets"])
    assert pacpu.targets()[-1] == "cpp"


def run_without_native_module(code: str) -> subprocess.CompletedProcess[str]:
    hide = "import sys; sys.modules['neobench.pacpu._pacpu'] = None\n"
    return subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True, check=False)


def test_without_the_native_module_use_is_an_error_with_the_fix():
    result = run_without_native_module("from neobench import pacpu; pacpu.paged_decode_reference; pacpu.WorkerPool(1)")
    assert "NativeModuleError: neobench was installed without its native CPU attention" in result.stderr
    assert "pip install ." in result.stderr


def test_importing_needs_neither_torch_nor_the_native_module():
    result = run_without_native_module("import neobench.pacpu; assert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr
