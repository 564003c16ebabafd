from typing import Any

ACTIONS = """INSERT INTO action_log (at, action, succeeded, actor)
    SELECT now() - make_interval(days => days), 'act', true, 'admin' FROM unnest(ARRAY[0, 9, 11, 400]) AS days"""
MANY_ACTIONS = """INSERT INTO action_log (at, action, succeeded, actor)
    SELECT now() - interval '20 days', 'act', true, 'admin' FROM generate_series(1, 10001)"""
RESULTS = """INSERT INTO health_results (instance_id, at, probe, succeeded, detail)
    SELECT %s, now() - make_interval(days => days), 'agent', true, 'fine' FROM unnest(ARRAY[9, 11]) AS days"""
AGES = "SELECT round(extract(epoch FROM now() - at) / 86400)::int FROM {} ORDER BY 1"


async def test_old_records_go_but_not_what_the_last_checks_of_a_living_instance_said(make_fleet: Any) -> None:
    fleet = await make_fleet(records_days=10)
    ended, living = await fleet.make("ended", "archived"), await fleet.make("living", "ready")
    await fleet.sql.execute(ACTIONS)
    for instance in (ended, living):
        await fleet.sql.execute(RESULTS, (instance,))

    async def gone() -> bool:
        return await fleet.rows(AGES.format("action_log")) == [(0,), (9,)]

    async with fleet.running("records"):
        await fleet.until(gone, "old actions to be gone")
    assert await fleet.rows(AGES.format("health_results")) == [(9,), (9,), (11,)]


async def test_many_old_records_go_in_several_steps_whatever_the_statistics_say(make_fleet: Any) -> None:
    fleet = await make_fleet(records_days=10)
    await fleet.sql.execute(MANY_ACTIONS)
    await fleet.sql.execute("DELETE FROM action_log WHERE action_id < (SELECT max(action_id) FROM action_log)")
    await fleet.sql.execute("VACUUM ANALYZE action_log")
    await fleet.sql.execute(MANY_ACTIONS)

    async def gone() -> bool:
        return await fleet.rows("SELECT FROM action_log LIMIT 1") == []

    async with fleet.running("records"):
        await fleet.until(gone, "all of them to be gone")


async def test_what_is_long_over_goes_with_its_history_and_what_still_needs_it_stays(make_fleet: Any) -> None:
    fleet = await make_fleet(records_days=10)
    names = ("over", "lately", "living", "with-disk", "with-orphan")
    for name in names:
        await fleet.make(name, "ready" if name == "living" else "archived")
    await fleet.sql.execute(
        """WITH old AS (UPDATE instances SET state_since = now() - interval '11 days' WHERE instance_id <> 'lately')
        INSERT INTO volumes (provider, zone, volume_id, instance_id, name, size_bytes, state, deleted_at)
        VALUES ('memory', 'z', 'v-1', 'with-disk', 'd', 1, 'deleting', NULL),
            ('memory', 'z', 'v-2', 'over', 'd', 1, 'deleted', now() - interval '11 days'),
            ('memory', 'z', 'v-3', 'over', 'd', 1, 'deleted', now() - interval '9 days')"""
    )
    await fleet.sql.execute(
        """INSERT INTO orphan_machines (provider, zone, machine_id, instance_id, status, ours, resolved_at)
        VALUES ('memory', 'z', 'm-1', 'with-orphan', 'on', true, NULL),
            ('memory', 'z', 'm-2', 'over', 'on', true, now() - interval '11 days'),
            ('memory', 'z', 'm-3', 'over', 'on', true, now() - interval '9 days')"""
    )
    await fleet.sql.execute(
        """INSERT INTO outdated_agents (instance_id, worker_id, agent_version, wanted_version, noticed_at)
        VALUES ('a', 'a', '1', '2', now() - interval '11 days'), ('b', 'b', '1', '2', now() - interval '9 days')"""
    )

    async def gone() -> bool:
        return not await fleet.rows("SELECT FROM instances WHERE instance_id = 'over'")

    async with fleet.running("records"):
        await fleet.until(gone, "the old instance to be gone")
    kept = [name for (name,) in await fleet.rows("SELECT instance_id FROM instances ORDER BY 1")]
    assert kept == sorted(set(names) - {"over"})
    assert await fleet.rows("SELECT FROM instance_transitions WHERE instance_id = 'over'") == []
    assert await fleet.rows("SELECT volume_id FROM volumes ORDER BY 1") == [("v-1",), ("v-3",)]
    assert await fleet.rows("SELECT machine_id FROM orphan_machines ORDER BY 1") == [("m-1",), ("m-3",)]
    assert await fleet.rows("SELECT instance_id FROM outdated_agents") == [("b",)]


async def test_a_deployment_goes_with_its_last_instance(make_fleet: Any) -> None:
    fleet = await make_fleet(records_days=10)
    statement = """INSERT INTO deployments
        (organization_id, name, provider, zone, instance_type, instance_count, created_by, created_at)
        SELECT %s, name, 'memory', 'z', 'small', 1, 'admin', now() - make_interval(days => days)
        FROM (VALUES ('over', 11), ('used', 11), ('new', 0)) AS d(name, days) RETURNING name, deployment_id"""
    ids = dict(await fleet.rows(statement, fleet.organization_id))
    await fleet.make("i-1", "archived", deployment_id=ids["over"])
    await fleet.make("i-2", "ready", deployment_id=ids["used"])
    await fleet.sql.execute("UPDATE instances SET state_since = now() - interval '11 days'")

    async def gone() -> bool:
        return await fleet.rows("SELECT name FROM deployments ORDER BY 1") == [("new",), ("used",)]

    async with fleet.running("records"):
        await fleet.until(gone, "the old deployment to be gone")
