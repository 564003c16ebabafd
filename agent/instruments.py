"""The instruments the agent emits: their OTLP names, units and kinds, in the order in which a message holds them.

Names and units that feed a wide table are those of `fleetpulse.stream.dictionary`; a test holds the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from fleetpulse.stream import identity

# What a number is counted from, for a cumulative counter's start time.
Since = Literal["never", "host boot", "agent start"]


@dataclass(frozen=True, slots=True)
class Instrument:
    """One OTLP metric.

    ``kind``: a gauge; a counter, which only grows; a balance, which is a sum that also shrinks (OTLP: a sum that is
    not monotonic). ``integer`` fixes how values are encoded, for all messages of a boot must have the same bytes but
    for their values. ``since`` is when a counter was 0.
    """

    name: str
    unit: str
    kind: Literal["gauge", "counter", "balance"]
    help: str
    integer: bool = False
    since: Since = "never"


class Measurement(NamedTuple):
    """One value of an instrument. ``attributes`` must not change from one sample to the next."""

    instrument: Instrument
    attributes: Mapping[str, str | int]
    value: float


def _gauge(name: str, unit: str, text: str, integer: bool = False) -> Instrument:
    return Instrument(name, unit, "gauge", text, integer)


def _balance(name: str, unit: str, text: str, integer: bool = True) -> Instrument:
    return Instrument(name, unit, "balance", text, integer, "agent start")


def _counter(name: str, unit: str, text: str, since: Since, integer: bool = True) -> Instrument:
    return Instrument(name, unit, "counter", text, integer, since)


EXPORTS: Final = _counter(identity.EXPORTS_METRIC, "{message}", "Metrics messages made since the boot", "agent start")
HEARTBEATS: Final = _counter("fleetpulse.agent.heartbeats", "{message}", "Heartbeats made", "agent start")
SPOOL_USAGE: Final = _balance("fleetpulse.agent.spool.usage", "By", "Size of the spool on disk")
SPOOL_DROPPED: Final = _counter("fleetpulse.agent.spool.dropped", "{message}", "Messages lost", "agent start")
ENGINE_NAMES_MISSING: Final = _gauge(
    "fleetpulse.agent.engine.names.missing", "{name}", "Engine measures that never arrived", integer=True
)

CPU_TIME: Final = _counter("system.cpu.time", "s", "CPU time by mode", "host boot", integer=False)
CPU_UTILIZATION: Final = _gauge("system.cpu.utilization", "1", "Share of CPU time since the last sample, by mode")
CPU_COUNT: Final = _balance("system.cpu.logical.count", "{cpu}", "Logical CPUs")
LOAD_1M: Final = _gauge("system.cpu.load_average.1m", "1", "Load average over one minute")
LOAD_5M: Final = _gauge("system.cpu.load_average.5m", "1", "Load average over five minutes")
LOAD_15M: Final = _gauge("system.cpu.load_average.15m", "1", "Load average over fifteen minutes")
MEMORY_USAGE: Final = _balance("system.memory.usage", "By", "Memory by state; states do not overlap")
MEMORY_LIMIT: Final = _balance("system.memory.limit", "By", "Memory installed")
MEMORY_AVAILABLE: Final = _balance("system.memory.linux.available", "By", "Memory available without swapping")
PAGING_USAGE: Final = _balance("system.paging.usage", "By", "Swap by state")
DISK_IO: Final = _counter("system.disk.io", "By", "Bytes read from and written to physical disks", "host boot")
FILESYSTEM_USAGE: Final = _balance("system.filesystem.usage", "By", "Space by state; states sum to the limit")
FILESYSTEM_LIMIT: Final = _balance("system.filesystem.limit", "By", "Size of a file system")
NETWORK_IO: Final = _counter("system.network.io", "By", "Bytes received and sent", "host boot")
UPTIME: Final = _gauge("system.uptime", "s", "Time since the host's boot")

GPU_UTILIZATION: Final = _gauge("hw.gpu.utilization", "1", "Share of time in which the unit worked")
GPU_MEMORY_USAGE: Final = _balance("hw.gpu.memory.usage", "By", "GPU memory in use, without what the driver reserves")
GPU_MEMORY_LIMIT: Final = _balance("hw.gpu.memory.limit", "By", "GPU memory installed")
GPU_TEMPERATURE: Final = _gauge("hw.temperature", "Cel", "Temperature by sensor")
GPU_TEMPERATURE_LIMIT: Final = _gauge("hw.temperature.limit", "Cel", "Core temperature at which the device acts")
GPU_POWER: Final = _gauge("hw.power", "W", "Power drawn")
GPU_POWER_LIMIT: Final = _gauge("fleetpulse.gpu.power.limit", "W", "Enforced power limit")
GPU_ENERGY: Final = _counter("hw.energy", "J", "Energy since the driver was loaded", "host boot", integer=False)
GPU_CLOCK: Final = _gauge("fleetpulse.gpu.clock.frequency", "Hz", "Current clock by domain")
GPU_THROTTLE: Final = _gauge("fleetpulse.gpu.throttle.active", "1", "1 while the device slows down for the reason")
GPU_ERRORS: Final = _counter("hw.errors", "{error}", "ECC errors since the driver was loaded", "host boot")
GPU_XID_ERRORS: Final = _counter("fleetpulse.gpu.xid.errors", "{error}", "XID events by code", "agent start")
GPU_STATUS: Final = _balance("hw.status", "1", "1 for the state the device is in, else 0")

ENGINE_RUNNING: Final = _gauge("fleetpulse.engine.requests.running", "{request}", "Requests being worked on")
ENGINE_WAITING: Final = _gauge("fleetpulse.engine.requests.waiting", "{request}", "Requests queued in the engine")
ENGINE_KV_CACHE: Final = _gauge("fleetpulse.engine.kv_cache.utilization", "1", "KV cache in use")


def _engine_counter(name: str, unit: str, text: str) -> Instrument:
    return _counter(f"fleetpulse.engine.{name}", unit, text, "agent start", integer=False)


ENGINE_STEPS: Final = _engine_counter("steps", "{step}", "Steps done")
ENGINE_PROMPT_TOKENS: Final = _engine_counter("prompt_tokens", "{token}", "Prompt tokens")
ENGINE_GENERATION_TOKENS: Final = _engine_counter("generation_tokens", "{token}", "Generated tokens")
ENGINE_PREEMPTIONS: Final = _engine_counter("preemptions", "{preemption}", "Requests pushed out of the KV cache")
ENGINE_PREFIX_QUERIES: Final = _engine_counter(
    "prefix_cache.queries", "{token}", "Tokens looked up in the prefix cache"
)
ENGINE_PREFIX_HITS: Final = _engine_counter("prefix_cache.hits", "{token}", "Tokens found in the prefix cache")
ENGINE_FINISHED: Final = _engine_counter("requests.finished", "{request}", "Requests finished")

# By the engine table's columns, so that an adapter speaks of columns and never of OTLP names.
ENGINE_BY_COLUMN: Final[Mapping[str, Instrument]] = {
    "requests_running": ENGINE_RUNNING,
    "requests_waiting": ENGINE_WAITING,
    "kv_cache_usage_ratio": ENGINE_KV_CACHE,
    "steps_total": ENGINE_STEPS,
    "prompt_tokens_total": ENGINE_PROMPT_TOKENS,
    "generation_tokens_total": ENGINE_GENERATION_TOKENS,
    "preemptions_total": ENGINE_PREEMPTIONS,
    "prefix_cache_queries_total": ENGINE_PREFIX_QUERIES,
    "prefix_cache_hits_total": ENGINE_PREFIX_HITS,
    "requests_finished_total": ENGINE_FINISHED,
}

ALL: Final = tuple(value for value in list(globals().values()) if isinstance(value, Instrument))
