"""Core temperatures at which a GPU slows down and shuts off, in degrees, from whichever call the driver has."""

from dataclasses import dataclass
from typing import Any

import pynvml

from agent.nvml_call import field_value, supported


@dataclass(frozen=True, slots=True)
class TemperatureLimits:
    """None where the device does not say."""

    slowdown_celsius: float | None = None
    shutdown_celsius: float | None = None


def read_temperature_limits(handle: Any, temperature_celsius: float | None) -> TemperatureLimits:
    """Raises one of nvml_call.LOST when the device is gone.

    Drivers of Ada and later give limits as a margin to the device's own target ("T.Limit"), and will no longer give
    the thresholds in degrees; older ones know only those.
    """
    slowdown = _from_margin(handle, temperature_celsius, pynvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT)
    shutdown = _from_margin(handle, temperature_celsius, pynvml.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT)
    if slowdown is None:
        slowdown = _threshold(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    if shutdown is None:
        shutdown = _threshold(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
    return TemperatureLimits(slowdown, shutdown)


def _from_margin(handle: Any, temperature_celsius: float | None, field: int) -> float | None:
    """Temperature now, plus what is left to the target, plus how far beyond the target (below zero) the limit is."""
    margin = supported(pynvml.nvmlDeviceGetMarginTemperature, handle)
    beyond = field_value(handle, field)
    if temperature_celsius is None or margin is None or beyond is None:
        return None
    return temperature_celsius + float(margin) - beyond


def _threshold(handle: Any, threshold: int) -> float | None:
    celsius: int | None = supported(pynvml.nvmlDeviceGetTemperatureThreshold, handle, threshold)
    return float(celsius) if celsius else None
