"""``/usage`` and ``/usage/ledger`` on a real database."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from fleetpulse.command import main

NOW = datetime.now(UTC)
MINUTE = (NOW - timedelta(minutes=30)).replace(second=0, microsecond=0)

ROW = {
    "instance_id": "i-1",
    "organization_id": "org",
    "key_id": "key",
    "model_id": "model",
    "model": "acme/model",
    "total_requests": 2,
    "successful_requests": 1,
    "refused_requests": 0,
    "failed_requests": 0,
    "broken_requests": 1,
    "cancelled_requests": 0,
    "unknown_token_requests": 1,
    "input_tokens": 10,
    "output_tokens": 30,
    "total_tokens": 40,
    "cached_tokens": None,
    "duration_seconds_sum": 4.0,
    "duration_seconds_min": 1.0,
    "duration_seconds_max": 3.0,
    "first_token_seconds_sum": 0.5,
    "first_token_seconds_count": 1,
    "first_token_seconds_min": 0.5,
    "first_token_seconds_max": 0.5,
    "busy_seconds": 3.5,
    "cost": 0.25,
    "currency": "EUR",
    "unpriced_requests": 0,
    "last_request_at": NOW,
}
TABLES = ("finops.inference_usage_1m", "finops.inference_usage_1h", "finops.inference_usage_1d", "finops.token_ledger")


@pytest.fixture
async def books(sql: psycopg.AsyncConnection[Any]) -> Any:
    """Adds a row to a table of sums; afterwards they are empty again."""

    async def add(bucket: datetime, table: str = "_1m", **changes: Any) -> None:
        row = ROW | {"bucket": bucket} | changes
        await sql.execute(
            f"INSERT INTO finops.inference_usage{table} ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})",
            list(row.values()),
        )

    yield add
    for table in TABLES:
        await sql.execute(f"DELETE FROM {table}")


async def test_usage_is_summed_by_what_is_asked_for(api, books):
    await books(MINUTE)
    await books(MINUTE + timedelta(minutes=1), instance_id="i-2", currency="USD", cost=0.5)
    await books(
        MINUTE, key_id="other", model_id="second", model="acme/second", currency=None, cost=None, total_tokens=7
    )
    answer = await api.get("/usage")
    assert [(row["id"], row["name"], row["requests"], row["total_tokens"]) for row in answer["rows"]] == [
        ("model", "acme/model", 4, 80),
        ("second", "acme/second", 2, 7),
    ]
    first, second = answer["rows"]
    assert (first["costs"], second["costs"]) == ({"EUR": 0.25, "USD": 0.5}, {})
    assert (first["broken_requests"], first["cached_tokens"], first["mean_duration_seconds"]) == (2, None, 2.0)
    assert (first["mean_first_token_seconds"], first["busy_seconds"], first["time"]) == (0.5, 7.0, None)
    by_instance = await api.get("/usage", group_by="instance", granularity="minute")
    assert [(datetime.fromisoformat(row["time"]), row["id"], row["requests"]) for row in by_instance["rows"]] == [
        (MINUTE + timedelta(minutes=1), "i-2", 2),
        (MINUTE, "i-1", 4),
    ]
    assert [row["id"] for row in (await api.get("/usage", group_by="key"))["rows"]] == ["key", "other"]
    hour = MINUTE.replace(minute=0)
    await books(hour, "_1h", total_requests=5)
    rows = (await api.get("/usage", granularity="hour"))["rows"]
    assert [row["requests"] for row in rows] == [5]
    assert (await api.get("/usage", until=MINUTE.isoformat()))["rows"] == []


async def test_others_than_operators_see_their_own_alone(api, books, sql):
    organization = await api.ask("POST", "/organizations", 201, json={"slug": "acme", "name": "Acme"})
    body = {"name": "reader", "scopes": ["read"], "organization_id": organization["organization_id"]}
    key = (await api.ask("POST", "/api-keys", 201, json=body))["key"]
    await books(MINUTE)
    await books(MINUTE, organization_id=organization["organization_id"], total_requests=3)
    rows = (await api.ask("GET", "/usage?group_by=organization", key=key))["rows"]
    assert [(row["id"], row["name"], row["requests"]) for row in rows] == [(organization["organization_id"], "acme", 3)]
    await api.ask("GET", "/usage/ledger", 403, key)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"window_s": 10**9, "granularity": "minute"}, "granularity"),
        ({"window_s": 10**11}, "window_s"),
        ({"since": "2026-01-01T00:00:00Z", "window_s": 5}, "since"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "since"),
        ({"since": "1066-01-01T00:00:00Z"}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"group_by": "colour"}, "group_by"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(api, query, field):
    problem = await api.get("/usage", 422, **query)
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_the_ledger_shows_windows_newest_first(api, books, sql):
    for number in range(3):
        await sql.execute(
            "INSERT INTO finops.token_ledger"
            " VALUES (%s, 300, %s, 'w', %s, %s, 1, 0, 5, 6, 5, %s, 0, %s, %s, %s, now())",
            (
                MINUTE + timedelta(minutes=5 * number),
                f"i-{number % 2}",
                *(
                    ("known", None, 8, 0, 2, 2 / 13)
                    if number
                    else ("unknown", "engine_incomplete", None, None, None, None)
                ),
            ),
        )
    rows = (await api.get("/usage/ledger"))["rows"]
    assert [(row["instance_id"], row["status"], row["gap_output_tokens"]) for row in rows] == [
        ("i-0", "known", 2.0),
        ("i-1", "known", 2.0),
        ("i-0", "unknown", None),
    ]
    assert [row["reason"] for row in (await api.ask("GET", "/usage/ledger?status=unknown"))["rows"]] == [
        "engine_incomplete"
    ]
    assert len((await api.get("/usage/ledger", instance_id="i-1"))["rows"]) == 1


async def test_the_command_shows_usage_and_the_ledger_as_tables(api, books, sql, monkeypatch, capsys):
    monkeypatch.setenv("FLEETPULSE_CONTROL_URL", api.url)
    monkeypatch.setenv("FLEETPULSE_CONTROL_API_KEY", api.admin["Authorization"].removeprefix("Bearer "))

    async def typed(*arguments: str) -> list[list[str]]:
        assert await asyncio.to_thread(main, ("usage", *arguments)) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    assert await typed() == [["no", "requests"]]
    assert await typed("--ledger") == [["no", "windows", "with", "tokens"]]
    await books(MINUTE)
    heading, row = await typed("--window", "2h")
    assert heading[:3] == ["MODEL", "REQUESTS", "FAILED"]
    assert row == ["acme/model", "2", "0", "1", "0", "10", "30", "0.2500", "EUR", "2.000", "s", "0.500", "s"]
    assert (await typed("--by", "instance"))[1][0] == "i-1"
    await sql.execute(
        "INSERT INTO finops.token_ledger"
        " VALUES (%s, 300, 'i', 'w', 'unknown', 'engine_incomplete', 1, 0, 5, 1000, NULL, NULL, 0, NULL, NULL, NULL,"
        " now())",
        (MINUTE,),
    )
    assert (await typed("--ledger"))[1][2:] == ["w", "1", "1,005", "-", "-", "engine_incomplete"]
    with pytest.raises(SystemExit):
        main(("usage", "--window", "1y"))
    assert "is not a length of time" in capsys.readouterr().err
