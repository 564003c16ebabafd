"""Messages hold what the dictionary of measures expects, and only values change between them."""

from collections.abc import Iterable

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric, NumberDataPoint
from opentelemetry.sdk.metrics.export import MetricsData

from agent import gpu_reading, instruments
from agent.columns import columns
from agent.encoder import Encoder
from agent.engines import measurements as engine_measurements
from agent.engines.adapter import EngineReading
from agent.engines.watch import EngineSnapshot
from agent.exporter import Exporter
from agent.identity import identify
from agent.instruments import ENGINE_BY_COLUMN, Measurement
from agent.sampling import own_measurements
from agent.simulated_gpu import SimulatedGpus
from agent.system import SystemReader
from fleetpulse.settings import AgentSettings
from fleetpulse.stream import dictionary, identity

BOOTED, STARTED = 1_000, 2_000
# What feeds each unit-bearing source. The dictionary gives units by column; a source has its column's unit.
SETTINGS = AgentSettings(worker_id="worker-1", simulate_gpu_count=2)


def engine_snapshot(factor: float) -> EngineSnapshot:
    values = {column: factor * (place + 1) / 100 for place, column in enumerate(ENGINE_BY_COLUMN)}
    readings = [EngineReading("llama", index, values) for index in ("0", "1")]
    return EngineSnapshot("ready", "vllm", "http://e", ("llama",), readings)


def encode(message: MetricsData) -> bytes:
    return Encoder().encode(message)


def everything(gpus: SimulatedGpus, system: SystemReader, factor: float = 1.0) -> list[Measurement]:
    return [
        *own_measurements(int(factor), int(factor * 7), 0),
        *system.read(2e9 + factor),
        *gpu_reading.measurements(gpus.read()),
        *engine_measurements.measurements(engine_snapshot(factor)),
    ]


@pytest.fixture
def exporter() -> Exporter:
    return Exporter(identify(SETTINGS).resource_attributes(), "1.2.3", BOOTED, STARTED)


@pytest.fixture
def measured() -> list[Measurement]:
    gpus, system = SimulatedGpus("worker-1", SETTINGS), SystemReader()
    burn_some_cpu(system)
    return everything(gpus, system)


def burn_some_cpu(system: SystemReader) -> None:
    """CPU utilisation needs the host's clock of 10 ms to have ticked."""
    while not any(m.instrument is instruments.CPU_UTILIZATION for m in system.read(2e9)):
        sum(range(10_000))


def parsed(message: bytes) -> ExportMetricsServiceRequest:
    return ExportMetricsServiceRequest.FromString(message)


def metrics_of(request: ExportMetricsServiceRequest) -> dict[str, Metric]:
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def points_of(metric: Metric) -> Iterable[NumberDataPoint]:
    return metric.gauge.data_points if metric.HasField("gauge") else metric.sum.data_points


def without_values(request: ExportMetricsServiceRequest) -> bytes:
    for metric in metrics_of(request).values():
        for point in points_of(metric):
            point.time_unix_nano = 1
            setattr(point, point.WhichOneof("value"), 0)
    return request.SerializeToString()


def test_every_column_of_the_wide_tables_is_fed(measured: list[Measurement]) -> None:
    for table in dictionary.TABLES:
        assert set(columns(table, measured)) == set(table.columns), table.name


def test_columns_are_within_the_dictionarys_limits(measured: list[Measurement]) -> None:
    for table in dictionary.TABLES:
        found = columns(table, measured)
        for measure in table.measures:
            for row, value in found[measure.column].items():
                assert measure.minimum <= value <= measure.maximum, (measure.column, row, value)


def test_instruments_have_the_units_and_kinds_of_the_dictionary() -> None:
    by_name = {instrument.name: instrument for instrument in instruments.ALL}
    for table in dictionary.TABLES:
        for measure in table.measures:
            instrument = by_name[measure.sources[0].metric]
            assert instrument.unit == measure.unit, measure.column
            assert (instrument.kind == "counter") == (measure.kind == "counter"), measure.column


def test_messages_say_units_kinds_and_times(exporter: Exporter, measured: list[Measurement]) -> None:
    metrics = metrics_of(parsed(encode(exporter.build(measured, 5_000))))
    by_name = {instrument.name: instrument for instrument in instruments.ALL}
    assert set(metrics) == {m.instrument.name for m in measured} | {identity.EXPORTS_METRIC}
    for name, metric in metrics.items():
        instrument = by_name[name]
        assert metric.unit == instrument.unit
        assert {point.time_unix_nano for point in points_of(metric)} == {5_000}
        assert {point.WhichOneof("value") for point in points_of(metric)} == {
            "as_int" if instrument.integer else "as_double"
        }
        if metric.HasField("sum"):
            assert metric.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
            assert metric.sum.is_monotonic == (instrument.kind == "counter")
            assert {point.start_time_unix_nano for point in points_of(metric)} <= {BOOTED, STARTED}


def test_a_message_names_its_worker(exporter: Exporter, measured: list[Measurement]) -> None:
    request = parsed(encode(exporter.build(measured, 5_000)))
    attributes = {a.key: a.value.string_value for a in request.resource_metrics[0].resource.attributes}
    assert attributes["service.name"] == "fleetpulse-agent"
    assert attributes[identity.WORKER_ID] == attributes[identity.INSTANCE_ID] == "worker-1"
    assert attributes[identity.SERVICE_INSTANCE_ID] == attributes[identity.BOOT_ID] != ""
    assert {"host.name", "host.id", "host.arch", "service.version"} <= set(attributes)


def test_the_sequence_number_counts_messages_from_one(exporter: Exporter) -> None:
    for expected in (1, 2, 3):
        (point,) = points_of(metrics_of(parsed(encode(exporter.build([], 9))))[identity.EXPORTS_METRIC])
        assert point.as_int == expected


def test_two_messages_differ_only_in_values_of_eight_bytes(exporter: Exporter) -> None:
    gpus, system = SimulatedGpus("worker-1", SETTINGS), SystemReader()
    burn_some_cpu(system)
    first = encode(exporter.build(everything(gpus, system, 1.0), 1_790_000_000_000_000_000))
    second = encode(exporter.build(everything(gpus, system, 1e9), 1_790_000_005_000_000_001))
    assert first != second
    assert len(first) == len(second)
    assert without_values(parsed(first)) == without_values(parsed(second))


def test_a_value_of_zero_is_said_rather_than_left_out(exporter: Exporter) -> None:
    zero = [Measurement(instruments.LOAD_1M, {}, 0.0), Measurement(instruments.SPOOL_USAGE, {}, 0)]
    metrics = metrics_of(parsed(encode(exporter.build(zero, 5))))
    for instrument in (instruments.LOAD_1M, instruments.SPOOL_USAGE):
        (point,) = points_of(metrics[instrument.name])
        assert point.WhichOneof("value") is not None


def test_patched_bytes_are_those_of_opentelemetrys_own_encoder(exporter: Exporter) -> None:
    gpus, system, encoder = SimulatedGpus("worker-1", SETTINGS), SystemReader(), Encoder()
    for turn in range(1, 6):
        message = exporter.build(everything(gpus, system, turn * 1e3), turn * 1_000_000_007)
        assert encoder.encode(message) == encode_metrics(message).SerializeToString()


def test_a_device_that_comes_or_goes_changes_the_shape(exporter: Exporter) -> None:
    system, encoder = SystemReader(), Encoder()
    for count in (1, 1, 3, 3, 0, 1):
        readings = SimulatedGpus("worker-1", AgentSettings(simulate_gpu_count=count)).read()
        message = exporter.build([*system.read(2e9), *gpu_reading.measurements(readings)], 5_000)
        assert encoder.encode(message) == encode_metrics(message).SerializeToString()
