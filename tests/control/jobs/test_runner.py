"""Claims, leases and fences, with several control processes on one database."""

import asyncio
import contextlib
from typing import Any

import pytest

from control.jobs import all_jobs
from control.jobs.framework import work
from control.jobs.framework.backoff import pause_seconds
from control.jobs.framework.item import LostLeaseError, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.runner import Runner
from control.lifecycle import NewInstance, create, transition
from control.states import ACTIVE
from fleetpulse.telemetry import correlation_id

LEASE = 30.0


async def claim(fleet: Any, name: str = "provisioning", lease_seconds: float = LEASE) -> list[Any]:
    jobs = {job.name: job for job in all_jobs(fleet.settings)}
    await work.plan(fleet.database, list(jobs.values()), ["memory"])
    found = await work.claim(fleet.database, jobs[name], "owner", 100, lease_seconds)
    return list(found)


async def boot(fleet: Any, item: Any) -> None:
    async with fleet.context.fenced(item) as connection:
        await transition(connection, item.subject, "booting", reason="r", detail="d", evidence={}, actor=item.actor)


async def due(fleet: Any) -> dict[str, set[str]]:
    """Jobs that look after each instance."""
    found: dict[str, set[str]] = {}
    for subject, job in await fleet.rows("SELECT subject, job FROM job_work"):
        found.setdefault(subject, set()).add(job)
    return found


async def test_work_comes_and_goes_with_the_state(fleet: Any) -> None:
    await claim(fleet)
    await fleet.make("i-1")
    assert (await due(fleet))["i-1"] == {"provisioning"}
    await fleet.move("i-1", "booting")
    assert (await due(fleet))["i-1"] == {"health_check"}
    await fleet.move("i-1", "ready")
    assert "i-1" not in await due(fleet)
    await fleet.move("i-1", "draining")
    assert (await due(fleet))["i-1"] == {"draining"}
    await fleet.move("i-1", "terminating")
    assert (await due(fleet))["i-1"] == {"terminator"}
    await fleet.move("i-1", "terminated")
    assert (await due(fleet))["i-1"] == {"archiver"}
    await fleet.move("i-1", "archived")
    assert "i-1" not in await due(fleet)


async def test_no_state_is_without_a_next_step(fleet: Any) -> None:
    """Each active state is some job's, or is watched in memory."""
    watched = {"ready"}
    recovered = {"startup_failed", "worker_dead"}
    looked_after = {state for job in all_jobs(fleet.settings) for state in job.states}
    assert looked_after | watched | recovered >= ACTIVE | {"terminated"}


async def test_instances_from_before_the_jobs_are_planned_too(fleet: Any) -> None:
    await fleet.make("i-1")
    assert await due(fleet) == {}
    assert [item.subject for item in await claim(fleet)] == ["i-1"]


async def test_an_instance_that_is_being_made_while_jobs_are_planned_is_not_overlooked(fleet: Any) -> None:
    async with fleet.database.transaction() as connection:
        wanted = NewInstance(fleet.organization_id, "memory", "z", "small", instance_id="i-1")
        await create(connection, wanted, actor="admin")
        planning = asyncio.create_task(work.plan(fleet.database, all_jobs(fleet.settings), ["memory"]))

        async def waits() -> bool:
            return bool(await fleet.rows("SELECT FROM pg_locks WHERE NOT granted"))

        await fleet.until(waits, "a plan that waits for the instance")
    await planning
    assert (await due(fleet))["i-1"] == {"provisioning"}


async def test_a_job_that_no_longer_looks_after_a_state_loses_it(fleet: Any) -> None:
    async def nothing(_: Any, __: Any) -> Outcome:
        return Outcome("done", 60.0)

    def looking_after(*states: Any) -> Job:
        return Job("test", nothing, 1.0, 1.0, 1.0, states=states)

    await work.plan(fleet.database, [looking_after("provisioning", "booting")], [])
    await fleet.make("i-1")
    await work.plan(fleet.database, [looking_after("booting")], [])
    await fleet.make("i-2")
    assert await due(fleet) == {"i-1": {"test"}}


async def test_two_runners_make_each_machine_once(make_fleet: Any) -> None:
    one, two = await make_fleet(), await make_fleet(batch_items=3)
    names = [f"i-{number}" for number in range(20)]
    for name in names:
        await one.make(name)
    async with one.running("provisioning"), two.running("provisioning"):
        for name in names:
            await one.until_state(name, "booting")
    made = [fleet.metric("job_outcomes_total", job="provisioning", outcome="made") for fleet in (one, two)]
    assert sum(made) == 20
    assert sum(fleet.provider.calls.count("create") for fleet in (one, two)) == 20


async def test_a_claimed_item_is_not_claimed_again(fleet: Any) -> None:
    await fleet.make("i-1")
    first, second = await asyncio.gather(claim(fleet), claim(fleet))
    assert len(first) + len(second) == 1


async def test_a_process_that_dies_over_its_work_loses_it_to_another(make_fleet: Any) -> None:
    """Killed between claim and write: nothing was written, and the lease ends."""
    fleet = await make_fleet()
    await fleet.make("i-1")
    (dead,) = await claim(fleet, lease_seconds=0.2)
    async with fleet.running("provisioning"):
        await fleet.until_state("i-1", "booting")
    assert fleet.metric("job_leases_expired_total") == 1
    with pytest.raises(LostLeaseError):
        await boot(fleet, dead)


async def test_one_that_was_frozen_past_its_lease_cannot_write(fleet: Any) -> None:
    """Whether or not somebody else has claimed the work since."""
    await fleet.make("i-1")
    (frozen,) = await claim(fleet)
    await fleet.sql.execute("UPDATE job_work SET lease_until = clock_timestamp() - interval '1 second'")
    with pytest.raises(LostLeaseError):
        await boot(fleet, frozen)
    assert await work.take_back(fleet.database) == 1
    (other,) = await claim(fleet)
    assert other.token > frozen.token
    with pytest.raises(LostLeaseError):
        await boot(fleet, frozen)
    assert await work.release(fleet.database, [work.Release(frozen, 0.0, 7, {})]) == 0
    assert await work.renew(fleet.database, [frozen], LEASE) == 0
    await boot(fleet, other)
    assert await fleet.state("i-1") == "booting"


async def test_an_instance_that_moved_on_takes_its_work_along(fleet: Any) -> None:
    await fleet.make("i-1")
    (item,) = await claim(fleet)
    await fleet.move("i-1", "terminating")
    with pytest.raises(LostLeaseError):
        await boot(fleet, item)
    assert await fleet.state("i-1") == "terminating"


async def test_work_that_comes_back_has_another_token(fleet: Any) -> None:
    """ready → draining → ready → draining: the first claim must not fit the second row."""
    await claim(fleet)
    await fleet.make("i-1", "draining")
    (first,) = await claim(fleet, "draining")
    await fleet.move("i-1", "ready")
    await fleet.move("i-1", "draining")
    (second,) = await claim(fleet, "draining")
    assert first.token != second.token
    assert await work.release(fleet.database, [work.Release(first, 0.0, 0, {})]) == 0


async def test_long_work_keeps_its_lease(make_fleet: Any) -> None:
    fleet = await make_fleet(lease_seconds=0.3)
    await fleet.make("i-1")
    let_go, calls = asyncio.Event(), []

    async def slow(_: Any, item: Any) -> Outcome:
        calls.append(item.token)
        await let_go.wait()
        return Outcome("done", 3600.0)

    runner = Runner(fleet.context, [Job("slow", slow, 60.0, 1.0, 1.0, states=("provisioning",))])
    task = asyncio.create_task(runner.run())
    try:
        await fleet.until(lambda: calls, "a claim")

        async def renewed() -> bool:
            return bool(await fleet.rows("SELECT FROM job_work WHERE lease_until > now() + interval '0.2 seconds'"))

        ((first_lease,),) = await fleet.rows("SELECT lease_until FROM job_work WHERE job = 'slow'")
        await fleet.until(renewed, "a lease")

        async def outlived() -> bool:
            return bool(
                await fleet.rows("SELECT FROM job_work WHERE lease_until > %s + interval '0.5 seconds'", first_lease)
            )

        await fleet.until(outlived, "a lease that was renewed twice")
        let_go.set()

        async def put_back() -> bool:
            return bool(await fleet.rows("SELECT FROM job_work WHERE owner IS NULL AND due_at > now()"))

        await fleet.until(put_back, "its end")
        assert len(calls) == 1
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_runner_that_is_stopped_hands_its_work_over_at_once(fleet: Any) -> None:
    await fleet.make("i-1")
    started = asyncio.Event()

    async def endless(_: Any, __: Any) -> Outcome:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    runner = Runner(fleet.context, [Job("endless", endless, 60.0, 1.0, 1.0, states=("provisioning",))])
    task = asyncio.create_task(runner.run())
    await started.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await fleet.rows("SELECT owner, due_at <= now() FROM job_work") == [(None, True)]


async def test_what_fails_is_tried_again_later_and_ends_nothing_else(fleet: Any) -> None:
    outcomes = {"i-1": ValueError("ours"), "i-2": None}

    async def picky(_: Any, item: Any) -> Outcome:
        if (error := outcomes[item.subject]) is not None:
            raise error
        return Outcome("done", 3600.0)

    for name in outcomes:
        await fleet.make(name)
    runner = Runner(fleet.context, [Job("picky", picky, 60.0, 0.05, 0.05, states=("provisioning",))])
    task = asyncio.create_task(runner.run())
    try:

        async def tried() -> bool:
            return bool(await fleet.rows("SELECT FROM job_work WHERE subject = 'i-1' AND attempts >= 3"))

        await fleet.until(tried, "three attempts")
        assert fleet.metric("job_outcomes_total", job="picky", outcome="done") == 1
        outcomes["i-1"] = None
        await fleet.until(lambda: fleet.metric("job_outcomes_total", job="picky", outcome="done") == 2, "a good end")
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_what_takes_too_long_is_cut_short(fleet: Any) -> None:
    async def endless(_: Any, __: Any) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    await fleet.make("i-1")
    runner = Runner(fleet.context, [Job("endless", endless, 0.05, 0.05, 0.05, states=("provisioning",))])
    task = asyncio.create_task(runner.run())
    try:
        await fleet.until(
            lambda: fleet.metric("job_outcomes_total", job="endless", outcome="timeout") >= 2, "two attempts"
        )
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_runner_waits_for_a_database_that_is_away(fleet: Any) -> None:
    fleet.database.refuse("gone")
    async with fleet.running("provisioning"):
        await fleet.sql.execute("SELECT 1")
        fleet.database.accept()
        await fleet.make("i-1")
        await fleet.until_state("i-1", "booting")


async def test_the_correlation_id_goes_from_the_request_to_the_provider_call(fleet: Any) -> None:
    correlation_id.set("request-7")
    await fleet.make("i-1")
    correlation_id.set(None)
    async with fleet.running("provisioning"):
        await fleet.until_state("i-1", "booting")
    told = await fleet.rows("SELECT action, correlation_id FROM action_log")
    assert told == [("provider.create", "request-7")]
    steps = await fleet.rows("SELECT correlation_id FROM instance_transitions")
    assert steps == [("request-7",)] * 2


async def test_the_age_of_the_oldest_due_item_is_measured(fleet: Any) -> None:
    await fleet.make("i-1")
    await claim(fleet, lease_seconds=0.0)
    await work.take_back(fleet.database)
    await fleet.sql.execute("UPDATE job_work SET due_at = now() - interval '100 seconds' WHERE job = 'provisioning'")
    await fleet.runner("provisioning").look()
    assert 99 < fleet.metric("job_oldest_due_seconds", job="provisioning") < 110
    assert fleet.metric("job_lateness_seconds_sum", job="provisioning") > 99
    assert fleet.metric("job_items_claimed_total", job="provisioning") == 1


def test_pauses_grow_up_to_the_longest_and_differ() -> None:
    for attempts, expected in ((1, 2.0), (2, 4.0), (5, 32.0), (6, 60.0), (1_000, 60.0)):
        pauses = {pause_seconds(attempts, 2.0, 60.0) for _ in range(50)}
        assert all(0.9 * expected <= pause <= 1.1 * expected for pause in pauses)
        assert len(pauses) > 1
