"""Making and moving instances on a real database."""

import asyncio
import itertools
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from control.database import Database
from control.lifecycle import (
    DuplicateInstanceError,
    IllegalTransitionError,
    NewInstance,
    NoSuchInstanceError,
    create,
    transition,
)
from control.states import ALLOWED
from fleetpulse.stream import lifecycle
from fleetpulse.telemetry import correlation_id

Connection = psycopg.AsyncConnection[Any]


async def make(database: Database, organization_id: UUID, **fields: Any) -> str:
    wanted = NewInstance(organization_id, "mock", "local-1", "small", **fields)
    async with database.transaction() as connection:
        return await create(connection, wanted, actor="user:a@b.c")


async def move(database: Database, instance_id: str, to_state: Any, **options: Any) -> int | None:
    given = {"reason": "because", "detail": "Because.", "evidence": {}, "actor": "job:test"} | options
    async with database.transaction() as connection:
        return await transition(connection, instance_id, to_state, **given)


async def fetch(sql: Connection, statement: Any, *parameters: Any) -> list[Any]:
    return await (await sql.execute(statement, parameters)).fetchall()


async def test_a_new_instance_has_its_first_history_row_message_and_price(
    database: Database, sql: Connection, organization_id: UUID
) -> None:
    await sql.execute("INSERT INTO providers (provider) VALUES ('mock')")
    await sql.execute(
        "INSERT INTO instance_types (provider, instance_type, gpu_count, price_per_hour, currency, zones)"
        " VALUES ('mock', 'small', 1, 1.25, 'USD', '{local-1}')"
    )
    model = await fetch(sql, "INSERT INTO models (hugging_face_id, name) VALUES ('a/b', 'B') RETURNING model_id")
    correlation_id.set("request-1")
    instance_id = await make(database, organization_id, model_id=model[0][0], options={"fault": "slow"})
    stored = await fetch(
        sql, "SELECT state, version, price_per_hour, currency, options, correlation_id, created_by FROM instances"
    )
    assert stored == [("provisioning", 1, Decimal("1.250000"), "USD", {"fault": "slow"}, "request-1", "user:a@b.c")]
    history = await fetch(sql, "SELECT from_state, to_state, version, actor, correlation_id FROM instance_transitions")
    assert history == [(None, "provisioning", 1, "user:a@b.c", "request-1")]
    (outbox,) = await fetch(sql, "SELECT instance_id, message FROM lifecycle_outbox")
    told = lifecycle.decode(outbox[1])
    assert (outbox[0], told.instance_id, told.version, told.state) == (instance_id, instance_id, 1, "provisioning")
    assert (told.model, told.price_per_hour, told.currency, told.previous_state) == ("a/b", 1.25, "USD", None)


async def test_a_price_that_nobody_knows_is_unknown(database: Database, sql: Connection, organization_id: UUID) -> None:
    await make(database, organization_id)
    assert await fetch(sql, "SELECT price_per_hour FROM instances") == [(None,)]


async def test_an_id_is_used_once(database: Database, organization_id: UUID) -> None:
    await make(database, organization_id, instance_id="mine")
    with pytest.raises(DuplicateInstanceError, match="an instance mine already"):
        await make(database, organization_id, instance_id="mine")


async def test_an_organisation_that_does_not_exist_is_an_error_of_integrity(database: Database) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await make(database, uuid4())


async def test_a_step_writes_state_history_with_evidence_and_message_together(
    database: Database, sql: Connection, organization_id: UUID
) -> None:
    instance_id = await make(database, organization_id)
    evidence = {"seen": float("nan"), "text": "a\x00b", "organization": organization_id}
    changes = {"machine_id": "m-1", "agent_url": "http://a"}
    assert await move(database, instance_id, "booting", evidence=evidence, changes=changes) == 2
    assert await fetch(sql, "SELECT state, version, machine_id FROM instances") == [("booting", 2, "m-1")]
    history = await fetch(
        sql, "SELECT t.evidence, t.at = i.state_since FROM instance_transitions t JOIN instances i USING (version)"
    )
    assert history == [({"seen": None, "text": "a\ufffdb", "organization": str(organization_id)}, True)]
    messages = await fetch(sql, "SELECT message FROM lifecycle_outbox ORDER BY outbox_id")
    told = lifecycle.decode(messages[-1][0])
    assert (told.state, told.previous_state, told.version, told.agent_url) == ("booting", "provisioning", 2, "http://a")


async def test_a_lost_race_changes_nothing(database: Database, sql: Connection, organization_id: UUID) -> None:
    instance_id = await make(database, organization_id)
    assert await move(database, instance_id, "terminating") == 2
    assert await move(database, instance_id, "terminating") is None
    assert await move(database, instance_id, "booting", from_states={"provisioning"}) is None
    assert await fetch(sql, "SELECT count(*) FROM instance_transitions") == [(2,)]
    assert await fetch(sql, "SELECT count(*) FROM lifecycle_outbox") == [(2,)]


async def test_of_many_at_once_one_wins(database: Database, sql: Connection, organization_id: UUID) -> None:
    instance_id = await make(database, organization_id)
    versions = await asyncio.gather(*(move(database, instance_id, "booting") for _ in range(8)))
    assert sorted(versions, key=str) == [2, *[None] * 7]
    assert await fetch(sql, "SELECT version FROM instances") == [(2,)]


async def test_a_step_that_the_table_does_not_know_is_an_error(
    database: Database, sql: Connection, organization_id: UUID
) -> None:
    instance_id = await make(database, organization_id)
    with pytest.raises(IllegalTransitionError, match="is provisioning and cannot become ready"):
        await move(database, instance_id, "ready")
    with pytest.raises(NoSuchInstanceError, match="no instance elsewhere"):
        await move(database, "elsewhere", "booting")
    assert await fetch(sql, "SELECT state FROM instances") == [("provisioning",)]


async def test_every_step_is_as_the_table_says(database: Database, sql: Connection, organization_id: UUID) -> None:
    instance_id = await make(database, organization_id)
    for from_state, to_state in itertools.product(ALLOWED, ALLOWED):
        await sql.execute("UPDATE instances SET state = %s", (from_state,))
        if to_state == from_state:
            assert await move(database, instance_id, to_state) is None
        elif to_state in ALLOWED[from_state]:
            assert await move(database, instance_id, to_state) is not None
        else:
            with pytest.raises(IllegalTransitionError):
                await move(database, instance_id, to_state)


async def test_a_column_that_a_step_may_not_change_is_refused(database: Database, organization_id: UUID) -> None:
    instance_id = await make(database, organization_id)
    with pytest.raises(ValueError, match="does not change version"):
        await move(database, instance_id, "booting", changes={"version": 9})


async def test_what_the_caller_rolls_back_was_never_told(
    database: Database, sql: Connection, organization_id: UUID
) -> None:
    instance_id = await make(database, organization_id)

    async def fail() -> None:
        async with database.transaction() as connection:
            await transition(connection, instance_id, "booting", reason="r", detail="d", evidence={}, actor="job:test")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        await fail()
    assert await fetch(sql, "SELECT state, version FROM instances") == [("provisioning", 1)]
    assert await fetch(sql, "SELECT count(*) FROM lifecycle_outbox") == [(1,)]


async def test_the_last_message_of_an_archived_instance_is_a_tombstone(
    database: Database, sql: Connection, organization_id: UUID
) -> None:
    instance_id = await make(database, organization_id)
    for state in ("terminating", "terminated", "archived"):
        await move(database, instance_id, state)
    messages = await fetch(sql, "SELECT message FROM lifecycle_outbox ORDER BY outbox_id")
    assert [message is None for (message,) in messages] == [False] * 4 + [True]
    stamps = await fetch(sql, "SELECT terminated_at IS NOT NULL, ready_at IS NULL FROM instances")
    assert stamps == [(True, True)]
