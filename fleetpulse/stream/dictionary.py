"""The dictionary of measures: the one place that knows names, units and limits.

Each wide table has a row of measures. A measure says which OTLP data points feed its column, in what unit, and what
to do with a value outside its limits. The agent's metrics, the collector's validation, the migrations, the API's
field names and the generated documentation are all checked against it.

Metric names are OpenTelemetry's semantic conventions (v1.44) where they exist, the stock collector's spelling where
it differs, and the ``fleetpulse.`` namespace where the conventions are silent.
"""

from collections.abc import Mapping
from typing import Final

from fleetpulse.stream.measure import Measure, Source, Table

EXBIBYTE: Final = float(2**60)
YEARS_100_SECONDS: Final = 3.2e9
COUNTER_MAXIMUM: Final = float(2**53)  # the largest integer a float64 holds exactly


def _any(*values: str) -> frozenset[str]:
    return frozenset(values)


def _ratio(column: str, sources: tuple[Source, ...], text: str) -> Measure:
    return Measure(column, "1", 0.0, 1.0, sources, text)


def _bytes(column: str, sources: tuple[Source, ...], text: str) -> Measure:
    return Measure(column, "By", 0.0, EXBIBYTE, sources, text)


def _counter(column: str, unit: str, sources: tuple[Source, ...], text: str) -> Measure:
    return Measure(column, unit, 0.0, COUNTER_MAXIMUM, sources, text, kind="counter")


_GPU_ONLY: Final = {"hw.type": _any("gpu", "")}
_CORE: Final = _GPU_ONLY | {"hw.sensor_location": _any("GPU_CORE", "")}

GPU: Final = Table(
    "gpu_samples",
    "one GPU at one time",
    ("hw.id",),
    (),
    (
        _ratio(
            "utilization_ratio",
            (Source("hw.gpu.utilization", {"hw.gpu.task": _any("general", "")}),),
            "Share of time in which at least one kernel ran (NVML: any kernel counts)",
        ),
        _ratio(
            "encoder_utilization_ratio",
            (Source("hw.gpu.utilization", {"hw.gpu.task": _any("encoder")}),),
            "Video encoder utilisation",
        ),
        _ratio(
            "decoder_utilization_ratio",
            (Source("hw.gpu.utilization", {"hw.gpu.task": _any("decoder")}),),
            "Video decoder utilisation",
        ),
        _bytes("memory_used_bytes", (Source("hw.gpu.memory.usage"),), "GPU memory in use"),
        _bytes("memory_total_bytes", (Source("hw.gpu.memory.limit"),), "GPU memory installed"),
        Measure(
            "temperature_celsius",
            "Cel",
            -50.0,
            150.0,
            (Source("hw.temperature", _CORE),),
            "Core temperature; a sensor outside these limits is broken, not hot",
            outside="reject",
        ),
        Measure(
            "memory_temperature_celsius",
            "Cel",
            -50.0,
            150.0,
            (Source("hw.temperature", _GPU_ONLY | {"hw.sensor_location": _any("MEMORY")}),),
            "Memory temperature",
            outside="reject",
        ),
        Measure(
            "temperature_limit_celsius",
            "Cel",
            -50.0,
            150.0,
            (Source("hw.temperature.limit", _CORE | {"hw.limit_type": _any("throttled", "high.degraded")}),),
            "Core temperature at which the device slows itself down",
            outside="reject",
        ),
        Measure(
            "power_watts",
            "W",
            0.0,
            5_000.0,
            (Source("hw.power", _GPU_ONLY),),
            "Power drawn (boards take up to 1.5 kW)",
        ),
        Measure(
            "power_limit_watts",
            "W",
            0.0,
            5_000.0,
            (Source("fleetpulse.gpu.power.limit"),),
            "Enforced power limit",
        ),
        _counter(
            "energy_joules_total", "J", (Source("hw.energy", _GPU_ONLY),), "Energy used since the driver was loaded"
        ),
        Measure(
            "sm_clock_hertz",
            "Hz",
            0.0,
            1e10,
            (Source("fleetpulse.gpu.clock.frequency", {"fleetpulse.gpu.clock.domain": _any("sm")}),),
            "Clock of the streaming multiprocessors",
        ),
        Measure(
            "memory_clock_hertz",
            "Hz",
            0.0,
            1e11,
            (Source("fleetpulse.gpu.clock.frequency", {"fleetpulse.gpu.clock.domain": _any("memory")}),),
            "Memory clock",
        ),
        _ratio(
            "thermal_throttle_ratio",
            (
                Source(
                    "fleetpulse.gpu.throttle.active",
                    {"fleetpulse.gpu.throttle.reason": _any("thermal")},
                ),
            ),
            "1 while the device slows down for heat",
        ),
        _ratio(
            "power_throttle_ratio",
            (Source("fleetpulse.gpu.throttle.active", {"fleetpulse.gpu.throttle.reason": _any("power")}),),
            "1 while the device slows down for power",
        ),
        _counter(
            "corrected_errors_total",
            "{error}",
            (Source("hw.errors", _GPU_ONLY | {"error.type": _any("corrected")}, combine="sum"),),
            "ECC errors corrected since the driver was loaded",
        ),
        _counter(
            "uncorrected_errors_total",
            "{error}",
            (Source("hw.errors", _GPU_ONLY | {"error.type": _any("uncorrected")}, combine="sum"),),
            "ECC errors not corrected since the driver was loaded",
        ),
        _counter(
            "xid_errors_total",
            "{error}",
            (Source("fleetpulse.gpu.xid.errors", combine="sum", keep=True),),
            "XID events seen by this agent, all codes",
        ),
        _ratio(
            "failed_ratio",
            (Source("hw.status", _GPU_ONLY | {"hw.state": _any("failed")}),),
            "1 while the device is lost or needs a reset",
        ),
    ),
)

_DIRECTION_DISK: Final = "disk.io.direction|direction"
_DIRECTION_NETWORK: Final = "network.io.direction|direction"
_MODE: Final = "cpu.mode|state"
_NOT_BUSY: Final = _any("idle", "iowait", "wait")
_MEMORY_STATE: Final = "system.memory.state|state"
_FILESYSTEM_STATE: Final = "system.filesystem.state|state"
# Our agent leaves these out by itself, a stock collector reports them: what is in memory, an image, or another host's.
_NOT_A_HOSTS_OWN: Final = {
    "system.filesystem.type|type": _any(
        "9p", "cifs", "devtmpfs", "iso9660", "nfs", "nfs4", "overlay", "ramfs", "smb3", "squashfs", "tmpfs"
    )
}
# Likewise devices that count again what the ones below them count: partitions, volumes and arrays; loop and RAM disks …
_REPEATING_DISK: Final = {
    "system.device|device": r"(loop|ram|zram|dm-|md|sr|fd)\d+|(sd|hd|vd|xvd)[a-z]+\d+|(nvme\d+n|mmcblk|nbd|rbd)\d+p\d+"
}
# … and loopback, bridges, bonds and the inner ends of containers' interfaces.
_REPEATING_INTERFACE: Final = {
    "network.interface.name|device": (
        r"lo\d*|(veth|docker|br-|virbr|ifb|cni|flannel|cali|cilium_|lxc|vxlan|tunl|dummy|bond|team).*"
    )
}


def _direction(metric: str, attribute: str, value: str, repeating: Mapping[str, str]) -> tuple[Source, ...]:
    return (Source(metric, {attribute: _any(value)}, unlike=repeating, combine="sum"),)


SYSTEM: Final = Table(
    "system_samples",
    "one host at one time",
    (),
    (),
    (
        _ratio(
            "cpu_utilization_ratio",
            (Source("system.cpu.utilization", {_MODE: _any("idle")}, combine="mean", one_minus=True),),
            "Share of CPU time not idle, all logical CPUs together",
        ),
        _counter(
            "cpu_busy_seconds_total",
            "s",
            (Source("system.cpu.time", but_not={_MODE: _NOT_BUSY}, combine="sum"),),
            "CPU time spent working, all logical CPUs together",
        ),
        _counter(
            "cpu_idle_seconds_total",
            "s",
            (Source("system.cpu.time", {_MODE: _NOT_BUSY}, combine="sum"),),
            "CPU time idle or waiting for a disk, all logical CPUs together",
        ),
        Measure(
            "cpu_logical_count",
            "{cpu}",
            1.0,
            65_536.0,
            (Source("system.cpu.logical.count"),),
            "Logical CPUs",
        ),
        _bytes("memory_used_bytes", (Source("system.memory.usage", {_MEMORY_STATE: _any("used")}),), "Memory in use"),
        _bytes(
            "memory_total_bytes",
            (
                Source("system.memory.limit"),
                Source(
                    "system.memory.usage",
                    {_MEMORY_STATE: _any("used", "free", "cached", "buffered", "buffers")},
                    combine="sum",
                ),
            ),
            "Memory installed",
        ),
        _bytes(
            "memory_available_bytes",
            (Source("system.memory.linux.available"), Source("system.linux.memory.available")),
            "Memory a new program could take without swapping",
        ),
        _bytes(
            "swap_used_bytes",
            (Source("system.paging.usage", {"system.paging.state|state": _any("used")}, combine="sum"),),
            "Swap in use",
        ),
        _counter(
            "disk_read_bytes_total",
            "By",
            _direction("system.disk.io", _DIRECTION_DISK, "read", _REPEATING_DISK),
            "Bytes read",
        ),
        _counter(
            "disk_written_bytes_total",
            "By",
            _direction("system.disk.io", _DIRECTION_DISK, "write", _REPEATING_DISK),
            "Bytes written",
        ),
        _bytes(
            "filesystem_used_bytes",
            (Source("system.filesystem.usage", {_FILESYSTEM_STATE: _any("used")}, _NOT_A_HOSTS_OWN, combine="sum"),),
            "Space used on the reported file systems",
        ),
        _bytes(
            "filesystem_total_bytes",
            (
                Source("system.filesystem.limit", but_not=_NOT_A_HOSTS_OWN, combine="sum"),
                Source("system.filesystem.usage", but_not=_NOT_A_HOSTS_OWN, combine="sum"),
            ),
            "Size of the reported file systems",
        ),
        _counter(
            "network_received_bytes_total",
            "By",
            _direction("system.network.io", _DIRECTION_NETWORK, "receive", _REPEATING_INTERFACE),
            "Bytes received",
        ),
        _counter(
            "network_sent_bytes_total",
            "By",
            _direction("system.network.io", _DIRECTION_NETWORK, "transmit", _REPEATING_INTERFACE),
            "Bytes sent",
        ),
        Measure(
            "load_average_1m", "1", 0.0, 1e6, (Source("system.cpu.load_average.1m"),), "Load average over one minute"
        ),
        Measure(
            "load_average_5m", "1", 0.0, 1e6, (Source("system.cpu.load_average.5m"),), "Load average over five minutes"
        ),
        Measure(
            "load_average_15m",
            "1",
            0.0,
            1e6,
            (Source("system.cpu.load_average.15m"),),
            "Load average over fifteen minutes",
        ),
        Measure(
            "uptime_seconds", "s", 0.0, YEARS_100_SECONDS, (Source("system.uptime"),), "Time since the host's boot"
        ),
    ),
)


def _engine(own: str, *scraped: str) -> tuple[Source, ...]:
    """Our own name first, then vLLM's as a stock collector scrapes them: current name, then older ones."""
    return tuple(Source(name, combine="sum") for name in (f"fleetpulse.engine.{own}", *(f"vllm:{n}" for n in scraped)))


ENGINE: Final = Table(
    "engine_samples",
    "one model on one engine at one time",
    ("gen_ai.request.model", "model_name"),
    ("fleetpulse.engine.index", "engine"),
    (
        Measure(
            "requests_running",
            "{request}",
            0.0,
            1e7,
            _engine("requests.running", "num_requests_running"),
            "Requests being worked on",
        ),
        Measure(
            "requests_waiting",
            "{request}",
            0.0,
            1e7,
            _engine("requests.waiting", "num_requests_waiting"),
            "Requests in the engine's queue",
        ),
        _ratio(
            "kv_cache_usage_ratio",
            (
                Source("fleetpulse.engine.kv_cache.utilization", combine="mean"),
                Source("vllm:kv_cache_usage_perc", combine="mean"),
                Source("vllm:gpu_cache_usage_perc", combine="mean"),
            ),
            "KV cache in use (vLLM calls it _perc; 1 is full)",
        ),
        _counter(
            "steps_total",
            "{step}",
            _engine("steps", "iteration_tokens_total"),
            "Steps the engine has done; it stands still when the engine does nothing",
        ),
        _counter(
            "prompt_tokens_total",
            "{token}",
            _engine("prompt_tokens", "prompt_tokens_total", "prompt_tokens"),
            "Prompt tokens",
        ),
        _counter(
            "generation_tokens_total",
            "{token}",
            _engine("generation_tokens", "generation_tokens_total", "generation_tokens"),
            "Generated tokens",
        ),
        _counter(
            "preemptions_total",
            "{preemption}",
            _engine("preemptions", "num_preemptions_total", "num_preemptions"),
            "Requests pushed out of the KV cache",
        ),
        _counter(
            "prefix_cache_queries_total",
            "{token}",
            _engine("prefix_cache.queries", "prefix_cache_queries_total", "gpu_prefix_cache_queries_total"),
            "Tokens looked up in the prefix cache",
        ),
        _counter(
            "prefix_cache_hits_total",
            "{token}",
            _engine("prefix_cache.hits", "prefix_cache_hits_total", "gpu_prefix_cache_hits_total"),
            "Tokens found in the prefix cache",
        ),
        _counter(
            "requests_finished_total",
            "{request}",
            _engine("requests.finished", "request_success_total", "request_success"),
            "Requests finished, for whatever reason",
        ),
    ),
)

TABLES: Final = (GPU, SYSTEM, ENGINE)
TABLE_BY_NAME: Final[Mapping[str, Table]] = {table.name: table for table in TABLES}
