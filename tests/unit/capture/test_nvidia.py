"""NVML through a class that answers like it: these tests run without a device."""

from __future__ import annotations

from types import SimpleNamespace

from harness.capture.nvidia import NvidiaDevices, find_nvidia


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two devices; the second cannot say its power."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.num_devices = 2
        self.initialised = False

    def nvmlInit(self) -> None:
        if "init" in self.failing:
            raise NvmlError("Driver Not Loaded")
        self.initialised = True

    def nvmlDeviceGetCount(self) -> int:
        assert self.initialised
        return self.num_devices

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        if "util" in self.failing:
            raise NvmlError("GPU is lost")
        return SimpleNamespace(gpu=97 - handle, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=80 << 30, free=75 << 30, used=(5 << 30) + handle)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise NvmlError("Not Supported")
        return 312_450

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 61 + handle


def test_values_come_in_the_units_of_their_names_and_unsupported_ones_are_left_out() -> None:
    devices = find_nvidia(FakeNvml)
    assert devices is not None
    reading = devices.read(0)
    assert reading.errors == ()
    assert reading.gauges == {
        "gpu0_util_pct": 97.0,
        "gpu0_memory_used_bytes": 5 * 2**30,
        "gpu0_power_w": 312.45,
        "gpu0_temperature_c": 61.0,
        "gpu1_util_pct": 96.0,
        "gpu1_memory_used_bytes": 5 * 2**30 + 1,
        "gpu1_temperature_c": 62.0,
    }


def test_value_that_fails_later_is_an_error_and_leaves_the_others() -> None:
    nvml = FakeNvml()
    nvml.nvmlInit()
    devices = NvidiaDevices(nvml)
    nvml.failing.add("util")
    reading = devices.read(0)
    assert reading.errors == (
        "nvidia gpu0_util_pct: NvmlError: GPU is lost",
        "nvidia gpu1_util_pct: NvmlError: GPU is lost",
    )
    assert reading.gauges["gpu1_temperature_c"] == 62.0
    nvml.failing.clear()
    assert devices.read(1).gauges["gpu0_util_pct"] == 97.0


def test_machine_without_package_driver_or_device_has_no_nvidia_values() -> None:
    def not_installed() -> FakeNvml:
        raise ImportError("No module named 'pynvml'")

    no_driver = FakeNvml()
    no_driver.failing.add("init")
    no_device = FakeNvml()
    no_device.num_devices = 0
    assert find_nvidia(not_installed) is None
    assert find_nvidia(lambda: no_driver) is None
    assert find_nvidia(lambda: no_device) is None
