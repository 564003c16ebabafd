"""NVIDIA GPUs, by NVML."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from agent.gpu_events import XidEvents
from agent.gpu_limits import TemperatureLimits, read_temperature_limits
from agent.gpu_reading import DriverState, GpuDevice, GpuReading
from agent.nvml_call import LOST, field_value, scaled, supported
from fleetpulse.telemetry import logger

_log = logger(__name__)

# How often an absent driver, or a lost GPU, is looked for again.
RETRY_SECONDS: Final = 60.0
_NO_DRIVER: Final = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)
_THERMAL: Final = pynvml.nvmlClocksEventReasonSwThermalSlowdown | pynvml.nvmlClocksEventReasonHwThermalSlowdown
_POWER: Final = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown


@dataclass(slots=True)
class _Opened:
    """A device NVML knows. Limits are constant and read once."""

    device: GpuDevice
    handle: Any
    limits: TemperatureLimits | None = None


class NvmlGpus:
    """All GPUs of the host. See GpuSource for the order of calls."""

    def __init__(self) -> None:
        self.state: DriverState = "absent"
        self._opened: dict[str, _Opened] = {}
        self._known: dict[str, GpuDevice] = {}
        self._events: XidEvents | None = None
        self._xid_counts: dict[str, Counter[int]] = {}
        self._retry_at = 0.0

    def start(self) -> None:
        """Open the driver, if there is one; else read() looks for it again every RETRY_SECONDS."""
        self._retry_at = time.monotonic() + RETRY_SECONDS
        try:
            pynvml.nvmlInit()
            self._opened = {opened.device.hw_id: opened for opened in _discover()}
        except pynvml.NVMLError as error:
            self._say("absent" if isinstance(error, _NO_DRIVER) else "failed", str(error))
            return
        self._known |= {hw_id: opened.device for hw_id, opened in self._opened.items()}
        self._events = self._watch()
        self._say("ready", f"{len(self._opened)} GPUs, driver {supported(pynvml.nvmlSystemGetDriverVersion)}")

    def read(self) -> list[GpuReading]:
        """Every GPU seen since the start; one that fell off the bus as failed, without further readings."""
        if self.state != "ready" and time.monotonic() >= self._retry_at:
            self.start()
        if self._events is not None:
            self._xid_counts |= self._events.counts()
        readings = [self._read(device) for device in self._known.values()]
        if self.state == "ready" and any(r.failed for r in readings) and time.monotonic() >= self._retry_at:
            self._reopen()
        return sorted(readings, key=lambda reading: reading.device.index)

    def stop(self) -> None:
        """Stop the event thread and shut NVML down."""
        if self._events is not None:
            self._events.stop()
            self._xid_counts |= self._events.counts()
            self._events = None
        if self.state == "ready":
            supported(pynvml.nvmlShutdown)
            self.state = "absent"

    def _reopen(self) -> None:
        """A GPU that was reset comes back only to a driver handle opened after the reset."""
        self.stop()
        self._opened = {}
        self.start()

    def _watch(self) -> XidEvents | None:
        handles = {hw_id: opened.handle for hw_id, opened in self._opened.items()}
        try:
            events = XidEvents(handles, self._xid_counts)
        except pynvml.NVMLError as error:
            _log.info("no XID events from this driver", extra={"error": str(error)})
            return None
        events.start()
        return events

    def _read(self, device: GpuDevice) -> GpuReading:
        opened = self._opened.get(device.hw_id)
        counts = self._xid_counts.get(device.hw_id)
        if opened is None:
            return GpuReading(device, failed=True, xid_errors=counts)
        try:
            return _read_device(opened, counts)
        except LOST as error:
            _log.error("GPU lost", extra={"hw_id": device.hw_id, "index": device.index, "error": str(error)})
            return GpuReading(device, failed=True, xid_errors=counts)

    def _say(self, state: DriverState, why: str) -> None:
        if state != self.state or state == "ready":
            _log.info("NVIDIA driver", extra={"state": state, "detail": why})
        self.state = state


def _discover() -> list[_Opened]:
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            device = GpuDevice(pynvml.nvmlDeviceGetUUID(handle), index, pynvml.nvmlDeviceGetName(handle))
        except pynvml.NVMLError as error:
            _log.error("GPU cannot be opened", extra={"index": index, "error": str(error)})
            continue
        found.append(_Opened(device, handle))
    return found


def _read_device(opened: _Opened, xid_counts: Counter[int] | None) -> GpuReading:
    """Raises one of nvml_call.LOST for a device that is gone."""
    handle = opened.handle
    utilization = supported(pynvml.nvmlDeviceGetUtilizationRates, handle)
    encoder = supported(pynvml.nvmlDeviceGetEncoderUtilization, handle)
    decoder = supported(pynvml.nvmlDeviceGetDecoderUtilization, handle)
    memory = _memory(handle)
    temperature = _core_temperature(handle)
    reasons = _throttle_reasons(handle)
    if opened.limits is None:
        opened.limits = read_temperature_limits(handle, temperature)
    return GpuReading(
        opened.device,
        utilization_ratio=None if utilization is None else utilization.gpu / 100,
        encoder_utilization_ratio=None if encoder is None else encoder[0] / 100,
        decoder_utilization_ratio=None if decoder is None else decoder[0] / 100,
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
        temperature_celsius=temperature,
        memory_temperature_celsius=field_value(handle, pynvml.NVML_FI_DEV_MEMORY_TEMP),
        slowdown_temperature_celsius=opened.limits.slowdown_celsius,
        shutdown_temperature_celsius=opened.limits.shutdown_celsius,
        power_watts=scaled(supported(pynvml.nvmlDeviceGetPowerUsage, handle), 1e-3),
        power_limit_watts=scaled(supported(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1e-3),
        energy_joules=scaled(supported(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle), 1e-3),
        sm_clock_hertz=scaled(supported(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM), 1e6),
        memory_clock_hertz=scaled(supported(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM), 1e6),
        thermal_throttle=None if reasons is None else bool(reasons & _THERMAL),
        power_throttle=None if reasons is None else bool(reasons & _POWER),
        corrected_errors=_ecc_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        uncorrected_errors=_ecc_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        xid_errors=xid_counts,
    )


def _memory(handle: Any) -> Any:
    """Version 2 leaves what the driver reserves out of "used"; drivers before 510 have only version 1."""
    second = supported(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    return second if second is not None else supported(pynvml.nvmlDeviceGetMemoryInfo, handle)


def _core_temperature(handle: Any) -> float | None:
    new = supported(pynvml.nvmlDeviceGetTemperatureV, handle, pynvml.NVML_TEMPERATURE_GPU)
    return new if new is not None else supported(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)


def _throttle_reasons(handle: Any) -> int | None:
    """A bit for each reason; drivers before 535 know the call by its older name."""
    new: int | None = supported(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    return new if new is not None else supported(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)


def _ecc_errors(handle: Any, kind: int) -> int | None:
    errors: int | None = supported(pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, pynvml.NVML_VOLATILE_ECC)
    return errors
