"""NVIDIA GPUs, by NVML: all that the driver shows, whatever CUDA_VISIBLE_DEVICES says, since neighbours count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from neobench.harness.telemetry.sampler import SamplerError

THROTTLE_REASONS: Mapping[int, str] = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
"""Bits of nvmlClocksEventReasons (nvml.h) that tell of a GPU slower than its settings. An idle one and clocks set by
the user are in the clock series."""


class GpuSampler:
    name = "gpu"

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: Sequence[Any] = ()
        self._energy_mj: list[float | None] = []

    def open(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise SamplerError(f"no GPU telemetry: {error}; pip install nvidia-ml-py") from error
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise SamplerError(f"no NVIDIA GPU: {error}") from error
        self._nvml = pynvml
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        if not self._handles:
            raise SamplerError("the NVIDIA driver shows no GPU")
        self._energy_mj = self._of_each(self._nvml.nvmlDeviceGetTotalEnergyConsumption)

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def sample(self) -> Mapping[str, Any]:
        nvml = self._nvml
        power_mw = self._of_each(nvml.nvmlDeviceGetPowerUsage)
        masks = self._of_each(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        before, self._energy_mj = self._energy_mj, self._of_each(nvml.nvmlDeviceGetTotalEnergyConsumption)
        return {
            "gpu_utilization_percent": self._of_each(lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
            # With what the driver keeps to itself, some 600 MB.
            "gpu_memory_used_bytes": self._of_each(lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
            "gpu_power_w": [None if value is None else value / 1e3 for value in power_mw],
            "gpu_energy_j": [
                None if now is None or then is None else (now - then) / 1e3
                for now, then in zip(self._energy_mj, before, strict=True)
            ],
            "gpu_sm_clock_mhz": self._of_each(lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            "gpu_memory_clock_mhz": self._of_each(lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
            "gpu_temperature_c": self._of_each(
                lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
            ),
            "gpu_throttle_reasons": throttle_reasons(masks),
        }

    def _of_each(self, read: Callable[[Any], Any]) -> list[Any]:
        """[num_gpus] None where a GPU does not support the question, as many do not in virtual machines."""
        values: list[Any] = [None] * len(self._handles)
        for index, handle in enumerate(self._handles):
            with suppress(self._nvml.NVMLError):
                values[index] = read(handle)
        return values


def throttle_reasons(masks: Sequence[int | None]) -> list[str] | None:
    """Names of all bits set on any GPU, sorted; None where no GPU tells."""
    known = [mask for mask in masks if mask is not None]
    if not known:
        return None
    return sorted({name for bit, name in THROTTLE_REASONS.items() if any(mask & bit for mask in known)})
