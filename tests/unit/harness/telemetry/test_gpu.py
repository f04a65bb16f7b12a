import pytest

from neobench.harness.telemetry.gpu import GpuSampler, throttle_reasons
from neobench.harness.telemetry.sampler import SamplerError


@pytest.mark.parametrize(
    ("masks", "names"),
    [
        ([0x0, 0x1], []),
        ([0x4 | 0x1, None, 0x40], ["hw_thermal_slowdown", "sw_power_cap"]),
        ([None, None], None),
        ([], None),
    ],
)
def test_reasons_are_those_that_slow_a_gpu_down(masks, names):
    assert throttle_reasons(masks) == names


def nvidia_driver() -> bool:
    sampler = GpuSampler()
    try:
        sampler.open()
    except SamplerError:
        return False
    sampler.close()
    return True


@pytest.mark.skipif(nvidia_driver(), reason="this machine has an NVIDIA GPU")
def test_without_a_driver_the_note_says_so():
    sampler = GpuSampler()
    with pytest.raises(SamplerError, match="NVIDIA"):
        sampler.open()
    sampler.close()


@pytest.mark.gpu
@pytest.mark.skipif(not nvidia_driver(), reason="needs an NVIDIA GPU")
def test_a_gpu_is_sampled():
    sampler = GpuSampler()
    sampler.open()
    values = sampler.sample()
    sampler.close()
    assert all(0 <= value <= 100 for value in values["gpu_utilization_percent"])
    assert all(value > 0 for value in values["gpu_memory_used_bytes"])
    assert all(5 < value < 2000 for value in values["gpu_power_w"])
    assert all(0 < value < 120 for value in values["gpu_temperature_c"])
    assert isinstance(values["gpu_throttle_reasons"], list)
