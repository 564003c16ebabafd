"""``/usage/costs`` on a real database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

NOW = datetime.now(UTC).replace(second=0, microsecond=0)
MINUTE = timedelta(minutes=1)

STEP = """
INSERT INTO instance_transitions (instance_id, version, to_state, reason, detail, evidence, actor, at)
VALUES (%s, (SELECT coalesce(max(version), 0) + 1 FROM instance_transitions WHERE instance_id = %s), %s, 't', 't', '{}',
    'test', %s)
"""
BUSY = """
INSERT INTO finops.inference_usage_1m (bucket, instance_id, organization_id, key_id, model_id, model, total_requests,
    successful_requests, refused_requests, failed_requests, broken_requests, cancelled_requests, unknown_token_requests,
    duration_seconds_sum, duration_seconds_min, duration_seconds_max, first_token_seconds_count, busy_seconds,
    unpriced_requests, last_request_at)
VALUES (%s, %s, 'org', 'key', 'model', 'acme/model', 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, %s, 0, now())
"""
TOKENS = "UPDATE finops.inference_usage_1m SET input_tokens = %s, output_tokens = %s WHERE instance_id = %s"
ORPHAN = """
INSERT INTO orphan_machines (provider, zone, machine_id, status, ours, price_per_hour, currency, first_seen_at,
    last_seen_at, resolved_at)
VALUES ('mock', 'z', 'm-9', 'running', false, 6, 'EUR', %s, now(), %s)
"""


@pytest.fixture
async def life(fleet: Any, deploy: Any, sql: psycopg.AsyncConnection[Any]) -> Any:
    """An instance at 3.60 an hour that has been through these states, each begun so many minutes ago."""

    async def lived(**minutes_ago: int) -> str:
        (instance_id,) = await deploy(1)
        await sql.execute("DELETE FROM instance_transitions WHERE instance_id = %s", (instance_id,))
        for state, minutes in minutes_ago.items():
            await sql.execute(STEP, (instance_id, instance_id, state, NOW - minutes * MINUTE))
        await sql.execute(
            "UPDATE instances SET price_per_hour = 3.6, currency = 'EUR', created_at = %s WHERE instance_id = %s",
            (NOW - max(minutes_ago.values()) * MINUTE, instance_id),
        )
        return str(instance_id)

    yield lived
    await sql.execute("DELETE FROM finops.inference_usage_1m")
    await sql.execute("DELETE FROM orphan_machines")


async def test_the_hours_of_a_machine_are_split_by_what_it_was(fleet: Any, life: Any, sql: Any) -> None:
    one = await life(provisioning=60, booting=55, ready=50, draining=25, terminating=20, terminated=15)
    dead = await life(booting=40, startup_failed=35, terminating=30, terminated=29)
    await sql.execute(BUSY, (NOW - 45 * MINUTE, one, 600.0))
    answer = await fleet.get("/usage/costs", until=NOW.isoformat())
    by_id = {row["instance_id"]: row for row in answer["rows"]}
    assert by_id[one]["seconds"] == {"serving": 600, "idle": 1200, "unready": 600, "dead": 0, "orphan": 0}
    assert by_id[one]["costs"] == {"serving": 0.6, "idle": 1.2, "unready": 0.6, "dead": 0, "orphan": 0}
    assert by_id[dead]["seconds"] == {"serving": 0, "idle": 0, "unready": 360, "dead": 300, "orphan": 0}
    assert answer["totals"]["EUR"] == pytest.approx(
        {"serving": 0.6, "idle": 1.2, "unready": 0.96, "dead": 0.3, "orphan": 0}
    )


async def test_only_what_lies_in_the_time_counts(fleet: Any, life: Any) -> None:
    instance_id = await life(booting=60, ready=50)
    since, until = NOW - 55 * MINUTE, NOW - 40 * MINUTE
    answer = await fleet.get("/usage/costs", since=since.isoformat(), until=until.isoformat(), instance_id=instance_id)
    assert answer["rows"][0]["seconds"] == {"serving": 0, "idle": 600, "unready": 300, "dead": 0, "orphan": 0}


async def test_a_machine_that_nobody_owns_costs_until_it_is_gone(fleet: Any, life: Any, sql: Any) -> None:
    await life(booting=60, archived=60)
    await sql.execute(ORPHAN, (NOW - 30 * MINUTE, NOW - 20 * MINUTE))
    (row,) = (await fleet.get("/usage/costs", until=NOW.isoformat()))["rows"]
    assert (row["machine_id"], row["instance_id"], row["seconds"]["orphan"], row["costs"]["orphan"]) == (
        "m-9",
        None,
        600,
        1.0,
    )


async def test_others_than_operators_see_their_own_machines_alone(
    fleet: Any, life: Any, sql: Any, new_key: Any
) -> None:
    await life(booting=60, ready=50)
    await sql.execute(ORPHAN, (NOW - 30 * MINUTE, None))
    organization = await fleet.ask("POST", "/organizations", 201, json={"slug": "acme", "name": "Acme"})
    key = await new_key("read", organization_id=organization["organization_id"])
    assert (await fleet.ask("GET", "/usage/costs", key=key))["rows"] == []


async def test_what_a_million_tokens_cost_holds_the_idle_time_too(fleet: Any, life: Any, sql: Any) -> None:
    asked = await life(booting=60, ready=50, terminating=20, terminated=15)
    quiet = await life(booting=60, ready=50)
    await sql.execute(BUSY, (NOW - 45 * MINUTE, asked, 600.0))
    await sql.execute(TOKENS, (400_000, 100_000, asked))
    answer = await fleet.get("/usage/costs", until=NOW.isoformat())
    by_id = {row["instance_id"]: row for row in answer["rows"]}
    # 45 minutes at 3.60 an hour for half a million tokens.
    assert by_id[asked]["cost_per_million_tokens"] == pytest.approx(5.4)
    assert by_id[asked]["idle_ratio"] == pytest.approx(20 / 45)
    assert (by_id[asked]["input_tokens"], by_id[asked]["output_tokens"]) == (400_000, 100_000)
    assert (by_id[quiet]["input_tokens"], by_id[quiet]["cost_per_million_tokens"]) == (None, None)


async def test_the_machines_of_a_model_are_one_row(fleet: Any, life: Any, sql: Any) -> None:
    made = await fleet.ask("POST", "/models", 201, json={"hugging_face_id": "acme/of-costs", "name": "Of costs"})
    model = made["model_id"], made["hugging_face_id"]
    for number in range(3):
        one = await life(booting=60, ready=50)
        await sql.execute("UPDATE instances SET model_id = %s WHERE instance_id = %s", (model[0], one))
        if number == 2:
            await sql.execute("UPDATE instances SET price_per_hour = NULL WHERE instance_id = %s", (one,))
    await sql.execute(BUSY, (NOW - 45 * MINUTE, one, 600.0))
    answer = await fleet.get("/usage/costs", until=NOW.isoformat(), group_by="model")
    # What a price is known of is not mixed with what it is not.
    priced, unpriced = sorted(answer["rows"], key=lambda row: -row["machines"])
    assert (priced["model"], priced["machines"], priced["currency"]) == (model[1], 2, "EUR")
    assert priced["costs"] == pytest.approx({"serving": 0, "idle": 6, "unready": 1.2, "dead": 0, "orphan": 0})
    assert (unpriced["model"], unpriced["machines"], unpriced["costs"]) == (model[1], 1, None)
    assert unpriced["seconds"]["serving"] == 600
    assert (priced["instance_id"], priced["price_per_hour"], answer["group_by"]) == (None, None, "model")
