"""A vLLM that does not start: real processes of a package that stands in for it, and says what vLLM says then."""

from __future__ import annotations

import socket
import stat
import sys
from pathlib import Path

import pytest

from neobench.engines import vllm
from neobench.engines.launch import Launch
from neobench.engines.registry import create
from neobench.harness.engine import EngineError

OUT_OF_GPU_MEMORY = """
print("(EngineCore pid=7) ERROR 11-02 10:00:00 [core.py:790] torch.OutOfMemoryError: CUDA out of memory. "
      "Tried to allocate 448.00 MiB. GPU 0 has a total capacity of 14.56 GiB of which 95.81 MiB is free.")
raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
"""
LITTLE_GPU_MEMORY = """
raise ValueError("Free memory on device (3.2/14.56 GiB) on startup is less than desired GPU memory utilization "
                 "(0.9, 13.1 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.")
"""
NO_ROOM_FOR_KV = """
raise ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
                 "initializing the engine.")
"""
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
PORT_TAKEN = """
import socket, sys
socket.socket().bind(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
"""
UNKNOWN_FLAG = """
import argparse
parser = argparse.ArgumentParser(prog="vllm")
parser.add_argument("command")
parser.parse_args(["serve", "--no-such-flag"])
"""


def installed(folder: Path, main: str, version: str | None = "0.32.0+cpu") -> str:
    """A Python that finds a package vllm whose command line runs `main`; without a version it does not tell one."""
    cli = folder / "site" / "vllm" / "entrypoints" / "cli"
    cli.mkdir(parents=True)
    for package in (cli, cli.parent, cli.parent.parent):
        (package / "__init__.py").touch()
    (cli / "main.py").write_text(main)
    if version is not None:
        metadata = folder / "site" / f"vllm-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder / "site"}" exec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return str(python)


async def failure(folder: Path, python: str, said: list[str] | None = None, device: str = "cpu") -> str:
    """What a user is told of a start that fails."""
    options = {"engine_python": python, "start_timeout_s": 30, "device": device}
    launch = Launch(
        model="tiny", options=options, log_path=folder / "vllm.log", progress=([] if said is None else said).append
    )
    engine = create("vllm", launch)
    try:
        with pytest.raises(EngineError) as raised:
            await engine.start()
    finally:
        await engine.stop()
    return str(raised.value)


@pytest.mark.parametrize(
    ("main", "cause", "advice"),
    [
        (OUT_OF_GPU_MEMORY, "OutOfMemoryError: CUDA out of memory. Tried", "Memory is short: fewer --device-blocks"),
        (LITTLE_GPU_MEMORY, "ValueError: Free memory on device (3.2/14.56", "a lower --device-memory-fraction"),
        (NO_ROOM_FOR_KV, "ValueError: No available memory for the cache", "Memory is short: fewer --device-blocks"),
        (KILLED, "Something killed it, most likely the kernel for want of memory", "fewer --device-blocks"),
        (UNKNOWN_FLAG, "unrecognized arguments: --no-such-flag", "leave it out of --vllm-args"),
    ],
)
async def test_the_first_lines_give_cause_and_remedy(tmp_path: Path, main: str, cause: str, advice: str) -> None:
    told = await failure(tmp_path, installed(tmp_path, main))
    first = " ".join(told.splitlines()[:2])
    assert first.startswith(cause)
    assert advice in first
    assert "the server died: " in told
    assert "untried" not in told


async def test_a_port_that_another_program_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        monkeypatch.setattr(vllm, "free_port", lambda: other.getsockname()[1])
        told = await failure(tmp_path, installed(tmp_path, PORT_TAKEN))
    assert told.startswith("OSError: [Errno 98] Address already in use\nAnother program took the port")
    assert "run it again" in told


@pytest.mark.parametrize("version", ["0.10.2", "0.9.0+cpu"])
async def test_a_release_that_is_too_old_is_not_even_started(tmp_path: Path, version: str) -> None:
    python = installed(tmp_path, KILLED, version)
    told = await failure(tmp_path, python)
    assert told == f"vLLM {version} of {python} is too old: install 0.11 or newer there"
    assert not (tmp_path / "vllm.log").exists()


@pytest.mark.parametrize(
    ("version", "which", "device"),
    [("1.7.0+cpu", "1.7.0+cpu is untried", "cpu"), (None, "does not say its version", "cuda")],
)
async def test_a_release_that_nobody_tried_is_started_and_told_of(
    tmp_path: Path, version: str | None, which: str, device: str
) -> None:
    said: list[str] = []
    told = await failure(tmp_path, installed(tmp_path, NO_ROOM_FOR_KV, version), said, device)
    note = f"Note: this vLLM {which}; releases 0.26 to 0.32 are known to work: install one if this one fails"
    assert note in said
    assert f"{note}." in told
    assert told.startswith("ValueError: No available memory")
