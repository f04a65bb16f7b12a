import asyncio
import os
import time

import pyarrow.parquet as pq
import pytest

from neobench.harness.engine import EngineError
from neobench.harness.runner import RunContext, run_one
from neobench.harness.spec import ArrivalSpec, EngineSpec, RunSpec, WorkloadSpec
from neobench.harness.telemetry.recorder import TelemetryRecorder, record_telemetry
from neobench.harness.telemetry.sampler import SamplerError
from neobench.results.store import load_run
from neobench.results.telemetry import TelemetryLog, read_telemetry

CONTEXT = RunContext(command=["neobench", "run"], fingerprint={})
SPEC = RunSpec(
    engine=EngineSpec(name="scripted"),
    workload=WorkloadSpec(name="test"),
    arrival=ArrivalSpec(kind="constant", rate=20.0),
    model="tiny",
    num_requests=12,
    num_warmup=1,
    timeout_s=10,
)


class Failing:
    def __init__(self, name, *, opens=True):
        self.name, self.opens, self.closed, self.samples = name, opens, False, 0

    def open(self):
        if not self.opens:
            raise SamplerError("nothing there")

    def sample(self):
        self.samples += 1
        if self.samples == 3:
            raise ZeroDivisionError("no time has passed")
        return {self.name: self.samples}

    def close(self):
        self.closed = True


async def run_with(engine, make_requests, path, interval_s=0.05):
    return await run_one(
        SPEC,
        make_requests(12),
        engine,
        path,
        context=CONTEXT,
        warmup=make_requests(1, first_index=12),
        telemetry_interval_s=interval_s,
    )


async def test_a_run_is_sampled_from_the_start_of_its_schedule(engine_class, make_requests, tmp_path):
    class Engine(engine_class):
        process_id = os.getpid()

        async def stats(self):
            return {"running_requests": float(self.in_flight), "device_kv_used_fraction": 0.5, "served": self.served}

    summary = await run_with(Engine(gap_s=0.02), make_requests, tmp_path / "run")
    telemetry = read_telemetry(tmp_path / "run")
    # Something else may keep this machine busy.
    assert all("fell behind" in why or "was busy" in why for why in summary["validity"]["reasons"])
    at_s, cpu = telemetry.series("cpu_percent")
    assert len(at_s) >= 2
    assert at_s[0] > 0
    last_end_s = load_run(tmp_path / "run").columns.instants_ms("ended_ns").max() / 1e3
    assert at_s[-1] <= last_end_s + 1
    assert ((cpu >= 0) & (cpu <= 100)).all()
    running_s, running = telemetry.series("running_requests")
    assert running.max() >= 1
    assert running_s[0] > 0
    machine = summary["machine"]
    assert machine["max_device_kv_used_fraction"] == 0.5
    assert machine["max_running_requests"] == running.max()
    assert machine["client_cpu_percent"] is not None
    assert machine["engine_cpu_percent"] is None
    assert machine["telemetry_samples"] == len(telemetry.rows)
    assert pq.read_table(tmp_path / "run" / "telemetry.parquet").num_rows == len(telemetry.rows)


async def test_a_run_without_telemetry_has_every_key_and_no_file(engine_class, make_requests, tmp_path):
    summary = await run_with(engine_class(), make_requests, tmp_path / "run", interval_s=0)
    assert summary["machine"]["cpu_percent"] is None
    assert summary["machine"]["telemetry_samples"] == 0
    assert not list((tmp_path / "run").glob("telemetry*"))


async def test_an_engine_whose_stats_fail_hurts_nothing(engine_class, make_requests, tmp_path):
    class Engine(engine_class):
        async def stats(self):
            raise EngineError("no such page")

    summary = await run_with(Engine(), make_requests, tmp_path / "run")
    assert summary["completed"] == 12
    assert "no such page" in summary["machine"]["notes"]["engine"]
    assert summary["machine"]["cpu_percent"] is not None


async def test_samplers_that_fail_leave_a_note_and_the_others_alone(tmp_path):
    log = TelemetryLog(tmp_path)
    samplers = [Failing("late"), Failing("early", opens=False)]
    recorder = TelemetryRecorder(log, samplers, interval_s=0.01)
    recorder.start(time.perf_counter_ns())
    deadline = time.monotonic() + 20
    while "late" not in (telemetry := read_telemetry(tmp_path)).notes:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    recorder.stop()
    log.close()
    assert telemetry.notes == {"early": "nothing there", "late": "ZeroDivisionError: no time has passed"}
    assert telemetry.series("late")[1].tolist() == [1, 2]
    assert all(sampler.closed for sampler in samplers)


async def test_a_log_that_cannot_be_written_ends_telemetry_alone(tmp_path, caplog):
    log = TelemetryLog(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._fd)
    os.close(full)
    recorder = TelemetryRecorder(log, [], interval_s=10)
    recorder.append({"x": 1})
    recorder.append({"x": 2})
    recorder.stop()
    assert caplog.text.count("telemetry ends: [Errno 28] No space left on device") == 1


async def test_a_folder_without_room_for_the_file_costs_only_telemetry(engine_class, tmp_path, caplog):
    (tmp_path / "telemetry.jsonl").touch()
    async with record_telemetry(tmp_path, engine_class(), 0.1) as recorder:
        assert recorder is None
    assert "no telemetry" in caplog.text


def test_what_a_kill_left_is_read(tmp_path):
    lines = [
        '{"at_ns":2000000000,"a":3}',
        '{"at_ns":1000000000,"a":1}',
        '{"sampler":"gpu","note":"none"}',
        '{"at_ns":3',
    ]
    (tmp_path / "telemetry.jsonl").write_text("\n".join(lines))
    telemetry = read_telemetry(tmp_path)
    assert telemetry.series("a")[0].tolist() == [1, 2]
    assert telemetry.notes == {"gpu": "none"}


@pytest.mark.parametrize("missing", ["b"])
def test_a_series_that_nobody_sampled_is_empty(tmp_path, missing):
    (tmp_path / "telemetry.jsonl").write_text('{"at_ns":1,"a":1}\n')
    assert len(read_telemetry(tmp_path).series(missing)[0]) == 0
