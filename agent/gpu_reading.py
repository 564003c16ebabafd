"""One GPU at one time, wherever the reading comes from, and its OTLP measurements."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from agent import instruments as i
from agent.instruments import Instrument, Measurement

DriverState = Literal["ready", "absent", "failed"]


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """What tells a GPU from another. ``hw_id`` is the exact NVML UUID, so that series join with dcgm-exporter's."""

    hw_id: str
    index: int
    model: str
    vendor: str = "NVIDIA"

    def attributes(self) -> dict[str, str | int]:
        """OTLP attributes of each of its points."""
        return {
            "hw.id": self.hw_id,
            "hw.type": "gpu",
            "hw.name": f"GPU {self.index}",
            "hw.model": self.model,
            "hw.vendor": self.vendor,
            "fleetpulse.gpu.index": self.index,
        }


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Readings of one GPU. What the device does not support is None, never 0; a failed device has nothing else."""

    device: GpuDevice
    failed: bool = False
    utilization_ratio: float | None = None
    encoder_utilization_ratio: float | None = None
    decoder_utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    slowdown_temperature_celsius: float | None = None
    shutdown_temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    thermal_throttle: bool | None = None
    power_throttle: bool | None = None
    corrected_errors: int | None = None
    uncorrected_errors: int | None = None
    # Events seen by code. Present, with 0 for no code at all, wherever the device reports such events.
    xid_errors: Mapping[int, int] | None = field(default=None)


class GpuSource(Protocol):
    """Where GPU readings come from. start(), then read() any number of times, then stop(); never two at once.

    All three may block, and are called on one thread of their own.
    """

    state: DriverState

    def start(self) -> None:
        """Begin; an absent driver is a state, not an error."""

    def read(self) -> list[GpuReading]:
        """All GPUs, in the order of their index, lost ones included."""

    def stop(self) -> None:
        """Let go of the driver."""


_CORE: Final[Mapping[str, str | int]] = {"hw.sensor_location": "GPU_CORE"}
# In the order of the instruments: field, instrument, attributes beyond the device's.
_SCALARS: Final[tuple[tuple[str, Instrument, Mapping[str, str | int]], ...]] = (
    ("utilization_ratio", i.GPU_UTILIZATION, {"hw.gpu.task": "general"}),
    ("encoder_utilization_ratio", i.GPU_UTILIZATION, {"hw.gpu.task": "encoder"}),
    ("decoder_utilization_ratio", i.GPU_UTILIZATION, {"hw.gpu.task": "decoder"}),
    ("memory_used_bytes", i.GPU_MEMORY_USAGE, {}),
    ("memory_total_bytes", i.GPU_MEMORY_LIMIT, {}),
    ("temperature_celsius", i.GPU_TEMPERATURE, _CORE),
    ("memory_temperature_celsius", i.GPU_TEMPERATURE, {"hw.sensor_location": "MEMORY"}),
    ("slowdown_temperature_celsius", i.GPU_TEMPERATURE_LIMIT, {**_CORE, "hw.limit_type": "throttled"}),
    ("shutdown_temperature_celsius", i.GPU_TEMPERATURE_LIMIT, {**_CORE, "hw.limit_type": "critical"}),
    ("power_watts", i.GPU_POWER, {}),
    ("power_limit_watts", i.GPU_POWER_LIMIT, {}),
    ("energy_joules", i.GPU_ENERGY, {}),
    ("sm_clock_hertz", i.GPU_CLOCK, {"fleetpulse.gpu.clock.domain": "sm"}),
    ("memory_clock_hertz", i.GPU_CLOCK, {"fleetpulse.gpu.clock.domain": "memory"}),
    ("thermal_throttle", i.GPU_THROTTLE, {"fleetpulse.gpu.throttle.reason": "thermal"}),
    ("power_throttle", i.GPU_THROTTLE, {"fleetpulse.gpu.throttle.reason": "power"}),
    ("corrected_errors", i.GPU_ERRORS, {"error.type": "corrected"}),
    ("uncorrected_errors", i.GPU_ERRORS, {"error.type": "uncorrected"}),
)
# No event has this code: it stands for "none seen yet", so that the counter exists before the first event.
NO_XID: Final = 0
# NVIDIA's own device plugin blames these on the application rather than on the device.
APPLICATION_XIDS: Final = frozenset({13, 31, 43, 45, 68, 109})


def measurements(readings: Iterable[GpuReading]) -> Iterator[Measurement]:
    """OTLP measurements of some GPUs."""
    for reading in readings:
        device = reading.device.attributes()
        for name, instrument, attributes in _SCALARS:
            value = getattr(reading, name)
            if value is not None:
                yield Measurement(instrument, {**device, **attributes}, value)
        for code, count in sorted((reading.xid_errors or {}).items()):
            yield Measurement(i.GPU_XID_ERRORS, {**device, "fleetpulse.gpu.xid": code}, count)
        for state, active in (("ok", not reading.failed), ("failed", reading.failed)):
            yield Measurement(i.GPU_STATUS, {**device, "hw.state": state}, active)
