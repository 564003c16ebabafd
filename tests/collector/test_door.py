"""The HTTP door, in front of a real broker."""

import asyncio
import gzip
import hashlib
import json
import time
import zlib

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from fleetpulse.local import otlp_messages as otlp
from fleetpulse.local.broker import EmbeddedBroker
from fleetpulse.stream import heartbeat as heartbeats
from fleetpulse.stream.heartbeat import Heartbeat

TOKEN = "a-worker-token-of-some-length"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PROTOBUF = {"Content-Type": "application/x-protobuf"}
HEARTBEAT = heartbeats.encode(
    Heartbeat(
        worker_id="behind-nat",
        instance_id="i-1",
        boot_id="boot",
        sequence=1,
        sent_unix_nano=time.time_ns(),
        interval_seconds=1,
        status="ready",
        agent_version="0.1",
    )
)


async def post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        return answer.status, await answer.read(), dict(answer.headers)


@pytest.fixture
async def door(fleet):
    async with fleet.collector(worker_tokens=(DIGEST,), message_bytes=100_000) as (_, url):
        yield url


async def test_metrics_and_heartbeats_through_the_door_become_rows(fleet, door):
    message = otlp.agent_message("behind-nat", 1, time.time_ns(), gpus=2)
    status, body, headers = await post(f"{door}/v1/metrics", message, BEARER | PROTOBUF)
    assert (status, headers["Content-Type"]) == (200, "application/x-protobuf")
    assert ExportMetricsServiceResponse.FromString(body) == ExportMetricsServiceResponse()
    assert (await post(f"{door}/internal/worker/heartbeat", HEARTBEAT, BEARER))[0] == 202
    await fleet.rows("gpu_samples", 2)
    await fleet.rows("heartbeats", 1)


async def test_compressed_bodies_and_json_are_understood(fleet, door):
    message = otlp.agent_message("zipped", 1, time.time_ns(), gpus=1)
    members = gzip.compress(message[:100]) + gzip.compress(message[100:])
    for encoding, body in (("gzip", members), ("deflate", zlib.compress(message)), ("GZIP", gzip.compress(message))):
        headers = BEARER | PROTOBUF | {"Content-Encoding": encoding}
        assert (await post(f"{door}/v1/metrics", body, headers))[0] == 200
    body = {
        "resourceMetrics": [
            {
                "resource": {"attributes": [{"key": "host.name", "value": {"stringValue": "json"}}]},
                "scopeMetrics": [
                    {
                        "metrics": [
                            {
                                "name": "system.uptime",
                                "gauge": {"dataPoints": [{"timeUnixNano": str(time.time_ns()), "asDouble": 5.5}]},
                            }
                        ]
                    }
                ],
            }
        ]
    }
    headers = BEARER | {"Content-Type": "application/json"}
    assert (await post(f"{door}/v1/metrics", json.dumps(body).encode(), headers))[:2] == (200, b"{}")
    await fleet.rows("system_samples", 2)
    assert fleet.query("SELECT worker_id FROM workers ORDER BY 1") == [("json",), ("zipped",)]


async def test_a_batch_with_a_text_that_is_not_utf8_is_taken(fleet, door):
    message = otlp.agent_message("????", 1, time.time_ns(), gpus=1)
    # The worker's name stands in the host's name too, and only that one is broken.
    broken = message.replace(b"host-of-????", b"host-of-\xff\xfe\xfd\xfc")
    assert broken != message
    status, _, _ = await post(f"{door}/v1/metrics", broken, BEARER | PROTOBUF)
    assert status == 200
    await fleet.rows("system_samples", 1)
    assert fleet.query("SELECT worker_id, host_name FROM workers") == [("????", "host-of-" + "\ufffd" * 4)]
    assert fleet.query("SELECT kind, reason, count FROM data_quality") == [("rejected", "not_utf8", 1)]


BOMB = gzip.compress(bytes(10_000_000))
REFUSED = {
    "no token": (b"", {}, 401),
    "wrong token": (b"", {"Authorization": "Bearer wrong"}, 401),
    "another scheme": (b"", {"Authorization": f"Basic {TOKEN}"}, 401),
    "the digest is no token": (b"", {"Authorization": f"Bearer {DIGEST}"}, 401),
    "junk": (b"junk", BEARER | PROTOBUF, 400),
    "junk json": (b"{", BEARER | {"Content-Type": "application/json"}, 400),
    "another type": (b"", BEARER | {"Content-Type": "text/plain"}, 415),
    "another encoding": (b"", BEARER | PROTOBUF | {"Content-Encoding": "br"}, 415),
    "no gzip": (b"junk", BEARER | PROTOBUF | {"Content-Encoding": "gzip"}, 400),
    "cut gzip": (gzip.compress(b"x" * 999)[:-9], BEARER | PROTOBUF | {"Content-Encoding": "gzip"}, 400),
    "too large": (bytes(200_000), BEARER | PROTOBUF, 413),
    "no deflate": (b"junk", BEARER | PROTOBUF | {"Content-Encoding": "deflate"}, 400),
    "cut second part": (
        gzip.compress(b"") + gzip.compress(b"x" * 999)[:-9],
        BEARER | PROTOBUF | {"Content-Encoding": "gzip"},
        400,
    ),
    "zip bomb in parts": (gzip.compress(bytes(60_000)) * 2, BEARER | PROTOBUF | {"Content-Encoding": "gzip"}, 413),
    "zip bomb": (BOMB, BEARER | PROTOBUF | {"Content-Encoding": "gzip"}, 413),
}


async def test_each_bad_request_gets_its_status_and_a_line_that_says_why(fleet, door):
    answers = {name: await post(f"{door}/v1/metrics", body, headers) for name, (body, headers, _) in REFUSED.items()}
    assert {name: answer[0] for name, answer in answers.items()} == {name: each[2] for name, each in REFUSED.items()}
    for _, body, _ in answers.values():
        assert json.loads(body)["error"]


@pytest.mark.parametrize("body", [b"", b"[]", HEARTBEAT.replace(b'"sequence":1', b'"sequence":0')])
async def test_a_bad_heartbeat_is_refused_at_the_door(door, body):
    status, answer, _ = await post(f"{door}/internal/worker/heartbeat", body, BEARER)
    assert status == 400
    assert "malformed_heartbeat" in json.loads(answer)["error"]


async def test_without_tokens_the_door_is_shut(fleet):
    async with fleet.collector(worker_tokens=()) as (_, url):
        assert (await post(f"{url}/v1/metrics", b"", {"Authorization": "Bearer "}))[0] == 401


async def test_while_the_broker_is_away_the_sender_is_asked_to_come_again(fleet, broker: EmbeddedBroker, door):
    broker.stop()
    status, _, headers = await post(f"{door}/internal/worker/heartbeat", HEARTBEAT, BEARER)
    assert (status, "Retry-After" in headers) == (503, True)
    await asyncio.to_thread(broker.start)


async def test_a_senders_messages_stay_in_one_partition(fleet, door):
    for sequence in range(1, 9):
        message = otlp.agent_message("one", sequence, time.time_ns(), gpus=0)
        assert (await post(f"{door}/v1/metrics", message, BEARER | PROTOBUF))[0] == 200
    consumer = AIOKafkaConsumer(
        "otlp_metrics", bootstrap_servers=fleet.stream.bootstrap, auto_offset_reset="earliest", group_id=None
    )
    await consumer.start()
    try:
        records = [await asyncio.wait_for(consumer.getone(), 10) for _ in range(8)]
    finally:
        await consumer.stop()
    assert len({record.partition for record in records}) == 1
