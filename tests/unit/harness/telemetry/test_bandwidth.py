import time

import pytest

from neobench.harness.telemetry.bandwidth import BandwidthSampler, find_events
from neobench.harness.telemetry.perf_events import EVENT_SOURCES, Counter, encode_event, parse_terms
from neobench.harness.telemetry.sampler import SamplerError

PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK = 1, 0


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.fixture
def sources(tmp_path):
    """As the kernel describes them on a Xeon and on an EPYC."""
    intel, amd = tmp_path / "uncore_imc_0", tmp_path / "amd_umc_0"
    write(intel, type="14", cpumask="0,32-33", format__event="config:0-7", format__umask="config:8-15")
    write(intel, events__cas_count_read="event=0x04,umask=0x03", events__cas_count_write="event=0x04,umask=0x0c")
    (intel / "events" / "cas_count_read.scale").write_text("6.103515625e-5\n")
    write(amd, type="20", cpumask="8", format__event="config:0-7", format__rdwrmask="config:8-9")
    return tmp_path


def test_controllers_of_both_makers_are_found(sources):
    events = {(event.direction, event.kind): event for event in find_events(sources)}
    assert len(events) == 4
    read = events["read", 14]
    assert (read.config, read.cpus) == (0x0304, [0, 32, 33])
    assert read.bytes_a_count == events["write", 14].bytes_a_count == 64
    assert (events["read", 20].config, events["write", 20].config) == (0x010A, 0x020A)


def test_a_field_may_lie_in_pieces(tmp_path):
    write(tmp_path, format__event="config:0-7,32-35", format__other="config1:0-7")
    assert encode_event(tmp_path, parse_terms("event=0xf12")) == 0xF_0000_0012
    with pytest.raises(ValueError, match="config1"):
        encode_event(tmp_path, {"other": 1})


def test_terms_without_a_value_are_one():
    assert parse_terms("event=0x10,edge") == {"event": 16, "edge": 1}


def test_without_counters_the_note_says_so(tmp_path):
    with pytest.raises(SamplerError, match="virtual machines"):
        BandwidthSampler(tmp_path).open()


def test_counters_that_cannot_be_opened_say_so(sources):
    """No kernel has a source of that number on a CPU of that number."""
    for name in ("uncore_imc_0", "amd_umc_0"):
        (sources / name / "type").write_text("4000000000")
        (sources / name / "cpumask").write_text("100000")
    with pytest.raises(SamplerError, match="CAP_PERFMON"):
        BandwidthSampler(sources).open()


def test_a_real_counter_counts():
    try:
        counter = Counter(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK, cpu=0)
    except OSError as error:
        pytest.skip(f"perf_event_open: {error}")
    before = counter.read()
    time.sleep(0.02)
    grown_ns = counter.read() - before
    counter.close()
    assert grown_ns >= 15e6


@pytest.mark.skipif(not list(EVENT_SOURCES.glob("uncore_imc*")), reason="no memory controller counters here")
def test_real_bandwidth():
    sampler = BandwidthSampler()
    try:
        sampler.open()
    except SamplerError as error:
        pytest.skip(str(error))
    time.sleep(0.1)
    assert sampler.sample()["host_memory_read_bytes_per_s"] > 0
    sampler.close()
