"""From a parsed OTLP resource to columns, point by point: exact for any message, and the reference for the fast path.

The walk yields a Sketch: which data points exist, what each feeds, and their values. `template.py` turns the sketch
of one message into a plan for all messages with the same bytes but for their values.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    DataPointFlags,
    ExponentialHistogramDataPoint,
    Metric,
    ResourceMetrics,
)

from collector.mapping import Feed, feeds_of
from fleetpulse.stream import identity
from fleetpulse.stream.dictionary import TABLES

NO_RECORDED_VALUE: Final = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
DELTA: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
TEXT_LIMIT: Final = 400
ATTRIBUTES_LIMIT: Final = 64
BUCKETS_LIMIT: Final = 512

Attributes = dict[str, str]


class RowKey(NamedTuple):
    """Which row of which wide table within a worker: the table's index, its row attribute and label attributes."""

    table: int
    row: str
    label: str


class SeriesKey(NamedTuple):
    """A generic series within a worker."""

    name: str
    unit: str
    kind: str
    temporality: str
    attributes: str  # JSON, sorted keys

    @property
    def digest(self) -> bytes:
        """Identity of the series in the database, 16 bytes."""
        return hashlib.blake2b("\x00".join(self).encode(), digest_size=16).digest()


@dataclass(slots=True)
class Worker:
    """Who sent the resource."""

    worker_id: str
    instance_id: str
    host_name: str
    boot_id: str | None


class Scalar(NamedTuple):
    """One number of the message: where it is read from, and its value."""

    holder: Any  # the protobuf message that holds it
    attribute: str  # its field: as_int, as_double, count …
    value: float


@dataclass(slots=True)
class Cell:
    """A column of a row: the scalars that make it up."""

    feed: Feed
    scalars: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Row:
    """A row of a wide table: its time's index in Sketch.times and its cells by column index."""

    key: RowKey
    time: int
    cells: dict[int, Cell] = field(default_factory=dict)


@dataclass(slots=True)
class Point:
    """A value of a generic series."""

    series: SeriesKey
    time: int
    scalar: int


@dataclass(slots=True)
class Histogram:
    """A histogram of a generic series."""

    series: SeriesKey
    time_unix_nano: int
    count: int
    sum: float | None
    minimum: float | None
    maximum: float | None
    bounds: list[float]
    buckets: list[int]


@dataclass(slots=True)
class Sketch:
    """A resource's content. Indices refer to ``scalars`` and ``times``."""

    worker: Worker | None
    scalars: list[Scalar] = field(default_factory=list)
    times: list[Scalar] = field(default_factory=list)  # value: Unix nanoseconds, as int
    rows: list[Row] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    gpus: dict[str, tuple[int | None, str | None]] = field(default_factory=dict)
    sequence: int | None = None  # index in scalars
    refused: dict[str, int] = field(default_factory=dict)

    def refuse(self, reason: str) -> None:
        """Count a data point that is not used."""
        self.refused[reason] = self.refused.get(reason, 0) + 1


def walk(resource_metrics: ResourceMetrics) -> Sketch:
    """Read one resource. Points that cannot be used are counted by reason; a resource without identity has no
    worker, and nothing else is read from it."""
    worker = worker_of(text_attributes(resource_metrics.resource.attributes))
    sketch = Sketch(worker)
    if worker is None:
        return sketch
    rows: dict[tuple[RowKey, int], Row] = {}
    for scope in resource_metrics.scope_metrics:
        for metric in scope.metrics:
            _walk_metric(sketch, rows, metric)
    for row in rows.values():
        _drop_second_choices(row)
    sketch.rows = list(rows.values())
    return sketch


def worker_of(attributes: Attributes) -> Worker | None:
    """Whose resource it is by its attributes; None when they do not say."""
    worker_id = next((attributes[name] for name in identity.WORKER_ID_ATTRIBUTES if attributes.get(name)), None)
    if worker_id is None or not usable_identity(worker_id):
        return None
    instance_id = attributes.get(identity.INSTANCE_ID) or worker_id
    if not usable_identity(instance_id):
        return None
    boot_id = attributes.get(identity.BOOT_ID)
    if boot_id is not None and not usable_identity(boot_id):
        return None
    return Worker(worker_id, instance_id, attributes.get(identity.HOST_NAME, ""), boot_id)


def usable_identity(text: str) -> bool:
    """The same rule as a heartbeat's identity: 1 to 200 printable characters without spaces."""
    return 1 <= len(text) <= 200 and text.isascii() and text.isprintable() and " " not in text


def text_attributes(attributes: Iterable[KeyValue]) -> Attributes:
    """Attributes as text: NUL removed (PostgreSQL has no place for it), length and number bounded."""
    found: Attributes = {}
    for attribute in attributes:
        if len(found) >= ATTRIBUTES_LIMIT:
            break
        found[_clean(attribute.key)] = _clean(_text(attribute.value))
    return found


def _clean(text: str) -> str:
    if len(text) <= TEXT_LIMIT and "\x00" not in text:
        return text
    return text.replace("\x00", "")[:TEXT_LIMIT]


def _text(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind is None:
        return ""
    content = getattr(value, kind)
    if kind == "bool_value":
        return "true" if content else "false"
    if kind == "bytes_value":
        return bytes(content[:TEXT_LIMIT]).hex()
    if kind in {"array_value", "kvlist_value"}:
        # Not str(): a nested value may be of any depth and size.
        return hashlib.blake2b(content.SerializeToString(), digest_size=16).hexdigest()
    return str(content)


def _walk_metric(sketch: Sketch, rows: dict[tuple[RowKey, int], Row], metric: Metric) -> None:
    kind = metric.WhichOneof("data")
    if kind is None:
        sketch.refuse("no_data_points")
        return
    data = getattr(metric, kind)
    feeds = feeds_of(metric.name)
    # Columns hold what a counter stands at; what it grew by is a series of its own.
    is_total = kind != "summary" and (kind == "gauge" or data.aggregation_temporality != DELTA)
    for point in data.data_points:
        if point.flags & NO_RECORDED_VALUE:
            continue  # the sender says: a gap
        if not point.time_unix_nano:
            sketch.refuse("no_time")
            continue
        attributes = text_attributes(point.attributes)
        if metric.name == identity.EXPORTS_METRIC and kind == "sum" and is_total:
            sketch.sequence = _scalar(sketch, point, point.WhichOneof("value") or "as_int")
            continue
        matching = [feed for feed in feeds if feed.accepts(attributes)] if is_total else []
        if matching:
            _feed_row(sketch, rows, matching, attributes, point, kind)
        if not matching or any(feed.keep for feed in matching):
            _keep_series(sketch, metric, kind, data, attributes, point)


def _scalar(sketch: Sketch, holder: Any, attribute: str) -> int:
    sketch.scalars.append(Scalar(holder, attribute, float(getattr(holder, attribute))))
    return len(sketch.scalars) - 1


def _time(sketch: Sketch, point: Any) -> int:
    sketch.times.append(Scalar(point, "time_unix_nano", point.time_unix_nano))
    return len(sketch.times) - 1


def _feed_row(
    sketch: Sketch,
    rows: dict[tuple[RowKey, int], Row],
    matching: list[Feed],
    attributes: Attributes,
    point: Any,
    kind: str,
) -> None:
    # A histogram in a wide table counts events: vLLM's steps are the observations of its iteration histogram.
    value_field = point.WhichOneof("value") if kind in {"gauge", "sum"} else "count"
    if value_field is None:
        sketch.refuse("no_value")
        return
    table = TABLES[matching[0].table]
    row_text = next((attributes[name] for name in table.row_attributes if attributes.get(name)), "")
    if table.row_attributes and not row_text:
        sketch.refuse("missing_identity")
        return
    label = next((attributes[name] for name in table.label_attributes if attributes.get(name)), "")
    key = RowKey(matching[0].table, row_text, label)
    row = rows.get((key, point.time_unix_nano))
    time_index = _time(sketch, point)
    if row is None:
        row = rows[key, point.time_unix_nano] = Row(key, time_index)
        if "hw.id" in table.row_attributes:
            sketch.gpus[row_text] = _gpu(attributes)
    scalar = _scalar(sketch, point, value_field)
    for feed in matching:
        cell = row.cells.get(feed.slot)
        if cell is None:
            cell = row.cells[feed.slot] = Cell(feed)
        elif feed.combine == "only":
            sketch.refuse("repeated_point")
            continue
        cell.scalars.append(scalar)


def _drop_second_choices(row: Row) -> None:
    """Of a column's alternative sources keep the best that came; slots become column indices."""
    chosen: dict[int, Cell] = {}
    for cell in row.cells.values():
        other = chosen.get(cell.feed.column)
        if other is None or cell.feed.rank < other.feed.rank:
            chosen[cell.feed.column] = cell
    row.cells = chosen


def _gpu(attributes: Attributes) -> tuple[int | None, str | None]:
    index = attributes.get("fleetpulse.gpu.index", "")
    return (int(index) if index.isdecimal() and len(index) < 5 else None, attributes.get("hw.model") or None)


def _keep_series(sketch: Sketch, metric: Metric, kind: str, data: Any, attributes: Attributes, point: Any) -> None:
    name, unit = _clean(metric.name), _clean(metric.unit)
    if not name:
        sketch.refuse("missing_name")
        return
    temporality = ""
    if kind in {"sum", "histogram", "exponential_histogram"}:
        temporality = "delta" if data.aggregation_temporality == DELTA else "cumulative"
    series = SeriesKey(name, unit, _series_kind(kind, data), temporality, json.dumps(attributes, sort_keys=True))
    if kind in {"gauge", "sum"}:
        value_field = point.WhichOneof("value")
        if value_field is None:
            sketch.refuse("no_value")
            return
        sketch.points.append(Point(series, _time(sketch, point), _scalar(sketch, point, value_field)))
    elif kind == "summary":
        _keep_summary(sketch, series, attributes, point)
    else:
        _keep_histogram(sketch, series, kind, point)


def _series_kind(kind: str, data: Any) -> str:
    if kind == "sum":
        return "counter" if data.is_monotonic else "sum"
    return "histogram" if kind == "exponential_histogram" else kind


def _keep_summary(sketch: Sketch, series: SeriesKey, attributes: Attributes, point: Any) -> None:
    """A summary as a gauge for each quantile, and two counters."""
    for quantile in point.quantile_values[:BUCKETS_LIMIT]:
        labels = json.dumps(attributes | {"quantile": f"{quantile.quantile:g}"}, sort_keys=True)
        each = series._replace(kind="gauge", attributes=labels)
        sketch.points.append(Point(each, _time(sketch, point), _scalar(sketch, quantile, "value")))
    for part in ("count", "sum"):
        total = series._replace(name=f"{series.name}.{part}", kind="counter", temporality="cumulative")
        sketch.points.append(Point(total, _time(sketch, point), _scalar(sketch, point, part)))


def _keep_histogram(sketch: Sketch, series: SeriesKey, kind: str, point: Any) -> None:
    if kind == "histogram":
        bounds, buckets = list(point.explicit_bounds), list(point.bucket_counts)
    elif max(len(point.negative.bucket_counts), len(point.positive.bucket_counts)) <= BUCKETS_LIMIT:
        bounds, buckets = explicit_buckets(point)
    else:
        sketch.refuse("malformed_histogram")
        return
    if len(buckets) > BUCKETS_LIMIT or (buckets and len(buckets) != len(bounds) + 1):
        sketch.refuse("malformed_histogram")
        return
    if max(buckets, default=0) >= 2**63 or point.count >= 2**63:
        sketch.refuse("out_of_range")
        return
    total, minimum, maximum = (getattr(point, name) if point.HasField(name) else None for name in ("sum", "min", "max"))
    sketch.histograms.append(
        Histogram(series, point.time_unix_nano, point.count, total, minimum, maximum, bounds, buckets)
    )


def explicit_buckets(point: ExponentialHistogramDataPoint) -> tuple[list[float], list[int]]:
    """An exponential histogram's buckets with their bounds written out, lowest first.

    Bucket ``i`` of scale ``s`` is (b**i, b**(i+1)] with b = 2**(2**-s) (OTLP's ExponentialHistogramDataPoint).
    """
    sides = list(_side(point.negative, point.scale))
    bounds: list[float] = []
    buckets: list[int] = []
    for lower, upper, count in reversed(sides):
        if not bounds:
            bounds.append(-upper)
            buckets.append(0)
        bounds.append(-lower)
        buckets.append(count)
    threshold = point.zero_threshold
    positive = list(_side(point.positive, point.scale))
    first_bound = positive[0][0] if positive else threshold
    bounds.append(max(first_bound, threshold))
    buckets.append(point.zero_count)
    for _, upper, count in positive:
        bounds.append(upper)
        buckets.append(count)
    return bounds, [*buckets, 0]


def _side(side: ExponentialHistogramDataPoint.Buckets, scale: int) -> Iterator[tuple[float, float, int]]:
    exponent = 2.0 ** -min(max(scale, -20), 20)
    for step, count in enumerate(side.bucket_counts):
        yield _power(exponent * (side.offset + step)), _power(exponent * (side.offset + step + 1)), count


def _power(exponent: float) -> float:
    return math.pow(2.0, min(max(exponent, -1074.0), 1023.0))
