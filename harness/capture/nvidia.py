"""System metrics of NVIDIA devices, through NVML (`pip install nvidia-ml-py`).

Tested against a class that answers like NVML, and by `make test-gpu` on a real device.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

from harness.capture.readings import Reading

logger = logging.getLogger(__name__)


class Nvml(Protocol):
    """The part of the `pynvml` module that is used here."""

    NVML_TEMPERATURE_GPU: int

    def nvmlInit(self) -> None:  # noqa: N802  NVML's names
        """Load the driver's library; raises where there is none."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Devices of the machine, whatever CUDA_VISIBLE_DEVICES says."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        """A device."""

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:  # noqa: N802
        """Has `.gpu`, in percent."""

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        """Has `.used`, in bytes."""

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        """In milliwatts."""

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:  # noqa: N802
        """In degrees Celsius."""


class NvidiaDevices:
    """Utilisation, memory, power and temperature of every NVIDIA device of the machine, by NVML's index.

    What a device does not support (power on some boards, utilisation under MIG) is found out here, once, and
    left out.

    Args:
        nvml: `pynvml`, initialised.
    """

    def __init__(self, nvml: Nvml) -> None:
        self._gauges: dict[str, Callable[[], float]] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            for value, read in _device_gauges(nvml, nvml.nvmlDeviceGetHandleByIndex(index)).items():
                self._add(f"gpu{index}_{value}", read)

    @property
    def names(self) -> tuple[str, ...]:
        """The values that can be read."""
        return tuple(self._gauges)

    def read(self, now_ns: int) -> Reading:  # noqa: ARG002  gauges only
        """Read all devices; memory is what all processes use."""
        gauges: dict[str, float] = {}
        errors: list[str] = []
        for name, read in self._gauges.items():
            try:
                gauges[name] = read()
            except Exception as error:
                errors.append(f"nvidia {name}: {type(error).__name__}: {error}")
        return Reading(gauges=gauges, errors=tuple(errors))

    def _add(self, name: str, read: Callable[[], float]) -> None:
        try:
            read()
        except Exception as error:
            logger.info("system metrics: no %s on this device: %s", name, error)
        else:
            self._gauges[name] = read


def _device_gauges(nvml: Nvml, handle: Any) -> dict[str, Callable[[], float]]:
    return {
        "util_pct": lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory_used_bytes": lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "temperature_c": lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
    }


def find_nvidia(load: Callable[[], Nvml] | None = None) -> NvidiaDevices | None:
    """The NVIDIA devices of this machine; None without `nvidia-ml-py`, a driver or a device.

    Args:
        load: Gives the `pynvml` module; raises ImportError where it is not installed.
    """
    try:
        nvml = (load or _pynvml)()
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        devices = NvidiaDevices(nvml)
    except Exception as error:  # NVML's own error classes are made at run time, one for each code
        logger.info("system metrics: NVML finds no device: %s", error)
        return None
    return devices if devices.names else None


def _pynvml() -> Nvml:
    module: Any = importlib.import_module("pynvml")
    nvml: Nvml = module
    return nvml
