"""A dead worker's runtime is started again."""

from typing import Any


async def test_a_dead_workers_runtime_is_started_again_and_a_ready_ones_left_alone(fleet: Any) -> None:
    await fleet.make("i-1", "worker_dead")
    await fleet.make("i-2", "ready")
    async with fleet.running("revival"):
        await fleet.until(lambda: fleet.provider.running == {"m-i-1"}, "the start")
        # It may die of the same again.
        fleet.provider.running.clear()
        await fleet.until(lambda: fleet.provider.running == {"m-i-1"}, "another start")
    assert await fleet.state("i-1") == "worker_dead", "heartbeats alone prove it alive"
    told = await fleet.rows("SELECT DISTINCT action, succeeded, instance_id, actor FROM action_log")
    assert told == [("provider.start_runtime", True, "i-1", "job:revival")]


async def test_a_start_that_fails_is_written_down_and_tried_again(fleet: Any, provider_error: Any) -> None:
    fleet.provider.fail["start_runtime"] = provider_error()
    await fleet.make("i-1", "worker_dead")
    async with fleet.running("revival"):
        await fleet.until(lambda: fleet.provider.calls.count("start_runtime") >= 2, "two attempts")
        del fleet.provider.fail["start_runtime"]
        await fleet.until(lambda: fleet.provider.running == {"m-i-1"}, "the start")
    told = await fleet.rows("SELECT succeeded FROM action_log ORDER BY action_id")
    assert told[:2] == [(False,), (False,)]


async def test_an_instance_without_a_machine_has_nothing_to_start(fleet: Any) -> None:
    await fleet.make("i-1", "worker_dead", machine=False)
    async with fleet.running("revival"):
        outcome = {"job": "revival", "outcome": "gone"}
        await fleet.until(lambda: fleet.metric("job_outcomes_total", **outcome) == 1, "a look")
    assert fleet.provider.calls == []
