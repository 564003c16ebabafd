"""The fast path: messages that differ from an earlier one only in their 8-byte values.

In OTLP every number and every time of a data point is a fixed 8 bytes on the wire, and an agent's messages have
constant names, attributes and order. So the first message of a kind is walked; its values' places are found by
writing recognisable numbers into the parsed message and looking where they appear in its bytes; and from then on a
message is recognised by comparing its other bytes, and read by one gather. Whatever is not recognised is walked.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from collector.walk import Histogram, Point, Row, Scalar, Sketch, Worker
from fleetpulse.stream.dictionary import TABLES

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

WORD_BYTES: Final = 8

# A value that was not sent. A NaN with a payload of its own: a NaN that was sent must stay recognisable as one.
ABSENT_BITS: Final = 0x7FF8_F1EE_7B01_5E00
ABSENT: Final[float] = struct.unpack("<d", struct.pack("<Q", ABSENT_BITS))[0]

# Marks are ordinary doubles and ordinary integers, 8 distinct bytes that no metric message holds by chance.
_MARK_BASE: Final = 0x41C3_A7D9_5E00_0000
# On the wire the numbers are little-endian: what all marks have in common comes last.
_MARK_END: Final = re.compile(re.escape(struct.pack("<Q", _MARK_BASE)[4:]), re.DOTALL)
_INTEGER_FIELDS: Final = frozenset({"as_int", "count", "time_unix_nano", "start_time_unix_nano"})


def _indices(numbers: Sequence[int]) -> Indices:
    return np.array(numbers, dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Cells:
    """How scalars become the values of one table's rows, all rows at once.

    ``single`` gathers one scalar per cell (the last index stands for absent). ``combined`` holds the few cells made
    of several scalars: their flat position, where each one's scalars start in ``parts``, and how many there are to
    divide by (1 for a sum). ``one_minus`` are flat positions to be turned round.
    """

    table: int
    rows: tuple[Row, ...]
    row_times: Indices
    single: Indices
    combined: Indices
    parts: Indices
    starts: Indices
    divisors: Floats
    one_minus: Indices

    @classmethod
    def of(cls, table: int, rows: tuple[Row, ...], scalar_count: int) -> Self:
        """The plan for one table's rows of a sketch."""
        columns = len(TABLES[table].measures)
        single = np.full((len(rows), columns), scalar_count, dtype=np.intp)
        combined: list[int] = []
        parts: list[int] = []
        starts: list[int] = []
        divisors: list[float] = []
        one_minus: list[int] = []
        for number, row in enumerate(rows):
            for column, cell in ((cell.feed.column, cell) for cell in row.cells.values()):
                flat = number * columns + column
                if len(cell.scalars) == 1:
                    single[number, column] = cell.scalars[0]
                else:
                    combined.append(flat)
                    starts.append(len(parts))
                    parts.extend(cell.scalars)
                    divisors.append(float(len(cell.scalars)) if cell.feed.combine == "mean" else 1.0)
                if cell.feed.one_minus:
                    one_minus.append(flat)
        return cls(
            table,
            rows,
            _indices([row.time for row in rows]),
            single,
            _indices(combined),
            _indices(parts),
            _indices(starts),
            np.array(divisors, dtype=np.float64),
            _indices(one_minus),
        )

    def fill(self, scalars: Floats, out: Floats) -> None:
        """Write the rows of several messages into ``out``, shape (messages * rows, columns).

        ``scalars`` has a row for each message, which ends with the absent value.
        """
        messages = len(scalars)
        np.take(scalars, self.single, axis=1, out=out.reshape(messages, *self.single.shape), mode="clip")
        flat = out.reshape(messages, -1)
        if len(self.combined):
            flat[:, self.combined] = np.add.reduceat(scalars[:, self.parts], self.starts, axis=1) / self.divisors
        if len(self.one_minus):
            flat[:, self.one_minus] = 1.0 - flat[:, self.one_minus]


@dataclass(slots=True)
class Plan:
    """What a sketch says, without its values: all that batches need to know of a message.

    ``references`` is the batch's own: where the plan's worker, rows and series are in its directory.
    """

    worker: Worker
    tables: tuple[Cells, ...]
    points: tuple[Point, ...]
    point_scalars: Indices
    point_times: Indices
    gpus: dict[str, tuple[int | None, str | None]]
    sequence: int | None
    refused: dict[str, int]
    references: Any = None

    @classmethod
    def of(cls, sketch: Sketch) -> Self:
        """The plan of a sketch whose resource has an identity."""
        assert sketch.worker is not None
        tables = []
        for table in range(len(TABLES)):
            rows = tuple(row for row in sketch.rows if row.key.table == table)
            if rows:
                tables.append(Cells.of(table, rows, len(sketch.scalars)))
        return cls(
            sketch.worker,
            tuple(tables),
            tuple(sketch.points),
            _indices([point.scalar for point in sketch.points]),
            _indices([point.time for point in sketch.points]),
            sketch.gpus,
            sketch.sequence,
            sketch.refused,
        )


@dataclass(slots=True)
class Decoded:
    """Resources of one plan, each of another message: the plan and their values.

    ``messages`` are the numbers of their messages within the round; ``scalars`` and ``times`` have a row for each.
    A row of scalars has one more than the plan: the last is absent. Times are Unix nanoseconds.
    """

    plan: Plan
    messages: list[int]
    scalars: Floats
    times: Integers
    histograms: list[Histogram]

    def sequences(self) -> list[int | None]:
        """The messages' sequence numbers within their boot, where their sender gives one."""
        if self.plan.sequence is None:
            return [None] * len(self.messages)
        numbers = self.scalars[:, self.plan.sequence].tolist()
        return [int(number) if 1 <= number <= 2**53 else None for number in numbers]

    def only(self, positions: list[int]) -> Self:
        """Those of the resources, by their place in this object."""
        messages = [self.messages[position] for position in positions]
        return type(self)(self.plan, messages, self.scalars[positions], self.times[positions], self.histograms)


def decoded(sketch: Sketch, plan: Plan, message: int = 0) -> Decoded:
    """The walked message itself, in the fast path's form."""
    scalars = np.array([[*(scalar.value for scalar in sketch.scalars), ABSENT]], dtype=np.float64)
    times = np.array([[min(int(time.value), 2**63 - 1) for time in sketch.times]], dtype=np.int64)
    return Decoded(plan, [message], scalars, times, sketch.histograms)


@dataclass(frozen=True, slots=True)
class Template:
    """Recognises and reads the messages of one shape and one sender."""

    plan: Plan
    filling: bytes  # what a message lacks of whole words
    constant: Words  # the message with zeros where values are
    mask: Words  # ones at constant bytes, zeros at values
    gather: Indices  # byte positions of scalars, then times
    scalar_count: int
    integers: Indices  # which scalars are integers on the wire
    one_time: bool  # all times must agree …
    same_times: tuple[Indices, Indices]  # … or these pairs; else the message has other rows than its plan

    def read(self, messages: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], Floats, Integers]:
        """Scalars and times of messages of this template's length, and which of them are of its shape."""
        # A word at a time: each message is filled up to whole ones.
        words = np.frombuffer(self.filling.join([*messages, b""]), dtype="<u8").reshape(len(messages), -1)
        matches: npt.NDArray[np.bool_] = ((words & self.mask) == self.constant).all(axis=1)
        values = words.view(np.uint8).take(self.gather, axis=1)
        integers = values.view("<i8")
        scalars = np.empty((len(messages), self.scalar_count + 1), dtype=np.float64)
        scalars[:, :-1] = values.view("<f8")[:, : self.scalar_count]
        if len(self.integers):
            scalars[:, self.integers] = integers[:, self.integers]
        scalars[:, -1] = ABSENT
        times = integers[:, self.scalar_count :]
        left, right = (times[:, :1], times) if self.one_time else (times[:, each] for each in self.same_times)
        matches &= (left == right).all(axis=1)
        return matches, scalars, times


def make_template(message: bytes, parsed: ExportMetricsServiceRequest, sketch: Sketch, plan: Plan) -> Template | None:
    """A template of a message just walked, or None when its shape does not allow one.

    ``parsed`` is the object the sketch refers to; its values are overwritten.
    """
    if sketch.histograms or parsed.SerializeToString() != message:
        return None  # bucket counts vary in number; or the sender writes fields in an order of its own
    known = decoded(sketch, plan)
    places = _value_places(parsed, sketch, len(message))
    if places is None:
        return None
    one_time = bool((known.times == known.times[:, :1]).all())
    filling = bytes(-len(message) % WORD_BYTES)
    mask = np.full(len(message) + len(filling), 255, dtype=np.uint8)
    for place in places.values():
        mask[place : place + WORD_BYTES] = 0
    read = [places[id(value.holder), value.attribute] for value in (*sketch.scalars, *sketch.times)]
    template = Template(
        plan,
        filling,
        (np.frombuffer(message + filling, dtype=np.uint8) & mask).view("<u8"),
        mask.view("<u8"),
        (_indices(read)[:, None] + np.arange(WORD_BYTES)).reshape(-1),
        len(sketch.scalars),
        _indices([i for i, s in enumerate(sketch.scalars) if s.attribute in _INTEGER_FIELDS]),
        one_time,
        (_indices([]), _indices([])) if one_time else _times_of_rows(sketch, known.times[0]),
    )
    matches, scalars, times = template.read([message])
    reads_the_same = scalars.tobytes() == known.scalars.tobytes() and times.tobytes() == known.times.tobytes()
    return template if matches[0] and reads_the_same else None


def _times_of_rows(sketch: Sketch, times: Integers) -> tuple[Indices, Indices]:
    """Pairs of times that are equal because their points make one row."""
    told = times.tolist()
    firsts = {told[row.time]: row.time for row in sketch.rows}
    pairs = [(firsts[time], other) for other, time in enumerate(told) if time in firsts]
    left, right = zip(*pairs, strict=True) if pairs else ((), ())
    return _indices(left), _indices(right)


def _value_places(
    parsed: ExportMetricsServiceRequest, sketch: Sketch, length: int
) -> dict[tuple[int, str], int] | None:
    """Where each 8-byte value of the message lies, by holder and field; None when that cannot be told."""
    values = {(id(value.holder), value.attribute): value for value in (*sketch.scalars, *sketch.times)}
    for value in _unused_values(parsed):
        values.setdefault((id(value.holder), value.attribute), value)
    for number, value in enumerate(values.values()):
        _mark(value, _MARK_BASE + number)
    marked = parsed.SerializeToString()
    places = _mark_places(marked)
    if len(marked) != length or any(number not in places for number in range(len(values))):
        return None
    return {key: places[number] for number, key in enumerate(values)}


def _mark_places(marked: bytes) -> dict[int, int]:
    """Where each mark first lies, by its number; in one pass, for a stranger's message may hold tens of thousands."""
    places: dict[int, int] = {}
    for found in _MARK_END.finditer(marked):
        place = found.end() - WORD_BYTES
        if place >= 0:
            places.setdefault(int.from_bytes(marked[place : found.end()], "little") - _MARK_BASE, place)
    return places


def _unused_values(parsed: ExportMetricsServiceRequest) -> Iterator[Scalar]:
    """Values that vary and that nobody reads: start times, and points that feed nothing. Absent ones are left
    absent, for writing them would lengthen the message."""
    metrics = (
        each for resource in parsed.resource_metrics for scope in resource.scope_metrics for each in scope.metrics
    )
    for metric in metrics:
        kind = metric.WhichOneof("data")
        for point in getattr(metric, kind).data_points if kind in {"gauge", "sum"} else ():
            value = point.WhichOneof("value")
            if value is not None:
                yield Scalar(point, value, 0.0)
            for name in ("start_time_unix_nano", "time_unix_nano"):
                if getattr(point, name):
                    yield Scalar(point, name, 0.0)


def _mark(value: Scalar, mark: int) -> None:
    """Write a mark into the message: the same 8 bytes on the wire, whether the field is an integer or a double."""
    number = mark if value.attribute in _INTEGER_FIELDS else struct.unpack("<d", struct.pack("<Q", mark))[0]
    setattr(value.holder, value.attribute, number)
