import pytest

from neobench.results.telemetry import Telemetry, machine_summary

S = 1_000_000_000


def test_means_are_over_time_and_not_over_samples():
    rows = [{"at_ns": S, "cpu_percent": 10.0}, {"at_ns": 4 * S, "cpu_percent": 50.0}]
    assert machine_summary(Telemetry(rows))["cpu_percent"] == pytest.approx((10 * 1 + 50 * 3) / 4)


def test_each_gpu_has_its_own_mean_and_what_one_lacks_is_none():
    rows = [
        {"at_ns": S, "gpu_power_w": [100.0, None], "gpu_energy_j": [100.0, None], "gpu_throttle_reasons": []},
        {"at_ns": 2 * S, "gpu_power_w": [300.0, None], "gpu_throttle_reasons": ["sw_power_cap"]},
    ]
    machine = machine_summary(Telemetry(rows))
    assert machine["gpu_power_w"] == [200.0, None]
    assert machine["gpu_energy_j"] == 100.0
    assert machine["gpu_throttle_reasons"] == ["sw_power_cap"]


def test_what_was_not_sampled_is_none():
    machine = machine_summary(None)
    assert machine.pop("telemetry_samples") == 0
    assert machine.pop("notes") == {}
    assert set(machine.values()) == {None}


def test_columns_of_rows_of_different_kinds():
    rows = [
        {"at_ns": 1, "core_percent": [1.0, None], "gpu_throttle_reasons": ["x"]},
        {"at_ns": 2, "running_requests": 3.0, "client_rss_bytes": 5},
    ]
    table = Telemetry(rows).to_arrow()
    assert table["core_percent"].to_pylist() == [[1.0, None], None]
    assert table["gpu_throttle_reasons"].to_pylist() == [["x"], None]
    assert table["running_requests"].to_pylist() == [None, 3.0]
    assert table["at_ns"].to_pylist() == [1, 2]
    assert str(table.schema.field("client_rss_bytes").type) == "int64"
