"""Usage records from the topic to rows, costs and sums, each once."""

import random
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg

from collector import usage as usage_rows
from collector.usage_sums import settle
from collector.validate import TimeLimits
from fleetpulse.database.connect import connect
from fleetpulse.local.usage_records import usage_record
from fleetpulse.settings import DatabaseSettings
from fleetpulse.stream import usage
from fleetpulse.stream.topics import USAGE
from fleetpulse.stream.usage import UsageRecord

SECOND = 10**9
DAY = 86_400 * SECOND


def made(number: int, started: int | None = None, **changes: Any) -> UsageRecord:
    """A record of its own."""
    started = time.time_ns() - 60 * SECOND if started is None else started
    return usage_record(f"boot-{number}", started, **changes)


def minute(now: datetime | None = None) -> int:
    """The start of a minute a while ago, in Unix nanoseconds."""
    moment = (now or datetime.now(UTC)) - timedelta(minutes=10)
    return int(moment.replace(second=0, microsecond=0).timestamp()) * SECOND


INSTANCE = """
INSERT INTO organizations (organization_id, slug, name) VALUES ('00000000-0000-0000-0000-000000000001', 'o', 'O');
INSERT INTO instances (
    instance_id, organization_id, provider, zone, instance_type, state, price_per_hour, currency, created_by
) VALUES ('i-1', '00000000-0000-0000-0000-000000000001', 'mock', 'z', 't', 'ready', 3600, 'EUR', 'test')
"""


def store(url: str, *records: UsageRecord) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        return usage_rows.store(connection, usage_rows.columns(records))


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql).fetchall()


async def settled(url: str) -> int:
    async with await connect(DatabaseSettings(url=url)) as connection:
        return await settle(connection)


async def test_a_record_becomes_a_row_and_unknown_tokens_stay_unknown(fleet):
    known = made(1, cached_tokens=4)
    unknown = made(2, prompt_tokens=None, completion_tokens=7, token_source="counted", outcome="broken")
    async with fleet.collector():
        await fleet.send(usage.encode(known), usage.encode(unknown), topic=USAGE.name, key=b"i-1")
        await fleet.rows("finops.inference_usage", 2)
        await fleet.until(lambda: fleet.count("finops.usage_marks") == 0, "the marks to be worked off")
    assert fleet.query(
        "SELECT record_id, outcome, input_tokens, output_tokens, total_tokens, cached_tokens, cost"
        " FROM finops.inference_usage ORDER BY record_id"
    ) == [("boot-1", "completed", 10, 20, 30, 4, None), ("boot-2", "broken", None, 7, None, None, None)]
    assert fleet.query(
        "SELECT total_requests, successful_requests, broken_requests, unknown_token_requests, input_tokens,"
        " output_tokens, total_tokens, cost FROM instance_request_metrics_1d"
    ) == [(2, 1, 1, 1, 10, 27, 37, None)]


async def test_a_record_that_comes_again_is_one_row_however_late_and_by_whichever_partition(fleet):
    first, other = made(1, time.time_ns() - 5 * DAY), made(2)
    async with fleet.collector() as (collector, _):
        await fleet.send(usage.encode(first), usage.encode(first), topic=USAGE.name, key=b"a")
        await fleet.rows("finops.inference_usage", 1)
    async with fleet.collector() as (collector, _):
        await fleet.send(usage.encode(first), topic=USAGE.name, key=b"b")
        await fleet.send(usage.encode(first), usage.encode(other), usage.encode(other), topic=USAGE.name, key=b"c")
        await fleet.until(lambda: collector.metrics.usage_duplicates._value.get() == 3, "three duplicates")
    assert fleet.count("finops.inference_usage") == 2
    ((following,),) = fleet.query("SELECT sum(next_offset) FROM ingest_offsets WHERE topic = 'fleetpulse.usage'")
    assert following == 6


def spoilt(old: bytes, new: bytes) -> bytes:
    good = usage.encode(made(1))
    assert old in good
    return good.replace(old, new)


BAD = {
    "not json": (b"\xff", "malformed_usage"),
    "no id": (spoilt(b'"record_id":"boot-1",', b""), "malformed_usage"),
    "unknown outcome": (spoilt(b'"completed"', b'"won"'), "malformed_usage"),
    "negative tokens": (spoilt(b'"prompt_tokens":10', b'"prompt_tokens":-1'), "malformed_usage"),
    "a day long": (spoilt(b'"duration_seconds":2.0', b'"duration_seconds":90000.0'), "malformed_usage"),
    "nul": (spoilt(b'"acme/model"', b'"a\\u0000"'), "malformed_usage"),
    "another version": (spoilt(b'"schema_version":1', b'"schema_version":2'), "unknown_schema_version"),
    "in the future": (usage.encode(made(1, time.time_ns() + DAY)), "usage_time"),
    "too old": (usage.encode(made(1, time.time_ns() - 15 * DAY)), "usage_time"),
}


async def test_what_is_no_record_becomes_a_dead_letter_and_its_neighbours_become_rows(fleet):
    async with fleet.collector():
        for number, (value, _) in enumerate(BAD.values()):
            await fleet.send(usage.encode(made(100 + number)), value, topic=USAGE.name, key=b"i-1")
        await fleet.rows("finops.inference_usage", len(BAD))
        letters = await fleet.dead_letters(len(BAD))
    assert {(letter["value"], letter["reason"]) for letter in letters} == {
        (value.hex(), reason) for value, reason in BAD.values()
    }


def test_times_that_can_be_stored_have_partitions(database_url):
    now = time.time_ns()
    limits = TimeLimits.around(now, 14 * 86_400, 120, 300)
    for number, started in enumerate((limits.oldest, limits.newest)):
        assert store(database_url, usage_rows.read(usage.encode(made(number, started)), limits)) == 1


async def test_requests_at_the_same_time_share_the_price_of_the_time(any_database_url):
    query_all = "SELECT record_id, busy_seconds, cost, currency FROM finops.inference_usage ORDER BY record_id"
    with psycopg.connect(any_database_url, autocommit=True) as connection:
        connection.execute(INSTANCE)
    start = minute()
    # Alone for 1 s, two for 2 s, alone for 1 s; then nobody, then another; a stranger's instance beside it.
    records = [
        made(1, start, duration_seconds=3.0),
        made(2, start + SECOND, duration_seconds=3.0),
        made(3, start + 10 * SECOND, duration_seconds=0.5),
        made(4, start, duration_seconds=3.0, instance_id="stranger"),
    ]
    # The second is told of when the first is settled already.
    assert store(any_database_url, records[0], records[2], records[3]) == 3
    assert await settled(any_database_url) == 3
    assert query(any_database_url, query_all)[0] == ("boot-1", 3.0, Decimal(3), "EUR")
    assert store(any_database_url, records[1], records[0]) == 1
    assert await settled(any_database_url) == 2
    assert await settled(any_database_url) == 0
    assert query(any_database_url, query_all) == [
        ("boot-1", 2.0, Decimal(2), "EUR"),
        ("boot-2", 2.0, Decimal(2), "EUR"),
        ("boot-3", 0.5, Decimal("0.5"), "EUR"),
        ("boot-4", 3.0, None, None),
    ]
    for level in ("", "_1h", "_1d"):
        assert query(
            any_database_url,
            "SELECT instance_id, total_requests, successful_requests, total_tokens, duration_seconds_sum,"
            " duration_seconds_max, first_token_seconds_count, busy_seconds, cost, unpriced_requests"
            f" FROM instance_request_metrics{level} ORDER BY instance_id",
        ) == [
            ("i-1", 3, 3, 90, 6.5, 3.0, 3, 4.5, Decimal("4.5"), 0),
            ("stranger", 1, 1, 30, 3.0, 3.0, 1, 3.0, None, 1),
        ]


async def test_shares_add_up_to_the_time_the_engine_was_busy_whatever_the_order_of_records(database_url):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    start = minute() - 600 * SECOND
    records = [
        made(
            number,
            start + chance.randrange(0, 300_000) * 1_000_000,
            duration_seconds=chance.randrange(0, 4_000) / 1_000,
            instance_id=f"i-{chance.randint(1, 3)}",
        )
        for number in range(400)
    ]
    chance.shuffle(records)
    async with await connect(DatabaseSettings(url=database_url)) as connection:
        while records:
            batch, records = records[:90], records[90:]
            store(database_url, *batch)
            await settle(connection)
    assert query(
        database_url,
        "SELECT instance_id, abs(sum(busy_seconds) - ("
        " SELECT extract(epoch FROM sum(upper(span) - lower(span))) FROM unnest("
        "  range_agg(tstzrange(time, ended_at)) FILTER (WHERE ended_at > time)) AS span)) < 0.0001,"
        " min(busy_seconds) >= 0, bool_and(busy_seconds <= duration_seconds + 0.0001)"
        " FROM finops.inference_usage GROUP BY instance_id ORDER BY 1",
    ) == [(f"i-{number}", True, True, True) for number in (1, 2, 3)]
