"""Silence and stalls, and what they prove."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from control.jobs.framework.engines import Engines
from control.jobs.framework.guard import Guard
from control.jobs.framework.probes import ProbeResult
from control.jobs.framework.roster import Ready
from control.jobs.framework.silence import Silence, death_by_silence
from control.jobs.worker_watchdog import WorkerWatchdog
from fleetpulse.settings import JobSettings
from fleetpulse.stream.heartbeat import Engine


@contextlib.asynccontextmanager
async def watching(fleet: Any) -> AsyncIterator[WorkerWatchdog]:
    watchdog = WorkerWatchdog(fleet.context)
    task = asyncio.create_task(watchdog.run())
    try:
        yield watchdog
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def ready(fleet: Any, instance_id: str, agent_url: str | None, engine_url: str | None = None) -> None:
    await fleet.make(instance_id, "ready")
    urls = (agent_url, engine_url, instance_id)
    await fleet.sql.execute("UPDATE instances SET agent_url = %s, engine_url = %s WHERE instance_id = %s", urls)


async def passes(fleet: Any, count: int = 10) -> None:
    """Wait for so many more looks."""
    before = fleet.metric("job_duration_seconds_count", job="worker_watchdog")
    await fleet.until(
        lambda: fleet.metric("job_duration_seconds_count", job="worker_watchdog") >= before + count, "looks"
    )


async def test_a_killed_worker_is_dead_within_two_intervals_and_a_second(fleet: Any, unused_port: int) -> None:
    """Its machine refuses the connection: no need to wait until it is stale."""
    await ready(fleet, "i-1", f"http://127.0.0.1:{unused_port}")
    async with watching(fleet):
        fleet.beat("i-1")
        last_heard = time.monotonic()
        await fleet.until_state("i-1", "worker_dead")
        took = time.monotonic() - last_heard
    assert 1.5 < took < 3.0
    assert (await fleet.history("i-1"))[-1] == ("worker_dead", "silent_and_refused")
    evidence = await fleet.evidence("i-1")
    assert evidence["probe"]["refused"] is True
    assert evidence["last_heartbeat"]["sequence"] == 1
    assert evidence["silent_for_seconds"] >= 1.5


async def test_a_worker_that_beats_is_left_alone(fleet: Any, unused_port: int) -> None:
    await ready(fleet, "i-1", f"http://127.0.0.1:{unused_port}")
    async with watching(fleet):
        deadline, sequence = time.monotonic() + 2.5, 0
        while time.monotonic() < deadline:
            sequence += 1
            fleet.beat("i-1", sequence)
            await asyncio.sleep(0.2)
    assert await fleet.state("i-1") == "ready"


async def test_an_agent_that_answers_is_not_dead_though_nothing_is_heard(fleet: Any, worker: Any) -> None:
    """A broker that stands still: all are silent, and all answer."""
    for number in range(2):
        await ready(fleet, f"i-{number}", worker.url)
        fleet.beat(f"i-{number}", ago=60.0)
    async with watching(fleet):
        await fleet.until(lambda: worker.asked.count("/healthz") >= 3, "probes")
        await passes(fleet)
    assert [await fleet.state(f"i-{number}") for number in range(2)] == ["ready", "ready"]


async def test_of_many_that_fall_silent_together_none_is_declared_dead(fleet: Any, unused_port: int) -> None:
    for number in range(5):
        await ready(fleet, f"i-{number}", f"http://127.0.0.1:{unused_port}")
    async with watching(fleet):
        for number in range(5):
            fleet.beat(f"i-{number}", ago=60.0)
        await fleet.until(lambda: fleet.metric("workers_suspect") == 5, "suspicion")
        await passes(fleet)
        assert [await fleet.state(f"i-{number}") for number in range(5)] == ["ready"] * 5
        # The others are heard again; the one that is not is dead indeed.
        for number in range(4):
            fleet.beat(f"i-{number}", 2)
        await fleet.until_state("i-4", "worker_dead")
        assert [await fleet.state(f"i-{number}") for number in range(4)] == ["ready"] * 4


@pytest.mark.parametrize("trouble", ["not_following", "just_joined"])
async def test_nobody_is_declared_dead_while_the_stream_is_not_followed(
    fleet: Any, unused_port: int, trouble: str
) -> None:
    if trouble == "not_following":
        fleet.reader.connected = False
    else:
        fleet.view.leave()
        fleet.view.join(time.monotonic() - 5.0)
    await ready(fleet, "i-1", f"http://127.0.0.1:{unused_port}")
    fleet.beat("i-1", ago=60.0)
    async with watching(fleet):
        await fleet.until(
            lambda: fleet.metric("jobs_holding_still", job="worker_watchdog", reason=trouble) == 1, "standing still"
        )
        await passes(fleet)
        assert await fleet.state("i-1") == "ready"
        fleet.reader.connected = True
        fleet.view.leave()
        fleet.view.join(time.monotonic() - 1000.0)
        await fleet.until_state("i-1", "worker_dead")
    assert fleet.metric("jobs_holding_still", job="worker_watchdog", reason=trouble) == 0


async def test_a_lagging_reader_proves_nothing(fleet: Any, unused_port: int) -> None:
    fleet.reader.lag_records = 10_000
    await ready(fleet, "i-1", f"http://127.0.0.1:{unused_port}")
    fleet.beat("i-1", ago=60.0)
    async with watching(fleet):
        await fleet.until(
            lambda: fleet.metric("jobs_holding_still", job="worker_watchdog", reason="not_following") == 1, "a hold"
        )
    assert await fleet.state("i-1") == "ready"


async def test_a_dead_worker_that_is_heard_again_is_ready(fleet: Any) -> None:
    await fleet.make("i-1", "worker_dead")
    async with watching(fleet):
        await passes(fleet)
        # One heartbeat may have been under way when it died.
        fleet.beat("i-1", 8)
        await passes(fleet)
        assert await fleet.state("i-1") == "worker_dead"
        fleet.beat("i-1", 9)
        await fleet.until_state("i-1", "ready")
        assert (await fleet.history("i-1"))[-1][1] == "heard_again"


async def test_a_worker_that_comes_back_still_starting_is_not_ready_yet(fleet: Any) -> None:
    await fleet.make("i-1", "worker_dead")
    async with watching(fleet):
        await passes(fleet)
        for sequence in range(1, 4):
            fleet.beat("i-1", sequence, status="starting")
            await passes(fleet, 3)
        assert await fleet.state("i-1") == "worker_dead"
        fleet.beat("i-1", 4)
        await fleet.until_state("i-1", "ready")


def busy(steps: int) -> Engine:
    return Engine("ready", step_count=steps, requests_running=1, requests_waiting=3)


async def test_a_stalled_engine_is_dead_until_it_works_again(make_fleet: Any, worker: Any) -> None:
    fleet = await make_fleet(engine_stall_seconds=60.0)
    await ready(fleet, "i-1", worker.url)
    fleet.beat("i-1", 1, ago=100.0, engine=busy(7))
    fleet.beat("i-1", 2, ago=30.0, engine=busy(8))
    fleet.beat("i-1", 3, engine=busy(8))
    async with watching(fleet):
        await passes(fleet)
        assert await fleet.state("i-1") == "ready"
        fleet.beat("i-2", 1, ago=100.0, engine=busy(7))
        fleet.beat("i-2", 2, engine=busy(7))
        await ready(fleet, "i-2", worker.url)
        await fleet.until_state("i-2", "worker_dead")
        evidence = await fleet.evidence("i-2")
        assert evidence["engine_stalled_seconds"] >= 60
        assert evidence["heartbeat"]["engine"]["step_count"] == 7
        assert (await fleet.history("i-2"))[-1][1] == "engine_stalled"
        for sequence in (3, 4, 5):
            fleet.beat("i-2", sequence, engine=busy(7))
            await passes(fleet, 3)
        assert await fleet.state("i-2") == "worker_dead"
        fleet.beat("i-2", 6, engine=busy(8))
        await fleet.until_state("i-2", "ready")


async def test_an_engine_that_stalls_since_before_control_was_started_is_not_taken_for_one_that_works(
    fleet: Any,
) -> None:
    """How long it stalls is then counted from the start, or from the agent's."""
    await fleet.make("i-1", "worker_dead")
    async with watching(fleet):
        await passes(fleet)
        for sequence, boot_id in ((8, "b"), (9, "b"), (10, "b"), (1, "c"), (2, "c"), (3, "c")):
            fleet.beat("i-1", sequence, boot_id=boot_id, engine=busy(7))
            await passes(fleet, 3)
        assert await fleet.state("i-1") == "worker_dead"
        fleet.beat("i-1", 4, boot_id="c", engine=busy(8))
        await fleet.until_state("i-1", "ready")


@contextlib.asynccontextmanager
async def beating(fleet: Any, first: int, *instance_ids: str, **fields: Any) -> AsyncIterator[None]:
    """Many heartbeats a second, until the block ends."""

    async def beat() -> None:
        for sequence in range(first, first + 10_000):
            for instance_id in instance_ids:
                fleet.beat(instance_id, sequence, interval_seconds=0.1, **fields)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


GONE = {"engine": Engine("unreachable"), "status": "degraded"}


async def test_a_live_agent_beside_an_engine_that_is_gone_is_a_dead_worker_until_the_engine_is_back(
    make_fleet: Any, worker: Any, unused_port: int
) -> None:
    fleet = await make_fleet(engine_unreachable_seconds=0.5)
    await ready(fleet, "i-1", worker.url, f"http://127.0.0.1:{unused_port}")
    async with watching(fleet):
        async with beating(fleet, 1, "i-1", **GONE):
            await fleet.until_state("i-1", "worker_dead")
            await passes(fleet)
            assert await fleet.state("i-1") == "worker_dead"
            evidence = await fleet.evidence("i-1")
            assert evidence["engine_unreachable_seconds"] > 0.5
            assert evidence["heartbeat"]["engine"]["state"] == "unreachable"
            assert evidence["probe"] == {
                "target": f"http://127.0.0.1:{unused_port}/v1/models",
                "detail": "connection refused",
                "refused": True,
            }
            ((reason, detail),) = await fleet.rows(
                "SELECT reason, detail FROM instance_transitions WHERE to_state = 'worker_dead'"
            )
            assert reason == "engine_unreachable"
            assert re.fullmatch(
                r"Its agent has had no answer of its engine for \d+ s, and control has none: connection refused\.",
                detail,
            )
        async with beating(fleet, 20_000, "i-1"):
            await fleet.until_state("i-1", "ready")
    assert (await fleet.history("i-1"))[-1][1] == "heard_again"


async def test_an_engine_that_answers_control_or_that_nobody_expects_is_left_alone(
    make_fleet: Any, worker: Any
) -> None:
    fleet = await make_fleet(engine_unreachable_seconds=0.1)
    await ready(fleet, "i-1", worker.url, worker.url)
    await ready(fleet, "i-2", worker.url)
    async with watching(fleet), beating(fleet, 1, "i-1", "i-2", **GONE):
        await fleet.until(lambda: worker.asked.count("/v1/models") >= 2, "questions to the engine")
        assert [await fleet.state(name) for name in ("i-1", "i-2")] == ["ready", "ready"]


async def test_no_engine_is_declared_gone_while_the_stream_proves_nothing(
    make_fleet: Any, worker: Any, unused_port: int
) -> None:
    fleet = await make_fleet(engine_unreachable_seconds=0.1)
    fleet.view.leave()
    fleet.view.join(time.monotonic())
    await ready(fleet, "i-1", worker.url, f"http://127.0.0.1:{unused_port}")
    async with watching(fleet), beating(fleet, 1, "i-1", **GONE):
        held = {"job": "worker_watchdog", "reason": "just_joined"}
        await fleet.until(lambda: fleet.metric("jobs_holding_still", **held) == 1, "standing still")
        assert await fleet.state("i-1") == "ready"
        fleet.view.leave()
        fleet.view.join(time.monotonic() - 1000.0)
        await fleet.until_state("i-1", "worker_dead")


async def test_an_engine_that_answers_its_agent_now_and_then_is_not_even_asked(fleet: Any, worker: Any) -> None:
    """One that is busy misses questions."""
    engines = Engines(JobSettings(), fleet.context.probes)
    one = Ready("i-1", 1, worker.url, worker.url, None, 0.0)
    for minute in range(5):
        fleet.beat("i-1", 2 * minute + 1, **GONE)
        seen = fleet.view.get("i-1", time.monotonic())
        assert [engines.look(one, seen, 200.0 * minute + after) for after in (0, 60, 120)] == [None] * 3
        fleet.beat("i-1", 2 * minute + 2)
        assert engines.look(one, fleet.view.get("i-1", time.monotonic()), 200.0 * minute + 130) is None
    await engines.close()
    assert worker.asked == []


async def test_a_worker_that_dies_again_and_again_stays_dead_for_a_while(make_fleet: Any) -> None:
    fleet = await make_fleet(flap_deaths=2, flap_quiet_seconds=3600)
    await fleet.make("i-1", "ready")
    for state in ("worker_dead", "ready", "worker_dead"):
        await fleet.move("i-1", state)
    async with watching(fleet):
        await passes(fleet)
        for sequence in range(1, 5):
            fleet.beat("i-1", sequence)
            await passes(fleet, 2)

        async def told() -> bool:
            return bool(await fleet.rows("SELECT FROM action_log WHERE action = 'circuit_opened'"))

        await fleet.until(told, "an open circuit")
        assert await fleet.state("i-1") == "worker_dead"


async def test_two_watchdogs_declare_a_death_once(make_fleet: Any, unused_port: int) -> None:
    one, two = await make_fleet(), await make_fleet()
    await ready(one, "i-1", f"http://127.0.0.1:{unused_port}")
    for fleet in (one, two):
        fleet.beat("i-1", ago=60.0)
    async with watching(one), watching(two):
        await one.until_state("i-1", "worker_dead")
        await passes(one)
        await passes(two)
    assert [state for state, _ in await one.history("i-1")].count("worker_dead") == 1


async def test_an_instance_that_was_never_heard_is_found_out_too(fleet: Any, unused_port: int) -> None:
    """Control was started after the worker had died."""
    await ready(fleet, "i-1", f"http://127.0.0.1:{unused_port}")
    await fleet.sql.execute("UPDATE instances SET state_since = now() - interval '1 hour'")
    async with watching(fleet):
        await fleet.until_state("i-1", "worker_dead")


async def test_a_worker_that_was_ended_on_purpose_is_not_counted_as_silent(fleet: Any) -> None:
    for number in range(4):
        await fleet.make(f"i-{number}", "terminated")
        await fleet.sql.execute("UPDATE instances SET terminated_at = now()")
        fleet.beat(f"i-{number}", ago=60.0)
    assert fleet.view.mass_silence(time.monotonic()).active
    async with watching(fleet):
        await fleet.until(lambda: not fleet.view.mass_silence(time.monotonic()).active, "them to be forgotten")


async def test_the_guard_says_so_once_and_takes_it_back(fleet: Any, caplog: Any) -> None:
    caplog.set_level("INFO", logger="fleetpulse")
    guard = Guard(fleet.view, fleet.reader, fleet.context.metrics)
    assert not guard.holds("one")
    assert [guard.holds("one", "own_doubt") for _ in range(3)] == [True] * 3
    assert not guard.holds("two")
    assert not guard.holds("one")
    told = [record.getMessage() for record in caplog.records]
    assert told == ["job holds still", "job acts again"]


def silence(seconds: float) -> Silence:
    return Silence(seconds, 1.0, 3.3, None)


REFUSED = ProbeResult("u", False, "connection refused", refused=True)
MUTE = ProbeResult("u", False, "no answer within 1 s")
ANSWERED = ProbeResult("u", False, "answered 503", status=503)


@pytest.mark.parametrize(
    ("seconds", "probe", "others_alive", "reason"),
    [
        (1.7, REFUSED, False, "silent_and_refused"),
        (1.7, MUTE, True, None),
        (3.4, MUTE, False, "silent"),
        (3.4, None, True, None),
        (18.4, None, False, "silent"),
        (60.0, ANSWERED, True, None),
        (121.0, ANSWERED, False, None),
        (121.0, ANSWERED, True, "silent_though_answering"),
    ],
)
def test_what_silence_and_a_probe_prove_together(
    seconds: float, probe: ProbeResult | None, others_alive: bool, reason: str | None
) -> None:
    death = death_by_silence(JobSettings(), silence(seconds), probe, others_alive)
    assert (death.reason if death is not None else None) == reason
