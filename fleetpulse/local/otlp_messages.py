"""OTLP messages made by hand, for tests and load: an agent's regular message without an agent."""

import random
from collections.abc import Iterable, Mapping

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, ResourceMetrics, ScopeMetrics

from fleetpulse.stream import identity

Number = int | float


def resource(request: ExportMetricsServiceRequest, attributes: Mapping[str, str]) -> ResourceMetrics:
    """Add a resource to a request."""
    added = request.resource_metrics.add()
    for name, value in attributes.items():
        attribute = added.resource.attributes.add()
        attribute.key, attribute.value.string_value = name, value
    return added


def agent_resource(
    request: ExportMetricsServiceRequest, worker_id: str, boot_id: str, instance_id: str | None = None
) -> ScopeMetrics:
    """Add an agent's resource with one scope; returns the scope."""
    added = resource(
        request,
        {
            identity.SERVICE_NAME: "fleetpulse-agent",
            identity.HOST_NAME: f"host-of-{worker_id}",
            identity.WORKER_ID: worker_id,
            identity.INSTANCE_ID: instance_id or worker_id,
            identity.BOOT_ID: boot_id,
        },
    )
    scope = added.scope_metrics.add()
    scope.scope.name = "fleetpulse.agent"
    return scope


def gauge(
    scope: ScopeMetrics, name: str, value: Number, time_unix_nano: int, attributes: Mapping[str, str] | None = None
) -> None:
    """Add a gauge of one point."""
    metric = scope.metrics.add()
    metric.name = name
    _point(metric.gauge.data_points.add(), value, time_unix_nano, attributes or {})


def counter(
    scope: ScopeMetrics, name: str, value: Number, time_unix_nano: int, attributes: Mapping[str, str] | None = None
) -> None:
    """Add a cumulative monotonic sum of one point."""
    metric = scope.metrics.add()
    metric.name = name
    metric.sum.is_monotonic = True
    metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    point = metric.sum.data_points.add()
    point.start_time_unix_nano = 1
    _point(point, value, time_unix_nano, attributes or {})


def _point(point: object, value: Number, time_unix_nano: int, attributes: Mapping[str, str]) -> None:
    point.time_unix_nano = time_unix_nano  # type: ignore[attr-defined]
    if isinstance(value, int):
        point.as_int = value  # type: ignore[attr-defined]
    else:
        point.as_double = value  # type: ignore[attr-defined]
    for name, text in attributes.items():
        attribute = point.attributes.add()  # type: ignore[attr-defined]
        attribute.key, attribute.value.string_value = name, text


def agent_message(
    worker_id: str,
    sequence: int,
    time_unix_nano: int,
    *,
    boot_id: str = "boot-1",
    instance_id: str | None = None,
    gpus: int = 8,
    numbers: random.Random | None = None,
) -> bytes:
    """The regular message of a worker with GPUs and an engine: one system row, a row a GPU, one engine row."""
    draw = numbers or random.Random(sequence)
    request = ExportMetricsServiceRequest()
    scope = agent_resource(request, worker_id, boot_id, instance_id)
    counter(scope, identity.EXPORTS_METRIC, sequence, time_unix_nano)
    for mode in ("user", "system", "idle", "iowait"):
        counter(scope, "system.cpu.time", sequence * 5.0 + draw.random(), time_unix_nano, {"cpu.mode": mode})
        gauge(scope, "system.cpu.utilization", draw.random() / 4, time_unix_nano, {"cpu.mode": mode})
    for state in ("used", "free"):
        gauge(scope, "system.memory.usage", draw.randrange(2**36), time_unix_nano, {"system.memory.state": state})
    gauge(scope, "system.memory.limit", 2**37, time_unix_nano)
    for direction in ("receive", "transmit"):
        attributes = {"network.io.direction": direction, "network.interface.name": "eth0"}
        counter(scope, "system.network.io", sequence * 1000, time_unix_nano, attributes)
    gauge(scope, "system.cpu.load_average.1m", draw.random() * 8, time_unix_nano)
    for index in range(gpus):
        _gpu(scope, f"GPU-{worker_id}-{index}", index, time_unix_nano, draw)
    labels = {"gen_ai.request.model": "mock-7b", "fleetpulse.engine.index": "0"}
    gauge(scope, "fleetpulse.engine.requests.running", draw.randrange(32), time_unix_nano, labels)
    gauge(scope, "fleetpulse.engine.requests.waiting", draw.randrange(8), time_unix_nano, labels)
    gauge(scope, "fleetpulse.engine.kv_cache.utilization", draw.random(), time_unix_nano, labels)
    counter(scope, "fleetpulse.engine.steps", sequence * 100, time_unix_nano, labels)
    counter(scope, "fleetpulse.engine.generation_tokens", sequence * 4000, time_unix_nano, labels)
    return request.SerializeToString()


def _gpu(scope: ScopeMetrics, hw_id: str, index: int, time_unix_nano: int, draw: random.Random) -> None:
    attributes = {"hw.id": hw_id, "hw.type": "gpu", "hw.model": "Simulated 80GB", "fleetpulse.gpu.index": str(index)}
    core = attributes | {"hw.sensor_location": "GPU_CORE"}
    gauge(scope, "hw.gpu.utilization", draw.random(), time_unix_nano, attributes | {"hw.gpu.task": "general"})
    gauge(scope, "hw.gpu.memory.usage", draw.randrange(80 * 2**30), time_unix_nano, attributes)
    gauge(scope, "hw.gpu.memory.limit", 80 * 2**30, time_unix_nano, attributes)
    gauge(scope, "hw.temperature", 40 + draw.random() * 40, time_unix_nano, core)
    gauge(scope, "hw.power", 100 + draw.random() * 600, time_unix_nano, attributes)
    counter(scope, "hw.energy", draw.random() * 1e9, time_unix_nano, attributes)


def concatenated(messages: Iterable[bytes]) -> bytes:
    """Several requests as one, as a collector in between batches them: protobuf messages merge by concatenation."""
    return b"".join(messages)
