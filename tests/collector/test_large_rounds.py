"""What takes long to decode, with a real broker and a real database."""

import time

import psycopg
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from collector import ingest
from collector.collect import Intake, take_in
from fleetpulse.local import otlp_messages as otlp

LEASES = "SELECT max(lease_until) FROM ingest_offsets WHERE owner IS NOT NULL"
WAIT_SECONDS = 30.0


def large() -> bytes:
    request = ExportMetricsServiceRequest()
    scope = otlp.resource(request, {"host.name": "stranger"}).scope_metrics.add()
    for number in range(4_000):
        otlp.gauge(scope, "doors", float(number), time.time_ns(), {"door": f"{number} at the end of the corridor"})
    return request.SerializeToString()


async def test_leases_are_renewed_while_a_large_round_is_decoded(fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = []

    def slowly(*arguments) -> Intake:
        with psycopg.connect(fleet.database.url.get_secret_value(), autocommit=True) as connection:
            before = connection.execute(LEASES).fetchone()
            deadline = time.monotonic() + WAIT_SECONDS
            while not renewed and time.monotonic() < deadline:
                if connection.execute(LEASES).fetchone() != before:
                    renewed.append(True)
                time.sleep(0.05)
        return take_in(*arguments)

    message = large()
    assert len(message) > ingest.SMALL_BYTES
    monkeypatch.setattr(ingest, "take_in", slowly)
    async with fleet.collector():
        await fleet.send(message)
        await fleet.rows("metric_points", 4_000)
    assert renewed
