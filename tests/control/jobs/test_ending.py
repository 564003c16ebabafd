"""The way out: draining, terminating, archiving, and recovery from being stuck."""

from typing import Any

import pytest

from fleetpulse.stream.heartbeat import Engine


def engine(running: int, waiting: int = 0) -> Engine:
    return Engine("ready", requests_running=running, requests_waiting=waiting, step_count=1)


async def test_a_terminating_instance_ends_when_the_provider_no_longer_has_its_machine(fleet: Any) -> None:
    await fleet.make("i-1", "terminating")
    await fleet.make("i-2", "ready")
    async with fleet.running("terminator"):
        await fleet.until_state("i-1", "terminated")
    assert [name for name in fleet.provider.calls if name != "inventory"] == ["stop_runtime", "delete"]
    assert list(fleet.provider.machines) == ["m-i-2"]
    evidence = await fleet.evidence("i-1")
    assert (evidence["machine_id"], evidence["inventory_machines"]) == ("m-i-1", 1)


async def test_a_deletion_that_silently_fails_is_repeated_until_the_machine_is_gone(fleet: Any) -> None:
    fleet.provider.deletes_nothing = 3
    await fleet.make("i-1", "terminating")
    async with fleet.running("terminator"):
        await fleet.until_state("i-1", "terminated")
    assert fleet.provider.calls.count("delete") == 4
    assert fleet.provider.calls.count("stop_runtime") == 1
    assert (await fleet.evidence("i-1"))["attempts"] == 4


async def test_errors_of_the_provider_are_retried_and_recorded(fleet: Any, provider_error: Any) -> None:
    fleet.provider.fail = {"stop_runtime": provider_error(), "delete": provider_error(retryable=False)}
    await fleet.make("i-1", "terminating")
    async with fleet.running("terminator"):
        await fleet.until(lambda: fleet.provider.calls.count("delete") >= 3, "three attempts")
        del fleet.provider.fail["delete"]
        await fleet.until_state("i-1", "terminated")
    failures = await fleet.rows("SELECT count(*) FROM action_log WHERE action = 'provider.delete' AND NOT succeeded")
    assert failures[0][0] >= 3


async def test_an_inventory_that_fails_ends_nothing(fleet: Any, provider_error: Any) -> None:
    fleet.provider.fail["inventory"] = provider_error()
    await fleet.make("i-1", "terminating")
    async with fleet.running("terminator"):
        await fleet.until(lambda: fleet.provider.calls.count("inventory") >= 3, "three attempts")
        assert await fleet.state("i-1") == "terminating"
        del fleet.provider.fail["inventory"]
        await fleet.until_state("i-1", "terminated")


async def test_an_inventory_that_lost_everything_is_no_proof_of_an_end(fleet: Any) -> None:
    for number in range(4):
        await fleet.make(f"r-{number}", "ready")
    await fleet.make("i-1", "terminating")
    fleet.provider.hidden = True
    async with fleet.running("terminator"):
        await fleet.until(
            lambda: fleet.metric("job_outcomes_total", job="terminator", outcome="inventory_lost_many") >= 2, "doubt"
        )
        assert await fleet.state("i-1") == "terminating"
        fleet.provider.hidden = False
        await fleet.until_state("i-1", "terminated")


async def test_a_machine_that_was_made_and_not_written_down_is_found_and_deleted(fleet: Any) -> None:
    """Control was killed between the provider's answer and its own write."""
    await fleet.make("i-1", "terminating", machine=False)
    fleet.provider.add("m-unknown", "i-1")
    async with fleet.running("terminator"):
        await fleet.until_state("i-1", "terminated")
    assert fleet.provider.machines == {}


async def test_an_instance_without_a_machine_just_ends(fleet: Any) -> None:
    await fleet.make("i-1", "terminating", machine=False)
    async with fleet.running("terminator"):
        await fleet.until_state("i-1", "terminated")
    assert "delete" not in fleet.provider.calls


async def test_draining_waits_for_the_last_request(make_fleet: Any) -> None:
    fleet = await make_fleet()
    await fleet.make("i-1", "draining")
    await fleet.sql.execute("UPDATE instances SET state_since = now() - interval '10 seconds'")
    fleet.beat("i-1", 1, engine=engine(1))
    async with fleet.running("draining"):
        await fleet.until(lambda: fleet.metric("job_outcomes_total", job="draining", outcome="waiting") >= 2, "looks")
        fleet.beat("i-1", 2, engine=engine(0, 2))
        looked = fleet.metric("job_outcomes_total", job="draining", outcome="waiting")
        await fleet.until(
            lambda: fleet.metric("job_outcomes_total", job="draining", outcome="waiting") >= looked + 2, "more looks"
        )
        assert await fleet.state("i-1") == "draining"
        fleet.beat("i-1", 3, engine=engine(0))
        await fleet.until_state("i-1", "terminating")
    assert (await fleet.history("i-1"))[-1][1] == "drained"
    assert (await fleet.evidence("i-1"))["heartbeat"]["sequence"] == 3


async def test_a_heartbeat_from_before_draining_proves_nothing(fleet: Any) -> None:
    fleet.beat("i-1", 1, engine=engine(0))
    await fleet.make("i-1", "draining")
    async with fleet.running("draining"):
        await fleet.until(lambda: fleet.metric("job_outcomes_total", job="draining", outcome="waiting") >= 2, "looks")
        assert await fleet.state("i-1") == "draining"


async def test_draining_ends_in_time(make_fleet: Any) -> None:
    fleet = await make_fleet(draining_most_seconds=5.0)
    await fleet.make("i-1", "draining")
    await fleet.sql.execute("UPDATE instances SET state_since = now() - interval '10 seconds'")
    async with fleet.running("draining"):
        await fleet.until_state("i-1", "terminating")
    assert (await fleet.history("i-1"))[-1][1] == "drain_timeout"


async def test_what_is_over_is_archived_after_a_while(make_fleet: Any) -> None:
    fleet = await make_fleet(archive_after_seconds=3600)
    await fleet.make("i-1", "terminated")
    async with fleet.running("archiver"):

        async def planned() -> bool:
            return bool(await fleet.rows("SELECT FROM job_work WHERE job = 'archiver' AND due_at > now()"))

        await fleet.until(planned, "a plan")
        await fleet.sql.execute("UPDATE instances SET state_since = now() - interval '2 hours'")
        await fleet.sql.execute("UPDATE job_work SET due_at = now() WHERE job = 'archiver'")
        await fleet.until_state("i-1", "archived")
    messages = await fleet.rows("SELECT message IS NULL FROM lifecycle_outbox ORDER BY outbox_id")
    assert messages[-1] == (True,)


@pytest.mark.parametrize(
    ("state", "seconds", "expected"),
    [
        ("provisioning", 1000, "startup_failed"),
        ("booting", 1000, "startup_failed"),
        ("installing", 2000, "startup_failed"),
        ("starting", 2000, "startup_failed"),
        ("startup_failed", 400, "terminating"),
        ("worker_dead", 1000, "terminating"),
        ("draining", 1000, "terminating"),
    ],
)
async def test_an_instance_that_is_stuck_gets_a_next_step(fleet: Any, state: str, seconds: int, expected: str) -> None:
    await fleet.make("i-1", state)
    await fleet.make("i-2", state)
    await fleet.sql.execute(
        "UPDATE instances SET state_since = now() - %s * interval '1 second' WHERE instance_id = 'i-1'", (seconds,)
    )
    async with fleet.running("recovery"):
        await fleet.until_state("i-1", expected)
    assert (await fleet.history("i-1"))[-1][1] == f"{state}_too_long"
    assert await fleet.state("i-2") == state
    assert (await fleet.evidence("i-1"))["limit_seconds"] < seconds


async def test_a_dead_worker_whose_agent_waits_for_its_engine_has_as_long_as_a_start(fleet: Any) -> None:
    """The engine of a large model, started again, loads for longer than a dead worker is kept."""
    for instance_id in ("i-1", "i-2"):
        await fleet.make(instance_id, "worker_dead")
    await fleet.sql.execute("UPDATE instances SET engine_url = 'http://127.0.0.1:1'")
    fleet.beat("i-1", interval_seconds=60.0, engine=Engine("unreachable"), status="degraded")
    await fleet.sql.execute("UPDATE instances SET state_since = now() - interval '1000 seconds'")
    async with fleet.running("recovery"):
        await fleet.until_state("i-2", "terminating")
        assert await fleet.state("i-1") == "worker_dead"
        await fleet.sql.execute(
            "UPDATE instances SET state_since = now() - interval '2000 seconds' WHERE instance_id = 'i-1'"
        )
        await fleet.until_state("i-1", "terminating")


async def test_recovery_holds_still_while_the_pipeline_is_blind(fleet: Any) -> None:
    fleet.reader.connected = False
    await fleet.make("i-1", "starting")
    await fleet.sql.execute("UPDATE instances SET state_since = now() - interval '1 day'")
    async with fleet.running("recovery"):
        await fleet.until(
            lambda: fleet.metric("jobs_holding_still", job="recovery", reason="not_following") == 1, "standing still"
        )
        assert await fleet.state("i-1") == "starting"
        assert fleet.metric("instances_stuck", state="starting") == 1
        fleet.reader.connected = True
        await fleet.until_state("i-1", "startup_failed")
    assert fleet.metric("jobs_holding_still", job="recovery", reason="not_following") == 0


async def test_a_termination_that_takes_for_ever_is_begun_anew(fleet: Any) -> None:
    async with fleet.running("recovery", "terminator"):
        fleet.provider.deletes_nothing = 1_000_000
        await fleet.make("i-1", "terminating")
        await fleet.sql.execute("UPDATE instances SET state_since = now() - interval '1 day'")

        async def tried() -> bool:
            return bool(await fleet.rows("SELECT FROM job_work WHERE job = 'terminator' AND attempts >= 1"))

        await fleet.until(tried, "an attempt")
        await fleet.sql.execute("UPDATE job_work SET attempts = 100 WHERE job = 'terminator'")

        async def anew() -> bool:
            return bool(await fleet.rows("SELECT FROM action_log WHERE action = 'termination_begun_anew'"))

        await fleet.until(anew, "a new beginning")
        fleet.provider.deletes_nothing = 0
        await fleet.until_state("i-1", "terminated")


async def test_limits_are_learned_from_earlier_instances(fleet: Any) -> None:
    """Twenty instances were booting for 100 s; one that is for 250 s is unusual, long before the setting says so."""
    await fleet.sql.execute(
        "INSERT INTO instances (instance_id, organization_id, provider, zone, instance_type, state, created_by)"
        " SELECT 'old-' || n, %s, 'memory', 'z', 'small', 'archived', 'admin' FROM generate_series(1, 20) AS n",
        (fleet.organization_id,),
    )
    for version, before, state, seconds in ((1, "provisioning", "booting", 500), (2, "booting", "ready", 400)):
        await fleet.sql.execute(
            "INSERT INTO instance_transitions"
            " (instance_id, version, from_state, to_state, reason, detail, evidence, actor, at)"
            " SELECT 'old-' || n, %s, %s, %s, '', '', '{}', 'admin', now() - %s * interval '1 second'"
            " FROM generate_series(1, 20) AS n",
            (version, before, state, seconds),
        )
    for name, seconds in (("i-slow", 250), ("i-quick", 150)):
        await fleet.make(name, "booting")
        await fleet.sql.execute(
            "UPDATE instances SET state_since = now() - %s * interval '1 second' WHERE instance_id = %s",
            (seconds, name),
        )
    async with fleet.running("recovery"):
        await fleet.until_state("i-slow", "startup_failed")
    assert await fleet.state("i-quick") == "booting"
    assert 199 < (await fleet.evidence("i-slow"))["limit_seconds"] < 201
