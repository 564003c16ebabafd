"""A new sender's message is read without walking when it differs from a known one in names alone, and only then."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from collector.decode import Decoder
from collector.template import Decoded, Plan, decoded
from collector.walk import walk
from fleetpulse.local import otlp_messages as otlp

NOW = 1_800_000_000_000_000_000
KNOWN = otlp.agent_message("worker-01", 1, NOW, gpus=2, numbers=random.Random(1))


def relative(worker: str = "worker-02", *replaced: tuple[bytes, bytes]) -> bytes:
    """A message of the same shape from another worker, with more of its bytes replaced."""
    message = otlp.agent_message(worker, 1, NOW + 1, gpus=2, numbers=random.Random(2))
    for old, new in replaced:
        assert old in message
        message = message.replace(old, new)
    return message


def content(found: Decoded) -> tuple[object, ...]:
    """All that a resource says."""
    plan = found.plan
    return (
        (plan.worker, plan.gpus, plan.refused, plan.sequence is not None and found.scalars[0, plan.sequence]),
        [
            (cells.table, row.key, int(time), found.scalars[0][cells.single[number]].tobytes())
            for cells in plan.tables
            for number, (row, time) in enumerate(zip(cells.rows, found.times[0, cells.row_times], strict=True))
        ],
        [(point.series, int(found.times[0, point.time]), found.scalars[0, point.scalar]) for point in plan.points],
    )


def walked(message: bytes) -> list[tuple[object, ...]]:
    request = ExportMetricsServiceRequest()
    request.ParseFromString(message)
    sketches = [walk(resource) for resource in request.resource_metrics]
    return [content(decoded(sketch, Plan.of(sketch))) for sketch in sketches if sketch.worker]


@pytest.fixture
def decoder() -> Decoder:
    """One that knows a sender."""
    made = Decoder()
    made.decode([KNOWN])
    return made


def test_a_worker_built_like_a_known_one_is_not_walked(decoder: Decoder) -> None:
    message = relative("worker-02", (b"GPU-", b"gpu-"))
    (found,) = decoder.decode([message]).resources
    assert (decoder.walked, decoder.recognised) == (1, 1)
    assert content(found) == walked(message)[0]
    assert found.plan.worker.worker_id == "worker-02"


def test_what_is_known_of_one_worker_is_not_told_of_its_relative(decoder: Decoder) -> None:
    first, second = decoder.decode([KNOWN, relative()]).resources
    assert [each.plan.worker.worker_id for each in (first, second)] == ["worker-01", "worker-02"]
    assert first.plan.gpus is not second.plan.gpus


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"hw.power", b"hw.tower", id="another metric"),
        pytest.param(b"fleetpulse.gpu.index", b"fleetpulse.gpu.indey", id="another attribute"),
        pytest.param(b"general", b"compute", id="another value of an attribute"),
    ],
)
def test_a_message_that_differs_in_more_than_names_is_walked(decoder: Decoder, old: bytes, new: bytes) -> None:
    message = relative("worker-02", (old, new))
    (found,) = decoder.decode([message]).resources
    assert decoder.walked == 2
    assert content(found) == walked(message)[0]


def test_two_gpus_under_one_id_are_no_relatives_of_two_gpus(decoder: Decoder) -> None:
    message = relative("worker-02", (b"GPU-worker-02-1", b"GPU-worker-02-0"))
    (found,) = decoder.decode([message]).resources
    assert decoder.walked == 2
    assert content(found) == walked(message)[0]


@given(st.lists(st.tuples(st.integers(0, len(KNOWN) - 1), st.integers(1, 255)), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
def test_whatever_is_changed_the_message_is_read_as_the_walk_reads_it(changes: list[tuple[int, int]]) -> None:
    message = bytearray(relative())
    for place, difference in changes:
        message[place % len(message)] ^= difference
    known, unknowing = Decoder(), Decoder()
    known.decode([KNOWN])
    found, expected = known.decode([bytes(message)]), unknowing.decode([bytes(message)])
    assert [repr(content(each)) for each in found.resources] == [repr(content(each)) for each in expected.resources]
    assert found.problems.keys() == expected.problems.keys()
    assert found.unidentified == expected.unidentified
