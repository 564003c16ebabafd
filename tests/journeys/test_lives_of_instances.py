"""From a request to the archive, with everything that can go wrong on the way."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from fleetpulse.client.control import ControlClient

pytestmark = pytest.mark.timeout(180)

HEARTBEAT_SECONDS = 1.0
Until = Callable[..., Awaitable[Any]]
Deploy = Callable[..., Awaitable[list[str]]]


async def state_of(client: ControlClient, instance_id: str) -> str:
    return str((await client.get(f"/instances/{instance_id}"))["state"])


async def story_of(client: ControlClient, instance_id: str) -> str:
    """All that control tells of an instance."""
    return "\n".join(each["text"] for each in (await client.get(f"/instances/{instance_id}/why"))["sentences"])


def path_of(fleet: Any, instance_id: str) -> list[str]:
    """The states it has been in."""
    rows = fleet.sql("SELECT to_state FROM instance_transitions WHERE instance_id = %s ORDER BY version", instance_id)
    return [state for (state,) in rows]


@pytest.fixture
async def deploy(client: ControlClient) -> AsyncIterator[Deploy]:
    """Make instances, which are terminated after the test."""
    made: list[str] = []

    async def make(count: int = 1, instance_type: str = "mock-l4-1", **options: Any) -> list[str]:
        asked = {
            "provider": "mock",
            "zone": "mock-east-1",
            "instance_type": instance_type,
            "model": "mock-model",
            "count": count,
            "options": options,
        }
        deployment = await client.post("/deployments", asked)
        instances = (await client.get(f"/deployments/{deployment['deployment_id']}"))["instances"]
        made.extend(each["instance_id"] for each in instances)
        return [each["instance_id"] for each in instances]

    yield make
    for instance_id in made:
        if await state_of(client, instance_id) not in {"terminating", "terminated", "archived"}:
            await client.post(f"/instances/{instance_id}/terminate")


@pytest.fixture
def reaches(client: ControlClient, until: Until) -> Callable[..., Awaitable[None]]:
    """Wait until an instance is in a state."""

    async def wait(instance_id: str, *states: str, seconds: float = 60.0) -> None:
        async def there() -> bool:
            return await state_of(client, instance_id) in states

        await until(there, seconds)

    return wait


async def test_an_instance_is_made_heard_measured_ended_and_archived(
    fleet: Any, client: ControlClient, deploy: Deploy, reaches: Any, until: Until
) -> None:
    (instance_id,) = await deploy(engine_requests_per_second=2.0)
    await reaches(instance_id, "ready")
    await until(lambda: rows(client, "gpu", instance_id))
    await until(lambda: rows(client, "engine", instance_id))
    assert fleet.sql(
        "SELECT count(*) FROM heartbeats JOIN workers USING (worker_key) WHERE instance_id = %s", instance_id
    )
    models = await client.get("/runtime-models")
    assert instance_id in str(models)
    await client.post(f"/instances/{instance_id}/terminate")
    await reaches(instance_id, "archived")
    path = path_of(fleet, instance_id)
    assert path[0] == "provisioning"
    assert path[-3:] == ["terminating", "terminated", "archived"]
    assert "ready" in path
    assert instance_id not in {each["instance_id"] for each in await fleet.machines()}
    assert "archived" in await story_of(client, instance_id)


async def rows(client: ControlClient, family: str, instance_id: str) -> list[Any]:
    query = [("window_s", "300"), ("granularity", "second"), ("instance_id", instance_id)]
    found: list[Any] = (await client.get(f"/{family}/activity", query))["rows"]
    return found


async def test_five_instances_come_up_together(deploy: Deploy, reaches: Any) -> None:
    instances = await deploy(5)
    assert len(instances) == 5
    await asyncio.gather(*(reaches(each, "ready") for each in instances))


async def test_a_machine_that_is_out_of_stock_is_asked_for_again(
    client: ControlClient, deploy: Deploy, reaches: Any
) -> None:
    (instance_id,) = await deploy(create_fails=2)
    await reaches(instance_id, "ready")
    assert "no machine of this type is free" in await story_of(client, instance_id)


async def test_a_slow_machine_and_an_address_that_comes_late_are_no_failure(
    client: ControlClient, deploy: Deploy, reaches: Any
) -> None:
    (instance_id,) = await deploy(create_slow_seconds=1.0, boot_seconds=2.0, address_after_seconds=3.0)
    await reaches(instance_id, "ready")
    actions = (await client.get(f"/instances/{instance_id}/actions"))["actions"]
    addresses = [each for each in actions if "address" in each["action"]]
    assert any(each["succeeded"] and each["detail"].get("ip_available") is False for each in addresses), addresses
    creations = [each for each in actions if each["action"] == "provider.create"]
    assert any(each["succeeded"] and each["duration_seconds"] >= 1.0 for each in creations), creations
    story = await story_of(client, instance_id)
    assert "ip available no" in story
    assert "startup_failed" not in story


async def test_a_machine_that_dies_while_booting_is_a_failed_start(
    fleet: Any, client: ControlClient, deploy: Deploy, reaches: Any
) -> None:
    (instance_id,) = await deploy(dies_while_booting=True)
    await reaches(instance_id, "terminated", "archived")
    assert "ready" not in path_of(fleet, instance_id)
    assert path_of(fleet, instance_id)[-1] in {"terminated", "archived"}
    assert instance_id not in {each["instance_id"] for each in await fleet.machines()}
    assert "the machine has failed" in await story_of(client, instance_id)


async def test_an_engine_that_never_loads_its_model_is_a_failed_start(
    fleet: Any, client: ControlClient, deploy: Deploy, reaches: Any
) -> None:
    (instance_id,) = await deploy(engine_never_ready=True)
    await reaches(instance_id, "startup_failed", "terminating", "terminated", "archived", seconds=90)
    assert "ready" not in path_of(fleet, instance_id)
    assert "startup_failed" in path_of(fleet, instance_id)
    assert "the engine is not ready" in await story_of(client, instance_id)


async def test_a_deletion_that_is_not_done_is_noticed_and_repeated(
    fleet: Any, client: ControlClient, deploy: Deploy, reaches: Any
) -> None:
    (instance_id,) = await deploy(delete_silently_fails=2)
    await reaches(instance_id, "ready")
    await client.post(f"/instances/{instance_id}/terminate")
    await reaches(instance_id, "terminated", "archived")
    assert instance_id not in {each["instance_id"] for each in await fleet.machines()}
    deletions = [
        each
        for each in (await client.get(f"/instances/{instance_id}/actions"))["actions"]
        if "delete" in each["action"]
    ]
    assert len(deletions) >= 3
    assert ", at attempt " in await story_of(client, instance_id)


async def test_a_machine_that_vanishes_is_ended_with_the_reason(
    client: ControlClient, deploy: Deploy, reaches: Any
) -> None:
    (instance_id,) = await deploy(vanishes_after_seconds=12.0)
    await reaches(instance_id, "ready")
    await reaches(instance_id, "terminated", "archived", seconds=90)
    assert "no longer has machine" in await story_of(client, instance_id)


async def test_an_engine_that_stalls_takes_its_worker_off_and_one_that_goes_on_brings_it_back(
    fleet: Any, client: ControlClient, deploy: Deploy, reaches: Any
) -> None:
    (instance_id,) = await deploy(engine_requests_per_second=4.0)
    await reaches(instance_id, "ready")
    await fleet.trouble(instance_id, options={"engine_stalls": True})
    await reaches(instance_id, "worker_dead")
    assert "step" in await story_of(client, instance_id)
    await fleet.trouble(instance_id, options={"engine_stalls": False})
    await reaches(instance_id, "ready")


async def test_a_killed_worker_is_dead_within_two_heartbeats_and_a_second(
    fleet: Any, client: ControlClient, deploy: Deploy, reaches: Any
) -> None:
    # Others that live: one of one would be everybody, which proves nothing.
    instance_id, *others = await deploy(4)
    await asyncio.gather(*(reaches(each, "ready") for each in (instance_id, *others)))
    os.kill((await fleet.machine_of(instance_id))["agent_pid"], signal.SIGKILL)
    killed_at = time.time()
    await reaches(instance_id, "worker_dead", seconds=10)
    ((at,),) = fleet.sql(
        "SELECT extract(epoch FROM at)::float8 FROM instance_transitions WHERE instance_id = %s"
        " AND to_state = 'worker_dead' ORDER BY version DESC LIMIT 1",
        instance_id,
    )
    assert at - killed_at < 2 * HEARTBEAT_SECONDS + 1
    assert "no agent runs there" in await story_of(client, instance_id)
    await fleet.trouble(instance_id, acts={"agent": "start"})
    await reaches(instance_id, "ready")
    assert {await state_of(client, each) for each in others} == {"ready"}


async def test_nobody_is_dead_while_the_broker_stands_still_for_a_minute(
    fleet: Any, client: ControlClient, deploy: Deploy, reaches: Any, until: Until
) -> None:
    instances = await deploy(3)
    await asyncio.gather(*(reaches(each, "ready") for each in instances))
    fleet.broker.freeze()
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert {await state_of(client, each) for each in instances} == {"ready"}
            await asyncio.sleep(1)
    finally:
        fleet.broker.thaw()

    async def heard() -> bool:
        workers = (await client.workers())["workers"]
        alive = {each["instance_id"] for each in workers if each["state"] == "alive"}
        return alive >= set(instances)

    await until(heard)
    assert all("worker_dead" not in path_of(fleet, each) for each in instances)


async def test_a_killed_control_service_loses_and_doubles_nothing(
    fleet: Any, client: ControlClient, deploy: Deploy, reaches: Any
) -> None:
    instances = await deploy(6)
    fleet.controls[0].kill()
    try:
        await asyncio.gather(*(reaches(each, "ready", seconds=90) for each in instances))
        for each in instances:
            await client.post(f"/instances/{each}/terminate")
        await asyncio.gather(*(reaches(each, "archived", seconds=90) for each in instances))
    finally:
        fleet.controls[0].start()
    made = fleet.sql(
        "SELECT count(DISTINCT detail ->> 'machine_id') FROM action_log"
        " WHERE instance_id = ANY(%s) AND action LIKE '%%create%%' AND succeeded GROUP BY instance_id",
        instances,
    )
    assert made == [(1,)] * 6
    doubled = fleet.sql(
        "SELECT instance_id, to_state FROM instance_transitions WHERE instance_id = ANY(%s)"
        " GROUP BY instance_id, to_state HAVING count(*) > 1",
        instances,
    )
    assert doubled == []
    assert not {each["instance_id"] for each in await fleet.machines()} & set(instances)
