"""Real child processes: small servers that misbehave in every way a real one does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from neobench.engines.launch import keep_silent
from neobench.engines.process import ServerProcess, free_port
from neobench.harness.engine import EngineError

HEALTHY = """
import http.server, signal, subprocess, sys, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
print("loading the model", flush=True)
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
"""


def server(tmp_path: Path, script: str) -> ServerProcess:
    port = free_port()
    path = tmp_path / "server.py"
    path.write_text(script)
    return ServerProcess([sys.executable, str(path), str(port)], port=port, log_path=tmp_path / "logs" / "server.log")


@contextlib.asynccontextmanager
async def started(process: ServerProcess) -> AsyncIterator[ServerProcess]:
    await process.start(timeout_s=20, progress=keep_silent)
    try:
        yield process
    finally:
        await process.stop()


def is_running(pid: int) -> bool:
    """A zombie counts as gone: it only waits for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        await asyncio.sleep(0.02)


async def test_start_and_stop(tmp_path: Path) -> None:
    process = server(tmp_path, HEALTHY + "server.serve_forever()")
    async with started(process):
        process.check_alive()
        pid = process.pid
        assert pid is not None
        assert os.getpgid(pid) == pid != os.getpgid(0)
    assert not is_running(pid)
    await process.stop()
    assert (tmp_path / "logs" / "server.log").read_text() == "loading the model\n"


async def test_a_server_that_dies_at_once_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "server.log").write_text("left by an earlier server\n")
    process = server(tmp_path, "for n in range(40): print('line', n)\nraise SystemExit('no such model: x')")
    with pytest.raises(EngineError, match="exit status 1") as caught:
        await process.start(timeout_s=20, progress=keep_silent)
    lines = str(caught.value).splitlines()
    # What goes to stderr is not buffered and so comes first or last.
    assert "  no such model: x" in lines
    assert "  line 39" in lines or "  line 38" in lines
    assert len(lines) == 2 + 15
    assert "earlier server" not in str(caught.value)


async def test_a_server_killed_in_mid_run_is_reported_with_the_signal(tmp_path: Path) -> None:
    async with started(server(tmp_path, HEALTHY + "server.serve_forever()")) as process:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await wait_until_gone(process.pid)
        with pytest.raises(EngineError, match=r"killed by SIGKILL\.\n.*\n  loading the model"):
            process.check_alive()


async def test_a_server_that_never_gets_ready_is_stopped(tmp_path: Path) -> None:
    process = server(tmp_path, "import time; print('reading weights', flush=True); time.sleep(60)")
    messages: list[str] = []
    with pytest.raises(EngineError, match=r"not ready after 1\.2 s.\n.*\n  reading weights"):
        await process.start(timeout_s=1.2, progress=messages.append)
    assert messages == ["waiting for the server (1 s): reading weights"]
    assert process.pid is not None
    assert not is_running(process.pid)


async def test_sigterm_that_is_ignored_is_followed_by_sigkill_of_the_group(tmp_path: Path) -> None:
    script = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print("worker", worker.pid, flush=True)
        server.serve_forever()
    """
    process = server(tmp_path, HEALTHY + textwrap.dedent(script))
    await process.start(timeout_s=20, progress=keep_silent)
    worker_pid = int((tmp_path / "logs" / "server.log").read_text().split()[-1])
    assert is_running(worker_pid)
    started_s = time.monotonic()
    await process.stop(grace_s=0.3)
    assert 0.3 <= time.monotonic() - started_s < 5
    assert process.pid is not None
    await wait_until_gone(process.pid)
    await wait_until_gone(worker_pid)


async def test_workers_left_behind_by_a_server_that_went_quietly_are_killed(tmp_path: Path) -> None:
    script = """
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print("worker", worker.pid, flush=True)
        server.serve_forever()
    """
    async with started(server(tmp_path, HEALTHY + textwrap.dedent(script))):
        worker_pid = int((tmp_path / "logs" / "server.log").read_text().split()[-1])
    await wait_until_gone(worker_pid)


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    process = server(tmp_path, "import time; time.sleep(60)")
    task = asyncio.create_task(process.start(timeout_s=30, progress=keep_silent))
    while process.pid is None:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_running(process.pid)


async def test_another_program_on_the_port_does_not_pass_for_the_server(tmp_path: Path) -> None:
    async def start_and_watch(process: ServerProcess) -> None:
        await process.start(timeout_s=20, progress=keep_silent)
        while True:
            process.check_alive()
            await asyncio.sleep(0.01)

    async with started(server(tmp_path, HEALTHY + "server.serve_forever()")) as other:
        port = int(other.url.rpartition(":")[2])
        process = ServerProcess([sys.executable, "-c", "exit(7)"], port=port, log_path=tmp_path / "second.log")
        with pytest.raises(EngineError, match="exit status 7"):
            await asyncio.wait_for(start_and_watch(process), 10)


async def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    process = ServerProcess(["/nowhere/server"], port=free_port(), log_path=tmp_path / "server.log")
    with pytest.raises(EngineError, match="cannot run /nowhere/server: No such file"):
        await process.start(timeout_s=20, progress=keep_silent)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_the_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = f"""
        import asyncio, sys, time
        from pathlib import Path
        from neobench.engines.process import ServerProcess
        async def main():
            command = [sys.executable, "-c", "import time; time.sleep(60)"]
            process = ServerProcess(command, port=1, log_path=Path({str(tmp_path / "server.log")!r}))
            process._spawn()
            print(process.pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server_pid = int(parent.stdout.readline())
        deadline = time.monotonic() + 10
        while Path(f"/proc/{server_pid}/cmdline").read_bytes().split(b"\0")[1:2] != [b"-c"]:
            assert time.monotonic() < deadline, "the wrapper has not become the server"
            await asyncio.sleep(0.02)
        parent.kill()
    await wait_until_gone(server_pid)


def test_the_wrapper_does_not_start_a_server_for_a_parent_that_is_gone() -> None:
    from neobench.engines import die_with_parent

    command = [sys.executable, "-I", die_with_parent.__file__, "1", sys.executable, "-c", "print('running')"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is gone" in done.stderr
    assert not done.stdout
