import errno
import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import pyarrow.parquet as pq
import pytest

from neobench.results import store
from neobench.results.store import REQUESTS_FILE, RunFolder, StoreError, build_summary, iter_records, load_run

APPEND_FOREVER = """
import sys
from pathlib import Path
from neobench.results.record import Outcome, RequestRecord
from neobench.results.store import Provenance, RunFolder, RunInfo

folder = RunFolder.create(Path(sys.argv[1]))
provenance = Provenance(kind="measured", command=[], commit=None, started_at="now")
spec = {"engine": {"name": "null"}, "workload": {"name": "carperai"}, "model": "tiny"}
folder.write_run(RunInfo(spec=spec, spec_hash="x", num_requests=10**9, request_rate=1.0, provenance=provenance,
                         fingerprint={}, engine={}))
index = 0
while True:
    tokens = list(range(index, index + 500))
    folder.append(RequestRecord(index=index, prompt_tokens=1, requested_output_tokens=500, output_tokens=500,
                                scheduled_ns=index, issued_ns=index, first_token_ns=index, token_ns=tokens,
                                ended_ns=index + 500, outcome=Outcome.OK))
    index += 1
"""


@pytest.fixture
def finished(tmp_path, run_info, make_record):
    path = tmp_path / "run"
    folder = RunFolder.create(path)
    folder.write_run(run_info)
    for index in range(3):
        folder.append(make_record(index, scheduled=index, tokens_at=(index + 10, index + 12)))
    folder.finish(build_summary(run_info, folder.columns, engine_stats={"iterations": 4}))
    return path


def test_round_trip(finished, run_info):
    run = load_run(finished)
    assert run.complete
    assert run.problems == ()
    assert run.info == run_info
    assert len(run.columns) == 3
    assert run.summary == json.loads((finished / "summary.json").read_text())
    assert run.summary["schema"] == "neobench/v1"
    assert run.summary["engine_stats"] == {"iterations": 4}
    assert pq.read_table(finished / "requests.parquet").num_rows == 3
    assert sorted(path.name for path in finished.iterdir()) == [
        "requests.jsonl",
        "requests.parquet",
        "run.json",
        "summary.json",
    ]


def test_never_overwritten(finished, tmp_path):
    with pytest.raises(StoreError, match="not empty"):
        RunFolder.create(finished)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create"):
        RunFolder.create(tmp_path / "file")


def test_a_killed_run_is_readable(tmp_path):
    path = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", APPEND_FOREVER, str(path)])
    deadline = time.monotonic() + 20
    rows = path / REQUESTS_FILE
    while not (rows.exists() and rows.stat().st_size > 1_000_000):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    run = load_run(path)
    assert not run.complete
    assert len(run.columns) > 100
    assert run.columns.integers("index").tolist() == list(range(len(run.columns)))
    assert run.summary["completed"] == len(run.columns)
    assert not run.summary["validity"]["valid"]
    assert "was cut short" in run.summary["validity"]["reasons"][0]


def test_a_folder_of_several_client_processes_has_no_file_of_its_own_rows_without_rows(tmp_path, run_info, make_record):
    info = msgspec.structs.replace(run_info, spec={**run_info.spec, "client_processes": 2})
    path = tmp_path / "run"
    folder = RunFolder.create(path, shared=True)
    folder.write_run(info)
    run = load_run(path)
    assert (len(run.columns), run.complete) == (0, False)
    (path / "requests-00.jsonl").write_bytes(msgspec.json.encode(make_record(0)) + b"\n")
    assert len(load_run(path).columns) == 1
    assert not (path / REQUESTS_FILE).exists()
    folder.append(make_record(1))
    folder.close()
    assert sorted(load_run(path).columns.integers("index")) == [0, 1]
    (path / REQUESTS_FILE).unlink()
    (path / "requests-00.jsonl").unlink()
    folder.write_run(run_info)
    with pytest.raises(StoreError, match=r"cannot read .*requests\.jsonl"):
        load_run(path)


def test_a_half_written_last_line_is_tolerated_and_reported(finished):
    (finished / "summary.json").unlink()
    rows = finished / REQUESTS_FILE
    rows.write_bytes(rows.read_bytes()[:-20])
    run = load_run(finished)
    assert len(run.columns) == 2
    assert run.problems == ("The last line of requests.jsonl (line 3) was half written.",)
    assert run.problems[0] in run.summary["validity"]["reasons"]


@pytest.mark.parametrize("bad_line", [b"not json\n", b'{"index": 1}\n', b'{"index": 1, "unheard_of": 2}\n'])
def test_a_malformed_row_is_named_by_file_and_line(finished, bad_line):
    rows = finished / REQUESTS_FILE
    first, rest = rows.read_bytes().split(b"\n", 1)
    rows.write_bytes(first + b"\n" + bad_line + rest)
    with pytest.raises(StoreError, match=r"requests\.jsonl, line 2: "):
        list(iter_records(finished))


def test_other_folders_and_other_schemas_are_refused(finished, tmp_path):
    with pytest.raises(StoreError, match="not a run folder"):
        load_run(tmp_path)
    run_file = finished / "run.json"
    run_file.write_text(run_file.read_text().replace("neobench/v1", "neobench/v9"))
    with pytest.raises(StoreError, match=r"'neobench/v9'.*'neobench/v1'"):
        load_run(finished)
    run_file.write_text("{")
    with pytest.raises(StoreError, match=r"run\.json"):
        load_run(finished)


def test_a_full_disk_is_reported_and_keeps_what_was_written(tmp_path, run_info, make_record, monkeypatch):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_run(run_info)
    folder.append(make_record(0))
    room = 30
    real_write = os.write

    def write_until_full(fd, data):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real_write(fd, data[:room])
        room -= written
        return written

    monkeypatch.setattr(store.os, "write", write_until_full)
    with pytest.raises(StoreError, match=r"the disk is full: .*requests\.jsonl; 1 records are kept"):
        folder.append(make_record(1))
    folder.close()
    run = load_run(tmp_path / "run")
    assert len(run.columns) == 1
    assert len(run.problems) == 1


def test_a_real_full_device_is_an_error_and_not_a_loss(tmp_path, make_record):
    folder = RunFolder.create(tmp_path / "run")
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - a device, not a file of ours
        os.dup2(full.fileno(), folder._log._open_fd())
    with pytest.raises(StoreError, match="the disk is full"):
        folder.append(make_record())
    folder.close()
    folder.close()


def test_a_failed_sync_stops_the_next_record(tmp_path, make_record, monkeypatch):
    folder = RunFolder.create(tmp_path / "run")

    def fail(_fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(store.os, "fsync", fail)
    with pytest.raises(StoreError, match="Input/output"):
        folder.sync()
    with pytest.raises(StoreError, match="Input/output"):
        folder.append(make_record())
    folder.close()


def test_an_unfinished_summary_never_bears_its_name(finished, monkeypatch):
    (finished / "summary.json").unlink()

    def fail(_fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        store._write_atomically(finished / "summary.json", b"{}")
    assert sorted(path.name for path in finished.iterdir()) == ["requests.jsonl", "requests.parquet", "run.json"]
