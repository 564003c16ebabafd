import json
import math
import random
import struct
from time import thread_time

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from collector import otlp_json
from collector.decode import Decoder
from collector.otlp import parse
from collector.template import ABSENT_BITS, Decoded, Plan, decoded
from collector.walk import explicit_buckets, walk
from fleetpulse.local import otlp_messages as otlp
from fleetpulse.stream import identity
from fleetpulse.stream.dictionary import TABLES

NOW = 1_800_000_000_000_000_000


def read(message: bytes, decoder: Decoder | None = None) -> list[Decoded]:
    """The resources of one message."""
    contents = (decoder or Decoder()).decode([message])
    assert not contents.problems
    return contents.resources


def walked(message: bytes) -> list[Decoded]:
    """The reference: every resource walked point by point."""
    request = ExportMetricsServiceRequest()
    request.ParseFromString(message)
    sketches = [walk(resource) for resource in request.resource_metrics]
    return [decoded(sketch, Plan.of(sketch)) for sketch in sketches if sketch.worker]


def columns(found: Decoded) -> dict[tuple[str, str, str, int], dict[str, float]]:
    """Rows by table, row, label and time; absent values left out."""
    rows = {}
    for cells in found.plan.tables:
        table = TABLES[cells.table]
        out = np.empty((len(cells.rows), len(table.measures)))
        cells.fill(found.scalars, out)
        for row, time, values in zip(cells.rows, found.times[0, cells.row_times], out, strict=True):
            rows[table.name, row.key.row, row.key.label, int(time)] = {
                column: float(value)
                for column, value, bits in zip(table.columns, values, values.view(np.uint64), strict=True)
                if bits != ABSENT_BITS
            }
    return rows


def points(found: Decoded) -> list[tuple[str, str, int, bytes]]:
    return [
        (
            point.series.name,
            point.series.attributes,
            int(found.times[0, point.time]),
            struct.pack("<d", found.scalars[0, point.scalar]),
        )
        for point in found.plan.points
    ]


def test_a_message_of_a_known_shape_is_read_without_walking_it():
    decoder = Decoder()
    for sequence in range(1, 6):
        decoder.decode([otlp.agent_message("w", sequence, NOW + sequence)])
    assert (decoder.walked, decoder.recognised) == (1, 4)


@given(
    st.lists(st.tuples(st.integers(1, 2**40), st.integers(NOW, NOW + 10**12), st.integers()), min_size=3, max_size=8)
)
@settings(max_examples=40, deadline=None)
def test_the_fast_path_reads_what_the_walk_reads(messages):
    decoder = Decoder()
    for sequence, time, seed in messages:
        message = otlp.agent_message("w", sequence, time, gpus=2, numbers=random.Random(seed))
        (fast,), (slow,) = read(message, decoder), walked(message)
        assert columns(fast) == columns(slow)
        assert points(fast) == points(slow)
        assert fast.sequences() == slow.sequences() == [sequence]
    assert decoder.recognised == len(messages) - 1


@given(st.lists(st.floats(width=64), min_size=3, max_size=6))
@settings(max_examples=60, deadline=None)
def test_values_come_through_bit_by_bit_even_nan_and_infinity(values):
    decoder = Decoder()
    for value in values:
        request = ExportMetricsServiceRequest()
        scope = otlp.agent_resource(request, "w", "b")
        otlp.gauge(scope, "any.metric", float(value), NOW)
        (found,) = read(request.SerializeToString(), decoder)
        assert points(found)[0][3] == struct.pack("<d", value)


def test_messages_of_a_round_are_told_apart_by_number_and_bad_ones_do_not_spoil_their_neighbours():
    good = [otlp.agent_message(worker, sequence, NOW) for sequence in (1, 2, 3, 4) for worker in ("a", "b")]
    contents = Decoder().decode([*good[:4], b"junk", *good[4:]])
    assert set(contents.problems) == {4}
    found = sorted(
        (number, decoded.plan.worker.worker_id, sequence)
        for decoded in contents.resources
        for number, sequence in zip(decoded.messages, decoded.sequences(), strict=True)
    )
    numbers = [0, 1, 2, 3, 5, 6, 7, 8]
    assert found == [(number, "ab"[place % 2], place // 2 + 1) for place, number in enumerate(numbers)]


def test_two_senders_of_the_same_length_are_not_confused():
    decoder = Decoder()
    for sequence in range(1, 4):
        for worker in ("worker-a", "worker-b"):
            (found,) = read(otlp.agent_message(worker, sequence, NOW), decoder)
            assert found.plan.worker.worker_id == worker


def test_points_of_one_row_that_part_in_time_become_two_rows():
    decoder = Decoder()

    def message(second_time: int) -> bytes:
        request = ExportMetricsServiceRequest()
        scope = otlp.agent_resource(request, "w", "b")
        otlp.gauge(scope, "system.memory.limit", 5, NOW)
        otlp.gauge(scope, "system.uptime", 7.0, second_time)
        return request.SerializeToString()

    for _ in range(3):
        (found,) = read(message(NOW), decoder)
        assert len(columns(found)) == 1
    (found,) = read(message(NOW + 1), decoder)
    assert set(columns(found)) == {("system_samples", "", "", NOW), ("system_samples", "", "", NOW + 1)}


def test_a_batch_of_many_resources_is_read_resource_by_resource():
    message = otlp.concatenated(otlp.agent_message(f"w{n}", 1, NOW) for n in range(5))
    assert [found.plan.worker.worker_id for found in read(message)] == [f"w{n}" for n in range(5)]


def test_a_resource_without_identity_is_refused_and_its_neighbour_is_not():
    request = ExportMetricsServiceRequest()
    otlp.resource(request, {"service.name": "who"})
    otlp.gauge(otlp.agent_resource(request, "w", "b"), "system.uptime", 1.0, NOW)
    contents = Decoder().decode([request.SerializeToString()])
    assert contents.unidentified == {0: 1}
    assert [found.messages for found in contents.resources] == [[0]]


@pytest.mark.parametrize("as_json", [False, True])
def test_text_that_is_not_utf8_costs_itself_and_neither_its_resource_nor_its_neighbours(as_json):
    request = ExportMetricsServiceRequest()
    for worker in ("a", "b"):
        scope = otlp.agent_resource(request, worker, "boot")
        otlp.gauge(scope, "system.uptime", 7.0, NOW)
        otlp.gauge(scope, "any.series", 1.5, NOW, {"path": "caf????" if worker == "a" else "cafe"})
    text = json_format.MessageToJson(request).encode() if as_json else request.SerializeToString()
    contents = Decoder().decode([text.replace(b"????", b"\xe9\xff\xc3\x28"), request.SerializeToString()])
    assert not contents.problems
    found = {(resource.messages[0], resource.plan.worker.worker_id): resource for resource in contents.resources}
    assert set(found) == {(0, "a"), (0, "b"), (1, "a"), (1, "b")}
    for resource in found.values():
        assert columns(resource) == {("system_samples", "", "", NOW): {"uptime_seconds": 7.0}}
    assert [json.loads(name)["path"] for _, name, _, _ in points(found[0, "a"])] == ["caf\ufffd\ufffd\ufffd("]
    assert [json.loads(name)["path"] for _, name, _, _ in points(found[0, "b"])] == ["cafe"]
    assert found[0, "a"].plan.refused == ({} if as_json else {"not_utf8": 1})
    assert not found[0, "b"].plan.refused


def test_a_worker_whose_name_is_not_utf8_belongs_to_nobody_and_its_neighbour_is_read():
    request = ExportMetricsServiceRequest()
    for worker in ("????", "b"):
        otlp.gauge(otlp.agent_resource(request, worker, "boot"), "system.uptime", 7.0, NOW)
    contents = Decoder().decode([request.SerializeToString().replace(b"????", b"a\xff\xfe\xfd")])
    assert (contents.unidentified, contents.problems) == ({0: 1}, {})
    assert [resource.plan.worker.worker_id for resource in contents.resources] == ["b"]


def test_bytes_that_are_no_text_are_left_as_they_are_where_a_text_is_mended():
    request = ExportMetricsServiceRequest()
    scope = otlp.agent_resource(request, "w", "b")
    otlp.gauge(scope, "any.series", 1.0, NOW, {"path": "????"})
    point = scope.metrics[0].gauge.data_points[0]
    point.exemplars.add().trace_id = b"\xff" * 16
    added = point.attributes.add()
    added.key, added.value.bytes_value = "raw", b"\xff\xfe"
    parsed, mended = parse(request.SerializeToString().replace(b"????", b"\xff\xff\xff\xff"))
    assert mended
    (read_point,) = parsed.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
    assert read_point.exemplars[0].trace_id == b"\xff" * 16
    assert [each.value.bytes_value for each in read_point.attributes if each.key == "raw"] == [b"\xff\xfe"]
    assert [each.value.string_value for each in read_point.attributes if each.key == "path"] == ["\ufffd" * 4]


@pytest.mark.parametrize("attribute", ["service.instance.id", "host.id", "host.name"])
def test_a_stock_collector_is_known_by_what_it_says_of_itself(attribute):
    request = ExportMetricsServiceRequest()
    scope = otlp.resource(request, {attribute: "box-7"}).scope_metrics.add()
    otlp.gauge(scope, "system.cpu.load_average.1m", 0.5, NOW)
    (found,) = read(request.SerializeToString())
    assert found.plan.worker.worker_id == "box-7"
    assert columns(found) == {("system_samples", "", "", NOW): {"load_average_1m": 0.5}}


def test_the_stock_collectors_spelling_feeds_the_same_columns():
    request = ExportMetricsServiceRequest()
    scope = otlp.resource(request, {"host.name": "box"}).scope_metrics.add()
    for cpu in ("cpu0", "cpu1"):
        for state, seconds in (("user", 10.0), ("system", 5.0), ("idle", 80.0), ("wait", 1.0)):
            otlp.counter(scope, "system.cpu.time", seconds, NOW, {"cpu": cpu, "state": state})
    for state, used in (("used", 60), ("free", 30), ("cached", 8), ("buffered", 2), ("slab_reclaimable", 1)):
        otlp.gauge(scope, "system.memory.usage", used, NOW, {"state": state})
    for device in ("eth0", "eth1"):
        otlp.counter(scope, "system.network.io", 100, NOW, {"device": device, "direction": "receive"})
    (found,) = read(request.SerializeToString())
    assert columns(found)["system_samples", "", "", NOW] == {
        "cpu_busy_seconds_total": 30.0,
        "cpu_idle_seconds_total": 162.0,
        "memory_used_bytes": 60.0,
        "memory_total_bytes": 100.0,
        "network_received_bytes_total": 200.0,
    }


def test_devices_that_count_again_what_others_count_are_series_and_not_added_up():
    request = ExportMetricsServiceRequest()
    scope = otlp.resource(request, {"host.name": "box"}).scope_metrics.add()
    partitions = ("sda1", "nvme0n1p2", "dm-0", "md127", "loop3", "ram0", "mmcblk0p1", "xvda1")
    for device in ("sda", "nvme0n1", "mmcblk0", "xvdb", *partitions):
        otlp.counter(scope, "system.disk.io", 1, NOW, {"device": device, "direction": "read"})
    inner = ("lo", "veth1a2b", "docker0", "br-12ab", "bond0", "cilium_host")
    for device in ("eth0", "enp3s0", "wlan0", "ib0", "eno1.100", *inner):
        otlp.counter(scope, "system.network.io", 1, NOW, {"device": device, "direction": "transmit"})
    for kind in ("ext4", "xfs", "tmpfs", "squashfs", "overlay", "nfs4"):
        otlp.gauge(scope, "system.filesystem.usage", 1, NOW, {"state": "used", "type": kind})
    (found,) = read(request.SerializeToString())
    assert columns(found)["system_samples", "", "", NOW] == {
        "disk_read_bytes_total": 4.0,
        "network_sent_bytes_total": 5.0,
        "filesystem_used_bytes": 2.0,
        "filesystem_total_bytes": 2.0,
    }
    assert len(points(found)) == len(partitions) + len(inner) + 4


def test_idle_shares_of_all_cpus_become_one_busy_share():
    request = ExportMetricsServiceRequest()
    scope = otlp.resource(request, {"host.name": "box"}).scope_metrics.add()
    for cpu, idle in (("cpu0", 0.5), ("cpu1", 1.0)):
        otlp.gauge(scope, "system.cpu.utilization", idle, NOW, {"cpu": cpu, "state": "idle"})
    (found,) = read(request.SerializeToString())
    assert columns(found)["system_samples", "", "", NOW] == {"cpu_utilization_ratio": 0.25}


def test_an_engine_scraped_by_a_stock_collector_feeds_the_engine_table_old_names_too():
    request = ExportMetricsServiceRequest()
    scope = otlp.resource(request, {"service.instance.id": "10.0.0.1:8000"}).scope_metrics.add()
    labels = {"model_name": "m", "engine": "0"}
    otlp.gauge(scope, "vllm:num_requests_running", 3.0, NOW, labels)
    otlp.gauge(scope, "vllm:gpu_cache_usage_perc", 0.4, NOW, labels)
    (found,) = read(request.SerializeToString())
    assert columns(found) == {("engine_samples", "m", "0", NOW): {"requests_running": 3.0, "kv_cache_usage_ratio": 0.4}}


def test_what_a_counter_grew_by_is_a_series_and_no_reading_of_the_counter():
    request = ExportMetricsServiceRequest()
    scope = otlp.agent_resource(request, "w", "b")
    otlp.counter(scope, "system.cpu.time", 5.0, NOW, {"cpu.mode": "user"})
    otlp.counter(scope, "system.cpu.time", 95.0, NOW, {"cpu.mode": "idle"})
    otlp.counter(scope, identity.EXPORTS_METRIC, 1, NOW)
    for metric in (scope.metrics[0], scope.metrics[2]):
        metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    (found,) = read(request.SerializeToString())
    assert columns(found) == {("system_samples", "", "", NOW): {"cpu_idle_seconds_total": 95.0}}
    assert [(p.series.name, p.series.temporality) for p in found.plan.points] == [
        ("system.cpu.time", "delta"),
        (identity.EXPORTS_METRIC, "delta"),
    ]
    assert found.sequences() == [None], "numbers that do not count up would make duplicates of all but the first"


def test_a_stock_collectors_json_is_read_like_its_protobuf():
    batch = otlp.concatenated(otlp.agent_message(f"w{n}", 1, NOW, gpus=1) for n in range(3))
    as_json = json_format.MessageToJson(ExportMetricsServiceRequest.FromString(batch), indent=None).encode()
    decoder = Decoder()
    expected = [(each.plan.worker, columns(each), points(each)) for each in read(batch)]
    for _ in range(3):
        assert [(each.plan.worker, columns(each), points(each)) for each in read(as_json, decoder)] == expected
    assert decoder.recognised, "from the second on it is known by its shape"


@pytest.mark.parametrize("junk", [b"{", b'{"resourceMetrics": 1}', b"{}", b'{"x":' + b"[" * 50_000, b"{" * 1_000_001])
def test_json_that_is_no_request_is_refused(junk):
    assert set(Decoder().decode([junk]).problems) == {0}


def test_identifiers_of_exemplars_are_hex_in_json_and_come_out_as_the_bytes_they_stand_for():
    exemplars = [
        {"traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "eee19b7ec3c1b174"},
        {"traceId": "z" * 32, "spanId": ""},
    ]
    metric = {"name": "m", "sum": {"dataPoints": [{"timeUnixNano": str(NOW), "asInt": "1", "exemplars": exemplars}]}}
    body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}
    read_metric = otlp_json.parse(json.dumps(body).encode()).resource_metrics[0].scope_metrics[0].metrics[0]
    first, second = read_metric.sum.data_points[0].exemplars
    assert first.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert first.span_id.hex() == "eee19b7ec3c1b174"
    assert second.span_id == b""


def test_a_message_of_thousands_of_points_costs_no_more_than_their_number():
    request = ExportMetricsServiceRequest()
    scope = otlp.resource(request, {"host.name": "box"}).scope_metrics.add()
    for number in range(8_000):
        otlp.gauge(scope, "doors", float(number), NOW + number % 7, {"door": str(number)})
    message = request.SerializeToString()
    decoder = Decoder()
    began = thread_time()
    for _ in range(3):
        read(message, decoder)
    # A second's work; it was twelve where each value was looked for in all of the message.
    assert thread_time() - began < 6
    assert decoder.recognised == 1


def test_a_gpu_point_without_a_gpu_is_refused_by_reason():
    request = ExportMetricsServiceRequest()
    scope = otlp.agent_resource(request, "w", "b")
    otlp.gauge(scope, "hw.gpu.utilization", 0.5, NOW)
    (found,) = read(request.SerializeToString())
    assert found.plan.refused == {"missing_identity": 1}


def test_a_point_with_the_no_recorded_value_flag_is_a_gap():
    request = ExportMetricsServiceRequest()
    scope = otlp.agent_resource(request, "w", "b")
    otlp.gauge(scope, "system.uptime", 5.0, NOW)
    scope.metrics[0].gauge.data_points[0].flags = 1
    (found,) = read(request.SerializeToString())
    assert columns(found) == {}


def test_nul_in_strings_is_removed_because_the_database_has_no_place_for_it():
    request = ExportMetricsServiceRequest()
    scope = otlp.agent_resource(request, "w", "b")
    otlp.gauge(scope, "a\x00b", 1.0, NOW, {"k\x00": "v\x00"})
    (found,) = read(request.SerializeToString())
    assert points(found)[0][:2] == ("ab", '{"k": "v"}')


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_read_or_refused_and_never_more(data):
    contents = Decoder().decode([data])
    assert contents.problems or contents.resources or contents.unidentified


@given(st.integers(0, 10_000), st.integers(0, 7), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_cut_or_flipped_message_is_read_or_refused_and_never_more(position, bit, cut):
    message = bytearray(otlp.agent_message("w", 1, NOW, gpus=1))
    position %= len(message)
    if cut:
        del message[position:]
    else:
        message[position] ^= 1 << bit
    contents = Decoder().decode([bytes(message)] * 3)
    assert contents.problems or contents.resources or contents.unidentified


def test_a_histogram_is_kept_with_its_bounds_and_counts():
    request = ExportMetricsServiceRequest()
    metric = otlp.agent_resource(request, "w", "b").metrics.add()
    metric.name, metric.unit = "latency", "s"
    metric.histogram.aggregation_temporality = 1
    point = metric.histogram.data_points.add()
    point.time_unix_nano, point.count, point.sum = NOW, 6, 2.5
    point.explicit_bounds.extend([0.1, 1.0])
    point.bucket_counts.extend([1, 2, 3])
    (found,) = read(request.SerializeToString())
    (histogram,) = found.histograms
    assert (histogram.series.kind, histogram.series.temporality) == ("histogram", "delta")
    assert (histogram.count, histogram.sum, histogram.minimum) == (6, 2.5, None)
    assert (histogram.bounds, histogram.buckets) == ([0.1, 1.0], [1, 2, 3])


def test_an_exponential_histogram_has_its_bounds_written_out():
    request = ExportMetricsServiceRequest()
    metric = otlp.agent_resource(request, "w", "b").metrics.add()
    point = metric.exponential_histogram.data_points.add()
    point.scale, point.zero_count = 0, 4
    point.positive.offset = 1
    point.positive.bucket_counts.extend([5, 6])
    bounds, buckets = explicit_buckets(point)
    assert (bounds, buckets) == ([2.0, 4.0, 8.0], [4, 5, 6, 0])


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_an_exponential_histogram_of_too_many_buckets_is_refused_and_not_stored_without_them(side):
    request = ExportMetricsServiceRequest()
    metric = otlp.agent_resource(request, "w", "b").metrics.add()
    metric.name = "latency"
    point = metric.exponential_histogram.data_points.add()
    point.time_unix_nano, point.count = NOW, 600
    getattr(point, side).bucket_counts.extend([1] * 600)
    (found,) = read(request.SerializeToString())
    assert (found.histograms, found.plan.refused) == ([], {"malformed_histogram": 1})


def test_sums_and_gauges_of_strangers_become_series_with_kind_and_temporality():
    request = ExportMetricsServiceRequest()
    scope = otlp.agent_resource(request, "w", "b")
    otlp.gauge(scope, "room.temperature", 21.0, NOW, {"room": "1"})
    otlp.counter(scope, "doors.opened", 4, NOW)
    scope.metrics[1].sum.aggregation_temporality = 1
    (found,) = read(request.SerializeToString())
    assert [(p.series.name, p.series.kind, p.series.temporality) for p in found.plan.points] == [
        ("room.temperature", "gauge", ""),
        ("doors.opened", "counter", "delta"),
    ]
    assert math.isclose(found.scalars[0, found.plan.points[1].scalar], 4.0)
