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
