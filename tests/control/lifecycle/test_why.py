"""The story of an instance, from SQL."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from control.actions import log_action
from control.database import Database
from control.lifecycle import NewInstance, NoSuchInstanceError, create, transition
from control.lifecycle.why import duration, story

Connection = psycopg.AsyncConnection[Any]


async def live(database: Database, organization_id: UUID) -> None:
    """Asked for, made at the third attempt, ready, and dead."""
    wanted = NewInstance(organization_id, "mock", "z", "small", instance_id="i-1")
    async with database.transaction() as connection:
        await create(connection, wanted, actor="user:ann@example.org")
    for succeeded in (False, False, True):
        detail = {"machine_id": "m-1"} if succeeded else {"error": "no capacity", "retryable": True}
        async with database.transaction() as connection:
            await log_action(
                connection,
                "provider.create",
                succeeded=succeeded,
                instance_id="i-1",
                provider="mock",
                actor="job:provisioning",
                duration_seconds=0.25,
                detail=detail,
            )
    for state, detail_text, reason in (
        ("booting", "mock made machine m-1.", "machine_made"),
        ("ready", "The agent is ready.", "ready"),
        ("worker_dead", "It was not heard for 1.8 s.", "silent_and_refused"),
    ):
        async with database.transaction() as connection:
            await transition(
                connection,
                "i-1",
                state,  # type: ignore[arg-type]
                reason=reason,
                detail=detail_text,
                evidence={"of": state},
                actor="job:worker_watchdog",
            )


async def test_an_instance_that_nobody_knows_has_no_story(database: Database) -> None:
    with pytest.raises(NoSuchInstanceError):
        await story(database, "nobody")


async def test_the_story_tells_steps_and_acts_in_order_with_their_evidence(
    database: Database, organization_id: UUID
) -> None:
    await live(database, organization_id)
    told = await story(database, "i-1")
    texts = [sentence.text for sentence in told.sentences]
    assert told.state == "worker_dead"
    assert texts[0] == (
        "It became provisioning. An instance of type small at mock in z was asked for. (ann@example.org, requested)"
    )
    assert texts[1].startswith("Create at mock failed in 0.2 s, 2 times since ")
    assert texts[1].endswith(": no capacity.")
    assert texts[2] == "Create at mock succeeded in 0.2 s: machine id m-1."
    dead = told.sentences[-2]
    assert " of ready. It was not heard for 1.8 s. (the worker watchdog job, silent_and_refused)" in dead.text
    assert dead.evidence == {"of": "worker_dead"}
    assert texts[-1].startswith("It has been worker_dead for ")
    assert [one.at for one in told.sentences] == sorted(one.at for one in told.sentences)


async def test_the_story_ends_at_the_time_asked_for(database: Database, sql: Connection, organization_id: UUID) -> None:
    await live(database, organization_id)
    await sql.execute("UPDATE instance_transitions SET at = at - interval '1 hour' WHERE to_state <> 'worker_dead'")
    told = await story(database, "i-1", datetime.now(UTC) - timedelta(minutes=30))
    assert told.state == "ready"
    assert "worker_dead" not in " ".join(sentence.text for sentence in told.sentences)
    before = await story(database, "i-1", datetime.now(UTC) - timedelta(days=1))
    assert [sentence.text.split(":")[0] for sentence in before.sentences] == ["It was not there yet"]


async def test_the_story_tells_the_heartbeats_around_a_step(
    database: Database, sql: Connection, organization_id: UUID
) -> None:
    await live(database, organization_id)
    cursor = await sql.execute(
        "INSERT INTO workers (worker_id, instance_id) VALUES ('w-1', 'i-1') RETURNING worker_key"
    )
    row = await cursor.fetchone()
    assert row is not None
    for sequence, seconds in ((41, 3.0), (42, 2.0)):
        await sql.execute(
            "INSERT INTO heartbeats (time, received_at, worker_key, sequence, status, interval_seconds,"
            " requests_running, requests_waiting)"
            " SELECT at - %(s)s * interval '1 second', at - %(s)s * interval '1 second', %(worker)s, %(sequence)s,"
            " code, 1, 3, 4 FROM instance_transitions, heartbeat_statuses"
            " WHERE to_state = 'worker_dead' AND name = 'ready'",
            {"s": seconds, "worker": row[0], "sequence": sequence},
        )
    told = await story(database, "i-1")
    expected = "Its last heartbeat before that, number 42, came in 2.0 s earlier: ready, with 3 requests running"
    assert f"{expected} and 4 waiting." in [sentence.text for sentence in told.sentences]


async def test_the_story_tells_what_probes_found(database: Database, sql: Connection, organization_id: UUID) -> None:
    await live(database, organization_id)
    await sql.execute(
        "INSERT INTO health_results (instance_id, probe, succeeded, detail)"
        " VALUES ('i-1', 'agent', false, 'connection refused')"
    )
    told = await story(database, "i-1")
    assert "The probe of agent failed: connection refused." in [sentence.text for sentence in told.sentences]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.54, "2.5 s"), (185, "3 min 5 s"), (15_000, "4 h 10 min"), (270_000, "3 d 3 h")],
)
def test_times_are_told_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
